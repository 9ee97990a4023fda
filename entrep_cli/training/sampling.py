"""The order of the training images in an epoch."""

from __future__ import annotations

import torch

from entrep_cli.errors import UsageError


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


def class_batches(targets: torch.Tensor, classes_per_batch: int, images_per_class: int, generator: torch.Generator) -> list[torch.Tensor]:
    """One epoch of batches with several images of each of several classes (P x K sampling).

    A batch is P different classes (all of them where the data have fewer) with K images each, shuffled;
    an epoch has as many batches as N images fill, the last one counted whole. Every class comes before any
    comes twice, and so does every image of a class; only a class of fewer than K images repeats within
    a batch.

    Args:
        targets: (N,) classes.
        classes_per_batch: P.
        images_per_class: K.

    Returns:
        Indices into `targets`, min(P, classes) * K of them a batch; no batch where N = 0.

    Raises:
        UsageError: K < 2, as an image then has no other one of its class, or P < 1.
    """
    if images_per_class < 2 or classes_per_batch < 1:
        raise UsageError(
            f"Batches of {classes_per_batch} classes with {images_per_class} images each are too small: "
            "positives need two images of a class.",
            hint="at least 1 class a batch and 2 images a class; a larger batch, or fewer classes in it",
        )
    labels, of_class = targets.unique(return_inverse=True)
    members = [(of_class == i).nonzero().flatten() for i in range(len(labels))]
    classes = torch.arange(len(labels))
    waiting_classes, *waiting = [classes[:0]] * (1 + len(labels))
    n_classes = min(classes_per_batch, len(labels))
    cut = []
    for _ in range(-(-len(targets) // max(n_classes * images_per_class, 1))):
        chosen, waiting_classes = _draw(classes, waiting_classes, n_classes, generator)
        drawn = []
        for i in chosen.tolist():
            images, waiting[i] = _draw(members[i], waiting[i], images_per_class, generator)
            drawn.append(images)
        batch = torch.cat(drawn)
        # Shuffled, so that a slice of it, as for one of several processes, is not one class.
        cut.append(batch[torch.randperm(len(batch), generator=generator)])
    return cut


def _draw(items: torch.Tensor, waiting: torch.Tensor, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The next n of endless shuffled rounds of `items`, and those that remain of the rounds started."""
    while len(waiting) < n:
        fresh = items[torch.randperm(len(items), generator=generator)]
        # Those that remain come last in the next round: no item twice in one draw without need.
        again = torch.isin(fresh, waiting)
        waiting = torch.cat([waiting, fresh[~again], fresh[again]])
    return waiting[:n], waiting[n:]
