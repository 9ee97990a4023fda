"""Validation scores while training, and the batches they are computed in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

MONITOR = "val_macro_f1"


def classification_scores(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Validation loss, accuracy and macro F1 of (N, C) logits and (N,) class indices."""
    from sklearn.metrics import f1_score

    predicted = logits.argmax(dim=1)
    return {
        "val_loss": float(F.cross_entropy(logits, targets)),
        "val_accuracy": float((predicted == targets).float().mean()),
        MONITOR: float(f1_score(targets.numpy(), predicted.numpy(), average="macro")),
    }


def batched(pixels: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    """(N, 3, H, W) uint8, which may be a memory map, as tensors of `size` images."""
    for start in range(0, len(pixels), size):
        yield torch.from_numpy(np.array(pixels[start : start + size]))
