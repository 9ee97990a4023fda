"""Class-aware retrieval: the classes that the model sees in query and candidate have a say in the ranking.

    rule = ClassRule("soft", 0.05)
    ranking = rank(queries, gallery, 10, exclude, bonus=rule.bonus(query_probabilities, gallery_probabilities))

hard   Candidates whose predicted class is not the query's are filtered out, then cosine (Fusion at the
       Foregut, section 6.1). Where that leaves a query nothing, it keeps the whole gallery (ours).
soft   cosine + w log P, with P = sum over classes c of p_query(c) p_candidate(c), the probability that both
       are of one class, taken as `FLOOR` at least, so that one sure mistake cannot outweigh any cosine (ours).

A predicted class is the one of the greatest probability, the first of equals. Labels are never read to
rank: of the candidates, too, only the model's own predictions count.

P is as exact as a cosine (`ranking.exact_products`), so copies of an image tie and neither the block size nor
the number of threads changes a ranking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.retrieval.ranking import Bonus, Exclusions, Keys, Ranking, exact_products, ranked_blocks, relevance

MODES = ("off", "hard", "soft")
WEIGHTS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FLOOR = 1e-6


@dataclass(frozen=True)
class ClassRule:
    """How classes enter a ranking.

    Args:
        mode: `off`, `hard` or `soft`.
        weight: w of the soft rule; 0 leaves the cosine alone.

    Raises:
        UsageError: no such mode, or a weight that is negative or no number.
    """

    mode: str = "off"
    weight: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"There is no class-aware retrieval {self.mode!r}.", hint="--class-aware off, hard or soft")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UsageError(f"The class weight must be a number of 0 or more, not {self.weight}.", hint="--class-weight 0.05")

    def __str__(self) -> str:
        return f"class-aware {self.mode}"

    def bonus(self, queries: np.ndarray, gallery: np.ndarray) -> Bonus | None:
        """The bonus that `rank` adds to the cosines; None where the rule is off.

        Args:
            queries: (Q, C) probabilities of the queries.
            gallery: (G, C) of the candidates.

        Raises:
            DataError: other classes on the two sides, or what are no probabilities.
        """
        if self.mode == "off":
            return None
        _check(queries, gallery)
        if self.mode == "soft":
            return lambda rows, _: _log_shared(queries[rows], gallery, self.weight)
        asked, given = queries.argmax(axis=1), gallery.argmax(axis=1)

        def keep_own_class(rows: slice, candidates: np.ndarray) -> np.ndarray:
            own = asked[rows, None] == given
            nothing_left = ~(own & candidates).any(axis=1, keepdims=True)
            return np.where(own | nothing_left, np.float32(0), np.float32(-np.inf))

        return keep_own_class

    def fell_back(self, ranking: Ranking, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """(Q,) bool: queries of a ranking by this rule for which the filter left nothing.

        Their first answer gives them away: while one candidate of the predicted class is left, no other
        class is answered.
        """
        first = ranking.indices[:, 0] if ranking.indices.shape[1] else np.full(len(ranking.indices), -1)
        if self.mode != "hard" or not len(gallery):
            return np.zeros(len(first), bool)
        return (first >= 0) & (gallery.argmax(axis=1)[first] != queries.argmax(axis=1))


@dataclass(frozen=True)
class TunedWeight:
    """The weight of the soft rule that validation chose.

    Attributes:
        weight: w.
        queries: how many validation queries had something to find.
        tried: (w, Recall@1, MRR), by class, of every weight tried, from 0 upward.
    """

    weight: float
    queries: int
    tried: tuple[tuple[float, float, float], ...]

    @property
    def before(self) -> tuple[float, float]:
        """Recall@1 and MRR by the cosine alone."""
        return self.tried[0][1:]

    @property
    def after(self) -> tuple[float, float]:
        """Recall@1 and MRR with the weight."""
        return next(row[1:] for row in self.tried if row[0] == self.weight)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; `from_dict` reads them back."""
        return {
            "weight": self.weight,
            "queries": self.queries,
            "tried": [{"weight": w, "recall@1": recall, "mrr": mrr} for w, recall, mrr in self.tried],
        }

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> TunedWeight:
        """KeyError, TypeError or ValueError where it is no such table."""
        tried = tuple((float(row["weight"]), float(row["recall@1"]), float(row["mrr"])) for row in table["tried"])
        if not tried or tried[0][0] != 0 or table["weight"] not in [row[0] for row in tried]:
            raise ValueError("the weight is none of those tried")
        return cls(float(table["weight"]), int(table["queries"]), tried)


def tune_weight(
    vectors: np.ndarray, probabilities: np.ndarray, labels: Keys, exclude: Exclusions = (), weights: Sequence[float] = WEIGHTS
) -> TunedWeight:
    """The weight of the soft rule with the best Recall@1 by class; of equals the best MRR, then the smallest.

    Every image asks for all others; only validation images belong here.

    Args:
        vectors: (N, D) unit rows.
        probabilities: (N, C).
        labels: (N,) true classes.
        exclude: as in `rank`; the images themselves at least.
        weights: to try; 0 always is.

    Raises:
        RunError: no image has another of its class to find.
    """
    labels = np.asarray(labels, dtype=object)
    tried, n_queries = [], 0
    for weight in sorted({0.0, *map(float, weights)}):
        bonus = ClassRule("soft", weight).bonus(probabilities, probabilities)
        ranks: list[int] = []
        for rows, ranking in ranked_blocks(vectors, vectors, None, exclude, bonus=bonus):
            hits = relevance(ranking, labels[rows], labels)
            ranks += (hits.argmax(axis=1) + 1)[hits.any(axis=1)].tolist()
        if not ranks:
            raise RunError("No validation image has another of its class, outside its own group, to find.")
        n_queries = len(ranks)
        # fsum does not depend on the order of the queries: what is equal must tie.
        tried.append((weight, ranks.count(1) / n_queries, math.fsum(1 / r for r in ranks) / n_queries))
    best = max(tried, key=lambda row: (row[1], row[2], -row[0]))
    return TunedWeight(best[0], n_queries, tuple(tried))


def _log_shared(queries: np.ndarray, gallery: np.ndarray, weight: float) -> np.ndarray:
    """(q, G) float32, w log P rounded once."""
    shared = exact_products(queries, gallery).astype(np.float64)
    np.log(np.maximum(shared, FLOOR, out=shared), out=shared)
    return np.multiply(shared, weight, out=shared).astype(np.float32)


def _check(queries: np.ndarray, gallery: np.ndarray) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise DataError(
            f"Class probabilities of the queries {queries.shape} and of the gallery {gallery.shape} do not fit.",
            hint="Embed both with the same run.",
        )
    for name, rows in (("queries", queries), ("gallery", gallery)):
        # Shares that are rounded to bfloat16 may add up to a little more than 1; NaN fails the comparison as it must.
        wrong = np.flatnonzero(~((rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1, dtype=np.float64) - 1) < 0.02)))
        if len(wrong):
            raise DataError(
                f"{len(wrong)} of {len(rows)} rows of {name} are no class probabilities (the first is row {wrong[0]}).",
                hint="Make the embeddings again with `entrep embed`.",
            )
