"""What training minimises beside cross-entropy."""

from __future__ import annotations

import math

import torch


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


def _mean_over_positives(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    log_p = logits.log_softmax(dim=1)
    counts = positives.sum(dim=1)
    means = torch.where(positives, log_p, 0.0).sum(dim=1) / counts.clamp(min=1)
    return -means.sum() / (counts > 0).sum().clamp(min=1)
