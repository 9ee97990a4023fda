"""Scores of a retrieval: Recall@k, mean reciprocal rank, mean average precision; `metrics.py` has the formulas.

    scores = score_retrieval(queries, gallery, (query_labels, gallery_labels),
                             exclude=[(names, names), (exams, exams)], groups=exams, name="class")
    for name, interval in scores.means.items():
        print(name, interval)  # recall@1 0.921 [0.893, 0.948]

A query without a relevant item can have no score: it is left out of the means, and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from entrep_cli.errors import DataError
from entrep_cli.evaluation.comparison import GroupTotals, mean_score
from entrep_cli.evaluation.intervals import Interval, Sample
from entrep_cli.evaluation.metrics import RETRIEVAL, Metric, metrics_of
from entrep_cli.retrieval.ranking import Exclusions, Keys, match_codes, ranked_blocks

RELEVANCE_NAMES = ("class", "finding", "group", "pair")

RelevanceOf = tuple[Keys, Keys] | Callable[[slice], np.ndarray]


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """What each of Q queries scored, and the means.

    Args:
        first_rank: (Q,) int, rank of the first relevant answer from 1; 0 where there is none.
        average_precision: (Q,) float; of a query without a relevant item it is not read.
        n_relevant: (Q,) int, relevant items in the gallery, masked ones left out.
        relevance: what made an answer relevant: 'class', 'finding', 'group', or 'pair' (the one image named in a truth file).
        groups: (Q,) exam keys for the intervals; None for independent queries.
        depth: None where every relevant item is ranked; else only the top `depth` answers are, and
            the two rank scores are 'within the top depth' and named so (`mrr@10`, `map@10`).
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        DataError: no query, lengths differ, or the name of the relevance is unknown.
    """

    first_rank: np.ndarray
    average_precision: np.ndarray
    n_relevant: np.ndarray
    relevance: str
    groups: Keys | None = None
    depth: int | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.relevance not in RELEVANCE_NAMES:
            raise DataError(
                f"Unknown relevance '{self.relevance}'.",
                hint=f"One of {', '.join(RELEVANCE_NAMES)}.",
            )
        lengths = {len(self.first_rank), len(self.average_precision), len(self.n_relevant)}
        lengths |= set() if self.groups is None else {len(self.groups)}
        if len(lengths) > 1:
            raise DataError(f"Query arrays differ in length: {sorted(lengths)}.")
        if lengths == {0}:
            raise DataError("Nothing to score: no queries.")

    @classmethod
    def from_relevance(
        cls,
        hits: np.ndarray,
        n_relevant: np.ndarray,
        relevance: str,
        groups: Keys | None = None,
        *,
        resamples: int = 1000,
        seed: int = 0,
    ) -> RetrievalScores:
        """Scores from answers in rank order.

        Args:
            hits: (Q, K) bool, whether the answer at each rank is relevant.
            n_relevant: (Q,) int, relevant items in the gallery; where a query has more of them than
                hits, the ranking is cut and `depth` becomes K.
            relevance, groups, resamples, seed: as for `RetrievalScores`.

        Raises:
            DataError: shapes do not fit, or a query has more hits than relevant items.
        """
        hits, n_relevant = np.asarray(hits, bool), np.asarray(n_relevant)
        if hits.ndim != 2 or n_relevant.shape != hits.shape[:1]:
            raise DataError(f"Relevance {hits.shape} and relevant items {n_relevant.shape} do not fit.")
        n_hits = hits.sum(axis=1)
        if (n_hits > n_relevant).any():
            query = int(np.argmax(n_hits > n_relevant))
            raise DataError(f"Query {query} has {n_hits[query]} hits but {n_relevant[query]} relevant items.")
        depth = None if (n_hits == n_relevant).all() else hits.shape[1]
        return cls(*_score_rows(hits, n_relevant), n_relevant, relevance, groups, depth, resamples, seed)

    @property
    def scored(self) -> np.ndarray:
        """(Q,) bool, the queries that have a relevant item."""
        return self.n_relevant > 0

    @property
    def n_without_relevant(self) -> int:
        return int((~self.scored).sum())

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that the ranking reaches, by their names in documents: "recall@1", and "mrr@10" within a depth of 10."""
        return {
            m.key if m.reach or self.depth is None else f"{m.key}@{self.depth}": m
            for m in metrics_of(RETRIEVAL)
            if not m.reach or self.depth is None or m.reach <= self.depth
        }

    @cached_property
    def per_query(self) -> dict[str, np.ndarray]:
        """The (Q,) floats of each of `metrics` in the order of the queries; NaN for a query left out."""
        columns = self.first_rank, self.average_precision, self.n_relevant
        return {name: np.where(self.scored, metric.items(*columns), np.nan) for name, metric in self.metrics.items()}

    @cached_property
    def means(self) -> dict[str, Interval]:
        """The mean of each score over the scored queries, with its interval."""
        return self.sample.intervals(resamples=self.resamples, seed=self.seed)

    @property
    def sample(self) -> Sample:
        """The mean of each score over the scored queries, as a function of a resample."""
        values = np.stack([column[self.scored] for column in self.per_query.values()], axis=1)

        def mean(counts: np.ndarray) -> np.ndarray:
            return counts @ values / counts.sum(axis=1, keepdims=True)

        return Sample(tuple(self.per_query), len(values), self._scored_groups, mean, tuple(m.format for m in self.metrics.values()))

    def totals(self, metric: Metric) -> GroupTotals:
        """A metric as a function of what the scored queries of each group add up to, for the permutation test."""
        columns = (column[self.scored] for column in (self.first_rank, self.average_precision, self.n_relevant))
        return mean_score(metric.items(*columns), self._scored_groups)

    @property
    def _scored_groups(self) -> list | None:
        return None if self.groups is None else [key for key, scored in zip(self.groups, self.scored, strict=True) if scored]

    def as_dict(self) -> dict:
        """All means as plain numbers, ready for JSON."""
        return {
            "relevance": self.relevance,
            "n_queries": len(self.n_relevant),
            "n_without_relevant": self.n_without_relevant,
            "depth": self.depth,
            **{name: interval.as_dict() for name, interval in self.means.items()},
        }


