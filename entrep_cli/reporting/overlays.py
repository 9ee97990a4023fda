"""Heat over a picture, and the sheet of several: what `explain` draws.

The colours are viridis: their lightness rises with the heat, so that their order is visible with any colour
vision and in grey. The picture under them is grey, for its colours would mix with them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image

from entrep_cli.reporting.drawing import save_png, styled

_COLOURS = matplotlib.colormaps["viridis"]
_OPACITY = 0.55  # the same everywhere: a colour must not mean more on a bright place than on a dark one
_TILE_INCHES = 2.4
_LETTERS = 34  # of a caption, on a line below a tile


@dataclass(frozen=True)
class Look:
    """One row of a sheet.

    Attributes:
        pixels: (3, H, W) uint8, the input of the model. heat: (H, W) in [0, 1].
        caption: drawn letter by letter beside it, a line each.
    """

    pixels: np.ndarray
    heat: np.ndarray
    caption: tuple[str, ...]


def overlay(pixels: np.ndarray, heat: np.ndarray) -> Image.Image:
    """The heat in colours over the picture in grey, of the picture's size.

    Args:
        pixels: (3, H, W) uint8.
        heat: (H, W) in [0, 1].

    Raises:
        ValueError: their sizes differ, or the heat is not in [0, 1].
    """
    heat = np.asarray(heat, np.float32)
    if heat.shape != pixels.shape[1:]:
        raise ValueError(f"heat of {heat.shape} does not fit a picture of {pixels.shape[1:]}")
    if not ((heat >= 0) & (heat <= 1)).all():
        raise ValueError("heat lies outside of [0, 1]")
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), pixels.astype(np.float32), axes=1)
    mixed = (1 - _OPACITY) * grey[..., None] + _OPACITY * 255 * _COLOURS(heat)[..., :3]
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


@styled()
def explanation_sheet(looks: Sequence[Look], title: str, path: str | Path) -> Path:
    """Draw picture and overlay side by side, a row an image, with captions and one colour bar.

    Args:
        title: above all.
        path: the PNG to write, replaced in one step.

    Returns:
        `path`.
    """
    rows = len(looks)
    figure = Figure(figsize=(2 * _TILE_INCHES + 3.1, (_TILE_INCHES + 0.1) * rows + 0.7), layout="constrained")
    figure.suptitle(textwrap.fill(title, 86), fontsize=10)
    grid = figure.subplots(rows, 3, squeeze=False, width_ratios=(1, 1, 0.95))
    for (picture, hot, words), look in zip(grid, looks):
        picture.imshow(look.pixels.transpose(1, 2, 0), interpolation="nearest")
        hot.imshow(np.asarray(overlay(look.pixels, look.heat)), interpolation="nearest")
        lines = [line for text in look.caption for line in textwrap.wrap(_printable(text), _LETTERS, max_lines=3, placeholder=" ...")]
        words.text(0, 0.98, "\n".join(lines), va="top", fontsize=9, linespacing=1.4)
        for axes in (picture, hot, words):
            axes.set_axis_off()
    # On a middle grey, as in the sheet: the pure colours of the map do not occur in it.
    mixed = ListedColormap((1 - _OPACITY) * 0.4 + _OPACITY * _COLOURS(np.linspace(0, 1, 256))[:, :3])
    bar = figure.colorbar(ScalarMappable(cmap=mixed), ax=list(grid[:, 1]), fraction=0.05, pad=0.02, aspect=18)
    bar.set_label("heat, 1 is the hottest of the image", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return save_png(figure, path)


def _printable(text: str) -> str:
    """Without what a font has no picture of, or what turns the direction of a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
