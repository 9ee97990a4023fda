"""Training augmentation on uint8 batches, with flips that know what they do to a label."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.recipes.recipe import Section

Fraction = Annotated[float, Field(ge=0, le=1)]


class AugmentSettings(Section):
    """The augmentation of the Foregut paper (section 4.3.2), plus the label-aware flip.

    The paper names rotation, blur and colour jitter without amounts; the amounts are ours, as are
    shift and zoom.

    Attributes:
        rotation: largest rotation about the centre, in degrees, either way.
        shift: largest shift in each direction, as a fraction of the side.
        zoom: largest change of scale, x: factors from 1 - x to 1 + x.
        brightness: largest change of brightness, x: factors from 1 - x to 1 + x.
        contrast: largest change of contrast, x: factors from 1 - x to 1 + x.
        saturation: largest change of saturation, x: factors from 1 - x to 1 + x.
        hue: largest shift of the hue, as a fraction of the colour circle.
        grey: fraction of images turned to greyscale.
        blur: fraction of images blurred with a Gaussian.
        blur_sigma: largest standard deviation of the blur, in pixels.
        flip: fraction of images flipped left to right, with the label mapped to its mirror class.
        naive_flip: flip without mapping the label: wrong where classes have a side, for measuring how much it costs.
        crop: largest fraction of an image's area that a random crop removes; the crop is scaled to full size.
        cutout: fraction of images with a black square at a random position (DeVries and Taylor 2017).
        cutout_side: largest side of that square, as a fraction of the image's side.
    """

    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    shift: Fraction = 0.05
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.1
    brightness: Fraction = 0.25
    contrast: Fraction = 0.25
    saturation: Fraction = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.03
    grey: Fraction = 0.0
    blur: Fraction = 0.2
    blur_sigma: Annotated[float, Field(ge=0, le=20)] = 1.5
    flip: Fraction = 0.5
    naive_flip: bool = False
    crop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    cutout: Fraction = 0.0
    cutout_side: Fraction = 0.4


class MixSettings(Section):
    """Mixing of training images within a class. The ENTRep teams name both kinds; the details are ours.

    Attributes:
        mixup: fraction of images that are blended with another image of their class.
        mosaic: fraction of images that are replaced by a mosaic of four images of their class.
    """

    mixup: Fraction = 0.0
    mosaic: Fraction = 0.0


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
    rows: slice = slice(None),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Another view of every image: (N, 3, H, W) uint8 and (N,) targets in, the same out, on the CPU.

    Also (N,) bool, which images were flipped. With `rows` only the views of those images are made, and they
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

    # What is off draws nothing, so that a seed gives the same views with and without the option.
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
    views = torch.empty_like(pixels[rows])
    # A few images at a time stay in the processor's cache, which the steps read and write over and over.
    for few, made in zip(torch.arange(n)[rows].split(8), views.split(8)):
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
    """Shift the hue by a fraction of the colour circle; value and saturation, as in HSV, stay."""
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
    """Blacken a square in each image, in place; (N, 3) holes: the side and the centre's x and y, as fractions of the image's sides."""
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


# ---------------------------------------------------------------- mixing


def mix(pixels: torch.Tensor, targets: torch.Tensor, settings: MixSettings, generator: torch.Generator) -> torch.Tensor:
    """A batch with some of its images mixed within their classes: (N, 3, H, W) uint8 in and out, on the CPU.

    An image chosen for both becomes a mosaic of the images before either. An image that is alone in
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
    rows: slice = slice(None),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is learned from a batch: augmented, then mixed, as by `augment` and `mix`; with `rows`, the views of those images alone."""
    if mixing == MixSettings():
        return augment(pixels, targets, taxonomy, augmenting, generator, rows)
    # Partners are drawn among all, and are augmented too.
    views, targets, flipped = augment(pixels, targets, taxonomy, augmenting, generator)
    return mix(views, targets, mixing, generator)[rows], targets, flipped


def mixup(pixels: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """t x_i + (1 - t) x_j for the chosen, j another image of the class of i and t uniform in [0.5, 1).

    Source: mixup (Zhang et al. 2018) within a class, as the ENTRep teams did it; in the paper t is of a Beta
    distribution and the labels are mixed too.

    Args:
        targets: (N,) classes. chosen: (N,) bool.
    """
    weights = 0.5 + torch.rand(len(pixels), generator=generator) / 2
    partners = _partners(targets, 1, generator)[:, 0]
    rows = (chosen & (partners >= 0)).nonzero().flatten()
    mixed = pixels.clone()
    chosen_pixels, others = pixels[rows].float(), pixels[partners[rows]].float()
    mixed[rows] = torch.lerp(others, chosen_pixels, weights[rows][:, None, None, None]).round_().to(torch.uint8)
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
    """(N, n) for each image others of its class, different ones as far as they go, then again; -1 where it has none."""
    draws = torch.rand(len(targets), len(targets), generator=generator)
    same = (targets[:, None] == targets).fill_diagonal_(False)
    order = draws.masked_fill(~same, 2.0).argsort(dim=1)
    n_others = same.sum(dim=1)
    turns = torch.arange(n) % n_others.clamp(min=1)[:, None]
    return order.gather(1, turns).masked_fill(n_others[:, None] == 0, -1)
