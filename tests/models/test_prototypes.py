"""Fusion and prototypes against plain loops, FAISS against the exact product, temperatures against a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from entrep_cli.models.prototypes import DEFAULT_TEMPERATURE, TEMPERATURES, Prototypes, cosines, fit_temperature, fuse, mean_rows, nearest

seeds = st.integers(0, 2**32 - 1)
REGION_OF = torch.tensor([0, 0, 1, 1, 2])


def rows(n: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive_fuse(v: list[float], u: list[float]) -> list[float]:
    """Equations 1 and 2, number by number, over unit vectors."""
    v, u = ([x / math.sqrt(sum(y * y for y in w)) for x in w] for w in (v, u))
    s = sum(a * b for a, b in zip(v, u))
    z = [s * a + (1 - s) * b for a, b in zip(v, u)]
    length = math.sqrt(sum(x * x for x in z))
    return [x / length for x in z]


def naive_prototype(fused: list[list[float]]) -> list[float]:
    mean = [sum(column) / len(fused) for column in zip(*fused)]
    length = math.sqrt(sum(x * x for x in mean))
    return [x / length for x in mean]


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 6), st.integers(2, 9), st.floats(0.1, 50))
def test_fuse_is_equations_1_and_2(seed, n, dim, length):
    generator = torch.Generator().manual_seed(seed)
    v, u = length * torch.randn(n, dim, generator=generator), torch.randn(n, dim, generator=generator)
    wanted = torch.tensor([naive_fuse(a, b) for a, b in zip(v.tolist(), u.tolist())])
    assert torch.allclose(fuse(v, u), wanted, atol=2e-5)


def test_fuse_leans_to_the_image_where_the_two_agree():
    v = torch.tensor([[1.0, 0.0]])
    assert torch.allclose(fuse(v, v), v)
    assert torch.allclose(fuse(v, torch.tensor([[0.0, 1.0]])), torch.tensor([[0.0, 1.0]]))  # s = 0: the text alone
    assert torch.allclose(fuse(v, -v), -v)  # z = -v + 2 u
    angles = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    s = angles.cos()
    lengths = (s**2 + (1 - s) ** 2 + 2 * s * s * (1 - s)).sqrt()
    assert lengths.min() == pytest.approx(math.sqrt(19 / 27), abs=1e-6)  # never near zero, as the docstring has it


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_prototypes_are_the_means_of_their_images(seed):
    v, u = rows(40, 6, seed), rows(40, 6, seed + 1)
    targets = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(seed))
    targets[:5] = torch.arange(5)
    made = Prototypes.of(fuse(v, u), targets, REGION_OF)
    fused = [naive_fuse(a, b) for a, b in zip(v.tolist(), u.tolist())]
    for found, groups in ((made.classes, targets.tolist()), (made.regions, REGION_OF[targets].tolist())):
        wanted = [naive_prototype([z for z, g in zip(fused, groups) if g == k]) for k in range(len(found))]
        assert torch.allclose(found, torch.tensor(wanted), atol=1e-5)
        assert torch.allclose(found.norm(dim=1), torch.ones(len(found)), atol=1e-6)


def test_the_order_of_the_images_does_not_show():
    fused, targets, order = rows(300, 16, 0), torch.arange(300) % 5, torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(mean_rows(fused, targets, 5), mean_rows(fused[order], targets[order], 5), atol=1e-7)


def test_regions_of_single_classes_have_the_prototypes_of_their_classes():
    made = Prototypes.of(rows(20, 6, 3), torch.arange(20) % 4, torch.arange(4))
    assert torch.equal(made.classes, made.regions)
    similarities, of_regions = made(rows(7, 6, 4))
    assert torch.equal(made.class_probabilities(similarities), made.region_probabilities(of_regions))


def test_a_class_without_images_is_never_predicted():
    made = Prototypes.of(rows(12, 6, 0), torch.tensor([0, 2, 3] * 4), REGION_OF)
    asked = rows(50, 6, 1)
    similarities, regions = made(asked)
    assert similarities[:, [1, 4]].eq(-math.inf).all() and regions[:, 2].eq(-math.inf).all()
    probabilities = made.class_probabilities(similarities)
    assert probabilities[:, [1, 4]].eq(0).all() and torch.allclose(probabilities.sum(dim=1), torch.ones(50), atol=1e-6)
    assert set(nearest(asked, made.classes)[0].tolist()) <= {0, 2, 3}


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(1, 40), st.integers(1, 9))
def test_faiss_finds_the_argmax_of_the_exact_product(seed, n, k):
    asked, prototypes = rows(n, 32, seed), rows(k, 32, seed + 1)
    if k > 2:
        prototypes[k // 2] = 0
    indices, best = nearest(asked, prototypes)
    exact = cosines(asked, prototypes)
    assert torch.equal(indices, exact.argmax(dim=1))
    assert torch.allclose(best, exact.max(dim=1).values, atol=1e-6)


# ---------------------------------------------------------------- temperature


def noisy(sharpness: float, n: int = 400, k: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities whose true temperature is 1 / sharpness: targets are drawn from that very softmax."""
    generator = torch.Generator().manual_seed(seed)
    similarities = torch.rand(n, k, generator=generator)
    targets = torch.multinomial((similarities * sharpness).softmax(dim=1), 1, generator=generator).squeeze(1)
    return similarities, targets


@pytest.mark.parametrize("sharpness", [2.0, 8.0, 100.0])
def test_calibration_lowers_the_likelihood_loss(sharpness):
    similarities, targets = noisy(sharpness)
    found = fit_temperature(similarities, targets)
    assert found == pytest.approx(1 / sharpness, rel=0.35) and found == fit_temperature(similarities, targets)

    def loss(temperature: float) -> float:
        return float(F.cross_entropy(similarities.double() / temperature, targets))

    assert loss(found) <= loss(DEFAULT_TEMPERATURE) and loss(found) <= min(map(loss, np.geomspace(*TEMPERATURES, 200))) + 1e-2


def test_a_part_without_a_fault_leaves_some_doubt():
    targets = torch.arange(30) % 3
    found = fit_temperature(F.one_hot(targets, 3) * 0.2 + 0.5, targets)
    # Platt's targets: the answer's probability is (n + 1) / (n + 2), so exp(0.2 / T) / (exp(0.2 / T) + 2) = 31 / 32.
    assert found == pytest.approx(0.2 / math.log(62), rel=1e-3)


def test_nothing_to_fit_on():
    assert fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)) is None
    assert fit_temperature(torch.rand(9, 3), torch.ones(9, dtype=torch.long)) is None
    without = torch.rand(9, 3).index_fill(1, torch.tensor([2]), -math.inf)
    assert fit_temperature(without, torch.tensor([0, 2, 2] * 3)) is None
    # Images of a class without prototype are left out, the others tell as if they were alone.
    targets = torch.tensor([0, 1, 2] * 3)
    alone = targets != 2
    assert fit_temperature(without, targets) == fit_temperature(without[alone, :2], targets[alone])


def test_similarities_that_tell_nothing_give_the_flattest_softmax():
    targets = torch.arange(40) % 2
    assert fit_temperature(1.0 - F.one_hot(targets, 2), targets) == pytest.approx(TEMPERATURES[1], rel=1e-3)
