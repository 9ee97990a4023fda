"""Mistakes that leave a submission well formed: other ids, exchanged sides, told by comparing it with a run or a truth.

    suspicion = suspect(pairs, taxonomy)  # pairs of answered id and expected id

Each hypothesis says which class an answered id would mean under one mistake. It is suspected where, among
the answers that it reads otherwise than they stand,

- far more agree with what is expected in its reading than as they stand, by a sign test (p < 1e-4), and
- its reading agrees well beyond chance (Cohen's kappa at least 0.3).

The first keeps out side guesses at chance, where both readings win equally often; the second keeps out
answers of one class alone, which some reading must fit better on any uneven test set. Nothing here is a
fault: the file is what the contest takes, and the run, or the truth, may be what is wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli.data.files import read_json
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.tracks import track_of
from entrep_cli.errors import DataError, UsageError
from entrep_cli.submission.tracks import resolve_names

if TYPE_CHECKING:
    from entrep_cli.data.testsets import TestSet
    from entrep_cli.methods import Model
    from entrep_cli.workspace import Run

MAX_P = 1e-4
MIN_KAPPA = 0.3
MIN_PAIRS = 14  # fewer, all of them exchanged, are no evidence at MAX_P

Pair = tuple[int, int]


@dataclass(frozen=True)
class Hypothesis:
    """One mistake: a slug, its words, and for each answered id the id that would be meant."""

    kind: str
    words: str
    meant: Mapping[int, int]


@dataclass(frozen=True)
class Suspicion:
    """A mistake that explains the answers much better than they stand.

    Attributes:
        compared: answers with an expected class. agree: how many agree as they stand.
        agree_corrected: how many in the reading of the mistake.
        meant: for each answered id that is read otherwise the id to write. p: of the sign test, where there was one.
    """

    kind: str
    message: str
    compared: int
    agree: int
    agree_corrected: int
    meant: dict[int, int]
    p: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# ---------------------------------------------------------------- hypotheses


def hypotheses(taxonomy: Taxonomy, track: int = 1) -> list[Hypothesis]:
    """The mistakes that are tried; those that change nothing in this taxonomy are left out.

    In tracks 2 and 3 an answer is an image, and so only another class of the same region can be meant.
    """
    ids, names = taxonomy.ids, taxonomy.names
    mirrored = {id_: ids[m] for id_, m in zip(ids, taxonomy.mirrors) if m >= 0}
    tried = []
    if track == 1:
        by_name = dict(zip(range(len(ids)), (taxonomy.classes[taxonomy.index(name)].id for name in sorted(names))))
        tried += [
            Hypothesis("alphabetical-ids", "the ids count the class names in alphabetical order", by_name),
            Hypothesis("one-based-ids", "the ids are each one too high", {id_ + 1: id_ for id_ in ids}),
        ]
    tried.append(Hypothesis("swapped-sides", "left and right are exchanged", mirrored))
    for region in taxonomy.regions:
        own = [c.id for c in taxonomy.classes if c.region == region]
        if len(own) == 2:
            first, second = (taxonomy.names[ids.index(id_)] for id_ in own)
            words = f"{first} and {second} are exchanged"
            tried.append(Hypothesis("swapped-classes", words, {own[0]: own[1], own[1]: own[0]}))
    changes = [Hypothesis(h.kind, h.words, {given: meant for given, meant in h.meant.items() if given != meant}) for h in tried]
    seen: set[frozenset[Pair]] = set()
    kept = []
    for hypothesis in changes:
        key = frozenset(hypothesis.meant.items())
        if key and key not in seen:
            kept.append(hypothesis)
            seen.add(key)
    return kept


# ---------------------------------------------------------------- the test


def suspect(pairs: Sequence[Pair], taxonomy: Taxonomy, track: int = 1, *, by: str = "what is expected") -> Suspicion | None:
    """The mistake that explains (answered id, expected id) pairs best, if it does so much better than none."""
    found = [s for h in hypotheses(taxonomy, track) if (s := _weighed(pairs, h, taxonomy, track, by)) is not None]
    return max(found, key=lambda s: s.agree_corrected, default=None)


def count_from_one(answers: Iterable[Any], taxonomy: Taxonomy) -> Suspicion | None:
    """Ids that are each one too high, told by themselves: none is the least, some are one above the greatest."""
    given, ids = Counter(answer for answer in answers if type(answer) is int), taxonomy.ids
    shifted = {id_ + 1: id_ for id_ in ids}
    n = given.total()
    if n < MIN_PAIRS or not given.keys() <= shifted.keys() or ids[0] in given or ids[-1] + 1 not in given:
        return None
    known = sum(given[id_] for id_ in ids)
    message = (
        f"it seems that the ids count from {ids[0] + 1}: no answer is {ids[0]}, {given[ids[-1] + 1]} are {ids[-1] + 1};"
        " if so, write each id one lower"
    )
    return Suspicion("one-based-ids", message, n, known, n, shifted, None)


def _weighed(pairs: Sequence[Pair], hypothesis: Hypothesis, taxonomy: Taxonomy, track: int, by: str) -> Suspicion | None:
    touched = [(given, hypothesis.meant[given], wanted) for given, wanted in pairs if given in hypothesis.meant]
    better = sum(meant == wanted for _, meant, wanted in touched)
    worse = sum(given == wanted for given, _, wanted in touched)
    p = sign_test(better, worse)
    if p >= MAX_P or kappa([(meant, wanted) for _, meant, wanted in touched]) < MIN_KAPPA:
        return None
    agree = sum(given == wanted for given, wanted in pairs)
    name_of = {c.id: f"{c.id} ({c.name})" for c in taxonomy.classes}
    change = ", ".join(f"{given} to {name_of[meant]}" for given, meant in sorted(hypothesis.meant.items()))
    hint = f"if so, change {change}" if track == 1 else "if so, look for a flip, or for labels of the other side, where answers are made"
    message = (
        f"it seems that {hypothesis.words}: {agree - worse + better} of {len(pairs)} answers then agree with {by},"
        f" and {agree} as they stand; {hint}"
    )
    return Suspicion(hypothesis.kind, message, len(pairs), agree, agree - worse + better, dict(hypothesis.meant), p)


def sign_test(better: int, worse: int) -> float:
    """How likely at least so many of the two are `better` by tosses of a coin."""
    n = better + worse
    return sum(math.comb(n, k) for k in range(better, n + 1)) / 2**n


def kappa(pairs: Sequence[Pair]) -> float:
    """Cohen's kappa, the agreement of two raters beyond chance; 0 where one rater names one class alone."""
    n = len(pairs)
    if not n:
        return 0.0
    given, wanted = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(given[id_] * wanted[id_] for id_ in given) / n**2
    if chance == 1 or len(given) == 1:
        return 0.0
    return (sum(a == b for a, b in pairs) / n - chance) / (1 - chance)


