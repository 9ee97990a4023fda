"""Heat over a picture, and the sheet of several: what `explain` draws.

The colours are viridis: their lightness rises with the heat, so that their order is seen with any colour
vision and in grey. The picture under them is grey, for its own colours would mix with them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from entrep_cli.workspace import atomic_path

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

_OPACITY = 0.55  # the same everywhere: a colour must not mean more on a bright place than on a dark one
_TILE_INCHES = 2.4
_LETTERS = 34  # of a caption, on a line below a tile


@dataclass(frozen=True)
class Look:
    """One row of a sheet.

    Attributes:
        pixels: (3, H, W) uint8, what the model saw. heat: (H, W) in [0, 1].
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
    colours = 255 * _colours()(heat)[..., :3]
    mixed = (1 - _OPACITY) * grey[..., None] + _OPACITY * colours
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def explanation_sheet(looks: Sequence[Look], title: str, path: str | Path) -> Path:
    """Draw picture and overlay side by side, a row an image, with captions and one colour bar.

    Args:
        title: above all. Titles and captions are never read as formulas.
        path: the PNG to write, replaced in one step.

    Returns:
        `path`.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    path, rows = Path(path), len(looks)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(2 * _TILE_INCHES + 3.1, (_TILE_INCHES + 0.1) * rows + 0.7), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(textwrap.fill(title, 86), fontsize=10, parse_math=False)
        grid = figure.subplots(rows, 3, squeeze=False, width_ratios=(1, 1, 0.95))
        for (seen, hot, words), look in zip(grid, looks):
            seen.imshow(look.pixels.transpose(1, 2, 0), interpolation="nearest")
            hot.imshow(np.asarray(overlay(look.pixels, look.heat)), interpolation="nearest")
            lines = [line for text in look.caption for line in textwrap.wrap(_printable(text), _LETTERS, max_lines=3, placeholder=" ...")]
            words.text(0, 0.98, "\n".join(lines), va="top", fontsize=9, linespacing=1.4, parse_math=False)
            for axes in (seen, hot, words):
                axes.set_axis_off()
        # On the grey that the picture is on average: the colours of the sheet are mixed, those of the map alone stand nowhere in it.
        bar = figure.colorbar(ScalarMappable(cmap=_mixed_with_grey()), ax=list(grid[:, 1]), fraction=0.05, pad=0.02, aspect=18)
        bar.set_label("heat, 1 is the hottest of the image", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    return path


def _colours() -> Colormap:
    import matplotlib

    return matplotlib.colormaps["viridis"]


def _mixed_with_grey() -> Colormap:
    from matplotlib.colors import ListedColormap

    colours = _colours()(np.linspace(0, 1, 256))[:, :3]
    return ListedColormap((1 - _OPACITY) * 0.4 + _OPACITY * colours)


def _printable(text: str) -> str:
    """Without what a font has no picture of, or what turns the direction of a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
