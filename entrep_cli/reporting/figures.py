"""Figures as PNG files: no display, no date inside, the same bytes for the same numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from entrep_cli.console import visible
from entrep_cli.data.images import ImageError, read_image
from entrep_cli.workspace import atomic_path

_CELL_INCHES = 0.62  # the least at which a count over a percentage is read at print size
_DARK = 0.717  # share above which white stands out more than black; the contrast is over 4.5 everywhere


def confusion_png(
    confusion: np.ndarray,
    class_names: Sequence[str],
    path: str | Path,
    title: str = "Confusion matrix",
) -> Path:
    """Draw a confusion matrix: counts, shares of the true class, and the share as a colour.

    One hue from light to dark carries the share, so it reads the same with any colour vision and in
    grey; the numbers say it again. Names and title are drawn letter by letter, never as formulas.

    Args:
        confusion: (C, C) counts, rows truth, columns prediction.
        class_names: C names, in the order of the rows.
        path: the PNG to write, replaced in one step.
        title: above the matrix.

    Returns:
        `path`.

    Raises:
        ValueError: names do not fit the matrix.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    confusion = np.asarray(confusion)
    n_classes = len(class_names)
    if confusion.shape != (n_classes, n_classes):
        raise ValueError(f"{n_classes} names do not fit a matrix of shape {confusion.shape}")
    support = confusion.sum(axis=1)
    share = confusion / np.maximum(support, 1)[:, None]
    # Three lines at most, for that is what stands beside a cell.
    names = [textwrap.fill(name, max(24, len(name) // 2)) for name in class_names]
    slant = 90 if any("\n" in name for name in names) else 45

    # A user's matplotlibrc (usetex, fonts, dpi) must not reach the figure.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        side = max(3.0, _CELL_INCHES * n_classes)
        figure = Figure(figsize=(side + 1, side))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(n_classes, n_classes):
            count, part = confusion[row, column], share[row, column]
            label = f"{count}\n{part:.0%}" if count else "0"
            colour = "white" if part > _DARK else "black" if count else "0.45"
            axes.text(column, row, label, ha="center", va="center", fontsize=9, color=colour)
        ends_at_cell = {"ha": "right", "va": "center", "rotation_mode": "anchor"}
        axes.set_xticks(range(n_classes), names, rotation=slant, parse_math=False, **ends_at_cell)
        rows = [f"{name} ({n})" for name, n in zip(names, support, strict=True)]
        axes.set_yticks(range(n_classes), rows, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth (images)")
        axes.set_title(textwrap.fill(title, int(12 * side)), parse_math=False)
        bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.04)
        bar.set_label("share of the true class")
        bar.ax.yaxis.set_major_formatter(lambda part, _: f"{part:.0%}")
        path = Path(path)
        with atomic_path(path) as temporary:
            # 'tight' grows the picture around the longest name instead of cutting it; the library's
            # version stays out of the file, so that an upgrade alone changes no byte.
            figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        return path


_TILE_INCHES = 1.9


@dataclass(frozen=True)
class Mark:
    """How a picture of a contact sheet is framed: by colour, and for grey print by stroke and word."""

    word: str
    colour: str
    stroke: str
    width: float


# Okabe and Ito's colours, told apart by colour-blind people.
MARKS = {
    "query": Mark("query", "#0072B2", "solid", 4.0),
    "hit": Mark("hit: the query's class", "#009E73", "solid", 2.0),
    "miss": Mark("miss: another class", "#D55E00", "dashed", 2.0),
    "truth": Mark("truth: the query's class, not among the answers", "#8A8A8A", "dotted", 2.0),
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


def contact_sheet(title: str, tiles: Sequence[Tile], path: str | Path, *, columns: int = 6) -> Path:
    """Draw pictures in rows, each under its caption and in the frame of its mark, with a legend of the marks in use.

    A picture that cannot be read any more leaves an empty frame that says so.

    Args:
        title: above the sheet; like captions, it is drawn letter by letter.
        tiles: the query first, if it is an image, then its answers, best first.
        path: the PNG to write, replaced in one step.
        columns: pictures a row.

    Returns:
        `path`.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = min(columns, max(len(tiles), 3))
    rows = max(-(-len(tiles) // columns), 1)
    title = textwrap.fill(visible(title), 17 * columns)
    marks = [mark for mark in MARKS if mark in {tile.mark for tile in tiles}]
    pictures = [_thumbnail(tile.image) for tile in tiles]
    side = _TILE_INCHES - 0.16
    tall = side * min(max([0.5, *(p.height / p.width for p in pictures if p)]), 1.25)
    # Placed by hand: the library's own layout would take longer than all else here.
    head, foot, text = 0.25 + 0.18 * (title.count("\n") + 1), 0.1 + 0.2 * len(marks), 0.4
    width, height = _TILE_INCHES * columns, head + foot + rows * (tall + text + 0.12)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        figure.text(0.08 / width, 1 - 0.1 / height, title, va="top", fontsize=10, parse_math=False)
        for i, tile in enumerate(tiles):
            row, column = divmod(i, columns)
            left, bottom = column * _TILE_INCHES + 0.08, foot + (rows - 1 - row) * (tall + text + 0.12) + 0.12
            axes = figure.add_axes((left / width, bottom / height, side / width, tall / height), facecolor="0.93", anchor="N")
            axes.set(xticks=[], yticks=[])
            if picture := pictures[i]:
                axes.imshow(np.asarray(picture))
            else:
                axes.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=8, color="0.35")
            mark = MARKS.get(tile.mark, Mark("", "0.75", "solid", 0.8))
            for spine in axes.spines.values():
                spine.set(color=mark.colour, linestyle=mark.stroke, linewidth=mark.width)
            caption = "\n".join(line if len(line) <= 27 else f"{line[:24]}..." for line in map(visible, tile.caption.split("\n")))
            figure.text(left / width, (bottom + tall + 0.05) / height, caption, va="bottom", fontsize=8, parse_math=False)
        for i, mark in enumerate(MARKS[name] for name in marks):
            bottom = foot - 0.2 * (i + 1)
            look = {"facecolor": "none", "edgecolor": mark.colour, "linestyle": mark.stroke, "linewidth": mark.width}
            box = Rectangle((0.1 / width, bottom / height), 0.22 / width, 0.12 / height, transform=figure.transFigure, **look)
            figure.add_artist(box)
            figure.text(0.4 / width, (bottom + 0.06) / height, mark.word, va="center", fontsize=8)
        path = Path(path)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
        return path


def _thumbnail(path: Path) -> Image.Image | None:
    """A picture at the size it is drawn in; None where it cannot be read."""
    try:
        picture = read_image(path)
    except ImageError:
        return None
    picture.thumbnail((288, 288))
    return picture


def picture_grid(rows: Sequence[Sequence[np.ndarray]], headings: Sequence[str], path: str | Path, title: str, caption: str = "") -> Path:
    """Draw pictures in rows and columns, each pixel of theirs as it is.

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
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows or any(len(row) != len(headings) for row in rows):
        raise ValueError(f"{[len(row) for row in rows]} pictures do not fit {len(headings)} headings")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        width = _TILE_INCHES * len(headings)
        figure = Figure(figsize=(width, _TILE_INCHES * len(rows) + 0.9), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11, parse_math=False)
        grid = figure.subplots(len(rows), len(headings), squeeze=False)
        for axes, picture in zip(grid.flat, (picture for row in rows for picture in row)):
            axes.imshow(np.asarray(picture).transpose(1, 2, 0), interpolation="nearest")
            axes.set_axis_off()
        for axes, heading in zip(grid[0], headings):
            axes.set_title(heading, fontsize=9, parse_math=False)
        if caption:
            figure.supxlabel(textwrap.fill(caption, int(14 * width)), fontsize=8, color="0.3", parse_math=False)
        path = Path(path)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
        return path


_LINES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#000000", ":"))  # told apart in grey by their strokes


def curves_png(panels: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, title: str, *, kept: int | None = None) -> Path:
    """Draw learning curves side by side, one panel a score, each with an axis of its own.

    Args:
        panels: heading -> line -> one value an epoch, from epoch 1.
        path: the PNG to write, replaced in one step.
        title: above all.
        kept: the epoch whose weights are kept, marked by a line.

    Returns:
        `path`.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(textwrap.fill(title, 40 * len(panels)), fontsize=11, parse_math=False)
        for axes, (heading, lines) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items()):
            for i, (name, values) in enumerate(lines.items()):
                colour, stroke = _LINES[i % len(_LINES)]
                marker = "o" if len(values) == 1 else None  # a line through one point is none
                axes.plot(range(1, len(values) + 1), values, stroke, color=colour, label=name, linewidth=1.5, marker=marker)
            if kept:
                axes.axvline(kept, color="0.6", linewidth=0.8, label="kept")
            axes.set_title(heading, fontsize=10, parse_math=False)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
            for text in axes.legend(fontsize=8, frameon=False).get_texts():
                text.set_parse_math(False)
        path = Path(path)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
        return path
