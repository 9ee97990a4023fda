"""The losses on logits against loops in float64, torch's own cross-entropy, and values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import UsageError
from entrep_cli.training.objective import LossSettings, Objective, focal_loss, region_loss


def problem(n: int, c: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits, torch.randint(c, (n,), generator=generator), 0.5 + torch.rand(c, generator=generator, dtype=torch.float64)


def naive_focal(logits, targets, gamma, smoothing, weights) -> float:
    total, weighed = 0.0, 0.0
    for row, target in zip(logits.tolist(), targets.tolist()):
        whole = sum(map(math.exp, row))
        for c, value in enumerate(row):
            p = math.exp(value) / whole
            q = smoothing / len(row) + (1 - smoothing) * (c == target)
            total -= weights[c] * q * (1 - p) ** gamma * math.log(p)
        weighed += weights[target]
    return total / weighed


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 99), st.sampled_from([0.5, 1.0, 2.0, 5.0]), st.sampled_from([0.0, 0.1]))
def test_focal_is_the_loop(n, c, seed, gamma, smoothing):
    logits, targets, weights = problem(n, c, seed)
    wanted = naive_focal(logits, targets, gamma, smoothing, weights.tolist())
    assert focal_loss(logits, targets, gamma, smoothing, weights).item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_focal_tends_to_cross_entropy_and_is_it_at_zero():
    logits, targets, weights = problem(20, 4, 3)
    wanted = F.cross_entropy(logits, targets, weights, label_smoothing=0.1)
    assert torch.equal(focal_loss(logits, targets, 0.0, 0.1, weights), wanted)
    assert focal_loss(logits, targets, 1e-6, 0.1, weights).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_focal_has_a_finite_gradient_where_all_is_told():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0]), 0.5).backward()
    assert torch.isfinite(logits.grad).all()


def test_region_by_hand_and_by_a_loop():
    # Classes 0 and 1 are one region; p = (1/2, 1/4, 1/4).
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    assert region_loss(logits, torch.tensor([1]), [0, 0, 1]).item() == pytest.approx(-math.log(0.75))
    assert region_loss(logits, torch.tensor([2]), [0, 0, 1]).item() == pytest.approx(-math.log(0.25))
    logits, targets, _ = problem(9, 5, 1)
    region_of = [0, 1, 0, 2, 1]
    p = logits.softmax(1).tolist()
    wanted = [-math.log(sum(x for c, x in enumerate(row) if region_of[c] == region_of[t])) for row, t in zip(p, targets.tolist())]
    assert region_loss(logits, targets, region_of).item() == pytest.approx(sum(wanted) / len(wanted))


def test_the_objective_adds_them_up():
    taxonomy = Taxonomy.entrep()
    logits, targets, weights = problem(12, len(taxonomy), 5)
    region_of = [taxonomy.regions.index(c.region) for c in taxonomy.classes]
    found = Objective(taxonomy, LossSettings(focal=2.0, region=0.3), 0.1, weights)(logits, targets)
    wanted = focal_loss(logits, targets, 2.0, 0.1, weights) + 0.3 * region_loss(logits, targets, region_of)
    assert found.item() == pytest.approx(wanted.item())
    # At the defaults, torch's loss to the last bit.
    assert torch.equal(Objective(taxonomy, LossSettings(), 0.1)(logits, targets), F.cross_entropy(logits, targets, label_smoothing=0.1))


def test_one_region_teaches_nothing():
    one = Taxonomy("one", (ClassInfo("a", 0, "ear"), ClassInfo("b", 1, "ear")))
    with pytest.raises(UsageError, match="one region"):
        Objective(one, LossSettings(region=1.0))
