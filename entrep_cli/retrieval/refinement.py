"""Rankings refined by how the gallery lies about the query: whitening, database augmentation, query expansion, re-ranking.

    refinement = Refinement(expand=Expansion(2, 3.0), whiten=Whitening.learn(training_vectors, 64))
    for rows, ranking in refinement.ranked_blocks(queries, gallery, 10, exclude): ...

Nothing is learned here but the whitening, from training vectors; what the other steps are set to is chosen on
validation (`evaluation.selection`). No label is read.

How masks enter: what may not answer a query - itself, its copies, its group - is taken out of the gallery for
that query before anything else, and so contributes to nothing: to no expansion, to no augmented vector of
another candidate, to no neighbourhood. Neither do other queries. The steps run on the `shortlist` candidates of
the best cosine, in the order whitening, database augmentation, query expansion, re-ranking; all other
candidates follow behind, by cosine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from entrep_cli.errors import DataError, UsageError
from entrep_cli.retrieval.ranking import Bonus, Exclusions, Ranking, exact_products, ranked_blocks

STEPS = ("whiten", "dba", "qe", "rerank")
SHORTLIST = 200
_BEHIND = np.float32(-4)  # puts a cosine below any refined score, which lie in [-1, 1]


@dataclass(frozen=True, eq=False)
class Whitening:
    """x -> W^T (x - mean), at unit length: directions in which the training vectors spread alike.

    Attributes:
        mean: (D,). projection: (D, d).
    """

    mean: np.ndarray
    projection: np.ndarray

    @classmethod
    def learn(cls, vectors: np.ndarray, dimensions: int) -> Whitening:
        """PCA whitening on (N, D) vectors: the eigenvectors of the `dimensions` largest variances, each over its deviation.

        Source: Jégou and Chum 2012, section 2.2. Directions of no variance (under 1e-9 of the largest) are left out, so
        the result may have fewer dimensions (ours).

        Raises:
            DataError: fewer than two vectors, or all alike.
        """
        vectors = np.asarray(vectors, np.float64)
        mean = vectors.mean(axis=0) if len(vectors) else np.zeros(vectors.shape[1])
        variances, directions = np.linalg.eigh(np.cov(vectors - mean, rowvar=False, bias=True).reshape(len(mean), -1))
        largest = np.argsort(-variances, kind="stable")[:dimensions]
        largest = largest[variances[largest] > 1e-9 * max(variances.max(), 1e-12)]
        if not len(largest) or not np.isfinite(variances).all():
            raise DataError("A whitening cannot be learned: the vectors do not differ.", hint="embed more images")
        return cls(mean, directions[:, largest] / np.sqrt(variances[largest]))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) to (N, d) float32 unit rows."""
        return _unit((np.asarray(vectors, np.float64) - self.mean) @ self.projection).astype(np.float32)


@dataclass(frozen=True)
class Expansion:
    """A vector added up with its `n` nearest neighbours, each weighted by its cosine (0 at least) to the `power`."""

    n: int
    power: float

    def __post_init__(self) -> None:
        if self.n < 1 or not (math.isfinite(self.power) and self.power >= 0):
            raise UsageError(f"An expansion by {self.n} neighbours at the power {self.power} is none.", hint="n from 1, power from 0")


@dataclass(frozen=True)
class Reranking:
    """k-reciprocal re-ranking: `k1` neighbours, `k2` for the local expansion, and the `weight` of the first distance."""

    k1: int
    k2: int
    weight: float

    def __post_init__(self) -> None:
        if min(self.k1, self.k2) < 1 or not 0 <= self.weight <= 1:
            what = f"A re-ranking with k1 = {self.k1}, k2 = {self.k2}, weight {self.weight} is none."
            raise UsageError(what, hint="k from 1, weight in 0..1")


