from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from entrep_cli.evaluation.classification import ClassificationScores
from entrep_cli.evaluation.comparison import averaged, bootstrap_p, compare, confusion_score, holm, mcnemar, mean_score, permutation_test
from entrep_cli.evaluation.intervals import pooled
from entrep_cli.evaluation.metrics import METRICS

MACRO_F1 = METRICS["macro F1"]


def bools(text: str) -> np.ndarray:
    return np.array([c == "1" for c in text])


# ---------------------------------------------------------------- McNemar


def test_mcnemar_by_hand():
    # The first alone is right 1 time, the second alone 5 times: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
    first, second = bools("1000001100"), bools("0111111100")
    assert mcnemar(first, second) == pytest.approx(14 / 64)
    assert mcnemar(bools("110"), bools("110")) == 1.0  # no item tells them apart
    assert mcnemar(bools("10"), bools("01")) == 1.0  # one each
    assert mcnemar(bools("111111"), bools("000000")) == pytest.approx(2 / 64)


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_of_the_items_that_differ(b, c):
    first, second = np.repeat([True, False, True], [b, c, 3]), np.repeat([False, True, True], [b, c, 3])
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(first, second) == pytest.approx(expected) == mcnemar(second, first)


# ---------------------------------------------------------------- swaps


def naive_swaps(first: np.ndarray, second: np.ndarray, groups: np.ndarray, score) -> float:
    """All subsets of all groups, one after the other, the answers themselves exchanged."""
    names, observed, as_much, number = np.unique(groups), abs(score(first) - score(second)), 0, 0
    for choice in product([False, True], repeat=len(names)):
        swapped = np.isin(groups, names[list(choice)]).reshape(-1, *[1] * (first.ndim - 1))
        one, other = np.where(swapped, second, first), np.where(swapped, first, second)
        as_much += abs(score(one) - score(other)) >= observed - 1e-10
        number += 1
    return as_much / number


def test_swaps_by_hand():
    # Three exams of 2 frames; the second is right in 2, 1 and 1 frames more: of the 8 signs only + + + and - - - reach 4.
    groups = list("xxyyzz")
    assert permutation_test(mean_score(bools("001010"), groups), mean_score(bools("111111"), groups)) == pytest.approx(2 / 8)
    # +2 and -1: |sum| is 1 or 3, and always at least 1.
    assert permutation_test(mean_score(bools("1101"), list("xxyy")), mean_score(bools("0011"), list("xxyy"))) == 1.0
    # Ten frames of one exam are one witness.
    one = ["exam"] * 10
    assert permutation_test(mean_score(np.ones(10, bool), one), mean_score(np.zeros(10, bool), one)) == 1.0
    assert mcnemar(np.ones(10, bool), np.zeros(10, bool)) < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_swaps_are_those_of_a_naive_loop(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(7, size=30).astype(str)
    first, second = rng.random(30), rng.random(30) + 0.2
    assert permutation_test(mean_score(first, groups), mean_score(second, groups)) == pytest.approx(
        naive_swaps(first, second, groups, np.mean)
    )
    truth, one, other = rng.integers(3, size=(3, 30))
    one = np.where(rng.random(30) < 0.6, truth, one)
    found = permutation_test(confusion_score(MACRO_F1, truth, one, 3, groups), confusion_score(MACRO_F1, truth, other, 3, groups))

    def macro_f1(answers: np.ndarray) -> float:
        return ClassificationScores(truth, answers, "abc", resamples=0).macro_f1.value

    assert found == pytest.approx(naive_swaps(one, other, groups, macro_f1))


def test_a_mean_over_trainings_is_swapped_in_whole_groups_of_all_of_them():
    rng = np.random.default_rng(9)
    groups, truth = rng.integers(6, size=24).astype(str), rng.integers(3, size=24)
    first, second = (np.where(rng.random((2, 24)) < right, truth, rng.integers(3, size=(2, 24))) for right in (0.8, 0.4))

    def mean_macro_f1(answers: np.ndarray) -> float:  # (24, 2), a column a training
        return float(np.mean([ClassificationScores(truth, own, "abc", resamples=0).macro_f1.value for own in answers.T]))

    scores = [averaged([confusion_score(MACRO_F1, truth, own, 3, groups) for own in trainings]) for trainings in (first, second)]
    assert scores[0].score(scores[0].totals.sum(axis=0, keepdims=True))[0] == pytest.approx(mean_macro_f1(first.T))
    assert permutation_test(*scores) == pytest.approx(naive_swaps(first.T, second.T, groups, mean_macro_f1))
    with pytest.raises(ValueError, match="other items"):
        averaged([mean_score(np.ones(3)), mean_score(np.ones(4))])


def test_drawn_swaps_come_near_all_of_them():
    rng = np.random.default_rng(5)
    groups = np.arange(60) // 5
    first, second = mean_score(rng.random(60) < 0.6, groups), mean_score(rng.random(60) < 0.8, groups)
    exact = permutation_test(first, second, permutations=2**12)
    drawn = permutation_test(first, second, permutations=4000)
    assert 0.01 < exact < 0.9 and drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))
    assert permutation_test(first, second, permutations=4000) == drawn  # the seed decides


