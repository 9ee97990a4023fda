import json
import math

import numpy as np
import pytest

from entrep_cli.evaluation import intervals
from entrep_cli.evaluation.intervals import Interval, Sample, bootstrap_many, bootstrap_mean, pooled


def drawn_counts(n, groups=None, resamples=50, seed=0):
    """The counts (R, n) that a statistic is given, after the first row of ones."""
    seen = []

    def statistic(counts):
        seen.append(counts.copy())
        return counts.sum(axis=1, keepdims=True)

    bootstrap_many(statistic, n, groups, resamples=resamples, seed=seed)
    assert (seen[0] == 1).all() and seen[0].shape == (1, n)
    return np.concatenate(seen[1:])


def test_an_interval_reads_as_a_line_and_as_json():
    interval = Interval(0.8123, 0.77149, 0.84951)
    assert str(interval) == "0.812 [0.771, 0.850]"
    assert interval.as_dict() == {
        "value": 0.8123,
        "low": 0.77149,
        "high": 0.84951,
        "level": 0.95,
        "n_undefined": 0,
    }
    unknown = Interval(0.5, math.nan, math.nan)
    assert str(unknown) == "0.500 [n/a, n/a]"
    assert json.loads(json.dumps(unknown.as_dict(), allow_nan=False))["low"] is None


@pytest.mark.parametrize(("low", "high", "level"), [(0.6, 0.5, 0.95), (0.1, 0.2, 0), (0.1, 0.2, 95)])
def test_an_interval_that_is_none_is_refused(low, high, level):
    with pytest.raises(ValueError, match="no interval"):
        Interval(0.5, low, high, level)


def test_a_resample_draws_as_many_groups_as_there_are_and_their_items_together():
    groups = ["a", "b", "a", None, "b", "a", ""]  # two exams of 3 and 2 frames, two frames alone
    counts = drawn_counts(7, groups, resamples=200)
    assert counts.shape == (200, 7)
    assert (counts[:, 0] == counts[:, 2]).all() and (counts[:, 0] == counts[:, 5]).all()
    assert (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, 3] != counts[:, 6]).any()
    assert (counts[:, [0, 1, 3, 6]].sum(axis=1) == 4).all()
    assert counts.mean() == pytest.approx(1, abs=0.1)


def test_bounds_are_the_percentiles_of_a_naive_loop_over_the_same_draws():
    values = np.random.default_rng(1).normal(size=23)
    groups = np.arange(23) // 3
    naive = [np.repeat(values, counts).mean() for counts in drawn_counts(23, groups)]
    interval = bootstrap_mean(values, groups, resamples=50, level=0.8)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(np.percentile(naive, [10, 90]))


def test_the_width_is_that_of_the_normal_approximation():
    correct = np.arange(400) < 280
    interval = bootstrap_mean(correct, resamples=4000)
    margin = 1.96 * math.sqrt(0.7 * 0.3 / 400)  # 0.0449
    assert interval.low == pytest.approx(0.7 - margin, abs=0.006)
    assert interval.high == pytest.approx(0.7 + margin, abs=0.006)


def test_nineteen_in_twenty_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        interval = bootstrap_mean(rng.random(120) < 0.7, resamples=300, seed=seed)
        held += interval.low <= 0.7 <= interval.high
    assert 0.91 <= held / 300 <= 0.98  # 95% give or take three standard errors of 1.3 points


def test_frames_that_agree_within_an_exam_widen_the_interval():
    exams = np.arange(600) // 20
    correct = np.random.default_rng(3).random(30)[exams] < 0.7  # all frames of an exam alike
    alone, together = bootstrap_mean(correct), bootstrap_mean(correct, exams)
    assert together.value == alone.value
    assert together.high - together.low > 3 * (alone.high - alone.low)  # sqrt(20) = 4.5 in theory


def test_a_group_each_is_no_groups_and_a_missing_key_is_a_group():
    values = np.random.default_rng(0).random(20)
    plain = bootstrap_mean(values)
    assert bootstrap_mean(values, [f"exam {i}" for i in range(20)]) == plain
    assert bootstrap_mean(values, [None, "", math.nan, *[""] * 17]) == plain


def test_the_seed_decides_and_the_block_does_not(monkeypatch):
    values = np.random.default_rng(0).random(20)
    plain = bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=5) != plain
    monkeypatch.setattr(intervals, "_COUNTS_AT_ONCE", 60)
    again = bootstrap_mean(values, seed=4)
    assert (again.low, again.high) == pytest.approx((plain.low, plain.high), abs=1e-14)


def test_undefined_resamples_are_left_out_and_counted():
    def fraction_given_first(counts):  # undefined where item 0 was not drawn
        return np.where(counts[:, :1] > 0, counts[:, 1:2] / counts.sum(axis=1, keepdims=True), np.nan)

    (interval,) = bootstrap_many(fraction_given_first, 10, resamples=200)
    assert interval.n_undefined == (drawn_counts(10, resamples=200)[:, 0] == 0).sum() > 0
    assert 0 <= interval.low <= interval.high <= 1


def test_one_group_no_item_and_no_value_have_no_bounds():
    one = bootstrap_mean([1, 0, 1], ["exam"] * 3)
    assert one.value == pytest.approx(2 / 3) and math.isnan(one.low) and math.isnan(one.high)
    assert str(bootstrap_mean([])) == "n/a [n/a, n/a]"
    (never,) = bootstrap_many(lambda counts: np.full((len(counts), 1), np.nan), 5, resamples=10)
    assert never.n_undefined == 10 and math.isnan(never.low)


def test_several_statistics_share_the_draws():
    values = np.random.default_rng(0).random((30, 2))

    def means(counts):
        return counts @ values / counts.sum(axis=1, keepdims=True)

    first, second = bootstrap_many(means, 30)
    for both, alone in (
        (first, bootstrap_mean(values[:, 0])),
        (second, bootstrap_mean(values[:, 1])),
    ):
        assert (both.value, both.low, both.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_values_and_groups_must_fit():
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([0.5, math.nan])
    with pytest.raises(ValueError, match="2 group keys do not fit 3 items"):
        bootstrap_mean([1, 2, 3], ["a", "b"])


def mean_of(values: np.ndarray, groups=None) -> Sample:
    return Sample(("mean",), len(values), groups, lambda counts: (counts @ values / counts.sum(axis=1))[:, None])


def test_trainings_are_pooled_item_by_item():
    rng = np.random.default_rng(0)
    groups = rng.integers(12, size=60).astype(str)
    old, new = (rng.random((3, 60)) < p for p in (0.6, 0.8))
    mean = pooled([mean_of(v, groups) for v in new])["mean"]
    alone = bootstrap_mean(new.mean(axis=0), groups)
    assert (mean.value, mean.low, mean.high) == pytest.approx((alone.value, alone.low, alone.high))
    change = pooled([mean_of(v, groups) for v in new], [mean_of(v, groups) for v in old])["mean"]
    paired = bootstrap_mean(new.mean(axis=0) - old.mean(axis=0), groups)
    assert (change.value, change.low, change.high) == pytest.approx((paired.value, paired.low, paired.high))
    # Of a training and itself the difference is nothing, whatever is drawn.
    same = pooled([mean_of(old[0], groups)], [mean_of(old[0], groups)])["mean"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_samples_of_other_items_are_not_pooled():
    with pytest.raises(ValueError, match="other items"):
        pooled([mean_of(np.ones(3)), mean_of(np.ones(4))])
