"""Prototypes of classes and regions in a joint image-text space (*Fusion at the Foregut*, 4.2).

A training image and its text become one fused embedding (equations 1 and 2), a class the mean of its
images' fused embeddings, and an image belongs to the nearest prototype in cosine similarity. The
paper does not say how a prototype is formed from the fused embeddings: the mean is ours, and so are the
temperatures that turn similarities into probabilities.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

DEFAULT_TEMPERATURE = 0.05  # where nothing can be fitted: between CLIP's learned 0.01 and the 0.07 it starts from
TEMPERATURES = (1e-3, 10.0)


def fuse(v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """(N, D) image and (N, D) text embeddings to (N, D) fused unit rows.

    z = s v + (1 - s) u with s = cos(v, u): the paper's equations 1 and 2. It leaves open whether v and u
    are of unit length: they are normalised first, so that s weighs them and their norms do not (ours). z is then brought to unit length too, as only its direction counts in the cosine space in
    which prototypes are compared (ours); it is never shorter than sqrt(19 / 27), which s = 1/3 gives.
    """
    v, u = F.normalize(v, dim=1), F.normalize(u, dim=1)
    s = (v * u).sum(dim=1, keepdim=True)
    return F.normalize(s * v + (1 - s) * u, dim=1)


def mean_rows(rows: torch.Tensor, groups: torch.Tensor, n_groups: int) -> torch.Tensor:
    """(n_groups, D) unit rows, each the normalised mean of the (N, D) rows of its group; zeros for a group without rows."""
    sums = torch.zeros(n_groups, rows.shape[1], dtype=torch.float64)  # float64: the order of the images must not show
    sums.index_add_(0, groups, rows.double())
    return F.normalize(sums, dim=1).to(rows.dtype)


def cosines(embeddings: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """(N, K) cosines of (N, D) unit rows to (K, D) prototypes; -inf to a missing one (a row of zeros)."""
    prototypes = prototypes.float()
    return (embeddings.float() @ prototypes.T).masked_fill(~prototypes.any(dim=1), -math.inf)


def nearest(embeddings: torch.Tensor, prototypes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest of (K, D) prototypes to each of (N, D) unit rows: (N,) indices and (N,) cosines.

    By FAISS, exact inner products, as in the paper (4.2, 5.1.1): the argmax of `cosines`. A missing
    prototype (a row of zeros) is never the nearest.
    """
    import faiss

    known = prototypes.any(dim=1).nonzero().squeeze(1).cpu()
    index = faiss.IndexFlatIP(prototypes.shape[1])
    index.add(prototypes.float().cpu()[known].contiguous().numpy())
    best, places = index.search(embeddings.float().cpu().contiguous().numpy(), 1)
    return known[torch.from_numpy(places[:, 0])], torch.from_numpy(best[:, 0])


def fit_temperature(similarities: torch.Tensor, targets: torch.Tensor) -> float | None:
    """The temperature at which softmax(similarities / temperature) has the least negative log-likelihood.

    Of every image (n + 1) / (n + 2) counts for its class and the rest for the nearest other one: Platt's targets,
    without which n images answered without a fault would make every answer certain (ours). The loss is convex in
    1 / temperature, so a bounded search over its logarithm finds the one minimum, deterministically.

    Args:
        similarities: (N, K), -inf for a class without prototype. targets: (N,) class indices; images of
            a class without prototype are left out.

    Returns:
        None where nothing can be fitted: fewer than two classes among the images.
    """
    from scipy.optimize import minimize_scalar

    known = similarities.isfinite().all(dim=0)
    used = known[targets] if len(targets) else torch.zeros(0, dtype=torch.bool)
    targets = (known.cumsum(0) - 1)[targets[used]]
    if len(targets.unique()) < 2:
        return None
    similarities = similarities[used][:, known].double()
    doubt = 1 / (len(targets) + 2)
    true = F.one_hot(targets, similarities.shape[1])
    other = F.one_hot(similarities.masked_fill(true.bool(), -math.inf).argmax(dim=1), similarities.shape[1])
    wanted = (1 - doubt) * true.double() + doubt * other.double()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(similarities / math.exp(log_temperature), wanted))

    bounds = tuple(map(math.log, TEMPERATURES))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


class Prototypes(nn.Module):
    """Prototypes of classes and of regions with a temperature each: all that the method learns.

    Args:
        classes: (C, D) unit rows, zeros for a class without one. regions: (R, D), likewise.
        class_temperature, region_temperature: of the two softmaxes.
    """

    def __init__(
        self,
        classes: torch.Tensor,
        regions: torch.Tensor,
        class_temperature: float | torch.Tensor = DEFAULT_TEMPERATURE,
        region_temperature: float | torch.Tensor = DEFAULT_TEMPERATURE,
    ) -> None:
        super().__init__()
        self.register_buffer("classes", classes)
        self.register_buffer("regions", regions)
        self.register_buffer("class_temperature", torch.as_tensor(class_temperature))
        self.register_buffer("region_temperature", torch.as_tensor(region_temperature))

    @classmethod
    def of(cls, fused: torch.Tensor, targets: torch.Tensor, region_of: torch.Tensor) -> Prototypes:
        """From the (N, D) fused embeddings of training images and their (N,) classes; temperatures at their default.

        A region's prototype is the mean over its images, not over its classes' prototypes: a common
        class weighs more in it (ours).

        Args:
            region_of: (C,) region index of each class.
        """
        n_regions = int(region_of.max()) + 1
        return cls(mean_rows(fused, targets, len(region_of)), mean_rows(fused, region_of[targets], n_regions))

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C) and (N, R) cosines of (N, D) unit rows; -inf without a prototype."""
        return cosines(embeddings, self.classes), cosines(embeddings, self.regions)

    def class_probabilities(self, similarities: torch.Tensor) -> torch.Tensor:
        """(N, C) calibrated probabilities of (N, C) class cosines; 0 for a class without prototype."""
        return (similarities / self.class_temperature.float()).softmax(dim=1)

    def region_probabilities(self, similarities: torch.Tensor) -> torch.Tensor:
        """(N, R) calibrated probabilities of (N, R) region cosines."""
        return (similarities / self.region_temperature.float()).softmax(dim=1)
