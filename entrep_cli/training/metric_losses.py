"""Losses on embeddings, for retrieval: images of a class near each other, those of others apart.

All take (N, D) unit rows and (N,) classes of one batch, compute in float32, and are zero, with a graph,
where a batch teaches nothing. Batches must hold several images of a class (`sampling.class_batches`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch.nn import functional as F

from entrep_cli.recipes.recipe import Section


class MetricSettings(Section):
    """A loss on the embeddings, beside that on the logits.

    Attributes:
        kind: `supcon`, `multi-similarity`, `proxy-anchor`, or `none`.
        weight: its factor.
        temperature: of `supcon`.
    """

    kind: Literal["none", "supcon", "multi-similarity", "proxy-anchor"] = "none"
    weight: NonNegativeFloat = 0.5
    temperature: Annotated[float, Field(gt=0)] = 0.1


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
    log_p = (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    n_positives = same.sum(dim=1)
    means = torch.where(same, log_p, 0.0).sum(dim=1) / n_positives.clamp(min=1)
    return -means.sum() / (n_positives > 0).sum().clamp(min=1)


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
