"""What the logits of a classifier are trained by: cross-entropy, focal, and over regions as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat
from torch import nn
from torch.nn import functional as F

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import UsageError
from entrep_cli.recipes.recipe import Section


class LossSettings(Section):
    """The loss on the logits; at their defaults cross-entropy, with `train.label_smoothing`.

    Attributes:
        focal: gamma of the focal loss, which gives images that are classified well less weight; 0 is cross-entropy.
        region: weight of a cross-entropy over regions, whose probabilities are the sums over their classes.
    """

    focal: NonNegativeFloat = 0.0
    region: NonNegativeFloat = 0.0


class Objective(nn.Module):
    """A scalar from (N, C) float32 logits and (N,) class indices.

    Args:
        smoothing: of the labels.
        weights: (C,) of the classes, or None.

    Raises:
        UsageError: a loss over regions, and the taxonomy has one.
    """

    def __init__(self, taxonomy: Taxonomy, settings: LossSettings, smoothing: float = 0.0, weights: torch.Tensor | None = None) -> None:
        super().__init__()
        if settings.region and len(taxonomy.regions) < 2:
            what = f"Taxonomy {taxonomy.name!r} has one region: a loss over regions teaches nothing."
            raise UsageError(what, hint="--set loss.region=0")
        self.settings, self.smoothing = settings, smoothing
        self.register_buffer("weights", weights)
        self.register_buffer("region_of", torch.tensor([taxonomy.regions.index(c.region) for c in taxonomy.classes]))

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = focal_loss(logits, targets, self.settings.focal, self.smoothing, self.weights)
        if self.settings.region:
            loss = loss + self.settings.region * region_loss(logits, targets, self.region_of)
        return loss


def focal_loss(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, smoothing: float = 0.0, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """-sum over classes c of w_c q_c (1 - p_c)^gamma log p_c, as a mean over rows weighted by the w of their targets.

    q is the smoothed label, (1 - smoothing) on the target and smoothing / C on every class. With gamma = 0
    it is torch's cross-entropy.

    Source: Lin et al. 2017, eq. 5 with alpha as class weights; with a smoothed label, ours.

    Args:
        logits: (N, C). targets: (N,) class indices. weights: (C,) or None.
    """
    if not gamma:
        return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing)
    log_p = logits.log_softmax(dim=1)
    n_classes = logits.shape[1]
    wanted = F.one_hot(targets, n_classes).to(log_p) * (1 - smoothing) + smoothing / n_classes
    # From the logarithm: 1 - p loses its digits near p = 1, and its power an infinite gradient at 0 for gamma < 1.
    doubt = -torch.expm1(log_p.clamp(max=-1e-6))
    weights = torch.ones_like(log_p[0]) if weights is None else weights
    losses = -(weights * wanted * doubt.pow(gamma) * log_p).sum(dim=1)
    return losses.sum() / weights[targets].sum()


def region_loss(logits: torch.Tensor, targets: torch.Tensor, region_of: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """Cross-entropy of the region: -mean of log(sum over the classes c of the target's region of p_c).

    A mistake between a left and a right ear costs nothing here, one between an ear and a throat does.

    Source: ours, after the region models of *Fusion at the Foregut* (section 4.3.4), on one head's probabilities.

    Args:
        logits: (N, C). targets: (N,) class indices. region_of: (C,) the region of each class.
    """
    region_of = torch.as_tensor(region_of, device=logits.device)
    in_region = region_of[targets][:, None] == region_of
    log_p = logits.log_softmax(dim=1)
    return -log_p.masked_fill(~in_region, -torch.inf).logsumexp(dim=1).mean()
