"""The contrastive loss against double loops, by hand, and against CLIP's; metric losses against loops written from the papers' formulas."""

from __future__ import annotations

import math

import entrep_cli.torchvision_ops  # noqa: F401 - before open_clip imports torchvision

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss

from entrep_cli.training.losses import (
    MetricSettings,
    clamped_scale,
    metric_loss,
    multi_positive_contrast,
    multi_similarity,
    proxy_anchor,
    supervised_contrast,
)


def unit(n: int, seed: int, dim: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def random_positives(n: int, m: int, seed: int) -> torch.Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) < 0.4


def one_direction(rows: list[list[float]], columns: list[list[float]], positives: list[list[bool]], scale: float) -> float:
    """The formula, in loops over Python's floats."""
    losses = []
    for row, true in zip(rows, positives):
        scores = [scale * sum(a * b for a, b in zip(row, column)) for column in columns]
        total = math.log(sum(map(math.exp, scores)))
        if any(true):
            losses.append(-sum(s - total for s, hit in zip(scores, true) if hit) / sum(true))
    return sum(losses) / len(losses) if losses else 0.0


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 99), st.sampled_from([1.0, 14.3, 100.0]))
def test_contrast_is_the_double_loop(n, m, seed, scale):
    images, texts, positives = unit(n, seed), unit(m, seed + 100), random_positives(n, m, seed)
    x, t, p = images.double().tolist(), texts.double().tolist(), positives.tolist()
    wanted = (one_direction(x, t, p, scale) + one_direction(t, x, positives.T.tolist(), scale)) / 2
    assert multi_positive_contrast(images, texts, positives, scale).item() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_contrast_by_hand():
    """Two images, three texts, scale 1; the second image has two true texts, the third text is nobody's.

    Image 1 has scores (1, 0, 0), image 2 (0, 1, 0), with e + 2 below the fraction; text 1 is true of
    both images, with scores (1, 0); text 2 of the second, with scores (0, 1).
    """
    images, texts = torch.eye(3)[:2], torch.eye(3)
    positives = torch.tensor([[True, False, False], [True, True, False]])
    to_texts = ((math.log(math.e + 2) - 1) + (math.log(math.e + 2) - 0.5)) / 2
    to_images = ((math.log(math.e + 1) - 0.5) + (math.log(math.e + 1) - 1)) / 2
    found = multi_positive_contrast(images, texts, positives, 1.0)
    assert found.item() == pytest.approx((to_texts + to_images) / 2, rel=1e-6)


def test_one_positive_a_row_is_clips_loss():
    images, texts = unit(11, 0), unit(11, 1)
    wanted = ClipLoss()(images, texts, torch.tensor(14.3))
    assert multi_positive_contrast(images, texts, torch.eye(11, dtype=torch.bool), 14.3).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_order_of_images_and_texts_is_nothing():
    images, texts, positives = unit(7, 0), unit(5, 1), random_positives(7, 5, 2)
    rows, columns = torch.randperm(7), torch.randperm(5)
    shuffled = multi_positive_contrast(images[rows], texts[columns], positives[rows][:, columns], 10.0)
    assert shuffled.item() == pytest.approx(multi_positive_contrast(images, texts, positives, 10.0).item(), rel=1e-5)


def test_images_and_texts_may_be_exchanged():
    images, texts, positives = unit(7, 0), unit(5, 1), random_positives(7, 5, 2)
    exchanged = multi_positive_contrast(texts, images, positives.T, 10.0)
    assert exchanged.item() == pytest.approx(multi_positive_contrast(images, texts, positives, 10.0).item(), rel=1e-6)


def test_rows_without_positives_count_for_nothing_but_as_negatives():
    images, texts = unit(3, 0), unit(3, 1)
    positives = torch.tensor([[True, False, False], [False, False, False], [False, False, True]])
    log_texts, log_images = (s.log_softmax(dim=1) for s in (images @ texts.T, texts @ images.T))
    wanted = -(log_texts[0, 0] + log_texts[2, 2] + log_images[0, 0] + log_images[2, 2]) / 4
    assert multi_positive_contrast(images, texts, positives, 1.0).item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("n, m", [(3, 2), (0, 2), (3, 0)])
def test_no_positives_at_all_give_zero_with_a_graph(n, m):
    images, texts = unit(n, 0).requires_grad_(), unit(m, 1).requires_grad_()
    loss = multi_positive_contrast(images, texts, torch.zeros(n, m, dtype=torch.bool), 10.0)
    assert loss.item() == 0
    loss.backward()
    assert images.grad.abs().sum() == 0 and texts.grad.abs().sum() == 0


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_computed_in_float32(autocast):
    images, texts, positives = unit(7, 0).bfloat16(), unit(5, 1).bfloat16(), random_positives(7, 5, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = multi_positive_contrast(images, texts, positives, 100.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, multi_positive_contrast(images.float(), texts.float(), positives, 100.0))


def test_gradients_are_finite_and_right():
    images, texts, positives = unit(4, 0).requires_grad_(), unit(3, 1).requires_grad_(), random_positives(4, 3, 2)
    logarithm = torch.tensor(math.log(10.0), requires_grad=True)
    multi_positive_contrast(images, texts, positives, clamped_scale(logarithm)).backward()
    step = 1e-2
    with torch.no_grad():
        for x, loss in (
            (images, lambda moved: multi_positive_contrast(moved, texts, positives, 10.0)),
            (texts, lambda moved: multi_positive_contrast(images, moved, positives, 10.0)),
            (logarithm, lambda moved: multi_positive_contrast(images, texts, positives, moved.exp())),
        ):
            towards = x.grad / x.grad.norm()
            slope = (loss(x + step * towards) - loss(x - step * towards)) / (2 * step)
            assert slope.item() == pytest.approx(x.grad.norm().item(), rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_finite_at_the_largest_scale(seed):
    images, texts = unit(7, seed).requires_grad_(), unit(5, seed + 1).requires_grad_()
    multi_positive_contrast(images, texts, random_positives(7, 5, seed), 100.0).backward()
    assert torch.isfinite(images.grad).all() and torch.isfinite(texts.grad).all()


def test_one_step_brings_true_matches_closer():
    images, texts, positives = unit(6, 0).requires_grad_(), unit(4, 1), random_positives(6, 4, 2)
    loss = multi_positive_contrast(images, texts, positives, 10.0)
    loss.backward()
    with torch.no_grad():
        assert multi_positive_contrast(images - 0.01 * images.grad, texts, positives, 10.0) < loss


@pytest.mark.parametrize("logarithm, wanted", [(0.0, 1.0), (math.log(14.3), 14.3), (math.log(100), 100.0), (5.0, 100.0), (500.0, 100.0)])
def test_scale_is_clamped_and_can_come_down_again(logarithm, wanted):
    parameter = torch.nn.Parameter(torch.tensor(logarithm))
    scale = clamped_scale(parameter)
    assert scale.item() == pytest.approx(wanted, rel=1e-5)
    scale.backward()
    assert parameter.grad.item() == pytest.approx(wanted, rel=1e-5)
    assert parameter.item() == pytest.approx(logarithm)


def test_scale_in_bfloat16_and_with_another_maximum():
    parameter = torch.nn.Parameter(torch.tensor(4.0, dtype=torch.bfloat16))
    assert clamped_scale(parameter, maximum=20.0).item() == pytest.approx(20.0, rel=1e-5)
    assert clamped_scale(parameter).dtype == torch.float32


# ---------------------------------------------------------------- metric losses


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
