"""Training images mixed with others of their class, so that the label stays as it is.

Both take a uint8 batch after augmentation, with the classes that the images show then: what is mixed
shows one side. The image that was there dominates, and its own findings stay true of it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from entrep_cli.data.augment import AugmentSettings, augment
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.recipes.recipe import Section

Share = Annotated[float, Field(ge=0, le=1)]


class MixSettings(Section):
    """Mixing of training images within a class; the ENTRep teams name both, how they are done is ours.

    Attributes:
        mixup: share of images that are blended with another one of their class.
        mosaic: share of images that are made one quarter of a mosaic of four images of their class.
    """

    mixup: Share = 0.0
    mosaic: Share = 0.0


def mix(pixels: torch.Tensor, targets: torch.Tensor, settings: MixSettings, generator: torch.Generator) -> torch.Tensor:
    """A batch with some of its images mixed within their classes: (N, 3, H, W) uint8 in and out, on the CPU.

    An image chosen for both becomes a mosaic of what stood there before either. An image that is alone in
    its class in the batch stays as it is. Everything random comes from `generator`; nothing is drawn of
    what is off.
    """
    mixed = pixels
    if settings.mixup:
        mixed = mixup(pixels, targets, torch.rand(len(pixels), generator=generator) < settings.mixup, generator)
    if settings.mosaic:
        chosen = torch.rand(len(pixels), generator=generator) < settings.mosaic
        mixed = torch.where(chosen[:, None, None, None], mosaic(pixels, targets, chosen, generator), mixed)
    return mixed


def batch_views(
    pixels: torch.Tensor,
    targets: torch.Tensor,
    taxonomy: Taxonomy,
    augmenting: AugmentSettings,
    mixing: MixSettings,
    generator: torch.Generator,
    part: slice = slice(None),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is learned from a batch: augmented, then mixed, as by `augment` and `mix`; with a `part`, the views of those images alone."""
    if mixing == MixSettings():
        return augment(pixels, targets, taxonomy, augmenting, generator, part)
    # Partners are drawn among all, and are seen augmented.
    views, targets, flipped = augment(pixels, targets, taxonomy, augmenting, generator)
    return mix(views, targets, mixing, generator)[part], targets, flipped


def mixup(pixels: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """t x_i + (1 - t) x_j for the chosen, j another image of the class of i and t uniform in [0.5, 1).

    Source: mixup (Zhang et al. 2018) within a class, as the ENTRep teams did it; there t is of a Beta
    distribution and the labels are mixed too.

    Args:
        targets: (N,) classes. chosen: (N,) bool.
    """
    share = 0.5 + torch.rand(len(pixels), generator=generator) / 2
    partners = _partners(targets, 1, generator)[:, 0]
    rows = (chosen & (partners >= 0)).nonzero().flatten()
    mixed = pixels.clone()
    own, other = pixels[rows].float(), pixels[partners[rows]].float()
    mixed[rows] = torch.lerp(other, own, share[rows][:, None, None, None]).round_().to(torch.uint8)
    return mixed


def mosaic(pixels: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each of the chosen as one of four images of its class, all whole and at half their side, in a square.

    Where a class has fewer than four images in the batch some come twice; in which quarter an image stands is
    drawn. Whole views, for a cut one may lack what its class is known by.

    Source: the mosaic of YOLOv4 (Bochkovskiy et al. 2020, section 3.3) within a class.

    Args:
        targets: (N,) classes. chosen: (N,) bool.
    """
    others = _partners(targets, 3, generator)
    places = torch.rand(len(pixels), 4, generator=generator).argsort(dim=1)
    height, width = pixels.shape[-2:]
    top, left = height // 2, width // 2
    corners = [(slice(0, top), slice(0, left)), (slice(0, top), slice(left, width))]
    corners += [(slice(top, height), slice(0, left)), (slice(top, height), slice(left, width))]
    made = pixels.clone()
    for i in (chosen & (others[:, 0] >= 0)).nonzero().flatten().tolist():
        four = torch.cat([torch.tensor([i]), others[i]])[places[i]]
        for source, (rows, columns) in zip(four.tolist(), corners):
            size = (rows.stop - rows.start, columns.stop - columns.start)
            small = F.interpolate(pixels[source][None].float(), size, mode="bilinear", antialias=True, align_corners=False)
            made[i, :, rows, columns] = small[0].round_().clamp_(0, 255).to(torch.uint8)
    return made


def _partners(targets: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """(N, n) for each image others of its class, different ones while there are any, then again; -1 where there is none."""
    draws = torch.rand(len(targets), len(targets), generator=generator)
    same = (targets[:, None] == targets).fill_diagonal_(False)
    order = draws.masked_fill(~same, 2.0).argsort(dim=1)
    n_others = same.sum(dim=1)
    turns = torch.arange(n) % n_others.clamp(min=1)[:, None]
    return order.gather(1, turns).masked_fill(n_others[:, None] == 0, -1)
