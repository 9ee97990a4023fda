"""Training augmentation on uint8 batches, with flips that know what they do to a label."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.recipes.recipe import Section

Share = Annotated[float, Field(ge=0, le=1)]


class AugmentSettings(Section):
    """The augmentation of the Foregut paper (section 4.3.2), plus the label-aware flip.

    The paper names rotation, blur and colour jitter without amounts; the amounts are ours, as are
    shift and zoom.

    Attributes:
        rotation: largest angle in degrees, about the centre of the view.
        shift, zoom: largest part of the side moved, and of the scale changed.
        brightness, contrast, saturation: factors from 1 - x to 1 + x.
        hue: turns from -x to x.
        grey: share of images turned grey.
        blur: share of images blurred, sigma up to `blur_sigma` pixels.
        flip: share of images flipped left to right, the label going to its mirror class.
        naive_flip: the label stays as it is instead: a mistake where a class has a side, here to be measured.
        crop: largest part of an image's area cut away, the rest, anywhere in it, scaled to full size.
        cutout: share of images with a black square put somewhere (DeVries and Taylor 2017), its side up to
            `cutout_side` of the image's.
    """

    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    shift: Share = 0.05
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.1
    brightness: Share = 0.25
    contrast: Share = 0.25
    saturation: Share = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.03
    grey: Share = 0.0
    blur: Share = 0.2
    blur_sigma: Annotated[float, Field(ge=0, le=20)] = 1.5
    flip: Share = 0.5
    naive_flip: bool = False
    crop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    cutout: Share = 0.0
    cutout_side: Share = 0.4


def flip(
    pixels: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor, taxonomy: Taxonomy
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flip the chosen images left to right and give them the class they then show.

    Args:
        pixels: (N, 3, H, W). targets: (N,) class indices. chosen: (N,) bool.

    Returns:
        new pixels and targets, and (N,) bool, which were flipped: an image whose class has no known
        mirror stays as it is.
    """
    mirrors = torch.tensor(taxonomy.mirrors, device=targets.device)
    flipped = mirrors[targets]
    chosen = chosen & (flipped >= 0)
    pixels = torch.where(chosen[:, None, None, None], pixels.flip(-1), pixels)
    return pixels, torch.where(chosen, flipped, targets), chosen


