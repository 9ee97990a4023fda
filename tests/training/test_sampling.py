"""Balanced epochs, counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entrep_cli.errors import UsageError
from entrep_cli.training.sampling import balanced_order, batches, class_batches, class_weights


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


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 6), st.integers(2, 5), st.integers(0, 5))
def test_batches_of_several_classes_with_several_images(labels, n_classes, n_images, seed):
    targets = torch.tensor(labels, dtype=torch.long)
    cut = class_batches(targets, n_classes, n_images, torch.Generator().manual_seed(seed))
    present = sorted(set(labels))
    n_classes = min(n_classes, len(present))
    assert len(cut) == (-(-len(labels) // (n_classes * n_images)) if labels else 0)
    for batch in cut:
        counts = torch.bincount(targets[batch])
        assert counts[counts > 0].tolist() == [n_images] * n_classes
        for label in targets[batch].unique().tolist():
            # Distinct images as far as the class has them.
            members = batch[targets[batch] == label]
            assert len(members.unique()) == min(n_images, labels.count(label))
    if cut:
        uses = torch.bincount(torch.cat(cut), minlength=len(labels))
        for label in present:
            of_class = uses[targets == label]
            assert of_class.max() - of_class.min() <= 1
        drawn = torch.bincount(targets[torch.cat(cut)], minlength=5)[present] // n_images
        assert drawn.max() - drawn.min() <= 1


def test_class_batches_see_every_image_of_equal_classes_once():
    targets = torch.arange(24) % 3
    cut = class_batches(targets, 3, 4, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in cut] == [12, 12]
    assert torch.cat(cut).sort().values.tolist() == list(range(24))


def test_class_batches_follow_the_seed_and_are_shuffled():
    targets = torch.arange(40) % 4
    first, again, other = (class_batches(targets, 4, 5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    assert len(targets[first[0][:5]].unique()) > 1


@pytest.mark.parametrize("n_classes, n_images", [(4, 1), (4, 0), (0, 4)])
def test_batches_too_small_for_positives_are_refused(n_classes, n_images):
    with pytest.raises(UsageError, match="too small"):
        class_batches(torch.zeros(8, dtype=torch.long), n_classes, n_images, torch.Generator())
