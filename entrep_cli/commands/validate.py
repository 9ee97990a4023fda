"""`entrep validate`: is a submission what the contest takes?"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import DataError, UsageError
from entrep_cli.workspace import data_dir, data_dir_exists, open_run

if TYPE_CHECKING:
    from entrep_cli.submission.archive import Fault


def validate(
    file: Annotated[Path, typer.Argument(help="A zip, or the JSON in it.")],
    track: Annotated[int, typer.Option(help="1 classification, 2 image-to-image, 3 text-to-image.")],
    queries: Annotated[
        Path | None,
        typer.Option(help="The query file, or the folder that holds it (default: the dataset's test folder).", show_default=False),
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(help="What tracks 2 and 3 may answer, as for predict (default: any image that is known).", show_default=False),
    ] = None,
    data: options.Data = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Compare with what this run sees: are ids or sides exchanged? Tracks 1 and 2.", show_default=False),
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Compare with this truth file, likewise.", show_default=False)] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Write a corrected copy, if every hint is certain.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The corrected copy (default: NAME-fixed.zip beside the file).", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="How many examples of each fault to show.", min=1)] = 5,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep validate runs/clip-lora/submissions/track1.zip --track 1

    Check anybody's submission and list every fault with its hint. Nothing is extracted or executed. With
    --run or --truth, also tell ids in alphabetical order, ids from 1 and exchanged sides: a warning, never
    a fault. With --fix, write a corrected copy where no hint is a guess; the file itself stays as it is.

    Exit code 1 where there is a fault, and no corrected copy without one.
    """
    from entrep_cli.data.layouts import known_images
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.data.testsets import find_test_sets, lies_alone, named_test_set, only_test_set
    from entrep_cli.data.tracks import track_of
    from entrep_cli.submission import suspicions
    from entrep_cli.submission.archive import bare_name
    from entrep_cli.submission.checks import check_submission, plain_faults
    from entrep_cli.submission.correction import check_out, correct_submission, write_corrected
    from entrep_cli.submission.tracks import answer_labels, read_queries

    wanted = track_of(track)
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
    root = data_dir(data) if data is not None or data_dir_exists() else None
    tests = find_test_sets(root) if root else []
    file_named = queries is not None and queries.is_file()
    if queries is None:
        # Of several test folders the queries of one are meant, and which one must be told.
        test_set = only_test_set(root) if len(tests) > 1 else next(iter(tests), None)
    else:
        test_set = None if file_named and lies_alone(queries) else named_test_set(queries)
    path = queries if file_named else test_set.queries.get(track) if test_set else None
    asked = read_queries(path, track, known_names=test_set.images if test_set else None, warn=console.warn) if path else None
    images, taxonomy = known_images(root) if root is not None else ({}, None)
    if gallery is None:
        # Which gallery the boards search is not stated: any image of the dataset may be answered.
        names = set(map(bare_name, images)).union(*(t.images for t in tests), test_set.images if test_set else ()) or None
    else:
        from entrep_cli.submission.answers import gallery_names

        names = gallery_names(gallery, test_set or only_test_set(data_dir(data)), images, asked if track == 2 and asked else ())
    taxonomy = taxonomy or Taxonomy.entrep()
    known = {"queries": asked, "gallery": names, "classes": {c.name: c.id for c in taxonomy.classes}}
    report = check_submission(file, track, **known)
    correction = correct_submission(file, track, **known)

    rows = [
        ("file", file),
        ("checked against", ", ".join(map(str, filter(None, (queries, root)))) or f"no dataset; the classes of {taxonomy.name}"),
        ("entries", "unreadable" if report.n_entries is None else report.n_entries),
        ("faults", len(report.faults)),
        ("valid", "NO" if not report.ok else "as far as was checked" if report.skipped else "yes"),
        *(("not checked", what) for what in report.skipped),
    ]
    suspicion = suspicions.count_from_one(correction.answers.values(), taxonomy) if track == 1 else None
    compared = None
    if correction.answers and (run is not None or truth is not None):
        if truth is not None:
            by = f"the truth {truth.name}"
            expected, named = suspicions.expected_by_truth(truth, track, taxonomy)
        else:
            from entrep_cli.retrieval.sets import open_model

            opened = open_run(run)
            seen = test_set or (named_test_set(queries, root) if queries else root and only_test_set(root))
            if seen is None:
                raise DataError("There are no images that the run could look at.", hint="--queries FOLDER, or --data FOLDER")
            model = open_model(opened, device)
            by, taxonomy = f"run {opened.name}", model.taxonomy
            expected, named = suspicions.expected_by_run(opened, model, seen, root), {}
        # Training images may be answered too, and their labels are known.
        expected = suspicions.ids_of(answer_labels(images), taxonomy) | expected
        pairs = suspicions.class_pairs(correction.answers, track, expected, named)
        compared = {"by": by, "compared": len(pairs), "agree": sum(given == meant for given, meant in pairs)}
        rows.append((f"agree with {by}", f"{compared['agree']} of {len(pairs)}"))
        suspicion = suspicions.suspect(pairs, taxonomy, track, by=by) or suspicion
        if len(pairs) < suspicions.MIN_PAIRS:
            console.warn(f"not checked: whether ids or sides are exchanged ({len(pairs)} answers with a known class are too few)")
    console.table(f"Track {track}, {wanted.name}", ["", ""], rows)
    for line in report.lines(limit)[1:]:
        console.warn(line)
    if suspicion is not None:
        console.warn(f"{suspicion.kind}: {suspicion.message}")

    written = None
    if fix and correction.certain:
        written = out or file.with_name(f"{file.stem}-fixed.zip")
        write_corrected(correction, written)
        again = check_submission(written, track, **known)
        if not again.ok:
            raise DataError("The corrected copy is not valid.", where=written, faults=again.lines())
    if fix:
        corrected = "corrected" if written else "could be corrected"
        nothing = "nothing: there is no fault" if report.ok else "nothing: hint the others first"
        fixed = [
            (corrected, _counts(correction.corrected)),
            ("no certain hint", _counts(correction.left)),
            ("written and validated", written or nothing),
        ]
        console.table("Corrected copy", ["", ""], fixed)
    elif correction.certain:
        more = options.flags(track=track, queries=queries, gallery=gallery, data=data)
        console.next_commands(f"entrep validate {shlex.quote(str(file))}{more} --fix")
    if (report.ok or written) and not report.skipped:
        console.say(f"It can be uploaded as it is: {written or file}")
    return {
        **report.as_dict(),
        "ok": report.ok or written is not None,
        "valid": None if report.ok and report.skipped else report.ok,  # None: no fault, but not all was checked
        "fixable": correction.certain,
        "compared": compared,
        "suspicions": [] if suspicion is None else [suspicion.as_dict()],
        "fix": {
            "written": None if written is None else str(written),
            "corrected": plain_faults(correction.corrected),
            "left": plain_faults(correction.left),
        }
        if fix
        else None,
    }


def _counts(faults: Iterable[Fault]) -> str:
    return ", ".join(f"{kind} ({n})" for kind, n in Counter(fault.kind for fault in faults).items()) or "-"