@dataclass(frozen=True)
class Refinement:
    """Which steps refine a ranking; None leaves one out.

    Attributes:
        database: of every candidate, by its neighbours among the candidates. expand: of the query.
    """

    whiten: Whitening | None = None
    database: Expansion | None = None
    expand: Expansion | None = None
    rerank: Reranking | None = None
    shortlist: int = SHORTLIST

    def __str__(self) -> str:
        return "refined"

    def as_dict(self) -> dict:
        """Plain numbers for JSON."""
        return {
            "whiten": None if self.whiten is None else self.whiten.projection.shape[1],
            **{step: value and asdict(value) for step, value in (("dba", self.database), ("qe", self.expand), ("rerank", self.rerank))},
            "shortlist": self.shortlist,
        }

    def whitened(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) unit rows, whitened if that is a step."""
        return vectors if self.whiten is None else self.whiten(vectors)

    def bonus(self, queries: np.ndarray, gallery: np.ndarray) -> Bonus | None:
        """What `rank` adds to the cosines of (Q, D) and (G, D) rows, both as `whitened`; None where no step changes them."""
        if self.database is None and self.expand is None and self.rerank is None:
            return None

        def of_rows(rows: slice, candidates: np.ndarray) -> np.ndarray:
            cosines = exact_products(queries[rows], gallery)
            added = np.full(cosines.shape, _BEHIND)
            for i, row in enumerate(cosines):
                allowed = np.flatnonzero(candidates[i])
                chosen = allowed[np.argsort(-row[allowed], kind="stable")[: self.shortlist]]
                chosen.sort()  # ties among the refined go to the earlier gallery row
                if len(chosen):
                    added[i, chosen] = refined_scores(queries[rows][i], gallery[chosen], self) - row[chosen]
            return added

        return of_rows

    def ranked_blocks(
        self, queries: np.ndarray, gallery: np.ndarray, k: int | None, exclude: Exclusions = ()
    ) -> Iterator[tuple[slice, Ranking]]:
        """As `ranking.ranked_blocks`, refined."""
        queries, gallery = self.whitened(np.asarray(queries)), self.whitened(np.asarray(gallery))
        return ranked_blocks(queries, gallery, k, exclude, bonus=self.bonus(queries, gallery))


def refined_scores(query: np.ndarray, candidates: np.ndarray, refinement: Refinement) -> np.ndarray:
    """(n,) float32 scores of (n, D) candidates, all of which may contribute, for a (D,) query; higher is better."""
    if refinement.database is not None:
        candidates = augmented(candidates, refinement.database)
    if refinement.expand is not None:
        query = expanded(query, candidates, refinement.expand)
    if refinement.rerank is not None:
        return (1 - reciprocal_distances(query, candidates, refinement.rerank)).astype(np.float32)
    return exact_products(query[None], candidates)[0]


def expanded(query: np.ndarray, gallery: np.ndarray, settings: Expansion) -> np.ndarray:
    """(D,) unit row: q + sum over its n nearest x of cos(q, x)^power x. Power 0 is the average query expansion.

    Source: alpha query expansion (Radenović et al. 2018, section 3.3).
    """
    return _expand(query[None], gallery, exact_products(query[None], gallery), settings)[0]


def augmented(gallery: np.ndarray, settings: Expansion) -> np.ndarray:
    """(G, D) unit rows: every row expanded by its n nearest among the others.

    Source: database-side augmentation (Arandjelović and Zisserman 2012, section 4), with the weights of alpha query expansion.
    """
    cosines = exact_products(gallery, gallery)
    np.fill_diagonal(cosines, -np.inf)
    return _expand(gallery, gallery, cosines, settings)


def reciprocal_distances(query: np.ndarray, gallery: np.ndarray, settings: Reranking) -> np.ndarray:
    """(G,) distances of a (D,) query, in [0, 1]: (1 - weight) x the Jaccard distance of neighbourhoods + weight x the first one.

    Among the query and its candidates, with d the squared Euclidean distance over the largest in its row, N(i, k)
    the k nearest of i and i itself:

        R(i, k) = {j in N(i, k): i in N(j, k)}
        R*(i) = R(i, k1) and every R(j, k1 / 2) of j in R(i, k1) of which more than two thirds lie in R(i, k1)
        V_i = exp(-d_ij) for j in R*(i), of sum 1; then the mean of V over the k2 nearest, i among them
        Jaccard(i, j) = 1 - sum min(V_i, V_j) / sum max(V_i, V_j)

    Source: Zhong et al. 2017, sections 3.2 to 3.4, as in their code (the scaling of d, the sum of 1), but for one
    query at a time, so that queries are no neighbours of each other (ours).
    """
    rows = np.concatenate([query[None], gallery]).astype(np.float32)
    distances = np.maximum(2 - 2 * exact_products(rows, rows).astype(np.float64), 0)
    np.fill_diagonal(distances, -1)  # the nearest to itself, before its copies
    order = np.argsort(distances, axis=1, kind="stable")
    np.fill_diagonal(distances, 0)
    distances /= np.maximum(distances.max(axis=1, keepdims=True), 1e-12)
    reciprocal, close = _reciprocal(order, settings.k1), _reciprocal(order, round(settings.k1 / 2))
    common = reciprocal.astype(np.float32) @ close.T.astype(np.float32)  # (i, j): how much of R(j, k1 / 2) lies in R(i, k1)
    joining = reciprocal & (common > 2 / 3 * close.sum(axis=1))
    neighbours = reciprocal | (joining.astype(np.float32) @ close.astype(np.float32) > 0)
    weights = np.where(neighbours, np.exp(-distances), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    if settings.k2 > 1:
        weights = weights[order[:, : settings.k2]].mean(axis=1)
    smaller = np.minimum(weights[0], weights[1:]).sum(axis=1)
    jaccard = 1 - smaller / (2 - smaller)
    return (1 - settings.weight) * jaccard + settings.weight * distances[0, 1:]


def parse_steps(text: str | None) -> tuple[str, ...]:
    """Steps as they are typed, `whiten,qe`; none for None. UsageError as `check_steps`."""
    if text is None:
        return ()
    steps = tuple(step.strip() for step in text.split(",") if step.strip())
    check_steps(steps)
    return steps


def check_steps(steps: Sequence[str]) -> None:
    """UsageError for no step, or one that is unknown."""
    unknown = [step for step in steps if step not in STEPS]
    if unknown or not steps:
        what = f"Unknown refinement {', '.join(map(repr, unknown))}." if unknown else "No refinement is named."
        raise UsageError(what, hint=f"name one or more of {', '.join(STEPS)}")


def _expand(rows: np.ndarray, gallery: np.ndarray, cosines: np.ndarray, settings: Expansion) -> np.ndarray:
    """Each of (q, D) rows with its n nearest of the gallery, by (q, G) cosines; -inf is no neighbour."""
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : settings.n]
    values = np.take_along_axis(cosines, nearest, axis=1).astype(np.float64)
    weights = np.where(np.isneginf(values), 0.0, np.maximum(values, 0.0) ** settings.power)
    # A neighbour beyond the right angle does not count, at the power 0 neither.
    weights[values <= 0] = 0.0
    return _unit(rows + np.einsum("qn,qnd->qd", weights, gallery[nearest].astype(np.float64))).astype(np.float32)


def _reciprocal(order: np.ndarray, k: int) -> np.ndarray:
    """(n, n) bool, whether two are among the k nearest of each other, or the same."""
    near = np.zeros(order.shape, bool)
    np.put_along_axis(near, order[:, : k + 1], True, axis=1)
    return near & near.T


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    # A vector that is the mean itself has no direction; any one is as good.
    return np.where(lengths > 1e-12, rows / np.maximum(lengths, 1e-12), np.eye(1, rows.shape[1]))
