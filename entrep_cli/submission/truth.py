"""Scoring a submission against a truth file: what a team can know before the board tells it.

    scores = score_submission(submission, Path("test/truth_i2i.json"), 2, taxonomy)

Relevance in tracks 2 and 3 is named: `pair` is the one image that the truth file names; `finding` any
that shares a finding with the query, where `groups.csv` beside it has texts; `class` any of its class,
by `truth_cls.json` beside it (and by the labels handed in, for answers out of the training images).
The boards' own rule is not published (challenge.md, Scores).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from entrep_cli.data.files import read_text
from entrep_cli.data.groups import read_findings, read_groups
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy, choose_taxonomy
from entrep_cli.data.texts import finding_keys
from entrep_cli.data.tracks import track_of
from entrep_cli.errors import DataError
from entrep_cli.evaluation.classification import ClassificationScores
from entrep_cli.evaluation.retrieval import RetrievalScores
from entrep_cli.evaluation.truth import read_truth, truth_classes
from entrep_cli.retrieval.sets import image_groups
from entrep_cli.submission.tracks import Submission


@dataclass(frozen=True)
class SubmissionScores:
    """Scores of one submission.

    Attributes:
        classification: of track 1, else None.
        retrieval: of tracks 2 and 3, by name: the relevance, and whether own-group answers count.
        notes: what a reader of the numbers must know, one line each.
        chance: Recall@1 of a test image drawn at random, by the name of the relevance.
    """

    classification: ClassificationScores | None
    retrieval: dict[str, RetrievalScores]
    notes: list[str]
    chance: dict[str, float] = field(default_factory=dict)


def truth_taxonomy(truth_path: Path, track: int) -> Taxonomy:
    """Classes from nothing but a truth file: its own in track 1, else those of `truth_cls.json` beside it.

    Class ids in it stand for themselves; of names it is as in `choose_taxonomy`.
    """
    path = truth_path if track == 1 else truth_path.with_name(track_of(1).truth_file)
    values = list(read_truth(path).values()) if track == 1 or path.is_file() else []
    ids = sorted({value for value in values if isinstance(value, int)})
    if not ids:
        return choose_taxonomy(values)
    return Taxonomy("ids of the truth", tuple(ClassInfo(str(value), value, str(value)) for value in ids))


def score_submission(
    submission: Submission,
    truth_path: Path,
    track: int,
    taxonomy: Taxonomy,
    train_labels: Mapping[str, str] | None = None,
    root: Path | None = None,
) -> SubmissionScores:
    """Score a submission.

    Every truth entry counts: a query without an answer is a miss. Only where tracks 2 and 3 are
    scored by `truth_cls.json` itself, which names more images than were asked, queries without an
    answer are left out. Groups, of which the intervals are made, are those of `image_groups` for the
    truth file's folder; where answers lie in the query's own group, the retrieval is scored a second
    time with those answers taken out of the ranked list. A query for which no image is known to be
    right, or whose own class is not known, is left out and counted.

    Args:
        train_labels: the class of each training image that may be answered, by the name in answers.
        root: the dataset.

    Raises:
        DataError: the truth file is faulty, or it or the answers are of another track.
    """
    truth = read_truth(truth_path)
    by_class_only = track != 1 and truth_path.name == track_of(1).truth_file
    if track != 1 and not by_class_only:
        faults = [f"{query!r}: {value!r} is no file name" for query, value in truth.items() if not isinstance(value, str)]
        if faults:
            raise DataError("The truth is of another track.", where=truth_path, faults=faults, hint=f"--truth {track_of(track).truth_file}")
    missing = [query for query in truth if query not in submission.answers]
    extra = [query for query in submission.answers if query not in truth]
    if len(missing) == len(truth):
        raise DataError(
            "The truth file knows none of the submission's queries.", where=truth_path, hint="is it of another track or another test set?"
        )
    kind, kind_name = (int, "class ids") if track == 1 else (str, "file names")
    if not any(isinstance(submission.answers.get(query), kind) for query in truth):
        raise DataError(f"The answers are no {kind_name}.", where=submission.path, hint="is the submission of another track?")
    notes = []
    if missing and not by_class_only:
        notes.append(f"{len(missing)} queries have no answer and count as wrong")
    if extra:
        notes.append(f"{len(extra)} answers are to queries that the truth file does not know; they do not count")
    group_of = image_groups(truth_path.parent, root)
    if track == 1:
        classification, more = _score_classes(submission, truth, truth_path, taxonomy, group_of)
        return SubmissionScores(classification, {}, notes + more)
    labels = dict(train_labels or {})
    beside = truth_path.with_name(track_of(1).truth_file)
    if beside.is_file():
        known = read_truth(beside)
        labels |= zip(known, truth_classes(known, taxonomy, beside))
    named = {} if by_class_only else {query: str(answer) for query, answer in truth.items()}
    queries = [query for query in truth if query in submission.answers] if by_class_only else list(truth)
    findings = read_findings(truth_path.parent)
    # The images that a test folder is known to have: those of its groups or of its findings.
    known = read_groups(truth_path.parent).keys() | findings.keys()
    scores = _score_answers(submission, queries, named, track, labels, group_of, findings, known)
    return replace(scores, notes=notes + scores.notes)


def _score_answers(
    submission: Submission,
    queries: list[str],
    named: Mapping[str, str],
    track: int,
    labels: Mapping[str, str],
    group_of: Callable[[str], str],
    findings: Mapping[str, set[str]],
    known: set[str],
) -> SubmissionScores:
    """Tracks 2 and 3. `named` holds the image that the truth names for each query, or nothing at all; `known` test images."""
    notes = []
    ranked = _ranked(submission)
    if ranked is None:
        notes.append("no ranked CSV lies beside the submission: only the first answers are scored")
        ranked = {query: [str(answer)] for query, answer in submission.answers.items()}
    depth = max(map(len, ranked.values()))
    # A text has the class and the group of the image that the truth names for it.
    shown = {query: query if track == 2 else named[query] for query in queries}
    relevant = {"pair": {query: {named[query]} - {query} for query in queries}} if named else {}
    wanted = {query: findings.get(query, set()) if track == 2 else set(finding_keys(query)) for query in queries}
    if findings:
        alike = {query: {image for image, keys in findings.items() if keys & wanted[query]} - {query} for query in queries}
        if any(alike.values()):
            relevant["finding"] = alike
    labelled = [query for query in queries if labels.get(shown[query])]
    if labelled:
        of_class: dict[str, set[str]] = {}
        for name, label in labels.items():
            of_class.setdefault(label, set()).add(name)
        relevant["class"] = {query: of_class.get(labels.get(shown[query], ""), set()) - {query} for query in queries}
        unknown = sum(answer not in labels for query in labelled for answer in ranked.get(query, ())[:1])
        if unknown:
            notes.append(f"{unknown} answers have no known class and count as wrong")

    def masked(query: str, images: Iterable[str]) -> list[str]:
        """Those that are not of the query's own group."""
        group = group_of(query)
        return [image for image in images if not group or group_of(image) != group]

    others = {query: masked(query, answers) for query, answers in ranked.items()}
    leaks = track == 2 and any(others[query] != ranked[query] for query in queries if query in ranked)
    retrieval = {}
    for relevance, right in relevant.items():
        keys = _group_keys([shown[query] for query in right], group_of)
        retrieval[relevance] = _scores(ranked, right, relevance, keys, depth)
        if leaks:
            right = {query: set(masked(query, images)) for query, images in right.items()}
            retrieval[f"{relevance}, own group masked"] = _scores(others, right, relevance, keys, depth)
    if leaks:
        n_own = sum(others[query][:1] != ranked[query][:1] for query in queries if query in ranked)
        notes.append(f"{n_own} first answers are frames of the query's own group: a leak, unless the board wants them")
        notes.append("masked scores are lower bounds: the lists were cut before masking (`predict --mask-groups` masks first)")
    known = known | {shown[query] for query in queries}
    chance = {
        relevance: float(np.mean([len(images & known) / max(len(known - {query}), 1) for query, images in right.items() if images]))
        for relevance, right in relevant.items()
        if any(right.values())
    }
    return SubmissionScores(None, retrieval, notes, chance)


