"""Bootstrap intervals: how far a score would move had other exams been drawn.

    print(bootstrap_mean(correct, groups=exams))  # 0.812 [0.771, 0.850]

Frames of one exam resemble each other, so the exam is what is drawn: all its items come together.
Percentile bootstrap (Efron and Tibshirani 1993, chapter 13). Its limits: it cannot see outside the
sample, so a perfect score has the interval [1, 1], and under some 20 groups it is too narrow.

Where a number is undefined it is NaN, by these rules:

- A resample in which the statistic is NaN is left out, and counted in `n_undefined`.
- Bounds are NaN where fewer than two groups exist or no resample was defined: one exam alone says
  nothing about other exams, and a width of zero would claim that it does.
- In JSON, NaN is null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from entrep_cli.retrieval.ranking import Keys, key_codes

_COUNTS_AT_ONCE = 2**21


@dataclass(frozen=True)
class Interval:
    """A score and its bootstrap interval, in the unit of the score.

    Args:
        value: the score on the whole sample; of a biased statistic it may lie outside the bounds.
        low, high: percentile bounds that hold `level` of the resampled scores.
        level: between 0 and 1.
        n_undefined: resamples left out because the score was undefined in them.
        format: of the three numbers as text.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    n_undefined: int = 0
    format: str = ".3f"

    def __post_init__(self) -> None:
        if self.low > self.high or not 0 < self.level < 1:
            raise ValueError(f"no interval: [{self.low}, {self.high}] at level {self.level}")

    def __str__(self) -> str:
        value, low, high = ("n/a" if math.isnan(x) else format(x, self.format) for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain numbers for JSON; NaN is None."""
        bounds = {"value": self.value, "low": self.low, "high": self.high}
        return {
            **{name: None if math.isnan(x) else x for name, x in bounds.items()},
            "level": self.level,
            "n_undefined": self.n_undefined,
        }


def bootstrap_many(
    statistics: Callable[[np.ndarray], np.ndarray],
    n: int,
    groups: Keys | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Intervals of several statistics of the same n items, from the same resamples.

    Args:
        statistics: from counts (B, n) int64, how often each item was drawn in each of B resamples,
            to (B, S) scores; a whole block at once, so that a mean is one matrix product.
        n: number of items.
        groups: (n,) keys; items of one group are drawn together. An item whose key is None, '' or
            NaN is a group by itself.
        resamples: number of resamples; each draws as many groups as there are.
        level: fraction of the resampled scores between the bounds.
        seed: the same seed and groups give the same resamples, so that scores can be paired.

    Returns:
        S intervals; `value` is the statistic with every count 1.
    """
    values, scores = resampled(statistics, n, groups, resamples=resamples, seed=seed)
    return tuple(percentiles(float(value), column, level) for value, column in zip(values, scores.T, strict=True))


def resampled(
    statistics: Callable[[np.ndarray], np.ndarray],
    n: int,
    groups: Keys | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """What `bootstrap_many` takes its bounds from: (S,) scores of the whole sample, (R, S) of the resamples.

    R is 0 where fewer than two groups exist.
    """
    group_of = group_codes(groups, n)
    n_groups = int(group_of.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    block = max(1, _COUNTS_AT_ONCE // max(1, n))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.asarray(statistics(np.ones((1, n), np.int64)), float)[0]
        drawn = [np.empty((0, len(values)))]
        for start in range(0, resamples if n_groups > 1 else 0, block):
            size = min(block, resamples - start)
            picks = rng.integers(n_groups, size=(size, n_groups))
            picks += np.arange(size)[:, None] * n_groups
            counts = np.bincount(picks.ravel(), minlength=size * n_groups).reshape(size, n_groups)
            drawn.append(statistics(counts[:, group_of]))
    return values, np.concatenate(drawn)


@dataclass(frozen=True, eq=False)
class Sample:
    """Several scores of one set of items, as functions of how often each item was drawn.

    Attributes:
        names: of the S scores.
        n: number of items.
        groups: (n,) keys, or None; as for `bootstrap_many`.
        statistics: counts (B, n) to (B, S) scores.
        formats: of the scores as text; ".3f" without it.
    """

    names: tuple[str, ...]
    n: int
    groups: Keys | None
    statistics: Callable[[np.ndarray], np.ndarray]
    formats: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, float]:
        """Each score of the whole sample."""
        return dict(zip(self.names, self.statistics(np.ones((1, self.n), np.int64))[0].tolist()))

    def intervals(self, **options: Any) -> dict[str, Interval]:
        """Each score with its interval; `options` as for `bootstrap_many`."""
        return pooled([self], **options)


def pooled(samples: Sequence[Sample], against: Sequence[Sample] = (), **options: Any) -> dict[str, Interval]:
    """Scores of several trainings on the same items: the mean over trainings, or its difference from others'.

    In each resample the same items are drawn for every training, so that a difference is paired. The
    interval says how far the mean of these trainings would move with other exams, and not with other seeds.

    Args:
        samples, against: of the same items and with the same scores, one a training.

    Raises:
        ValueError: the samples do not fit each other.
    """
    first, *others = (*samples, *against)
    if any(s.names != first.names or s.n != first.n for s in others):
        raise ValueError("samples of other items or other scores cannot be pooled")

    def statistics(counts: np.ndarray) -> np.ndarray:
        mean = np.mean([s.statistics(counts) for s in samples], axis=0)
        return mean - np.mean([s.statistics(counts) for s in against], axis=0) if against else mean

    intervals = bootstrap_many(statistics, first.n, first.groups, **options)
    return {
        name: replace(i, format=shown)
        for name, shown, i in zip(first.names, first.formats or [".3f"] * len(intervals), intervals, strict=True)
    }


def bootstrap_mean(
    values: np.ndarray,
    groups: Keys | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The interval of the mean over items, sum(c_i v_i) / sum(c_i) with c_i how often i was drawn.

    Args:
        values: (n,) finite numbers or bools; leave undefined items out beforehand. The difference
            of two runs' values, item by item, gives a paired comparison.
        groups, resamples, level, seed: as for `bootstrap_many`.

    Raises:
        ValueError: a value is not finite.
    """
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        raise ValueError("values must be finite: leave undefined items out first")

    def mean(counts: np.ndarray) -> np.ndarray:
        return (counts @ values / counts.sum(axis=1))[:, None]

    return bootstrap_many(mean, len(values), groups, resamples=resamples, level=level, seed=seed)[0]


def group_codes(groups: Keys | None, n: int) -> np.ndarray:
    """(n,) codes 0..G-1; each item without a key is a group by itself."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} group keys do not fit {n} items")
    codes = key_codes(groups)[0]
    alone = codes < 0
    codes[alone] = codes.max(initial=-1) + 1 + np.arange(alone.sum())
    return codes


def percentiles(value: float, scores: np.ndarray, level: float) -> Interval:
    """The interval of a score from what it was in each resample; NaN is left out and counted."""
    defined = scores[~np.isnan(scores)]
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if len(defined) else (math.nan, math.nan)
    return Interval(value, float(low), float(high), level, len(scores) - len(defined))
