"""In which order an epoch sees the training images."""

from __future__ import annotations

import torch


def balanced_order(targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One epoch in which every class comes equally often: (N,) indices into `targets`.

    Of each class as many images are drawn as N / classes (the first classes one more where that does
    not divide): rare classes are oversampled, every image of a class once before any comes twice.
    """
    classes = targets.unique()
    n, k = len(targets), len(classes)
    drawn = []
    for i, label in enumerate(classes):
        members = (targets == label).nonzero().flatten()
        wanted = n // k + (i < n % k)
        rounds = -(-wanted // len(members))
        shuffled = [members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)]
        drawn.append(torch.cat(shuffled)[:wanted])
    order = torch.cat(drawn)
    return order[torch.randperm(len(order), generator=generator)]


def class_weights(targets: torch.Tensor, n_classes: int) -> torch.Tensor:
    """(C,) loss weights inverse to the class counts, with mean 1 over the images; 0 for an absent class."""
    counts = torch.bincount(targets, minlength=n_classes).float()
    weights = torch.where(counts > 0, len(targets) / counts.clamp(min=1), 0.0)
    return weights / (counts > 0).sum()


def batches(order: torch.Tensor, size: int) -> list[torch.Tensor]:
    """`order` cut into batches; a last batch of one joins the one before, as batch norm needs two."""
    cut = list(order.split(size))
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2:] = [torch.cat(cut[-2:])]
    return cut
