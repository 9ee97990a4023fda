"""Balanced epochs, counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrep_cli.training.sampling import balanced_order, batches, class_weights


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 5))
def test_every_class_comes_equally_often(labels, seed):
    targets = torch.tensor(labels)
    order = balanced_order(targets, torch.Generator().manual_seed(seed))
    assert len(order) == len(targets)
    counts = torch.bincount(targets[order])
    counts = counts[counts > 0]
    assert len(counts) == len(set(labels)) or len(labels) < len(set(labels))
    assert counts.max() - counts.min() <= 1


def test_no_image_twice_before_every_other_of_its_class_once():
    targets = torch.tensor([0] * 3 + [1] * 9)
    order = balanced_order(targets, torch.Generator().manual_seed(0))
    uses = torch.bincount(order, minlength=12)
    assert uses[:3].tolist() == [2, 2, 2]
    assert uses[3:].max() == 1 and uses[3:].sum() == 6


def test_class_weights_by_hand():
    # Six images, two classes of 4 and 2: 6 / (2 * 4) and 6 / (2 * 2); an absent class weighs nothing.
    assert class_weights(torch.tensor([0, 0, 0, 0, 2, 2]), 3).tolist() == [0.75, 0.0, 1.5]


@pytest.mark.parametrize("n, size, sizes", [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (1, 4, [1]), (4, 4, [4])])
def test_no_batch_of_one_but_a_single_one(n, size, sizes):
    cut = batches(torch.arange(n), size)
    assert [len(b) for b in cut] == sizes
    assert torch.cat(cut).tolist() == list(range(n))
