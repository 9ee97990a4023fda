"""Refined rankings against implementations in loops, and masks against a gallery from which the masked are gone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrep_cli.errors import DataError, UsageError
from entrep_cli.retrieval.ranking import rank
from entrep_cli.retrieval.refinement import (
    Expansion,
    Refinement,
    Reranking,
    Whitening,
    augmented,
    expanded,
    reciprocal_distances,
)


def unit(n: int, dim: int = 5, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)) + 0.7
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# ---------------------------------------------------------------- each step against loops


def naive_expanded(row, others, n, power):
    others = sorted(others, key=lambda x: -float(x @ row))[:n]
    total = row.astype(float).copy()
    for x in others:
        if (cosine := float(x.astype(float) @ row)) > 0:
            total += cosine**power * x
    return total / np.linalg.norm(total)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([0.0, 1.0, 3.0]), st.integers(0, 50))
def test_expansions_are_the_loop(g, n, power, seed):
    rows = unit(g + 1, seed=seed)
    query, gallery = rows[0], rows[1:]
    np.testing.assert_allclose(expanded(query, gallery, Expansion(n, power)), naive_expanded(query, gallery, n, power), atol=1e-5)
    made = augmented(gallery, Expansion(n, power))
    for i, row in enumerate(gallery):
        others = [x for j, x in enumerate(gallery) if j != i]
        np.testing.assert_allclose(made[i], naive_expanded(row, others, n, power), atol=1e-5)


def naive_reciprocal(query, gallery, k1, k2, share):
    """Zhong et al. 2017, with sets and dictionaries, one element after the other."""
    rows = [query.astype(float), *gallery.astype(float)]
    n = len(rows)
    d = [[max(2 - 2 * float(a @ b), 0) for b in rows] for a in rows]
    order = [sorted(range(n), key=lambda j: (j != i, d[i][j], j)) for i in range(n)]
    d = [[value / max(row) if max(row) else value for value in row] for row in d]

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    v = []
    for i in range(n):
        own = reciprocal(i, k1)
        whole = set(own)
        for j in own:
            close = reciprocal(j, round(k1 / 2))
            if len(close & own) > 2 / 3 * len(close):
                whole |= close
        weights = {j: math.exp(-d[i][j]) for j in whole}
        v.append({j: w / sum(weights.values()) for j, w in weights.items()})
    if k2 > 1:
        near = [[v[j] for j in order[i][:k2]] for i in range(n)]
        v = [{j: sum(w.get(j, 0) for w in own) / len(own) for j in range(n)} for own in near]
    found = []
    for j in range(1, n):
        low = sum(min(v[0].get(m, 0), v[j].get(m, 0)) for m in range(n))
        high = sum(max(v[0].get(m, 0), v[j].get(m, 0)) for m in range(n))
        found.append((1 - share) * (1 - low / high) + share * d[0][j])
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 14), st.integers(1, 6), st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 50))
def test_re_ranking_is_the_loop(g, k1, k2, share, seed):
    rows = unit(g + 1, seed=seed)
    found = reciprocal_distances(rows[0], rows[1:], Reranking(k1, k2, share))
    np.testing.assert_allclose(found, naive_reciprocal(rows[0], rows[1:], k1, k2, share), atol=1e-5)


def test_whitening_leaves_no_direction_before_another():
    vectors = unit(400, 6, 1) * np.array([5, 3, 2, 1, 1, 0.5], np.float32)
    made = Whitening.learn(vectors, 6)
    projected = (vectors - made.mean) @ made.projection
    np.testing.assert_allclose(np.cov(projected, rowvar=False, bias=True), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(made(vectors), axis=1), 1, atol=1e-5)
    # Fewer dimensions are the ones of most variance, in the same order.
    few = Whitening.learn(vectors, 2)
    np.testing.assert_allclose(np.abs(few.projection), np.abs(made.projection[:, :2]))
    values = np.linalg.eigvalsh(np.cov(vectors.astype(float), rowvar=False, bias=True))[::-1]
    np.testing.assert_allclose(np.linalg.norm(made.projection, axis=0), values**-0.5, rtol=1e-4)


def test_a_whitening_has_no_direction_without_variance():
    flat = np.concatenate([unit(50, 3), np.zeros((50, 2), np.float32)], axis=1)
    assert Whitening.learn(flat, 5).projection.shape == (5, 3)
    for alike in (unit(1), np.repeat(unit(1), 4, axis=0)):
        with pytest.raises(DataError, match="do not differ"):
            Whitening.learn(alike, 3)


# ---------------------------------------------------------------- masks

STEPS = [
    Refinement(expand=Expansion(3, 1.0)),
    Refinement(database=Expansion(2, 1.0)),
    Refinement(rerank=Reranking(4, 2, 0.3)),
    Refinement(database=Expansion(2, 0.0), expand=Expansion(2, 3.0), rerank=Reranking(3, 1, 0.5)),
]


@pytest.mark.parametrize("refinement", STEPS, ids=["qe", "dba", "rerank", "all"])
def test_what_is_masked_contributes_nothing(refinement):
    """As if it had never been in the gallery, for that query: also through the neighbours of others."""
    vectors, groups = unit(24, seed=3), [str(i // 3) for i in range(24)]
    vectors[5] = vectors[4]  # copies: the first of the two comes first
    names = [str(i) for i in range(24)]
    ((_, found),) = refinement.ranked_blocks(vectors, vectors, None, [(names, names), (groups, groups)])
    for i in range(24):
        left = [j for j in range(24) if groups[j] != groups[i]]
        ((_, alone),) = refinement.ranked_blocks(vectors[i : i + 1], vectors[left], None)
        assert found.indices[i, : len(left)].tolist() == [left[j] for j in alone.indices[0]]
        np.testing.assert_allclose(found.scores[i, : len(left)], alone.scores[0], atol=1e-6)
        assert (found.indices[i, len(left) :] == -1).all()


def test_a_query_changes_no_other_query():
    vectors, queries = unit(15, seed=4), unit(4, seed=5)
    for refinement in STEPS:
        ((_, together),) = refinement.ranked_blocks(queries, vectors, None)
        ((_, alone),) = refinement.ranked_blocks(queries[2:3], vectors, None)
        assert np.array_equal(together.indices[2], alone.indices[0])


@pytest.mark.parametrize("refinement", STEPS, ids=["qe", "dba", "rerank", "all"])
def test_the_shortlist_comes_first_and_the_rest_by_cosine(refinement):
    vectors, query = unit(20, seed=6), unit(1, seed=7)
    plain = rank(query, vectors, None).indices[0]
    short = Refinement(refinement.whiten, refinement.database, refinement.expand, refinement.rerank, shortlist=8)
    ((_, found),) = short.ranked_blocks(query, vectors, None)
    assert sorted(found.indices[0, :8]) == sorted(plain[:8]) and found.indices[0, 8:].tolist() == plain[8:].tolist()
    best = np.sort(plain[:8])
    ((_, alone),) = refinement.ranked_blocks(query, vectors[best], None)
    assert found.indices[0, :8].tolist() == best[alone.indices[0]].tolist()


def test_without_steps_it_is_the_cosine():
    vectors = unit(9)
    ((_, found),) = Refinement().ranked_blocks(vectors, vectors, 4)
    assert np.array_equal(found.indices, rank(vectors, vectors, 4).indices)


def test_faulty_settings():
    for faulty in (lambda: Expansion(0, 1.0), lambda: Expansion(1, -1.0), lambda: Reranking(0, 1, 0.3), lambda: Reranking(1, 1, 1.5)):
        with pytest.raises(UsageError):
            faulty()
