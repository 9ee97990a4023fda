"""Losses on embeddings: a contrast of images and texts, and metric losses that bring images of a class together.

The metric losses take (N, D) unit rows and (N,) classes of one batch, compute in float32, and are zero, with a graph,
where a batch teaches nothing. Batches must hold several images of a class (`sampling.class_batches`).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch.nn import functional as F

from entrep_cli.recipes.recipe import Section


class MetricSettings(Section):
    """A metric-learning loss on the embeddings, added to the loss on the logits.

    Attributes:
        kind: `supcon` (supervised contrastive), `multi-similarity`, `proxy-anchor`, or `none`.
        weight: weight of this loss in the sum.
        temperature: temperature of `supcon`.
    """

    kind: Literal["none", "supcon", "multi-similarity", "proxy-anchor"] = "none"
    weight: NonNegativeFloat = 0.5
    temperature: Annotated[float, Field(gt=0)] = 0.1


def multi_positive_contrast(
    images: torch.Tensor, texts: torch.Tensor, positives: torch.Tensor, logit_scale: float | torch.Tensor
) -> torch.Tensor:
    """InfoNCE between images and texts where a row may have several positives, or none.

    With s_ij = scale <x_i, t_j>, and P(i) the texts that are true of image i:

        L_images = -mean over i of 1/|P(i)| sum over j in P(i) of log(exp s_ij / sum over k of exp s_ik)
        L = (L_images + L_texts) / 2, L_texts the same with images and texts exchanged

    A row without positives is left out of its mean; `positives.any(dim=1)` says which have some. With
    exactly one positive a row and a column, this is CLIP's loss. Computed in float32, also under autocast.

    Source: SupCon (Khosla et al. 2020, eq. 2, L_out) applied across modalities (ours).

    Args:
        images: (N, D) unit rows.
        texts: (M, D) unit rows; each text once, as a repeated one counts as often.
        positives: (N, M) bool, true where the text is true of the image.
        logit_scale: what the cosines are multiplied with (1 / temperature), not its logarithm.

    Returns:
        A scalar; zero, with a graph, without any positive.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = logit_scale * (images.float() @ texts.float().T)
    return (_mean_over_positives(logits, positives) + _mean_over_positives(logits.T, positives.T)) / 2


def clamped_scale(logit_scale: torch.Tensor, maximum: float = 100.0) -> torch.Tensor:
    """The factor of the cosines from CLIP's learned logarithm: min(exp(logit_scale), maximum), a scalar.

    The gradient passes the clamp unchanged, so that a scale which has reached the maximum can come down
    again; to that end CLIP clamps the parameter itself after each step.

    Source: CLIP (Radford et al. 2021, section 2.5), maximum 100.
    """
    value = logit_scale.detach().float().clamp(max=math.log(maximum))
    return (value + (logit_scale - logit_scale.detach())).exp()


def metric_loss(embeddings: torch.Tensor, targets: torch.Tensor, proxies: torch.Tensor, settings: MetricSettings) -> torch.Tensor:
    """The loss that the settings name, times its weight.

    Args:
        proxies: (C, D) directions of the classes, for `proxy-anchor`: the rows of the classifier, so that one set of
            directions learns from both losses (ours; Kim et al. learn a separate set).
    """
    embeddings = embeddings.float()
    if settings.kind == "supcon":
        loss = supervised_contrast(embeddings, targets, settings.temperature)
    elif settings.kind == "multi-similarity":
        loss = multi_similarity(embeddings, targets)
    elif settings.kind == "proxy-anchor":
        loss = proxy_anchor(embeddings, targets, proxies.float())
    else:
        return embeddings.sum() * 0
    return settings.weight * loss


def supervised_contrast(embeddings: torch.Tensor, targets: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """The mean over images i with others P(i) of their class in the batch of

        -1/|P(i)| sum over p in P(i) of log( exp(z_i z_p / t) / sum over a != i of exp(z_i z_a / t) )

    Source: SupCon (Khosla et al. 2020, eq. 2, L_out), temperature 0.1; they sum over i.
    """
    same, itself = _pairs(targets)
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf)
    return _mean_over_positives(logits, same)


def multi_similarity(
    embeddings: torch.Tensor, targets: torch.Tensor, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, margin: float = 0.1
) -> torch.Tensor:
    """The mean over images i, those without a pair counting 0, of

        1/alpha log(1 + sum over P_i of exp(-alpha (s_ik - base))) + 1/beta log(1 + sum over N_i of exp(beta (s_ik - base)))

    with s the cosines, P_i the positives less similar than the most similar negative plus `margin`, and N_i
    the negatives more similar than the least similar positive minus `margin`; an image without a positive
    or without a negative has no pair.

    Source: Wang et al. 2019, eq. 11, 12 and 15; the base is that of their code (0.5; 1 in the text).
    """
    same, itself = _pairs(targets)
    other = ~same & ~itself
    cosines = embeddings @ embeddings.T
    complete = (same.any(dim=1) & other.any(dim=1))[:, None]
    most_alike = cosines.masked_fill(~other, -torch.inf).amax(dim=1, keepdim=True)
    least_alike = cosines.masked_fill(~same, torch.inf).amin(dim=1, keepdim=True)
    positives = same & complete & (cosines < most_alike + margin)
    negatives = other & complete & (cosines > least_alike - margin)
    losses = _log_one_plus(-alpha * (cosines - base), positives) / alpha + _log_one_plus(beta * (cosines - base), negatives) / beta
    return losses.mean()


def proxy_anchor(
    embeddings: torch.Tensor, targets: torch.Tensor, proxies: torch.Tensor, alpha: float = 32.0, margin: float = 0.1
) -> torch.Tensor:
    """With s(x, p) the cosine of an image and the proxy p of a class, P all proxies and P+ those of classes in the batch,

        1/|P+| sum over P+ of log(1 + sum over images x of p's class of exp(-alpha (s(x, p) - margin)))
        + 1/|P| sum over P of log(1 + sum over images x of other classes of exp(alpha (s(x, p) + margin)))

    Source: Kim et al. 2020, eq. 4, alpha 32 and margin 0.1.

    Args:
        proxies: (C, D), of any length.
    """
    cosines = F.normalize(proxies, dim=1) @ embeddings.T
    of_class = torch.arange(len(proxies), device=targets.device)[:, None] == targets
    pull = _log_one_plus(-alpha * (cosines - margin), of_class)
    push = _log_one_plus(alpha * (cosines + margin), ~of_class)
    return pull.sum() / of_class.any(dim=1).sum().clamp(min=1) + push.mean()


def _pairs(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, N) bool: pairs of two images of one class, and every image with itself."""
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    return (targets[:, None] == targets) & ~itself, itself


def _log_one_plus(exponents: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """log(1 + sum of exp over the chosen) of each row; 0 where none is chosen."""
    terms = exponents.masked_fill(~chosen, -torch.inf)
    return torch.cat([torch.zeros_like(terms[:, :1]), terms], dim=1).logsumexp(dim=1)


def _mean_over_positives(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    log_p = logits.log_softmax(dim=1)
    counts = positives.sum(dim=1)
    means = torch.where(positives, log_p, 0.0).sum(dim=1) / counts.clamp(min=1)
    return -means.sum() / (counts > 0).sum().clamp(min=1)
