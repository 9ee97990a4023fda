"""Distribution shift: where else the features of an image could lie, drawn from those of its neighbours.

The fine-tuning of MICS (arXiv 2509.17492; "a distribution shift method for multimodal fusion features" in
its abstract): k-means over pre-trained features makes a dictionary, and the cluster nearest to a sample
gives a shift vector for each modality. The source does not say how a vector is drawn; here it is
s ~ scale * N(0, S_k) with the covariance S_k of cluster k, shrunk or diagonal (ours).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from entrep_cli.recipes.recipe import Section

Count = Annotated[int, Field(ge=1)]


class ShiftSettings(Section):
    """The shift dictionary; the source gives none of these figures.

    Attributes:
        clusters: number of clusters of k-means; fewer where the features have fewer distinct values.
        covariance: covariance of a cluster: `shrunk` towards its mean variance, or `diagonal`.
        shrinkage: of `shrunk`: a fraction from 0 to 1, or `ledoit-wolf`, estimated for each cluster.
        members: clusters of fewer images use the covariance of all features about the means of their clusters.
        scale: factor of the shifts: 1 draws them from the distribution of the cluster, 0 turns them off.
    """

    clusters: Count = 16
    covariance: Literal["shrunk", "diagonal"] = "shrunk"
    shrinkage: Annotated[float, Field(ge=0, le=1)] | Literal["ledoit-wolf"] = "ledoit-wolf"
    members: Annotated[int, Field(ge=2)] = 5
    scale: Annotated[float, Field(ge=0)] = 1.0


@dataclass(frozen=True)
class Spread:
    """A covariance S = factor^T factor + diag(deviation^2), as a normal with it is drawn.

    Attributes:
        factor: (R, D), R at most the number of members and D.
        deviation: (D,).
    """

    factor: torch.Tensor
    deviation: torch.Tensor

    @property
    def covariance(self) -> torch.Tensor:
        """S, (D, D) float64."""
        return self.factor.T @ self.factor + torch.diag(self.deviation.square())


class ShiftDictionary:
    """The clusters of one modality's pre-trained features, and the shifts drawn from them.

    Only training images may go in, labelled or not. Their digests are recorded, so that a method can refuse
    a test image: `assert not dictionary.holds(test.digests)`.

    Args:
        features: (M, D) of the pre-trained encoder, one row a training image, no view of it twice.
        digests: of the pixels of these images (of the white-light one, in both modalities).
        seed: of k-means; one thread, so the same features give the same dictionary.

    Attributes:
        means: (K, D) float64, centres of the clusters. sizes: their members.
        clusters: (M,) the cluster of each training image.
        spreads: of each cluster; S divides by the number of members.

    Raises:
        ValueError: no features, not finite ones, or not one digest for each.
    """

    def __init__(self, features: torch.Tensor, digests: Sequence[str], settings: ShiftSettings, seed: int = 0) -> None:
        if features.ndim != 2 or not len(features) or len(features) != len(digests) or not features.isfinite().all():
            raise ValueError(f"{tuple(features.shape)} finite features need one digest each, not {len(digests)} digests")
        features = features.detach().double().cpu()
        self.settings = settings
        self.digests = frozenset(digests)
        self.clusters = _k_means(features, settings.clusters, seed)
        members = [features[self.clusters == k] for k in range(int(self.clusters.max()) + 1)]
        self.means = torch.stack([rows.mean(dim=0) for rows in members])
        self.sizes = [len(rows) for rows in members]
        residuals = features - self.means[self.clusters]
        # Every cluster is one point: only the spread of the points about their mean remains.
        if residuals.abs().max() <= 1e-9 * features.abs().max():
            residuals = features - features.mean(dim=0)
        pooled = _spread(residuals, settings)
        self.spreads = [
            _spread(rows - mean, settings) if len(rows) >= settings.members else pooled
            for rows, mean in zip(members, self.means, strict=True)
        ]

    def holds(self, digests: Collection[str]) -> set[str]:
        """Those of the digests that the dictionary was made from."""
        return self.digests & set(digests)

    def nearest(self, features: torch.Tensor) -> torch.Tensor:
        """(N,) the cluster whose centre is nearest to each of (N, D) features, on the CPU; the first of equals."""
        return torch.cdist(features.detach().double().cpu(), self.means, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)

    def draw(self, clusters: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(N, D) float32 shifts, one for each of (N,) clusters, drawn from `generator` (of the CPU) in the order of the rows.

        For training alone; at test time nothing is shifted (paper).
        """
        dim = self.means.shape[1]
        most = max(len(spread.factor) for spread in self.spreads)
        # As many numbers for every row, whichever its cluster: the draws of a row depend on its place alone.
        normal = torch.randn(len(clusters), most + dim, generator=generator, dtype=torch.float64)
        shifts = torch.empty(len(clusters), dim, dtype=torch.float64)
        for k in clusters.unique().tolist():
            rows, spread = clusters == k, self.spreads[k]
            drawn = normal[rows]
            shifts[rows] = drawn[:, : len(spread.factor)] @ spread.factor + drawn[:, most:] * spread.deviation
        return (self.settings.scale * shifts).float()

    def sample(self, features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(N, D) shifts for the samples with these (N, D) pre-trained features, on their device, without a gradient."""
        return self.draw(self.nearest(features), generator).to(features.device)


def _k_means(features: torch.Tensor, n_clusters: int, seed: int) -> torch.Tensor:
    """(M,) clusters, numbered without gaps."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # Threads add up in the order in which they end, and the last digit with it.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different features than clusters: fewer clusters
        k_means = KMeans(min(n_clusters, len(features)), n_init=4, random_state=seed).fit(features.numpy())
    return torch.from_numpy(k_means.labels_).long().unique(return_inverse=True)[1]


def _spread(residuals: torch.Tensor, settings: ShiftSettings) -> Spread:
    """Of (m, D) features about their mean: C = X^T X / m, then S = diag(C), or (1 - d) C + d tr(C) / D."""
    residuals = residuals / len(residuals) ** 0.5
    variances = residuals.square().sum(dim=0)
    if settings.covariance == "diagonal":
        return Spread(residuals[:0], variances.sqrt())
    shrinkage = settings.shrinkage
    if shrinkage == "ledoit-wolf":
        from sklearn.covariance import ledoit_wolf_shrinkage

        several = len(residuals) > 1  # of one nothing can be estimated or shrunk
        shrinkage = float(ledoit_wolf_shrinkage((residuals * len(residuals) ** 0.5).numpy(), assume_centered=True)) if several else 0.0
    # The same product in at most D rows.
    factor = torch.linalg.qr(residuals, mode="r").R * (1 - shrinkage) ** 0.5
    return Spread(factor, (shrinkage * variances.mean()).sqrt().expand(len(variances)))