def augment(
    pixels: torch.Tensor,
    targets: torch.Tensor,
    taxonomy: Taxonomy,
    settings: AugmentSettings,
    generator: torch.Generator,
    part: slice = slice(None),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Another view of every image: (N, 3, H, W) uint8 and (N,) targets in, the same out, on the CPU.

    Also (N,) bool, which images were flipped. With a `part` only the views of those images are made, and they
    are the same as among all; targets and flips stay those of all.

    Everything random comes from `generator`, so a seed gives the same views on every run. The steps
    are those of torchvision's functionals of the same names, on many images at once with a factor for
    each, and rounded once at the end.
    """
    n = len(pixels)

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    s = settings
    chosen = draw(0, 1) < s.flip
    angles = draw(-s.rotation, s.rotation)
    shifts = torch.stack([draw(-s.shift, s.shift), draw(-s.shift, s.shift)], dim=1) * pixels.shape[-1]
    scales = draw(1 - s.zoom, 1 + s.zoom)
    brightness, contrast, saturation = (draw(1 - x, 1 + x) for x in (s.brightness, s.contrast, s.saturation))
    hue, grey = draw(-s.hue, s.hue), draw(0, 1) < s.grey
    saturation = saturation.where(~grey, 0.0)
    blurred, sigma = draw(0, 1) < s.blur, draw(0.1, max(s.blur_sigma, 0.1))

    # What is off draws nothing, so that a seed gives the views it gave before there was such a thing.
    if s.crop:
        sides = draw(1 - s.crop, 1).sqrt()
        scales = scales / sides
        rest = (1 - sides) / sides / 2
        shifts = shifts + torch.stack([draw(-1, 1) * rest, draw(-1, 1) * rest], dim=1) * pixels.shape[-1]
    holes = torch.stack([(draw(0, 1) < s.cutout) * draw(0, s.cutout_side), draw(0, 1), draw(0, 1)], dim=1) if s.cutout else None

    labels = targets
    pixels, targets, flipped = flip(pixels, targets, chosen, taxonomy)
    if s.naive_flip:
        targets = labels
    views = torch.empty_like(pixels[part])
    # A few images at a time stay in the processor's cache, which the steps read and write over and over.
    for few, made in zip(torch.arange(n)[part].split(8), views.split(8)):
        view = affine(pixels[few].float().div_(255), angles[few], shifts[few], scales[few])
        view = blend(view, torch.zeros(()), brightness[few])
        view = blend(view, luma(view).mean(dim=(2, 3), keepdim=True), contrast[few])
        view = blend(view, luma(view), saturation[few])
        if s.hue:
            view = turn_hue(view, hue[few])
        for i in blurred[few].nonzero().flatten().tolist():
            view[i] = gaussian_blur(view[i], float(sigma[few][i]))
        if holes is not None:
            cut_out(view, holes[few])
        made.copy_(view.mul_(255).round_())
    return views, targets, flipped


# ---------------------------------------------------------------- the steps
# Each takes (N, 3, H, W) float images in [0, 1] and (N,) parameters, and gives such images back.


def affine(images: torch.Tensor, angles: torch.Tensor, shifts: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Turn clockwise by degrees and scale about the centre, then shift (N, 2) by pixels right and down; black comes in."""
    height, width = images.shape[-2:]
    cos, sin = ((turn / scales)[:, None, None] for turn in (angles.deg2rad().cos(), angles.deg2rad().sin()))
    # For every place in the view the place in the image, from the centre, in halves of the sides.
    x = torch.arange(width)[None, None, :] - (width - 1) / 2 - shifts[:, :1, None]
    y = torch.arange(height)[None, :, None] - (height - 1) / 2 - shifts[:, 1:, None]
    grid = torch.stack([(cos * x + sin * y) * (2 / width), (cos * y - sin * x) * (2 / height)], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def blend(images: torch.Tensor, others: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """`factors` of the images and 1 - `factors` of the others."""
    return torch.lerp(others, images, factors[:, None, None, None]).clamp_(0, 1)


def luma(images: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) grey values."""
    red, green, blue = images.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def turn_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Shift the hue by a part of the colour circle; value and saturation, as in HSV, stay."""
    red, green, blue = images.unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = 1 / chroma.clamp_min(1e-8)
    # In sixths of the circle: red is 0, green 2, blue 4.
    rest = torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    hue = torch.where(value == red, (green - blue) * scale, rest)
    hue = (hue + 6 * turns[:, None, None]).remainder_(6)
    pure = [(hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()]
    return torch.stack([value - chroma + chroma * channel.clamp_(0, 1) for channel in pure], dim=1)


def cut_out(images: torch.Tensor, holes: torch.Tensor) -> None:
    """Blacken a square in each image, in place; (N, 3) holes: the side and the centre's x and y, in parts of the image's sides."""
    height, width = images.shape[-2:]
    side, x, y = holes.T
    columns = ((torch.arange(width) + 0.5) / width - x[:, None]).abs() < side[:, None] / 2
    rows = ((torch.arange(height) + 0.5) / height - y[:, None]).abs() < side[:, None] / 2
    images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur one image (3, H, W), sigma in pixels; the kernel reaches two sigma and less than the image."""
    reach = min(int(2 * sigma + 0.5), min(image.shape[-2:]) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).tolist()
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, 0, reach, reach), mode="reflect")
    image = sum(w * padded[:, i : i + height] for i, w in enumerate(weights))
    padded = F.pad(image, (reach, reach, 0, 0), mode="reflect")
    return sum(w * padded[:, :, i : i + width] for i, w in enumerate(weights))
