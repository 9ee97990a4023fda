"""Planted mistakes are named; honest answers, however bad, raise no suspicion."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import DataError
from entrep_cli.submission.suspicions import (
    MIN_PAIRS,
    class_pairs,
    count_from_one,
    expected_by_truth,
    hypotheses,
    ids_of,
    kappa,
    sign_test,
    suspect,
)

ENTREP = Taxonomy.entrep()
SHARES = np.array([325, 290, 156, 133, 159, 147, 81]) / 1291  # of the contest's training images
SKEWED = np.array([0.05, 0.4, 0.05, 0.3, 0.05, 0.05, 0.1])
DRAWS = 20


def guess(rng: np.random.Generator, truth: np.ndarray, accuracy: float, errors: str) -> np.ndarray:
    """Answers of which a share is right; the others are of any class, of the other side, as common as classes are, or all of one."""
    wrong = {
        "any": rng.integers(0, 7, len(truth)),
        "sides": np.array(ENTREP.mirrors)[truth],
        "common": rng.choice(7, len(truth), p=SHARES),
        "one": np.full(len(truth), 3),
    }[errors]
    return np.where(rng.random(len(truth)) < accuracy, truth, wrong)


def found(accuracy: float, errors: str = "any", n: int = 333, shares=SHARES, mistake=None, seen=(0.85, "any")) -> Counter:
    """Kinds of suspicion over draws of a submission, compared with a run of its own errors; "" for none."""
    kinds = Counter()
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, int(1000 * accuracy), n])
        truth = rng.choice(7, n, p=shares)
        answers = guess(rng, truth, accuracy, errors).tolist()
        if mistake is not None:
            written = {meant: given for given, meant in mistake.meant.items()}
            answers = [written.get(answer, answer) for answer in answers]
        suspicion = suspect(list(zip(answers, guess(rng, truth, *seen).tolist())), ENTREP)
        kinds["" if suspicion is None else suspicion.message.split(":")[0]] += 1
    return kinds


@pytest.mark.parametrize("n", [40, 333])
@pytest.mark.parametrize("shares", [SHARES, SKEWED], ids=["contest", "skewed"])
@pytest.mark.parametrize("errors, accuracies", [("any", (0, 0.3, 0.9)), ("sides", (0.5, 0.8)), ("common", (0, 0.5)), ("one", (0, 0.4))])
def test_honest_answers_raise_no_suspicion(errors, accuracies, shares, n):
    for accuracy in accuracies:
        assert found(accuracy, errors, n, shares) == {"": DRAWS}


@pytest.mark.parametrize("accuracy", [0.1, 0.95])
def test_a_run_that_sees_one_class_raises_no_suspicion(accuracy):
    other_ears = np.array([0.1, 0.1, 0.6, 0.05, 0.05, 0.05, 0.05])
    assert found(accuracy, shares=other_ears, seen=(0.1, "one")) == {"": DRAWS}


@pytest.mark.parametrize("mistake", hypotheses(ENTREP), ids=lambda h: h.words)
def test_planted_mistakes_are_named(mistake):
    told = f"it seems that {mistake.words}"
    assert found(0.95, mistake=mistake) == {told: DRAWS}
    assert found(0.8, mistake=mistake)[told] >= 0.9 * DRAWS
    # A weak submission may hide it, but is never told another mistake.
    assert set(found(0.6, mistake=mistake)) <= {told, ""} and set(found(0.95, n=MIN_PAIRS - 1, mistake=mistake)) == {""}


def test_hypotheses_come_from_the_taxonomy():
    kinds = Counter(h.kind for h in hypotheses(ENTREP))
    assert kinds == {"alphabetical-ids": 1, "one-based-ids": 1, "swapped-sides": 1, "swapped-classes": 3}
    assert {h.kind for h in hypotheses(ENTREP, 2)} == {"swapped-sides", "swapped-classes"}
    # Derived ids are alphabetical, and without sides nothing can be swapped.
    assert [h.kind for h in hypotheses(Taxonomy.derive(["polyp", "normal", "ulcer"]))] == ["one-based-ids"]
    tens = Taxonomy("tens", tuple(ClassInfo(name, 10 * i, name, name) for i, name in enumerate("cba")))
    assert next(h for h in hypotheses(tens) if h.kind == "one-based-ids").meant == {1: 0, 11: 10, 21: 20}


def test_the_message_counts():
    pairs = [(1, 0)] * 20 + [(0, 1)] * 20 + [(4, 4)] * 10
    suspicion = suspect(pairs, ENTREP, by="run x")
    assert suspicion.kind == "swapped-sides" and (suspicion.agree, suspicion.agree_corrected, suspicion.compared) == (10, 50, 50)
    assert "50 of 50 answers then agree with run x, and 10 as they stand" in suspicion.message
    assert suspect([], ENTREP) is None


def test_ids_from_one():
    assert count_from_one([1, 2, 3, 4, 5, 6, 7] * 3, ENTREP).kind == "one-based-ids"
    for answers in ([0, *range(1, 8)] * 3, [1, 2, 3, 4, 5, 6] * 3, [*range(1, 9)] * 3, [7] * 5, [], ["1", True] * 20):
        assert count_from_one(answers, ENTREP) is None


def test_sign_test_and_kappa():
    assert sign_test(0, 0) == sign_test(0, 9) == 1 and sign_test(3, 0) == 1 / 8 and sign_test(2, 1) == 0.5
    assert kappa([]) == kappa([(1, 1)] * 9) == 0 and kappa([(0, 0), (1, 1)]) == 1 and kappa([(0, 1), (1, 0)]) == -1


def test_pairs():
    expected = {"a.png": 0, "B.png": 1}
    assert class_pairs({"a.png": 3, "b.png": 7, "c.png": 1, "A.PNG": True, "x": "a.png"}, 1, expected, {}) == [(3, 0), (7, 1)]
    assert class_pairs({"a.png": "b.png", "b.png": "z.png", "c.png": "a.png"}, 2, expected, {}) == [(1, 0)]
    assert class_pairs({"scar": "a.png", "spur": 3}, 3, expected, {"scar": "B.png"}) == [(0, 1)]
    assert ids_of({"a": "nose-left", "b": 6, "c": 9, "d": "x", "e": True}, ENTREP) == {"a": 1, "b": 6}


def test_truth_files(tmp_path):
    (tmp_path / "truth_cls.json").write_text('{"a.png": "nose-left", "b.png": 4}')
    (tmp_path / "truth_t2i.json").write_text('{"scar": "a.png"}')
    assert expected_by_truth(tmp_path / "truth_cls.json", 2, ENTREP) == ({"a.png": 1, "b.png": 4}, {})
    assert expected_by_truth(tmp_path / "truth_t2i.json", 3, ENTREP) == ({"a.png": 1, "b.png": 4}, {"scar": "a.png"})
    (tmp_path / "bad.json").write_text("[")
    for path, track in ((tmp_path / "bad.json", 1), (tmp_path / "none.json", 1), (tmp_path / "truth_t2i.json", 1)):
        with pytest.raises(DataError):
            expected_by_truth(path, track, ENTREP)
