"""Scoring a submission against a truth file: what a team can know before the board tells it.

    scores = score_submission(submission, Path("test/truth_i2i.json"), 2, taxonomy)

Relevance in tracks 2 and 3 is named: `finding` is the pair that the truth file names, `class` is a
label shared with the query, read from `truth_cls.json` beside it (and from the labels handed in for
answers out of the training images). The boards' own rule is not published (challenge.md, Scores).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from entrep_cli.data.files import read_json, read_text
from entrep_cli.data.queries import read_groups
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import DataError
from entrep_cli.scoring.classification import ClassificationScores
from entrep_cli.scoring.retrieval import RetrievalScores
from entrep_cli.submission.tracks import Submission, track_of


@dataclass(frozen=True)
class SubmissionScores:
    """Scores of one submission.

    Attributes:
        classification: of track 1, else None.
        retrieval: of tracks 2 and 3, by name: the relevance, and whether own-group answers count.
        notes: what a reader of the numbers must know, one line each.
    """

    classification: ClassificationScores | None
    retrieval: dict[str, RetrievalScores]
    notes: list[str]


def read_truth(path: Path) -> dict[str, str | int]:
    """A truth file: a flat JSON object; DataError that lists every fault."""
    if not path.is_file():
        raise DataError("There is no truth file.", where=path, mend="--truth truth_cls.json, truth_i2i.json or truth_t2i.json")
    faults: list[str] = []
    value = read_json(path, dict, faults)
    if not faults and not value:
        faults.append("it is empty")
    if not faults:
        faults += [f"{k!r}: {v!r} is no name and no class id" for k, v in value.items() if isinstance(v, bool) or not isinstance(v, (str, int))]
    if faults:
        raise DataError("The truth file cannot be used.", where=path, faults=faults)
    return value


def score_submission(
    submission: Submission, truth_path: Path, track: int, taxonomy: Taxonomy, train_labels: Mapping[str, str] | None = None
) -> SubmissionScores:
    """Score a submission.

    Every truth entry counts: a query without an answer is a miss. Groups come from `groups.csv`
    beside the truth file and make the intervals; where answers lie in the query's own group, the
    retrieval is scored a second time with those answers taken out of the ranked list.

    Raises:
        DataError: the truth file is faulty, or has no query of the submission.
    """
    truth = read_truth(truth_path)
    missing = [query for query in truth if query not in submission.answers]
    extra = [query for query in submission.answers if query not in truth]
    if len(missing) == len(truth):
        raise DataError(
            "The truth file knows none of the submission's queries.", where=truth_path, mend="is it of another track or another test set?"
        )
    notes = []
    if missing:
        notes.append(f"{len(missing)} queries have no answer and count as wrong")
    if extra:
        notes.append(f"{len(extra)} answers are to queries that the truth file does not know; they do not count")
    groups = read_groups(truth_path.parent)
    if track == 1:
        scores, more = _score_classes(submission, truth, taxonomy, groups)
        return SubmissionScores(scores, {}, notes + more)

    labels = dict(train_labels or {})
    beside = truth_path.with_name(track_of(1).truth_file)
    if beside.is_file():
        labels |= {name: _class_name(value, taxonomy) for name, value in read_truth(beside).items()}
    by_class_only = truth_path.name == track_of(1).truth_file
    ranked = _ranked(submission)
    if ranked is None:
        notes.append("no ranked CSV lies beside the submission: only the first answers are scored")
        ranked = {query: [str(answer)] for query, answer in submission.answers.items()}
    depth = max((len(answers) for answers in ranked.values()), default=1)
    queries = [query for query in truth if not by_class_only or query in submission.answers]
    # A text has the class and the group of the image that the truth names for it.
    shown = {query: query if track == 2 else str(truth[query]) for query in queries}
    own = {q: [bool(groups.get(a)) and groups.get(a) == groups.get(shown[q]) for a in ranked.get(q, [])] for q in queries}
    n_own = sum(own[q][0] for q in queries if own[q])

    relevances = {}
    if not by_class_only:
        relevances["finding"] = {q: [a == truth[q] for a in ranked.get(q, [])] for q in queries}
    if labels:
        labelled = [q for q in queries if labels.get(shown[q])]
        relevances["class"] = {q: [labels.get(a) == labels[shown[q]] for a in ranked.get(q, [])] for q in labelled}
        unknown = sum(a not in labels for q in labelled for a in ranked.get(q, [])[:1])
        if unknown:
            notes.append(f"{unknown} answers have no known class and count as wrong")
    retrieval = {}
    for relevance, hits in relevances.items():
        retrieval[relevance] = _scores(hits, relevance, shown, groups, depth)
        if n_own and track == 2:
            kept = {q: [h for h, mine in zip(hits[q], own[q]) if not mine] for q in hits}
            retrieval[f"{relevance}, own group masked"] = _scores(kept, relevance, shown, groups, depth)
    if n_own and track == 2:
        notes.append(f"{n_own} first answers are frames of the query's own group: a leak, unless the board wants them")
    return SubmissionScores(None, retrieval, notes)


def _score_classes(
    submission: Submission, truth: Mapping[str, str | int], taxonomy: Taxonomy, groups: Mapping[str, str]
) -> tuple[ClassificationScores, list[str]]:
    index_of_id = {c.id: i for i, c in enumerate(taxonomy.classes)}
    wanted = np.array(taxonomy.indices(_class_name(value, taxonomy) for value in truth.values()))
    # One more class holds what is no class at all, so that it counts as wrong and not as missing.
    answers = [submission.answers.get(query) for query in truth]
    given = np.array([index_of_id.get(a, len(taxonomy)) if isinstance(a, int) else len(taxonomy) for a in answers])
    names, notes = list(taxonomy.names), []
    if (given == len(taxonomy)).any():
        names.append("(no answer)")
        notes.append(f"{(given == len(taxonomy)).sum()} answers are no class id")
    return ClassificationScores(wanted, given, names, _group_keys(list(truth), groups)), notes


def _scores(hits: Mapping[str, list[bool]], relevance: str, shown: Mapping[str, str], groups: Mapping[str, str], depth: int) -> RetrievalScores:
    first = np.array([row.index(True) + 1 if True in row else 0 for row in hits.values()])
    keys = _group_keys([shown[query] for query in hits], groups)
    # How many relevant images the gallery holds is not known here, so there is no average precision.
    return RetrievalScores(first, np.full(len(first), np.nan), np.ones(len(first), int), relevance, keys, depth)


def _class_name(value: str | int, taxonomy: Taxonomy) -> str:
    by_id = {c.id: c.name for c in taxonomy.classes}
    name = by_id.get(value, str(value)) if isinstance(value, int) else value
    if name not in taxonomy.names:
        raise DataError(f"The truth has the class {value!r}, which the taxonomy does not.", faults=[f"classes: {', '.join(taxonomy.names)}"])
    return name


def _group_keys(names: list[str], groups: Mapping[str, str]) -> list[str] | None:
    return [groups.get(name, "") for name in names] if groups else None


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
    return ranked if agree else None
