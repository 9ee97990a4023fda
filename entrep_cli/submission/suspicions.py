"""Mistakes that leave a submission well formed: other ids, exchanged sides; a run or a truth file reveals them.

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

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import DataError, UsageError
from entrep_cli.submission.tracks import resolve_names

if TYPE_CHECKING:
    from entrep_cli.data.testsets import TestSet
    from entrep_cli.methods.base import Model
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
        meant: for each answered id that is read otherwise the id to write. p: of the sign test, if one was made.
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
        classes = [c for c in taxonomy.classes if c.region == region]
        if len(classes) == 2:
            a, b = classes
            tried.append(Hypothesis("swapped-classes", f"{a.name} and {b.name} are exchanged", {a.id: b.id, b.id: a.id}))
    distinct: dict[frozenset[Pair], Hypothesis] = {}
    for hypothesis in tried:
        changes = {given: meant for given, meant in hypothesis.meant.items() if given != meant}
        if changes:
            distinct.setdefault(frozenset(changes.items()), replace(hypothesis, meant=changes))
    return list(distinct.values())


# ---------------------------------------------------------------- the test


def suspect(pairs: Sequence[Pair], taxonomy: Taxonomy, track: int = 1, *, by: str = "what is expected") -> Suspicion | None:
    """The mistake that explains (answered id, expected id) pairs best, if it does so much better than none."""
    suspicions = (_weighed(pairs, hypothesis, taxonomy, track, by) for hypothesis in hypotheses(taxonomy, track))
    return max(filter(None, suspicions), key=lambda s: s.agree_corrected, default=None)


def count_from_one(answers: Iterable[Any], taxonomy: Taxonomy) -> Suspicion | None:
    """Ids that are each one too high, by themselves: none is the least, some are one above the greatest."""
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
    """The probability of at least so many `better` of the two, if each were a toss of a coin (exact, one-sided)."""
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse, alternative="greater").pvalue) if better else 1.0


def kappa(pairs: Sequence[Pair]) -> float:
    """Cohen's kappa, the agreement of two raters beyond chance; 0 where the first names one class alone."""
    if len({given for given, _ in pairs}) < 2:
        return 0.0
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(*zip(*pairs)))


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
        DataError: as `read_truth`, or not a single class of the taxonomy.
    """
    from entrep_cli.evaluation.truth import class_truth, read_truth

    truth = read_truth(path)
    classes, labels = class_truth(path, track)
    expected = ids_of(labels, taxonomy)
    if not expected:
        listed = ", ".join(f"{c.name} ({c.id})" for c in taxonomy.classes)
        hint = f"the classes are {listed}" if track == 1 else f"put {classes.name} beside it"
        raise DataError("The truth file gives no class of any image.", where=classes, hint=hint)
    named = {query: image for query, image in truth.items() if isinstance(image, str)} if track == 3 and classes != path else {}
    return expected, named


def ids_of(labels: Mapping[str, Any], taxonomy: Taxonomy) -> dict[str, int]:
    """Class id of each image with a known label, a class name or id."""
    known: dict[Any, int] = {c.name: c.id for c in taxonomy.classes} | {c.id: c.id for c in taxonomy.classes}
    return {image: known[label] for image, label in labels.items() if type(label) in (str, int) and label in known}


def expected_by_run(run: Run, model: Model, test_set: TestSet, root: Path | None) -> dict[str, int]:
    """The class id that a run predicts for each image of a test folder.

    Raises:
        UsageError: the run does not distinguish all classes.
    """
    from entrep_cli.retrieval.embeddings import embeddings_of
    from entrep_cli.retrieval.sets import folder_items, set_name

    target = model.target
    if target != "class":
        raise UsageError(f"Run {run.name!r} does not distinguish all classes ({target}).", hint="name a run that knows all classes")
    images = embeddings_of(run, set_name(test_set, root), folder_items(test_set, root), model)
    ids = model.taxonomy.ids
    return {str(name): ids[row] for name, row in zip(images.items.image, images.probabilities.argmax(axis=1))}
