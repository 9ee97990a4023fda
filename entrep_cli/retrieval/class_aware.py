"""Class-aware retrieval: the predicted classes of query and candidate take part in the ranking.

    rule = ClassRule("soft", 0.05)
    ranking = rank(queries, gallery, 10, exclude, bonus=rule.bonus(query_probabilities, gallery_probabilities))

hard   Candidates whose predicted class is not the query's are filtered out, then cosine (Fusion at the
       Foregut, section 6.1). Where that leaves a query nothing, the whole gallery is ranked (ours).
soft   cosine + w log P, with P = sum over classes c of p_query(c) p_candidate(c), the probability that both
       are of one class, taken as `FLOOR` at least, so that one sure mistake cannot outweigh any cosine (ours).

A predicted class is the one of the greatest probability, the first of equals. Labels are never read to
rank: of the candidates, too, only the model's own predictions count.

P is as exact as a cosine (`ranking.exact_products`), so copies of an image tie and neither the block size nor
the number of threads changes a ranking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from entrep_cli.errors import DataError, UsageError
from entrep_cli.retrieval.ranking import Bonus, Ranking, exact_products

MODES = ("off", "hard", "soft")
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
            raise UsageError(f"No class-aware retrieval {self.mode!r}.", hint="--class-aware off, hard or soft")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UsageError(f"The class weight must be a number of 0 or more, not {self.weight}.", hint="--class-weight 0.05")

    def __str__(self) -> str:
        return f"class-aware {self.mode}"

    def as_dict(self) -> dict[str, Any]:
        return {"mode": self.mode, "weight": self.weight if self.mode == "soft" else None}

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
            return lambda rows, _: _log_same_class(queries[rows], gallery, self.weight)
        asked, given = queries.argmax(axis=1), gallery.argmax(axis=1)

        def same_class_alone(rows: slice, candidates: np.ndarray) -> np.ndarray:
            same = asked[rows, None] == given
            nothing_left = ~(same & candidates).any(axis=1, keepdims=True)
            return np.where(same | nothing_left, np.float32(0), np.float32(-np.inf))

        return same_class_alone

    def fell_back(self, ranking: Ranking, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """(Q,) bool: queries of a ranking by this rule for which the filter left nothing.

        Their first answer shows it: while one candidate of the predicted class is left, no other class is answered.
        """
        first = ranking.indices[:, 0] if ranking.indices.shape[1] else np.full(len(ranking.indices), -1)
        if self.mode != "hard" or not len(gallery):
            return np.zeros(len(first), bool)
        return (first >= 0) & (gallery.argmax(axis=1)[first] != queries.argmax(axis=1))


def _log_same_class(queries: np.ndarray, gallery: np.ndarray, weight: float) -> np.ndarray:
    """(q, G) float32, w log P rounded once."""
    same = exact_products(queries, gallery).astype(np.float64)
    np.log(np.maximum(same, FLOOR, out=same), out=same)
    return np.multiply(same, weight, out=same).astype(np.float32)


def _check(queries: np.ndarray, gallery: np.ndarray) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise DataError(
            f"Class probabilities of the queries {queries.shape} and of the gallery {gallery.shape} do not fit.",
            hint="Embed both with the same run.",
        )
    for name, rows in (("queries", queries), ("gallery", gallery)):
        # Probabilities that are rounded to bfloat16 may add up to a little more than 1; NaN fails the comparison as it must.
        wrong = np.flatnonzero(~((rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1, dtype=np.float64) - 1) < 0.02)))
        if len(wrong):
            raise DataError(
                f"{len(wrong)} of {len(rows)} rows of {name} are no class probabilities (the first is row {wrong[0]}).",
                hint="Make the embeddings again with `entrep embed`.",
            )
