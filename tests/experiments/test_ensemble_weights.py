"""The weights of an ensemble against other ways to find them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from entrep_cli.errors import RunError
from entrep_cli.evaluation.retrieval import score_retrieval
from entrep_cli.experiments.ensemble_weights import first_ranks, mixture_weights, ranking_weights, simplex_grid
from entrep_cli.retrieval.ranking import rank


@pytest.mark.parametrize("n_members", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_mixture_weights_against_slsqp(n_members, seed):
    likelihoods = np.random.default_rng(seed).beta(4, 2, (n_members, 80))
    likelihoods[0] *= 0.8  # one that is rather worse

    def loss(weights):
        return -np.log(weights @ likelihoods).mean()

    equal = np.full(n_members, 1 / n_members)
    best = minimize(loss, equal, method="SLSQP", bounds=[(0, 1)] * n_members, constraints={"type": "eq", "fun": lambda w: w.sum() - 1})
    found = mixture_weights(likelihoods)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    assert loss(found) <= best.fun + 2e-6 and loss(found) <= loss(equal)


def test_equal_members_keep_equal_weights_and_a_useless_one_loses_its():
    own = np.random.default_rng(0).uniform(0.3, 1, 50)
    assert np.allclose(mixture_weights(np.stack([own, own, own])), 1 / 3)
    assert mixture_weights(np.stack([own, own / 10]))[1] < 1e-3
    assert mixture_weights(np.stack([own, np.zeros(50)]))[1] < 1e-3


@pytest.mark.parametrize("n_members, points", [(1, 1), (2, 11), (3, 66), (4, 286), (5, 210), (8, 120), (40, 40)])
def test_the_grid(n_members, points):
    grid = simplex_grid(n_members)
    assert np.allclose(grid.sum(axis=1), 1) and (grid >= 0).all() and np.allclose(grid[0], 1 / n_members)
    assert len(grid) == points + 1 and len(np.unique(grid[1:].round(6), axis=0)) == points


def test_first_ranks_are_those_of_the_exact_ranking():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = vectors[3]  # equal scores
    labels = rng.integers(0, 3, 30)
    candidates = ~np.eye(30, dtype=bool)
    relevant = (labels[:, None] == labels) & candidates
    found = rank(vectors, vectors, None, [(np.arange(30) + 1, np.arange(30) + 1)])
    scores = np.full((30, 30), -9.0)
    np.put_along_axis(scores, np.where(found.indices < 0, np.arange(30)[:, None], found.indices), found.scores, axis=1)
    wanted = score_retrieval(vectors, vectors, (labels, labels), name="class", exclude=[(np.arange(30) + 1, np.arange(30) + 1)])
    assert first_ranks(scores, relevant, candidates).tolist() == wanted.first_rank.tolist()


def units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_ranking_weights_do_not_depend_on_how_far_cosines_spread():
    """One member knows the classes, and all its vectors lie close together; the other knows nothing and spreads widely."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    knows = units(np.eye(3)[labels] + rng.normal(size=(60, 3)) * 0.2)
    knows = units(np.concatenate([0.1 * knows, np.ones((60, 1))], axis=1))
    noise = units(rng.normal(size=(60, 8)))
    candidates = ~np.eye(60, dtype=bool)
    relevant = (labels[:, None] == labels) & candidates
    weights, deviations = ranking_weights([knows, noise], relevant, candidates)
    assert weights.sum() == pytest.approx(1) and deviations[0] < 0.1 * deviations[1]
    assert weights[0] > 0.95
    fused = np.concatenate([np.sqrt(w) * v for w, v in zip(weights, (knows, noise))], axis=1)

    def recall(rows):
        exclude = [(np.arange(60) + 1, np.arange(60) + 1)]
        return score_retrieval(rows, rows, (labels, labels), name="class", exclude=exclude).means["recall@1"].value

    assert recall(fused) >= recall(knows) > recall(noise)
    same, _ = ranking_weights([knows, knows], relevant, candidates)
    assert np.allclose(same, 0.5)  # ties go to equal weights


def test_nothing_to_find_is_told():
    with pytest.raises(RunError, match="to retrieve"):
        ranking_weights([np.eye(3)], np.eye(3, dtype=bool), ~np.eye(3, dtype=bool))