def _score_classes(
    submission: Submission, truth: Mapping[str, str | int], where: Path, taxonomy: Taxonomy, group_of: Callable[[str], str]
) -> tuple[ClassificationScores, list[str]]:
    index_of_id = {c.id: i for i, c in enumerate(taxonomy.classes)}
    wanted = np.array(taxonomy.indices(truth_classes(truth, taxonomy, where)))
    # One more class holds what is no class at all, so that it counts as wrong and not as missing.
    answers = [submission.answers.get(query) for query in truth]
    given = np.array([index_of_id.get(a, len(taxonomy)) if isinstance(a, int) else len(taxonomy) for a in answers])
    names, notes = list(taxonomy.names), []
    reject = bool((given == len(taxonomy)).any())
    if reject:
        names.append("(no answer)")
    strange = sum(answer is not None for answer, index in zip(answers, given) if index == len(taxonomy))
    if strange:
        notes.append(f"{strange} answers are no class id of {taxonomy.name} and count as wrong")
    return ClassificationScores(wanted, given, names, _group_keys(list(truth), group_of), reject=reject), notes


def _scores(
    ranked: Mapping[str, list[str]], relevant: Mapping[str, set[str]], relevance: str, groups: list[str] | None, depth: int
) -> RetrievalScores:
    """Scores of the queries in `relevant`, which holds the images that are right for each."""
    hits = [[answer in right for answer in ranked.get(query, ())] for query, right in relevant.items()]
    first = np.array([row.index(True) + 1 if True in row else 0 for row in hits])
    n_relevant = np.array([len(right) for right in relevant.values()])
    # The gallery is not known here, and with it how many right answers it holds: no average precision.
    return RetrievalScores(first, np.full(len(first), np.nan), n_relevant, relevance, groups, depth)


def _group_keys(names: list[str], group_of: Callable[[str], str]) -> list[str] | None:
    """The group of each, "" for one of its own; None where no one has any."""
    keys = [group_of(name) for name in names]
    return keys if any(keys) else None


def _ranked(submission: Submission) -> dict[str, list[str]] | None:
    """The ranked list beside a submission, if it is of this submission: its first answers must agree."""
    path = submission.path.with_suffix(".csv")
    if not path.is_file():
        return None
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if rows.fieldnames != ["query", "rank", "answer", "score"]:
        return None
    ranked: dict[str, list[str]] = {}
    for row in rows:
        ranked.setdefault(row["query"], []).append(row["answer"])
    agree = all(ranked.get(q, [None])[0] == str(a) for q, a in submission.answers.items())
    return {query: ranked[query] for query in submission.answers} if agree else None
