"""Rows of several arrays as one, against the copy they spare."""

from __future__ import annotations

import numpy as np
import pytest

from entrep_cli.retrieval.ranking import rank
from entrep_cli.retrieval.rows import Rows


@pytest.fixture
def parts() -> list[np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((90, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [rows[:40], rows[40:41], rows[41:]]


@pytest.mark.parametrize("kept", [np.arange(90), np.arange(0, 90, 3), np.array([39, 40, 41]), np.array([5]), np.arange(0)])
def test_every_selection_is_that_of_the_copy(parts, kept):
    rows, copy = Rows(parts, kept), np.concatenate(parts)[kept]
    n = len(copy)
    assert len(rows) == n and rows.shape == copy.shape and rows.ndim == 2 and rows.dtype == np.float32
    asked = [slice(None), slice(1, 3), slice(2, None, 2), slice(5, 5), np.arange(n)[::-1], np.arange(n) % 2 == 0, list(range(min(n, 2)))]
    for selection in asked:
        assert np.array_equal(rows[selection], copy[selection])
    for i in range(n):
        assert np.array_equal(rows[i], copy[i])
    assert np.array_equal(np.asarray(rows), copy)


def test_one_piece_is_not_copied(parts):
    rows = Rows(parts, np.arange(90))
    assert np.shares_memory(rows[3:20], parts[0]) and np.shares_memory(rows[41:90], parts[2])
    copied = np.asarray(Rows(parts[:1], np.arange(40)))
    copied[:] = 0
    assert parts[0].any()


def test_a_ranking_of_them_is_that_of_the_copy(parts):
    rows, copy = Rows(parts, np.arange(2, 88)), np.concatenate(parts)[2:88]
    for k in (3, None):
        assert np.array_equal(rank(copy[:5], rows, k).scores, rank(copy[:5], copy, k).scores)