# ---------------------------------------------------------------- what is expected


def class_pairs(answers: Mapping[str, Any], track: int, expected: Mapping[str, int], named: Mapping[str, str]) -> list[Pair]:
    """(answered id, expected id) of every answer for which both are known.

    Args:
        answers: of a submission, whatever they hold.
        expected: class id by image name. In tracks 2 and 3 the class of the answered image is compared
            with the class of the query.
        named: the image whose class a query has, where it is not the query itself.
    """
    names = [*answers, *named.values(), *(answer for answer in answers.values() if isinstance(answer, str))]
    id_of = {name: expected[file] for name, file in resolve_names(names, expected).items()}
    pairs = []
    for query, answer in answers.items():
        image = named.get(query, query)
        given = id_of.get(answer) if isinstance(answer, str) else answer if track == 1 and type(answer) is int else None
        if given is not None and image in id_of:
            pairs.append((given, id_of[image]))
    return pairs


def expected_by_truth(path: Path, track: int, taxonomy: Taxonomy) -> tuple[dict[str, int], dict[str, str]]:
    """Class id of each image that a truth file, or `truth_cls.json` beside it, knows; and the image named for each query.

    Raises:
        DataError: no truth file, or one without a single class of the taxonomy.
    """
    faults: list[str] = []
    truth = read_json(path, dict, faults) if path.is_file() else {}
    if faults or not truth:
        raise DataError("The truth file cannot be used.", where=path, faults=faults, hint=f"--truth {track_of(track).truth_file}")
    beside = track_of(1).truth_file
    classes = path if track == 1 else path.with_name(beside)
    labels = truth if classes == path else read_json(classes, dict, faults) if classes.is_file() else {}
    expected = ids_of(labels, taxonomy)
    if not expected:
        listed = ", ".join(f"{c.name} ({c.id})" for c in taxonomy.classes)
        raise DataError(
            "The truth tells no class of any image.",
            where=classes,
            faults=faults,
            hint=f"the classes are {listed}" if track == 1 else f"put {beside} beside it",
        )
    named = {query: image for query, image in truth.items() if isinstance(image, str)} if track == 3 and classes != path else {}
    return expected, named


def ids_of(labels: Mapping[str, Any], taxonomy: Taxonomy) -> dict[str, int]:
    """Class id of each image with a known label, a class name or id."""
    known: dict[Any, int] = {c.name: c.id for c in taxonomy.classes} | {c.id: c.id for c in taxonomy.classes}
    return {image: known[label] for image, label in labels.items() if type(label) in (str, int) and label in known}


def expected_by_run(run: Run, model: Model, test_set: TestSet, root: Path | None) -> dict[str, int]:
    """The class id that a run predicts for each image of a test folder.

    Raises:
        UsageError: the run tells something else apart than all classes.
    """
    from entrep_cli.retrieval.embeddings import embeddings_of
    from entrep_cli.retrieval.sets import folder_items, set_name

    target = getattr(model.recipe, "target", "class")
    if target != "class":
        raise UsageError(f"Run {run.name!r} does not tell all classes apart ({target}).", hint="name a run that knows all classes")
    seen = embeddings_of(run, set_name(test_set, root), folder_items(test_set, root), model)
    ids = model.taxonomy.ids
    return {str(name): ids[row] for name, row in zip(seen.items.image, seen.probabilities.argmax(axis=1))}
