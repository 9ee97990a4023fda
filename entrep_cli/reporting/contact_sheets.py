"""Pictures in rows, as PNG files: contact sheets of a search, and grids."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from entrep_cli.console import visible
from entrep_cli.data.images import ImageError, read_image
from entrep_cli.reporting.drawing import PALETTE, save_png, styled

_TILE_INCHES = 1.9


@dataclass(frozen=True)
class Mark:
    """How a picture of a contact sheet is framed: by colour, and for grey print by stroke and word."""

    word: str
    colour: str
    stroke: str
    width: float


MARKS = {
    "query": Mark("query", PALETTE["query"], "solid", 4.0),
    "hit": Mark("hit: the query's class", PALETTE["hit"], "solid", 2.0),
    "miss": Mark("miss: another class", PALETTE["miss"], "dashed", 2.0),
    "truth": Mark("truth: the query's class, not among the answers", PALETTE["truth"], "dotted", 2.0),
}


@dataclass(frozen=True)
class Tile:
    """A picture of a contact sheet.

    Args:
        image: its file.
        caption: lines above it, each cut to the picture's width.
        mark: a key of `MARKS`; "" for a plain one.
    """

    image: Path
    caption: str
    mark: str = ""


@styled()
def contact_sheet(title: str, tiles: Sequence[Tile], path: str | Path, *, columns: int = 6) -> Path:
    """Draw pictures in rows, each under its caption and in the frame of its mark, with a legend of the marks in use.

    A picture that cannot be read any more leaves an empty frame that says so.

    Args:
        title: above the sheet.
        tiles: the query first, if it is an image, then its answers, best first.
        path: the PNG to write, replaced in one step.
        columns: pictures a row.

    Returns:
        `path`.
    """
    columns = min(columns, max(len(tiles), 3))
    rows = max(-(-len(tiles) // columns), 1)
    title = textwrap.fill(visible(title), 17 * columns)
    marks = [mark for name, mark in MARKS.items() if name in {tile.mark for tile in tiles}]
    pictures = [_thumbnail(tile.image) for tile in tiles]
    side = _TILE_INCHES - 0.16
    tall = side * min(max([0.5, *(p.height / p.width for p in pictures if p)]), 1.25)
    # Placed by hand: the library's own layout would take longer than all else here.
    head, foot, text = 0.25 + 0.18 * (title.count("\n") + 1), 0.1 + 0.2 * len(marks), 0.4
    width, height = _TILE_INCHES * columns, head + foot + rows * (tall + text + 0.12)
    figure = Figure(figsize=(width, height))
    figure.text(0.08 / width, 1 - 0.1 / height, title, va="top", fontsize=10)
    for i, (tile, picture) in enumerate(zip(tiles, pictures)):
        row, column = divmod(i, columns)
        left, bottom = column * _TILE_INCHES + 0.08, foot + (rows - 1 - row) * (tall + text + 0.12) + 0.12
        axes = figure.add_axes((left / width, bottom / height, side / width, tall / height), facecolor=PALETTE["card"], anchor="N")
        axes.set(xticks=[], yticks=[])
        if picture:
            axes.imshow(np.asarray(picture))
        else:
            axes.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=8, color=PALETTE["soft"])
        mark = MARKS.get(tile.mark, Mark("", PALETTE["line"], "solid", 0.8))
        for spine in axes.spines.values():
            spine.set(color=mark.colour, linestyle=mark.stroke, linewidth=mark.width)
        caption = "\n".join(line if len(line) <= 27 else f"{line[:24]}..." for line in map(visible, tile.caption.split("\n")))
        figure.text(left / width, (bottom + tall + 0.05) / height, caption, va="bottom", fontsize=8)
    for i, mark in enumerate(marks):
        bottom = foot - 0.2 * (i + 1)
        look = {"facecolor": "none", "edgecolor": mark.colour, "linestyle": mark.stroke, "linewidth": mark.width}
        figure.add_artist(Rectangle((0.1 / width, bottom / height), 0.22 / width, 0.12 / height, transform=figure.transFigure, **look))
        figure.text(0.4 / width, (bottom + 0.06) / height, mark.word, va="center", fontsize=8)
    return save_png(figure, path)


def _thumbnail(path: Path) -> Image.Image | None:
    """A picture at the size it is drawn in; None where it cannot be read."""
    try:
        picture = read_image(path)
    except ImageError:
        return None
    picture.thumbnail((288, 288))
    return picture


@styled()
def picture_grid(rows: Sequence[Sequence[np.ndarray]], headings: Sequence[str], path: str | Path, title: str, caption: str = "") -> Path:
    """Draw pictures in rows and columns, each of their pixels as it is.

    Args:
        rows: of every row its pictures, (3, H, W) uint8 each.
        headings: above the columns.
        path: the PNG to write, replaced in one step.
        title: above all. caption: below all, as small print.

    Returns:
        `path`.

    Raises:
        ValueError: no rows, or one that has not a picture for each heading.
    """
    if not rows or any(len(row) != len(headings) for row in rows):
        raise ValueError(f"{[len(row) for row in rows]} pictures do not fit {len(headings)} headings")
    width = _TILE_INCHES * len(headings)
    figure = Figure(figsize=(width, _TILE_INCHES * len(rows) + 0.9), layout="constrained")
    figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11)
    grid = figure.subplots(len(rows), len(headings), squeeze=False)
    for axes, picture in zip(grid.flat, (picture for row in rows for picture in row)):
        axes.imshow(np.asarray(picture).transpose(1, 2, 0), interpolation="nearest")
        axes.set_axis_off()
    for axes, heading in zip(grid[0], headings):
        axes.set_title(heading, fontsize=9)
    if caption:
        figure.supxlabel(textwrap.fill(caption, int(14 * width)), fontsize=8, color=PALETTE["soft"])
    return save_png(figure, path)
