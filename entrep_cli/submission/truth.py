"""Scoring a submission against a truth file: what a team can know before the board does.

    scores = score_submission(submission, Path("test/truth_i2i.json"), 2, taxonomy)

Relevance in tracks 2 and 3 is named: `pair` is the one image that the truth file names; `finding` any
with a finding of the query, where `groups.csv` beside it has texts; `class` any of its class, by
`truth_cls.json` beside it (and by the labels handed in, for answers out of the training images).
The boards' rule is not published (challenge.md, Scores).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
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
from entrep_cli.evaluation.subsets import SubsetScores, chance_recall
from entrep_cli.evaluation.truth import class_truth, read_truth, truth_classes
from entrep_cli.retrieval.sets import image_groups
from entrep_cli.submission.tracks import Submission


def truth_taxonomy(truth_path: Path, track: int) -> Taxonomy:
    """Classes from nothing but a truth file: those in it in track 1, else those of `truth_cls.json` beside it.

    Class ids stand for themselves; names are read as by `choose_taxonomy`.
    """
    values = list(class_truth(truth_path, track)[1].values())
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
) -> SubsetScores:
    """Score a submission.

    Every truth entry counts: a query without an answer is a miss. Only where tracks 2 and 3 are
    scored by `truth_cls.json` itself, which names more images than were asked, queries without an
    answer are left out. Groups, of which the intervals are made, are those of `image_groups` for the
    truth file's folder; where answers lie in the query's group, the retrieval is scored a second
    time with those answers taken out of the ranked list. A query for which no image is known to be
    right, or whose class is not known, is left out and counted. Chance is that of a test image drawn
    at random.

    Args:
        train_labels: the class of each training image that may be answered, by the name in answers.
        root: the dataset.

    Raises:
        DataError: the truth file is faulty, or it or the answers are of another track.
    """
    truth = read_truth(truth_path)
    by_class_only = track != 1 and truth_path.name == track_of(1).truth_file
    _check_track(submission, truth, truth_path, track, by_class_only)
    missing = sum(query not in submission.answers for query in truth)
    extra = sum(query not in truth for query in submission.answers)
    notes = []
    if missing and not by_class_only:
        notes.append(f"{missing} queries have no answer and count as wrong")
    if extra:
        notes.append(f"{extra} answers are to queries that the truth file does not know; they do not count")
    group_of = image_groups(truth_path.parent, root)
    if track == 1:
        return _score_classes(submission, truth_classes(truth, taxonomy, truth_path), taxonomy, group_of, notes)
    beside, classes = class_truth(truth_path, track)
    labels = {**(train_labels or {}), **truth_classes(classes, taxonomy, beside)}
    named = {} if by_class_only else {query: str(answer) for query, answer in truth.items()}
    queries = [query for query in truth if query in submission.answers] if by_class_only else list(truth)
    findings = read_findings(truth_path.parent)
    ranked = _ranked(submission)
    if ranked is None:
        notes.append("no ranked CSV lies beside the submission: only the first answers are scored")
        ranked = {query: [str(answer)] for query, answer in submission.answers.items()}
    # A text has the class and the group of the image that the truth names for it.
    image_of = {query: query if track == 2 else named[query] for query in queries}
    relevant = {"pair": {query: {named[query]} - {query} for query in queries}} if named else {}
    if findings:
        wanted = {query: findings.get(query, set()) if track == 2 else set(finding_keys(query)) for query in queries}
        alike = {query: {image for image, keys in findings.items() if keys & wanted[query]} - {query} for query in queries}
        if any(alike.values()):
            relevant["finding"] = alike
    labelled = [query for query in queries if labels.get(image_of[query])]
    if labelled:
        of_class: dict[str, set[str]] = {}
        for name, label in labels.items():
            of_class.setdefault(label, set()).add(name)
        relevant["class"] = {query: of_class.get(labels.get(image_of[query], ""), set()) - {query} for query in queries}
        unknown = sum(answer not in labels for query in labelled for answer in ranked.get(query, ())[:1])
        if unknown:
            notes.append(f"{unknown} answers have no known class and count as wrong")
    # The images that a test folder is known to have: those of its groups or of its findings, and the queries.
    known = read_groups(truth_path.parent).keys() | findings.keys() | set(image_of.values())
    chance = {
        relevance: chance_recall([(len(images & known), len(known - {query})) for query, images in right.items() if images])
        for relevance, right in relevant.items()
        if any(right.values())
    }
    keys = _group_keys(image_of.values(), group_of)
    retrieval = _score_rankings(ranked, relevant, keys, group_of if track == 2 else None, notes)
    return SubsetScores(None, retrieval, chance, notes=notes)


def _check_track(submission: Submission, truth: Mapping[str, str | int], where: Path, track: int, by_class_only: bool) -> None:
    """DataError where the truth or the answers are of another track, or of other queries."""
    if track != 1 and not by_class_only:
        faults = [f"{query!r}: {value!r} is no file name" for query, value in truth.items() if not isinstance(value, str)]
        if faults:
            raise DataError("The truth is of another track.", where=where, faults=faults, hint=f"--truth {track_of(track).truth_file}")
    answers = [submission.answers[query] for query in truth if query in submission.answers]
    if not answers:
        hint = "is it of another track or another test set?"
        raise DataError("The truth file knows none of the submission's queries.", where=where, hint=hint)
    kind, kind_name = (int, "class ids") if track == 1 else (str, "file names")
    if not any(isinstance(answer, kind) for answer in answers):
        raise DataError(f"The answers are no {kind_name}.", where=submission.path, hint="is the submission of another track?")


def _score_classes(
    submission: Submission, labels: Mapping[str, str], taxonomy: Taxonomy, group_of: Callable[[str], str], notes: list[str]
) -> SubsetScores:
    """Track 1; `labels` gives the true class of each query, `notes` is added to."""
    index_of_id = {c.id: i for i, c in enumerate(taxonomy.classes)}
    # One more class holds what is no class at all, so that it counts as wrong and not as missing.
    no_class = len(taxonomy)
    answers = [submission.answers.get(query) for query in labels]
    predicted = np.array([index_of_id.get(a, no_class) if isinstance(a, int) else no_class for a in answers])
    reject = bool((predicted == no_class).any())
    strange = sum(answer is not None for answer, index in zip(answers, predicted) if index == no_class)
    if strange:
        notes.append(f"{strange} answers are no class id of {taxonomy.name} and count as wrong")
    names, truth = [*taxonomy.names, *["(no answer)"] * reject], np.array(taxonomy.indices(list(labels.values())))
    scores = ClassificationScores(truth, predicted, names, _group_keys(labels, group_of), reject=reject)
    return SubsetScores(scores, {}, notes=notes)


def _score_rankings(
    ranked: Mapping[str, list[str]],
    relevant: Mapping[str, Mapping[str, set[str]]],
    groups: list[str] | None,
    group_of: Callable[[str], str] | None,
    notes: list[str],
) -> dict[str, RetrievalScores]:
    """The scores of ranked answers by each relevance, which holds the images that are right for each query.

    With `group_of`, where answers lie in the group of their query, a second time without these; `notes` is added to.
    """
    depth = max(map(len, ranked.values()))

    def masked(query: str, images: Iterable[str]) -> list[str]:
        """Those that are not of the query's group."""
        group = group_of(query)
        return [image for image in images if not group or group_of(image) != group]

    retrieval = {relevance: _scores(ranked, right, relevance, groups, depth) for relevance, right in relevant.items()}
    others = {query: masked(query, answers) for query, answers in ranked.items()} if group_of else ranked
    queries = [query for query in next(iter(relevant.values()), ()) if query in ranked]
    if all(others[query] == ranked[query] for query in queries):
        return retrieval
    leaks = sum(others[query][:1] != ranked[query][:1] for query in queries)
    notes.append(f"{leaks} first answers are frames of the query's group: a leak, unless the board wants them")
    notes.append("masked scores are lower bounds: the lists were cut before masking (`predict --mask-groups` masks first)")
    scores = {}
    for relevance, right in relevant.items():
        scores[relevance] = retrieval[relevance]
        right = {query: set(masked(query, images)) for query, images in right.items()}
        scores[f"{relevance}, group masked"] = _scores(others, right, relevance, groups, depth)
    return scores


def _scores(
    ranked: Mapping[str, list[str]], relevant: Mapping[str, set[str]], relevance: str, groups: list[str] | None, depth: int
) -> RetrievalScores:
    """Scores of the queries in `relevant`, which holds the images that are right for each."""
    hits = [[answer in right for answer in ranked.get(query, ())] for query, right in relevant.items()]
    first = np.array([row.index(True) + 1 if True in row else 0 for row in hits])
    n_relevant = np.array([len(right) for right in relevant.values()])
    # The gallery is not known here, and with it how many right answers it holds: no average precision.
    return RetrievalScores(first, np.full(len(first), np.nan), n_relevant, relevance, groups, depth)


def _group_keys(names: Iterable[str], group_of: Callable[[str], str]) -> list[str] | None:
    """The group of each, "" where it has none; None where no one has any."""
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
