"""`validate`: is a submission what the contest takes?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.errors import DataError, UsageError
from entrep_cli.results import Result, Table
from entrep_cli.workspace import data_dir, data_dir_exists, open_run

if TYPE_CHECKING:
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.data.testsets import TestSet
    from entrep_cli.submission.archive import Fault
    from entrep_cli.submission.checks import Report
    from entrep_cli.submission.correction import Correction
    from entrep_cli.submission.suspicions import Suspicion


@dataclass(frozen=True)
class Compared:
    """Answers with a known class beside what a run or a truth expects: `compared` of them, of which `agree`."""

    by: str
    compared: int
    agree: int


@dataclass(frozen=True)
class Validation(Result):
    """What was checked of a submission.

    Attributes:
        track: its name, as in "Track 1, classification".
        against: what it was checked against.
        report: all faults, and what was not checked. correction: which of them have a certain fix.
        compared: with a run or a truth, where one was named; suspicion: the mistake that this, or the ids alone, suggest.
        fix: whether a corrected copy was asked for. written: that copy, valid.
    """

    file: Path
    track: str
    against: str
    report: Report
    correction: Correction
    compared: Compared | None
    suspicion: Suspicion | None
    fix: bool
    written: Path | None

    @property
    def ok(self) -> bool:
        """Whether a file without faults exists now: this one, or its corrected copy."""
        return self.report.ok or self.written is not None

    @property
    def upload(self) -> Path | None:
        """The file that can be uploaded; None without one, or where not all was checked."""
        return (self.written or self.file) if self.ok and not self.report.skipped else None

    def warnings(self, limit: int = 5) -> list[str]:
        """Every kind of fault with at most `limit` examples, what was not checked, and what is suspected."""
        from entrep_cli.submission.suspicions import MIN_PAIRS

        lines = self.report.lines(limit)[1:]
        if self.compared is not None and self.compared.compared < MIN_PAIRS:
            n = self.compared.compared
            lines.append(f"not checked: whether ids or sides are exchanged ({n} answers with a known class are too few)")
        return lines + ([] if self.suspicion is None else [f"{self.suspicion.kind}: {self.suspicion.message}"])

    def tables(self) -> list[Table]:
        report, compared = self.report, self.compared
        rows: list[tuple[str, object]] = [
            ("file", self.file),
            ("checked against", self.against),
            ("entries", "unreadable" if report.n_entries is None else report.n_entries),
            ("faults", len(report.faults)),
            ("valid", "NO" if not report.ok else "as far as was checked" if report.skipped else "yes"),
            *(("not checked", what) for what in report.skipped),
        ]
        if compared is not None:
            rows.append((f"agree with {compared.by}", f"{compared.agree} of {compared.compared}"))
        tables = [Table(self.track, ["", "value"], rows)]
        if self.fix:
            nothing = "nothing: the file has no fault" if report.ok else "nothing: fix the other faults first"
            rows = [
                ("corrected" if self.written else "could be corrected", _counts(self.correction.corrected)),
                ("no certain fix", _counts(self.correction.left)),
                ("written and validated", self.written or nothing),
            ]
            tables.append(Table("Corrected copy", ["", "value"], rows))
        return tables

    def to_dict(self) -> dict[str, Any]:
        from entrep_cli.submission.checks import plain_faults

        report, correction = self.report, self.correction
        fix = {
            "written": None if self.written is None else str(self.written),
            "corrected": plain_faults(correction.corrected),
            "left": plain_faults(correction.left),
        }
        return {
            **report.as_dict(),
            "ok": self.ok,
            "valid": None if report.ok and report.skipped else report.ok,  # None: no fault, but not all was checked
            "fixable": correction.certain,
            "compared": None if self.compared is None else vars(self.compared),
            "suspicions": [] if self.suspicion is None else [self.suspicion.as_dict()],
            "fix": fix if self.fix else None,
        }


def validate(
    file: str | Path,
    *,
    track: int,
    queries: str | Path | None = None,
    gallery: str | None = None,
    data: str | Path | None = None,
    run: str | None = None,
    truth: str | Path | None = None,
    fix: bool = False,
    out: str | Path | None = None,
    device: str = "auto",
) -> Validation:
    """Check anybody's submission; nothing of it is extracted or executed.

    Args:
        file: a zip, or the JSON in it. track: 1, 2 or 3.
        queries: the query file or its folder; None for the dataset's test folder.
        gallery: what tracks 2 and 3 may answer, as for `predict`; None for any known image.
        data: the dataset folder.
        run, truth: compare with what this run predicts, or with this truth file.
        fix: write a corrected copy to `out` (None: NAME-fixed.zip beside the file) if every fix is certain.
        device: where the run's model computes.

    Raises:
        UsageError: options that do not go together. DataError: the dataset or the truth is at fault; the submission never raises.
    """
    from entrep_cli.data.tracks import track_of
    from entrep_cli.submission.checks import check_submission
    from entrep_cli.submission.correction import check_out, correct_submission, write_corrected
    from entrep_cli.submission.tracks import read_queries

    wanted = track_of(track)
    file, queries, out, truth = Path(file), _path(queries), _path(out), _path(truth)
    if out is not None and not fix:
        raise UsageError("--out names the corrected copy.", hint="add --fix, or leave it out")
    if out is not None:
        check_out(out, file)
    if run is not None and truth is not None:
        raise UsageError("--run and --truth are two things to compare with.", hint="leave one of them out")
    if run is not None and track == 3:
        raise UsageError("A run knows the classes of images, and the queries of track 3 are texts.", hint=f"--truth {wanted.truth_file}")
    if gallery is not None and track == 1:
        raise UsageError("--gallery is what tracks 2 and 3 answer; the answers of track 1 are class ids.", hint="leave it out")
    from entrep_cli.data.layouts import known_images
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.data.testsets import find_test_sets, lies_alone, named_test_set, only_test_set
    from entrep_cli.submission.archive import bare_name

    root = data_dir(data) if data is not None or data_dir_exists() else None
    tests = find_test_sets(root) if root else []
    if queries is None:
        # Of several test folders the queries of one are meant, and which one must be named.
        test_set = only_test_set(root) if root and len(tests) > 1 else next(iter(tests), None)
    else:
        test_set = None if queries.is_file() and lies_alone(queries) else named_test_set(queries)
    path = queries if queries is not None and queries.is_file() else test_set.queries.get(track) if test_set else None
    asked = read_queries(path, track, known_names=test_set.images if test_set else None, warn=console.warn) if path else None
    images, taxonomy = known_images(root) if root is not None else ({}, None)
    taxonomy = taxonomy or Taxonomy.entrep()
    if gallery is None:
        # Which gallery the boards search is not stated: any image of the dataset may be answered.
        names: Collection[str] | None = (
            set(map(bare_name, images)).union(*(t.images for t in tests), test_set.images if test_set else ()) or None
        )
    else:
        from entrep_cli.submission.answers import gallery_names

        names = gallery_names(gallery, test_set or only_test_set(data_dir(data)), images, asked if track == 2 and asked else ())
    known: dict[str, Any] = {"queries": asked, "gallery": names, "classes": {c.name: c.id for c in taxonomy.classes}}
    report, correction = check_submission(file, track, **known), correct_submission(file, track, **known)
    seen_by = None if not correction.answers else truth if truth is not None else run
    compared, suspicion = _compared(correction, track, taxonomy, images, seen_by, test_set, queries, root, device)
    written = None
    if fix and correction.certain:
        written = out or file.with_name(f"{file.stem}-fixed.zip")
        write_corrected(correction, written)
        again = check_submission(written, track, **known)
        if not again.ok:
            raise DataError("The corrected copy is not valid.", where=written, faults=again.lines())
    against = ", ".join(map(str, filter(None, (queries, root)))) or f"no dataset; the classes of {taxonomy.name}"
    return Validation(file, f"Track {track}, {wanted.name}", against, report, correction, compared, suspicion, fix, written)


def _path(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


def _compared(
    correction: Correction,
    track: int,
    taxonomy: Taxonomy,
    images: dict[str, str],
    seen_by: str | Path | None,
    test_set: TestSet | None,
    queries: Path | None,
    root: Path | None,
    device: str,
) -> tuple[Compared | None, Suspicion | None]:
    """How many answers agree with a truth file or with a run (its name), and which mistake is suspected."""
    from entrep_cli.data.testsets import named_test_set, only_test_set
    from entrep_cli.submission import suspicions
    from entrep_cli.submission.tracks import answer_labels

    alone = suspicions.count_from_one(correction.answers.values(), taxonomy) if track == 1 else None
    if seen_by is None:
        return None, alone
    named: dict[str, str] = {}
    if isinstance(seen_by, Path):
        by = f"the truth {seen_by.name}"
        expected, named = suspicions.expected_by_truth(seen_by, track, taxonomy)
    else:
        from entrep_cli.retrieval.sets import open_model

        opened = open_run(seen_by)
        looked_at = test_set
        if looked_at is None and queries:
            looked_at = named_test_set(queries, root)
        elif looked_at is None and root:
            looked_at = only_test_set(root)
        if looked_at is None:
            raise DataError("No images that the run could look at.", hint="--queries FOLDER, or --data FOLDER")
        model = open_model(opened, device)
        by, taxonomy = f"run {opened.name}", model.taxonomy
        expected = suspicions.expected_by_run(opened, model, looked_at, root)
    # Training images may be answered too, and their labels are known.
    expected = suspicions.ids_of(answer_labels(images), taxonomy) | expected
    pairs = suspicions.class_pairs(correction.answers, track, expected, named)
    compared = Compared(by, len(pairs), sum(given == wanted for given, wanted in pairs))
    return compared, suspicions.suspect(pairs, taxonomy, track, by=by) or alone


def _counts(faults: Iterable[Fault]) -> str:
    return ", ".join(f"{kind} ({n})" for kind, n in Counter(fault.kind for fault in faults).items()) or "-"
