"""How images enter a model: the section of a recipe, and the first step of every tower."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from entrep_cli.recipes.recipe import Section


class ImageSettings(Section):
    """From an image file to the input of the model; see `Preprocess`.

    Attributes:
        size: side of the square input, in pixels.
        fit: `pad` scales the long side to `size` and pads with black; `crop` scales the short side and takes the centre;
            `squash` scales each side to `size`, whatever the aspect ratio.
        field_of_view: crop to the bright circle of the endoscope first.
    """

    size: Annotated[int, Field(ge=16, le=2048)] = 224
    fit: Literal["pad", "crop", "squash"] = "pad"
    field_of_view: bool = False


class Normalise(nn.Module):
    """(N, 3, H, W) pixels, uint8 or float in 0..255, normalised in float32 with a tower's mean and deviation.

    The result has the type `output` (float32, or what `precision.lower` sets) and is channels-last in memory:
    convolutions on a CPU, and in half precision on a GPU, are up to 1.5 times as fast on it.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.output = torch.float32
        self.register_buffer("shift", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return ((pixels.to(self.shift.dtype) - self.shift) * self.scale).to(self.output)


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """(N, 3, S, S) uint8 to (N, 3, size, size) uint8, bilinear with antialiasing; unchanged where they have that size."""
    if pixels.shape[-1] == size:
        return pixels
    small = F.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.round_().clamp_(0, 255).to(torch.uint8)
