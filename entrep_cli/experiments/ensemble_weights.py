"""How much each member of an ensemble counts, found on validation: one set of weights for classes, one for rankings.

For the classes the likelihood is to be the greatest: maximum-likelihood weights of a mixture whose components
are fixed, a concave problem that expectation-maximisation solves (Dempster, Laird and Rubin 1977, section
4.3). For the rankings it is Recall@1, then the mean reciprocal rank, over a coarse grid (ours): both jump,
so there is nothing to climb, and on a few hundred queries a finer grid would only fit them closer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from entrep_cli.errors import RunError

_NEAR = 1e-6  # what the mean log-likelihood may still gain
_ROUNDS = 20_000
_GRID_POINTS = 300
_CELLS = 2**22  # of queries x candidates that are held, a member


def mixture_weights(likelihoods: np.ndarray) -> np.ndarray:
    """(M,) weights of the mixture sum_m w_m p_m with the greatest likelihood; of equals those nearest to where it starts, equal ones.

    By expectation-maximisation: w_m <- w_m mean_i p_mi / sum_k w_k p_ki. At the optimum no member's factor
    exceeds 1, and the greatest factor less 1 bounds what could still be gained; there it ends.

    Args:
        likelihoods: (M, N), the probability that each member gives to the true class of each image.
    """
    likelihoods = np.maximum(np.asarray(likelihoods, np.float64), np.finfo(np.float32).tiny)
    weights = np.full(len(likelihoods), 1 / len(likelihoods))
    for _ in range(_ROUNDS):
        factors = (likelihoods / (weights @ likelihoods)).mean(axis=1)
        if factors.max() - 1 < _NEAR:
            break
        weights = weights * factors
    return weights / weights.sum()


def simplex_grid(n_members: int) -> np.ndarray:
    """(P, M) weights that sum to 1: equal ones, then all in steps of a tenth, or in coarser ones where there would be over 300."""
    for steps in range(10, 0, -1):
        bars = list(combinations(range(steps + n_members - 1), n_members - 1)) if _points(n_members, steps) <= _GRID_POINTS else []
        if bars:
            edges = np.array([(-1, *bar, steps + n_members - 1) for bar in bars])
            return np.vstack([np.full((1, n_members), 1 / n_members), (np.diff(edges, axis=1) - 1) / steps])
    return np.full((1, n_members), 1 / n_members)


def ranking_weights(vectors: Sequence[np.ndarray], relevant: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M,) weights of the members' cosines with the best Recall@1, then mean reciprocal rank, then nearest to equal.

    Cosines of different models do not spread alike, and the one that spreads most would decide alone. So
    the grid is one of standardised cosines: the weight of a member is its fraction divided by the deviation of
    its cosines over all candidates, which is the same as to standardise them, for what is added to all
    candidates of a query changes no ranking.

    Args:
        vectors: of each member, (N, D) unit rows of the same N images, each of which asks for the others.
        relevant: (N, N) bool, rows the queries. candidates: (N, N) bool, what may answer.

    Returns:
        The weights, and the (M,) deviations of the cosines.

    Raises:
        RunError: no image has another of its class to find.
    """
    asked = np.flatnonzero((relevant & candidates).any(axis=1))
    if not len(asked):
        raise RunError("No validation image has another of its class, outside its group, to retrieve.")
    asked = asked[:: -(-len(asked) * relevant.shape[1] // _CELLS)]
    candidates, relevant = candidates[asked], relevant[asked] & candidates[asked]
    cosines = [np.asarray(rows, np.float32)[asked] @ np.asarray(rows, np.float32).T for rows in vectors]
    deviations = np.array([max(float(c[candidates].std()), 1e-6) for c in cosines])
    best, chosen = None, np.empty(0)
    for fractions in simplex_grid(len(vectors)):
        weights = fractions / deviations
        scores = sum(np.float32(w) * c for w, c in zip(weights, cosines))
        ranks = first_ranks(scores, relevant, candidates)
        key = (int((ranks == 1).sum()), round(float((1 / ranks).sum()), 6), -round(float(((fractions - 1 / len(fractions)) ** 2).sum()), 6))
        if best is None or key > best:
            best, chosen = key, weights / weights.sum()
    return chosen, deviations


def first_ranks(scores: np.ndarray, relevant: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(Q,) rank from 1 of the first relevant candidate; an equal score before it in the gallery stands before it.

    Args:
        scores: (Q, N). relevant: (Q, N) bool, at least one in each row and all of them candidates.
    """
    own = np.where(relevant, scores, -np.inf)
    first = own.argmax(axis=1)
    best = own[np.arange(len(own)), first][:, None]
    others = np.where(candidates & ~relevant, scores, -np.inf)
    before = (others == best) & (np.arange(scores.shape[1]) < first[:, None])
    return 1 + (others > best).sum(axis=1) + before.sum(axis=1)


def _points(n_members: int, steps: int) -> int:
    from math import comb

    return comb(steps + n_members - 1, n_members - 1)
