"""Figures as PNG files: no display, no date inside, the same bytes for the same numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from entrep_cli.data.images import read_image
from entrep_cli.workspace import atomic_path

_CELL_INCHES = 0.62  # the least at which a count over a percentage is read at print size
_DARK = (
    0.717  # share above which white stands out more than black; the contrast is over 4.5 everywhere
)


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
            figure.savefig(
                temporary, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None}
            )
        return path


_TILE_INCHES = 1.9
_QUERY_BLUE = "#0072B2"  # Okabe and Ito's palette: told apart by colour-blind people


def contact_sheet(
    query: Path | None, title: str, answers: Sequence[tuple[Path, str]], path: str | Path, *, columns: int = 6
) -> Path:
    """Draw a query (blue frame) and its answers, best first, each under its caption.

    Args:
        query: the query image; None for a text, which then is the title alone.
        title: above the sheet.
        answers: (image file, caption) each.
        path: the PNG to write, replaced in one step.
        columns: pictures a row.

    Returns:
        `path`.

    Raises:
        ImageError: a picture cannot be read.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tiles = [*([(query, "query")] if query else []), *answers]
    columns = min(columns, max(len(tiles), 1))
    rows = -(-len(tiles) // columns)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(_TILE_INCHES * columns, (_TILE_INCHES + 0.25) * rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(textwrap.fill(title, 16 * columns), fontsize=10, parse_math=False)
        for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
            axes.set_axis_off()
        for i, (axes, (image, caption)) in enumerate(zip(grid.flat, tiles)):
            picture = read_image(image)
            picture.thumbnail((480, 480))
            axes.imshow(np.asarray(picture))
            axes.set_title(textwrap.shorten(caption, 34, placeholder="..."), fontsize=8, parse_math=False)
            if query and i == 0:
                axes.set_axis_on()
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set(color=_QUERY_BLUE, linewidth=3)
        path = Path(path)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
        return path


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