def score_retrieval(
    queries: np.ndarray,
    gallery: np.ndarray,
    relevance_of: RelevanceOf,
    *,
    name: str,
    exclude: Exclusions = (),
    groups: Keys | None = None,
    block_size: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> RetrievalScores:
    """Score the full exact ranking of large sets, block by block: Q x G is never held.

    Args:
        queries: (Q, D) unit rows.
        gallery: (G, D) unit rows.
        relevance_of: labels (query_labels (Q,), gallery_labels (G,)), relevant where equal and not
            missing; or a function from a slice of the queries to (q, G) bool, for several labels an
            item.
        name: of the relevance, one of `RELEVANCE_NAMES`.
        exclude: masks as in `rank`; a masked item is neither answer nor relevant.
        groups: (Q,) exam keys for the intervals.
        block_size: queries at a time; it cannot change the scores.
        resamples, seed: of the bootstrap.

    Raises:
        DataError: as `rank` and `RetrievalScores`, or the relevance does not fit the sets.
    """
    if not callable(relevance_of):
        query_codes, gallery_codes = match_codes(*relevance_of)
        if len(query_codes) != len(queries) or len(gallery_codes) != len(gallery):
            raise DataError(
                f"Labels ({len(query_codes)}, {len(gallery_codes)}) do not fit {len(queries)} queries and {len(gallery)} gallery items."
            )

        def relevance_of(rows: slice) -> np.ndarray:
            return query_codes[rows, None] == gallery_codes

    first_rank = np.zeros(len(queries), np.int64)
    average_precision = np.zeros(len(queries))
    n_relevant = np.zeros(len(queries), np.int64)
    for rows, ranking in ranked_blocks(queries, gallery, None, exclude, block_size=block_size):
        relevant = np.asarray(relevance_of(rows), bool)
        if relevant.shape != ranking.indices.shape:
            raise DataError(f"Relevance of shape {relevant.shape} where {ranking.indices.shape} is needed.")
        hits = np.take_along_axis(relevant, ranking.indices, axis=1) & (ranking.indices >= 0)
        n_relevant[rows] = hits.sum(axis=1)
        first_rank[rows], average_precision[rows] = _score_rows(hits, n_relevant[rows])
    return RetrievalScores(first_rank, average_precision, n_relevant, name, groups, resamples=resamples, seed=seed)


def _score_rows(hits: np.ndarray, n_relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First rank (q,) and average precision (q,) of hits (q, K); 0 where there is no hit."""
    # Hits are few beside Q x K, so the sums run over the hits alone.
    query, column = np.nonzero(hits)
    n_hits = hits.sum(axis=1)
    nth = np.arange(len(query)) - (n_hits.cumsum() - n_hits)[query] + 1
    precision_sum = np.bincount(query, weights=nth / (column + 1), minlength=len(hits))
    first_rank = np.zeros(len(hits), np.int64)
    first_rank[query[nth == 1]] = column[nth == 1] + 1
    return first_rank, precision_sum / np.maximum(n_relevant, 1)
