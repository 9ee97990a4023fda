"""Training augmentation on uint8 batches, with flips that know what they do to a label."""

from __future__ import annotations

from entrep_cli import mend_torchvision  # noqa: F401 - before torchvision

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.recipes.recipe import Section


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
    """

    rotation: float = 15.0
    shift: float = 0.05
    zoom: float = 0.1
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.2
    hue: float = 0.03
    grey: float = 0.0
    blur: float = 0.2
    blur_sigma: float = 1.5
    flip: float = 0.5


def flip(pixels: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor, taxonomy: Taxonomy) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip the chosen images left to right and give them the class they then show.

    Args:
        pixels: (N, 3, H, W). targets: (N,) class indices. chosen: (N,) bool.

    Returns:
        new pixels and targets; an image whose class has no known mirror stays as it is.
    """
    mirrors = torch.tensor(taxonomy.mirrors, device=targets.device)
    flipped = mirrors[targets]
    chosen = chosen & (flipped >= 0)
    pixels = torch.where(chosen[:, None, None, None], pixels.flip(-1), pixels)
    return pixels, torch.where(chosen, flipped, targets)


def augment(
    pixels: torch.Tensor, targets: torch.Tensor, taxonomy: Taxonomy, settings: AugmentSettings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Another view of every image: (N, 3, H, W) uint8 and (N,) targets in, the same out.

    Everything random comes from `generator`, so a seed gives the same views on every run.
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
    blurred, sigma = draw(0, 1) < s.blur, draw(0.1, max(s.blur_sigma, 0.1))

    pixels, targets = flip(pixels, targets, chosen, taxonomy)
    views = []
    for i, view in enumerate(pixels):
        view = F.affine(
            view,
            angle=float(angles[i]),
            translate=shifts[i].tolist(),
            scale=float(scales[i]),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        view = F.adjust_brightness(view, float(brightness[i]))
        view = F.adjust_contrast(view, float(contrast[i]))
        view = F.adjust_saturation(view, float(saturation[i]))
        if s.hue:
            view = F.adjust_hue(view, float(hue[i]))
        if grey[i]:
            view = F.rgb_to_grayscale(view, num_output_channels=3)
        if blurred[i]:
            size = 2 * int(2 * float(sigma[i]) + 0.5) + 1
            view = F.gaussian_blur(view, [size, size], [float(sigma[i])] * 2)
        views.append(view)
    return torch.stack(views), targets
