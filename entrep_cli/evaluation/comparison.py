"""Is one run better than another, or did these exams only suit it?

    found = compare([mean_score(a_correct, exams), mean_score(b_correct, exams)])
    found.differences[0].adjusted  # 0.013
    found.marks                    # [(), (0,)]: the second is significantly better than the first

Frames of one exam resemble each other, so nothing here takes frames for independent but McNemar's
test, which is reported because readers ask for it:

- `permutation_test` decides. If two runs are equally good, each exam could as well have had their answers the
  other way round: swap them in every subset of the exams (or in many drawn ones) and count how often
  the scores then differ at least as much. Approximate randomisation (Noreen 1989; Yeh 2000, section 3),
  whose unit is here the group (ours). For a mean over items it is the sign-flip test on the sums of the
  groups. Exact for any number of groups where the answers of the runs are exchangeable within a group;
  where only their expected scores are equal, it holds from some 20 groups on.
- `bootstrap_p` comes from the groups drawn anew, as the interval of the difference does, and shares its
  fault: with few groups it rejects too often.
- `mcnemar` counts the items that one run alone has right (McNemar 1947, exact). Ten frames of one exam
  that fail together are ten proofs to it.

`benchmarks/comparison.py` measures how often each calls equal runs different, and how often it sees
planted differences. Of several pairs the p-values are corrected by Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from entrep_cli.evaluation.intervals import Interval, group_codes, percentiles, resampled
from entrep_cli.evaluation.metrics import Metric
from entrep_cli.retrieval.ranking import Keys

PERMUTATIONS = 10_000
_SAME = 1e-10  # sums in another order differ by less; scores that differ at all, by more
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class GroupTotals:
    """A score of one run, as a function of what its items add up to, kept group by group.

    Attributes:
        totals: (G, K) sums over the items of each group; the groups in the order of `group_codes`.
        score: (B, K) sums over groups to (B,) scores.
        n_items: in all groups.
        hits: (n,) bool, the items that the run has right, where the score is the share of them; else None.
    """

    totals: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]
    n_items: int
    hits: np.ndarray | None = None


def mean_score(values: np.ndarray, groups: Keys | None = None) -> GroupTotals:
    """The mean of (n,) numbers over items; of bools, as accuracy and Recall@1 are, with McNemar's test.

    Raises:
        ValueError: a value is not finite.
    """
    values = np.asarray(values)
    if not np.isfinite(values).all():
        raise ValueError("values must be finite: leave undefined items out first")
    codes = group_codes(groups, len(values))
    totals = np.stack([np.bincount(codes, weights=values), np.bincount(codes)], axis=1)
    return GroupTotals(totals, lambda sums: sums[:, 0] / sums[:, 1], len(values), values if values.dtype == bool else None)


def confusion_score(metric: Metric, truth: np.ndarray, predicted: np.ndarray, n_classes: int, groups: Keys | None = None) -> GroupTotals:
    """A metric of the confusion matrix of (n,) class ids; what adds up is the matrix."""
    codes, n_cells = group_codes(groups, len(truth)), n_classes**2
    places = codes * n_cells + np.asarray(truth, np.int64) * n_classes + np.asarray(predicted, np.int64)
    totals = np.bincount(places, minlength=(int(codes.max(initial=-1)) + 1) * n_cells).reshape(-1, n_cells)

    def score(sums: np.ndarray) -> np.ndarray:
        return metric.score(sums.reshape(len(sums), n_classes, n_classes), False)

    return GroupTotals(totals.astype(float), score, len(truth))


def averaged(trainings: Sequence[GroupTotals]) -> GroupTotals:
    """The mean over trainings of one score of the same items; what is drawn or swapped is a group's answers of all of them.

    Raises:
        ValueError: the trainings were scored on other items.
    """
    first = trainings[0]
    if any(t.totals.shape != first.totals.shape or t.n_items != first.n_items for t in trainings):
        raise ValueError("scores of other items cannot be averaged")
    width = first.totals.shape[1]

    def score(sums: np.ndarray) -> np.ndarray:
        return np.mean([t.score(sums[:, i * width : (i + 1) * width]) for i, t in enumerate(trainings)], axis=0)

    return GroupTotals(np.concatenate([t.totals for t in trainings], axis=1), score, first.n_items)


# ---------------------------------------------------------------- tests of one pair


def permutation_test(first: GroupTotals, second: GroupTotals, *, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p-value that two runs differ by as much, their answers being swapped in whole groups.

        p = #{swaps s: |score(A_s) - score(B_s)| >= |score(A) - score(B)|} / #{swaps}

    over all subsets of the groups in which the runs differ, where these are at most `permutations`; else
    over so many drawn ones, the actual one counted among them (p is never 0). Of m such groups p cannot
    fall below 2 / 2^m.
    """
    moved = first.totals - second.totals
    moved = moved[(moved != 0).any(axis=1)]
    n_groups, width = moved.shape
    if n_groups == 0:
        return 1.0
    of_first, of_second = (scored.totals.sum(axis=0, keepdims=True) for scored in (first, second))
    least = abs(float(first.score(of_first)[0] - second.score(of_second)[0])) - _SAME
    exact = 2**n_groups <= permutations
    number = 2**n_groups if exact else permutations
    rng = np.random.default_rng(seed)
    block = max(1, _NUMBERS_AT_ONCE // max(width, n_groups))
    as_much = 0
    for start in range(0, number, block):
        rows = np.arange(start, min(start + block, number))
        if exact:
            swapped = (rows[:, None] >> np.arange(n_groups)) & 1
        else:
            drawn = rng.integers(256, size=(len(rows), -(-n_groups // 8)), dtype=np.uint8)
            swapped = np.unpackbits(drawn, axis=1, count=n_groups)
        change = swapped.astype(float) @ moved
        as_much += int((np.abs(first.score(of_first - change) - second.score(of_second + change)) >= least).sum())
    return as_much / number if exact else (as_much + 1) / (number + 1)


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value from (R,) resampled differences: twice the share beyond zero, the level at which the interval leaves zero out.

    NaN where nothing was resampled.
    """
    defined = differences[~np.isnan(differences)]
    if not len(defined):
        return math.nan
    beyond = min((defined <= _SAME).sum(), (defined >= -_SAME).sum())
    return min(1.0, 2 * (int(beyond) + 1) / (len(defined) + 1))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test, of (n,) bools: what each of two runs has right.

    The binomial test of b items that only the first has right among b + c that one of them alone has right. It takes
    items for independent; frames are not.
    """
    from scipy.stats import binomtest

    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(b, b + c).pvalue) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, step by step (Holm 1979): the i-th smallest of m times m - i + 1, none below one before it."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, float)[order] * factors))
    return adjusted.tolist()


# ---------------------------------------------------------------- several runs


@dataclass(frozen=True)
class Difference:
    """The first of two runs less the second, by one score.

    Attributes:
        first, second: places of the runs.
        value: the difference and its paired bootstrap interval.
        p: of `permutation_test`; adjusted: the same, corrected by Holm for all pairs. It decides.
        p_bootstrap: of `bootstrap_p`; p_mcnemar: of `mcnemar`, None where the score is no share of items.
        only_first, only_second: items that one of them alone has right; None likewise.
        groups: in which they differ at all.
        significant: whether `adjusted` is at most the level.
    """

    first: int
    second: int
    value: Interval
    p: float
    adjusted: float
    p_bootstrap: float
    p_mcnemar: float | None
    only_first: int | None
    only_second: int | None
    groups: int
    significant: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "difference": self.value.as_dict(),
            "p": self.p,
            "p_holm": self.adjusted,
            "significant": self.significant,
            "p_bootstrap": None if math.isnan(self.p_bootstrap) else self.p_bootstrap,
            "p_mcnemar": self.p_mcnemar,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "groups_that_differ": self.groups,
        }


@dataclass(frozen=True)
class Compared:
    """Runs compared by one score.

    Attributes:
        scores: of each run, with its interval; None where it has none.
        differences: of the pairs that both have one.
        n_items, n_groups: what was scored.
        higher_is_better: the direction of the score.
    """

    scores: list[Interval | None]
    differences: list[Difference]
    n_items: int
    n_groups: int
    higher_is_better: bool = True

    @property
    def marks(self) -> list[tuple[int, ...]]:
        """Of each run the places of those that it is significantly better than."""
        better: list[list[int]] = [[] for _ in self.scores]
        for d in self.differences:
            if d.significant:
                winner, loser = (d.first, d.second) if (d.value.value > 0) == self.higher_is_better else (d.second, d.first)
                better[winner].append(loser)
        return [tuple(sorted(places)) for places in better]

    @property
    def best(self) -> int:
        """The place of the best run; of equal ones the first."""
        sign = 1 if self.higher_is_better else -1
        return max((i for i, interval in enumerate(self.scores) if interval), key=lambda i: sign * self.scores[i].value)


def compare(
    runs: Sequence[GroupTotals | None],
    *,
    baseline: int | None = None,
    level: float = 0.05,
    resamples: int = 1000,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    higher_is_better: bool = True,
) -> Compared:
    """Compare runs by one score of the same items.

    Args:
        runs: one or more, None for a run that does not have the score.
        baseline: compare all with this one; else each with each.
        level: of significance; intervals hold 1 - level.
        resamples, permutations, seed: the same seed, the same numbers.
        higher_is_better: the direction of the score.

    Raises:
        ValueError: the runs do not have the same items, or none has the score.
    """
    having = [i for i, run in enumerate(runs) if run is not None]
    if not having:
        raise ValueError("no run has this score")
    totals = {i: runs[i].totals for i in having}
    n_groups = len(totals[having[0]])
    if len({(totals[i].shape, runs[i].n_items) for i in having}) > 1:
        raise ValueError("scores of other items cannot be compared")

    def statistics(counts: np.ndarray) -> np.ndarray:
        return np.stack([runs[i].score(counts @ totals[i]) for i in having], axis=1)

    values, drawn = resampled(statistics, n_groups, resamples=resamples, seed=seed)
    value, resample = dict(zip(having, values)), dict(zip(having, drawn.T))
    pairs = [(i, j) for i, j in combinations(having, 2) if baseline in (None, i, j)]
    p_values = [permutation_test(runs[i], runs[j], permutations=permutations, seed=seed) for i, j in pairs]
    differences = []
    for (i, j), p, adjusted in zip(pairs, p_values, holm(p_values)):
        moved = resample[i] - resample[j]
        a, b = runs[i].hits, runs[j].hits
        shares = a is not None and b is not None
        differences.append(
            Difference(
                i,
                j,
                percentiles(float(value[i] - value[j]), moved, 1 - level),
                p,
                adjusted,
                bootstrap_p(moved),
                mcnemar(a, b) if shares else None,
                int((a & ~b).sum()) if shares else None,
                int((b & ~a).sum()) if shares else None,
                int((totals[i] != totals[j]).any(axis=1).sum()),
                adjusted <= level,
            )
        )
    scores = [percentiles(float(value[i]), resample[i], 1 - level) if i in value else None for i in range(len(runs))]
    return Compared(scores, differences, runs[having[0]].n_items, n_groups, higher_is_better)
