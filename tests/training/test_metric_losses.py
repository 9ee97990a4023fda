"""The losses on embeddings against loops over Python's floats, written from the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from entrep_cli.training.metric_losses import MetricSettings, metric_loss, multi_similarity, proxy_anchor, supervised_contrast


def problem(n: int, c: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(c, (n,), generator=generator)
    centres = torch.randn(c, 5, generator=generator)
    embeddings = F.normalize(centres[targets] + spread * torch.randn(n, 5, generator=generator), dim=1)
    return embeddings, targets, 2 * torch.randn(c, 5, generator=generator)


def cosines(a: torch.Tensor, b: torch.Tensor) -> list[list[float]]:
    return [[sum(x * y for x, y in zip(p, q)) for q in b.double().tolist()] for p in a.double().tolist()]


def naive_supcon(z, targets, t) -> float:
    s, y, losses = cosines(z, z), targets.tolist(), []
    for i in range(len(y)):
        positives = [p for p in range(len(y)) if p != i and y[p] == y[i]]
        if positives:
            whole = sum(math.exp(s[i][a] / t) for a in range(len(y)) if a != i)
            losses.append(-sum(math.log(math.exp(s[i][p] / t) / whole) for p in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


def naive_multi_similarity(z, targets, alpha=2.0, beta=50.0, base=0.5, margin=0.1) -> float:
    s, y, total = cosines(z, z), targets.tolist(), 0.0
    for i in range(len(y)):
        positives = [s[i][k] for k in range(len(y)) if k != i and y[k] == y[i]]
        negatives = [s[i][k] for k in range(len(y)) if y[k] != y[i]]
        if not positives or not negatives:
            continue
        hard_positives = [v for v in positives if v < max(negatives) + margin]
        hard_negatives = [v for v in negatives if v > min(positives) - margin]
        total += math.log(1 + sum(math.exp(-alpha * (v - base)) for v in hard_positives)) / alpha
        total += math.log(1 + sum(math.exp(beta * (v - base)) for v in hard_negatives)) / beta
    return total / len(y)


def naive_proxy_anchor(z, targets, proxies, alpha=32.0, margin=0.1) -> float:
    s, y = cosines(F.normalize(proxies.double(), dim=1), z), targets.tolist()
    pull, push = [], []
    for p in range(len(proxies)):
        if p in y:
            pull.append(math.log(1 + sum(math.exp(-alpha * (s[p][x] - margin)) for x in range(len(y)) if y[x] == p)))
        push.append(math.log(1 + sum(math.exp(alpha * (s[p][x] + margin)) for x in range(len(y)) if y[x] != p)))
    return sum(pull) / len(pull) + sum(push) / len(push)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 99), st.sampled_from([0.2, 1.0]))
def test_losses_are_the_loops(n, c, seed, spread):
    z, targets, proxies = problem(n, c, seed, spread)
    assert supervised_contrast(z, targets, 0.1).item() == pytest.approx(naive_supcon(z, targets, 0.1), rel=1e-4, abs=1e-4)
    assert multi_similarity(z, targets).item() == pytest.approx(naive_multi_similarity(z, targets), rel=1e-4, abs=1e-5)
    assert proxy_anchor(z, targets, proxies).item() == pytest.approx(naive_proxy_anchor(z, targets, proxies), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["supcon", "multi-similarity", "proxy-anchor"])
def test_a_step_down_the_gradient_brings_a_class_together(kind):
    z, targets, proxies = problem(16, 3, 7, spread=2.0)
    how = MetricSettings(kind=kind, weight=2.0)

    def apart(rows: torch.Tensor) -> float:
        s = F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).T
        same = targets[:, None] == targets
        return float(s[~same].mean() - s[same].mean())

    rows = z.clone().requires_grad_(True)
    loss = metric_loss(F.normalize(rows, dim=1), targets, proxies, how)
    assert loss.item() == pytest.approx(2 * metric_loss(z, targets, proxies, how.model_copy(update={"weight": 1.0})).item(), rel=1e-5)
    loss.backward()
    assert torch.isfinite(rows.grad).all()
    assert apart((rows - 0.2 * F.normalize(rows.grad, dim=1)).detach()) < apart(z)


def test_a_batch_that_teaches_nothing_is_zero_with_a_finite_gradient():
    for targets in (torch.tensor([0, 1, 2]), torch.tensor([1])):
        z = F.normalize(torch.randn(len(targets), 4, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_(True)
        for loss in (supervised_contrast(z, targets), multi_similarity(z, targets)):
            assert loss.item() == 0
            (gradient,) = torch.autograd.grad(loss, z)
            assert not gradient.any()