def test_blocks_cannot_change_all_swaps(monkeypatch):
    rng = np.random.default_rng(5)
    pair = [mean_score(rng.random(30), np.arange(30) // 3) for _ in range(2)]
    whole = permutation_test(*pair)
    monkeypatch.setattr("entrep_cli.evaluation.comparison._NUMBERS_AT_ONCE", 70)
    assert permutation_test(*pair) == whole


items = st.integers(4, 40).flatmap(
    lambda n: st.tuples(*(st.lists(s, min_size=n, max_size=n) for s in (st.booleans(), st.booleans(), st.integers(0, 9))))
)


@given(items)
@settings(max_examples=60, deadline=None)
def test_who_comes_first_turns_signs_alone(drawn):
    first, second, groups = map(np.array, drawn)
    one, other = mean_score(first, groups), mean_score(second, groups)
    how = {"resamples": 200, "permutations": 300}
    (d,), (e,) = (compare(pair, **how).differences for pair in ([one, other], [other, one]))
    assert (d.value.value, d.value.low, d.value.high) == pytest.approx((-e.value.value, -e.value.high, -e.value.low), nan_ok=True)
    assert (d.p, d.p_mcnemar, d.significant) == (e.p, e.p_mcnemar, e.significant)
    assert d.p_bootstrap == pytest.approx(e.p_bootstrap, nan_ok=True)
    assert (d.only_first, d.only_second) == (e.only_second, e.only_first) and 0 < d.p <= 1


@given(items)
@settings(max_examples=30, deadline=None)
def test_a_run_is_no_better_than_itself(drawn):
    hits, _, groups = map(np.array, drawn)
    for score in (mean_score(hits, groups), confusion_score(MACRO_F1, np.zeros(len(hits), int), hits.astype(int), 2, groups)):
        found = compare([score, score], resamples=100, permutations=100)
        (d,) = found.differences
        assert d.p == d.adjusted == 1.0 and d.value.value == 0 and d.groups == 0 and found.marks == [(), ()]
        assert d.p_bootstrap == 1.0 or math.isnan(d.p_bootstrap)  # of one group alone nothing is resampled


# ---------------------------------------------------------------- bootstrap, Holm


def test_bootstrap_p_by_hand():
    # Of 99 differences 2 are not above zero: 2 (2 + 1) / (99 + 1).
    assert bootstrap_p(np.r_[np.full(97, 0.1), -0.1, 0.0]) == pytest.approx(0.06)
    assert bootstrap_p(np.zeros(50)) == 1.0
    assert math.isnan(bootstrap_p(np.full(3, np.nan)))


def test_bootstrap_p_and_the_interval_agree():
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.1, 0.2, 0.3, 0.4):
        drawn = rng.normal(shift, 0.1, 999)
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (bootstrap_p(drawn) <= 0.05) == (low > 0 or high < 0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Wikipedia's example: 3 x, 1 x, 2 x, 4 x
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8]) and holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_none_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, a in zip(p_values, adjusted):
        assert p <= a <= min(1, p * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


# ---------------------------------------------------------------- several runs


def test_scores_and_differences_are_those_of_the_intervals():
    """What stands beside `evaluate` and `ablate` must say the same."""
    rng = np.random.default_rng(0)
    truth, groups = rng.integers(3, size=80), [*(f"exam {i}" for i in rng.integers(15, size=78)), None, ""]
    answers = [np.where(rng.random(80) < p, truth, (truth + 1) % 3) for p in (0.6, 0.8)]
    evaluated = [ClassificationScores(truth, a, "abc", groups) for a in answers]
    for name, ours in (
        ("accuracy", [mean_score(truth == a, groups) for a in answers]),
        ("macro F1", [confusion_score(MACRO_F1, truth, a, 3, groups) for a in answers]),
    ):
        found = compare(ours, permutations=100)
        change = pooled([evaluated[0].sample], [evaluated[1].sample])[name]
        expected = [*(e.sample.intervals()[name] for e in evaluated), change]
        for value, wanted in zip([*found.scores, found.differences[0].value], expected):
            assert (value.value, value.low, value.high) == pytest.approx((wanted.value, wanted.low, wanted.high), abs=1e-12)


def test_marks_name_the_runs_that_one_is_better_than():
    rng = np.random.default_rng(2)
    groups = np.arange(300) // 3
    hits = [rng.random(300) < p for p in (0.5, 0.9, 0.9)]
    runs = [mean_score(hits[0], groups), mean_score(hits[1], groups), None, mean_score(hits[2], groups)]
    found = compare(runs)
    assert found.marks == [(), (0,), (), (0,)] and found.scores[2] is None and found.n_items == 300 and found.n_groups == 100
    assert [(d.first, d.second) for d in found.differences] == [(0, 1), (0, 3), (1, 3)]
    assert [d.adjusted for d in found.differences] == holm([d.p for d in found.differences])
    # Against one run alone there are fewer pairs, and less to correct for.
    only = compare(runs, baseline=3)
    assert [(d.first, d.second) for d in only.differences] == [(0, 3), (1, 3)] and only.marks == [(), (), (), (0,)]
    assert compare(runs, level=1e-9).marks == [()] * 4


def test_the_level_is_held_under_correlation_and_mcnemar_does_not():
    """Equal models on 40 exams of 8 frames, each failing whole exams: a small measure of what the benchmark measures at length."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 8)
    called = []
    for _ in range(200):
        hits = [(0.7 * rng.standard_normal(40)[groups] + 0.7 * rng.standard_normal(320)) < 0.8 for _ in range(2)]
        (d,) = compare([mean_score(h, groups) for h in hits], resamples=2, permutations=400).differences
        called.append((d.significant, d.p_mcnemar <= 0.05))
    ours, theirs = np.mean(called, axis=0)
    assert ours <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200) and theirs > 0.2


def test_runs_of_other_items_are_refused():
    with pytest.raises(ValueError, match="other items"):
        compare([mean_score(np.ones(3, bool)), mean_score(np.ones(4, bool))])
    with pytest.raises(ValueError, match="no run"):
        compare([None, None])
    with pytest.raises(ValueError, match="finite"):
        mean_score(np.array([1.0, math.nan]))


def test_one_group_has_no_interval_and_no_mark():
    (d,) = compare([mean_score(np.ones(5, bool), ["exam"] * 5), mean_score(np.zeros(5, bool), ["exam"] * 5)]).differences
    assert math.isnan(d.value.low) and d.p == 1.0 and not d.significant and d.as_dict()["p_bootstrap"] is None
