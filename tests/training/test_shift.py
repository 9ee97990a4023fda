"""The shift dictionary: clusters against a nearest-centre loop, covariances against numpy and scikit-learn, draws against them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.covariance import LedoitWolf

from entrep_cli.training.shift import ShiftDictionary, ShiftSettings


def blobs(sizes: tuple[int, ...] = (60, 40, 30), dim: int = 4, seed: int = 0) -> torch.Tensor:
    """Far clusters, each with a covariance of its own."""
    rng = np.random.default_rng(seed)
    parts = [20 * rng.normal(size=dim) + rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) for n in sizes]
    return torch.tensor(np.concatenate(parts), dtype=torch.float32)


def make(features: torch.Tensor, seed: int = 0, **settings) -> ShiftDictionary:
    return ShiftDictionary(features, [f"digest {i}" for i in range(len(features))], ShiftSettings(**settings), seed)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wanted_covariance(own: np.ndarray, kind: str, shrinkage: float | str) -> np.ndarray:
    """From the definitions: C = X^T X / n of the centred members, then diagonal or shrunk."""
    centred = own - own.mean(axis=0)
    covariance = centred.T @ centred / len(own)
    if kind == "diagonal":
        return np.diag(np.diag(covariance))
    if shrinkage == "ledoit-wolf":
        return LedoitWolf().fit(own).covariance_
    return (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / own.shape[1] * np.eye(own.shape[1])


KINDS = [("shrunk", "ledoit-wolf"), ("shrunk", 0.0), ("shrunk", 0.3), ("shrunk", 1.0), ("diagonal", "ledoit-wolf")]


@pytest.mark.parametrize(("kind", "shrinkage"), KINDS)
@pytest.mark.parametrize(("sizes", "dim"), [((60, 40, 30), 4), ((7, 9), 20)])  # also more dimensions than members
def test_every_cluster_has_the_mean_and_covariance_of_its_members(kind, shrinkage, sizes, dim):
    features = blobs(sizes, dim)
    dictionary = make(features, clusters=len(sizes), covariance=kind, shrinkage=shrinkage)
    assert sorted(dictionary.sizes) == sorted(sizes)
    start = 0
    for n in sizes:
        k = int(dictionary.clusters[start])
        assert (dictionary.clusters[start : start + n] == k).all() and dictionary.sizes[k] == n
        own = features[start : start + n].double().numpy()
        assert np.allclose(dictionary.means[k].numpy(), own.mean(axis=0))
        assert np.allclose(dictionary.spreads[k].covariance.numpy(), wanted_covariance(own, kind, shrinkage), atol=1e-8)
        start += n


@pytest.mark.parametrize(("kind", "shrinkage"), KINDS)
def test_shifts_have_the_statistics_of_their_cluster(kind, shrinkage):
    features = blobs()
    dictionary = make(features, clusters=3, covariance=kind, shrinkage=shrinkage)
    n = 60_000
    for start, size in ((0, 60), (60, 40), (100, 30)):
        shifts = dictionary.sample(features[start : start + 1].expand(n, -1), seeded(start)).double().numpy()
        covariance = wanted_covariance(features[start : start + size].double().numpy(), kind, shrinkage)
        scale = np.trace(covariance) / 4
        assert np.abs(np.cov(shifts.T) - covariance).max() < 0.06 * scale
        assert np.abs(shifts.mean(axis=0)).max() < 0.03 * scale**0.5


def test_shifts_in_a_mixed_batch_are_each_of_the_own_cluster():
    features = torch.cat([blobs((30,)), blobs((30,), seed=1) * 0.01 + 500])
    dictionary = make(features, clusters=2)
    shifts = dictionary.sample(features[torch.tensor([0, 40] * 2000)], seeded())
    assert shifts[0::2].std() > 20 * shifts[1::2].std() > 0


def test_the_nearest_cluster_is_the_one_with_the_nearest_centre():
    features = blobs((20, 20, 20, 20))
    dictionary = make(features, clusters=4)
    queries = 20 * torch.randn(50, 4, generator=seeded())
    for query, k in zip(queries.double(), dictionary.nearest(queries).tolist()):
        distances = [float((query - mean).norm()) for mean in dictionary.means]
        assert distances.index(min(distances)) == k
    assert torch.equal(dictionary.nearest(features), dictionary.clusters)


def test_scale():
    features = blobs()
    one, half, none = (make(features, clusters=3, scale=scale).sample(features, seeded()) for scale in (1, 0.5, 0))
    assert torch.allclose(half, one / 2) and (none == 0).all()


def test_the_same_seed_gives_the_same_dictionary_and_shifts():
    features = blobs()
    first, again = make(features, clusters=5), make(features, clusters=5)
    assert torch.equal(first.means, again.means) and torch.equal(first.clusters, again.clusters)
    draws = [d.sample(features, generator) for d, generator in ((first, seeded()), (again, seeded()), (first, seeded(1)))]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    torch.manual_seed(5)
    assert torch.equal(first.sample(features, seeded()), draws[0])


def test_shifts_carry_no_gradient_and_keep_the_shape():
    features = blobs().requires_grad_()
    dictionary = make(features, clusters=3)
    shifts = dictionary.sample(features, seeded())
    assert shifts.shape == features.shape and shifts.dtype == torch.float32 and not shifts.requires_grad
    assert dictionary.sample(features[:0], seeded()).shape == (0, 4)


# ---------------------------------------------------------------- odd sets


@pytest.mark.parametrize("covariance", ["shrunk", "diagonal"])
def test_small_clusters_take_the_common_covariance(covariance):
    features = torch.cat([blobs((30,)), torch.full((1, 4), 900.0), torch.full((2, 4), -900.0) + torch.randn(2, 4, generator=seeded())])
    dictionary = make(features, clusters=3, covariance=covariance, shrinkage=0.2)
    assert sorted(dictionary.sizes) == [1, 2, 30]
    centred = np.concatenate([own - own.mean(axis=0) for own in np.split(features.double().numpy(), [30, 31])])
    expected = wanted_covariance(np.concatenate([centred, -centred]), covariance, 0.2)  # about zero
    for k, size in enumerate(dictionary.sizes):
        assert np.allclose(dictionary.spreads[k].covariance.numpy(), expected) == (size < 5)
    assert dictionary.sample(features, seeded()).isfinite().all()


@pytest.mark.parametrize("covariance", ["shrunk", "diagonal"])
@pytest.mark.parametrize(("n", "dim"), [(1, 3), (2, 3), (5, 40), (3, 1)])
def test_fewer_samples_than_clusters(n, dim, covariance):
    features = torch.randn(n, dim, generator=seeded())
    dictionary = make(features, clusters=16, covariance=covariance)
    assert len(dictionary.sizes) == n
    shifts = dictionary.sample(features, seeded())
    assert shifts.isfinite().all() and (shifts.abs().sum() > 0) == (n > 1)


def test_equal_features_are_one_cluster_without_a_shift():
    dictionary = make(torch.ones(6, 3) * 0.1, clusters=4)
    assert dictionary.sizes == [6] and dictionary.sample(torch.ones(2, 3), seeded()).abs().max() < 1e-6


# ---------------------------------------------------------------- what goes in


def test_it_tells_what_it_holds():
    dictionary = make(blobs((10, 10)))
    assert dictionary.holds(["digest 3", "of a test image"]) == {"digest 3"}
    assert not dictionary.holds(["of a test image"]) and not dictionary.holds([])


def test_faulty_features_are_refused():
    features = torch.zeros(3, 2)
    for given, digests in ((features, ["a", "b"]), (features[:0], []), (features / 0, list("abc")), (features[0], ["a", "b"])):
        with pytest.raises(ValueError, match="finite features"):
            ShiftDictionary(given, digests, ShiftSettings())


def test_settings_that_do_not_hold():
    for wrong in ({"clusters": 0}, {"shrinkage": 1.5}, {"shrinkage": "none"}, {"scale": -1}, {"members": 1}, {"covariance": "full"}):
        with pytest.raises(ValidationError):
            ShiftSettings(**wrong)
