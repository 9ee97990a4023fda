"""Every chart, drawn once with matplotlib: as a PNG file, or as SVG inside a page, where it follows light and dark.

The colours are those of `page.css`, Okabe and Ito's for whatever stands beside each other. An SVG names them by
its variables, so that light, dark and paper need no second drawing. Lengths are points, 72 an inch.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import threading
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from entrep_cli.console import visible
from entrep_cli.evaluation.intervals import Interval
from entrep_cli.reporting.pages import HERE
from entrep_cli.workspace import atomic_path

PALETTE = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", (HERE / "page.css").read_text("utf-8").split("@media")[0]))
SERIES = tuple(PALETTE[f"k{k}"] for k in range(8))
_VARIABLES = {colour: f"var(--{name})" for name, colour in reversed(PALETTE.items())}
_LINES = tuple(zip((0, 3, 2, 5, 1, 4, 6, 7), 2 * ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))))  # colours, and strokes for grey
_FROM_PAGE = ("font-family", "fill: var(--ink)", "stroke-line", "stroke-miter")  # what the style sheet says
_MARKERS = "osD^vPX*<>hd"

WIDTH = 360.0  # points: a phone's width in pixels
_TEXT, _SMALL, _TINY = 10.5, 9.5, 8.0
_STYLE = {
    "text.parse_math": False,  # names are not formulas
    "font.size": _TEXT,
    "text.color": PALETTE["ink"],
    "axes.titlesize": _TEXT,
    "axes.labelcolor": PALETTE["soft"],
    "axes.labelsize": _SMALL,
    "axes.axisbelow": True,
    "axes.edgecolor": PALETTE["line"],
    "grid.color": PALETTE["line"],
    "xtick.labelcolor": PALETTE["soft"],
    "ytick.labelcolor": PALETTE["soft"],
    "xtick.labelsize": _SMALL,
    "ytick.labelsize": _SMALL,
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.fontsize": _SMALL,
    "svg.fonttype": "none",
}
_LOCK = threading.RLock()


@contextmanager
def styled(salt: str = "") -> Iterator[None]:
    """Our style and none of the user's matplotlibrc; one thread at a time, because matplotlib's settings are global."""
    with _LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE, **{"svg.hashsalt": salt})
        yield


def save_png(figure: Figure, path: str | Path, *, tight: bool = False) -> Path:
    """Write a figure, replaced in one step: no date and no version inside, the same bytes for the same numbers.

    Args:
        tight: the picture ends around what is drawn, however long the names are.
    """
    path = Path(path)
    with styled(), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight" if tight else None, metadata={"Software": None})
    return path


class Chart:
    """A drawing with the texts for those who cannot see it.

    Attributes:
        title: the heading of a file, and the name of an SVG.
        description: the numbers in words.
        tips: gid of an artist -> its tooltip.
    """

    def __init__(self, title: str, height: float, width: float = WIDTH) -> None:
        self.title, self.description, self.tips = title, "", {}
        self.width, self.height = width, height
        self.figure = Figure((width / 72, height / 72), facecolor=PALETTE["page"])

    def axes(self, left: float, top: float, width: float, height: float, **settings: object) -> Axes:
        """Axes without a frame at a place in points, from the upper left corner."""
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place, frameon=False, **settings)

    def tip(self, artist: Artist, text: str) -> None:
        artist.set_gid(f"tip{len(self.tips)}")
        self.tips[artist.get_gid()] = text

    def name(self, artist: Artist, name: str) -> None:
        """The whole name as a tooltip, where the artist shows it cut."""
        if not artist.get_text().strip().startswith(visible(name)):
            self.tip(artist, name)

    def png(self, path: str | Path) -> Path:
        """Write it as a file, under its title; for the rest see `save_png`."""
        with styled():
            title = textwrap.fill(visible(self.title), max(int(self.width / 7), 24))
            top = max(self.figure.get_tightbbox().y1 * 72, self.height) + 8
            self.figure.text(0.5, top / self.height, title, ha="center", va="bottom", fontsize=11)
        return save_png(self.figure, path, tight=True)

    def svg(self, name: str) -> Markup:
        """As an element of a page.

        Args:
            name: different for every chart of the page.
        """
        return Markup(ET.tostring(self.element(name), encoding="unicode"))

    def element(self, name: str) -> ET.Element:
        file = io.BytesIO()
        for artist in self.figure.findobj():
            artist.set_clip_on(False)
        self.figure.patch.set_visible(False)
        with styled(name), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph ", UserWarning)  # the browser has other fonts
            self.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        size = {"viewBox": f"0 0 {self.width:g} {self.height:g}", "width": f"{self.width:g}", "height": f"{self.height:g}"}
        labels = {"class": "chart", "role": "img", "aria-labelledby": f"{name}-title {name}-text"}
        if self.width > WIDTH:
            labels["style"] = f"min-width: {self.width:g}px"
        drawing = ET.Element("svg", size | labels)
        ET.SubElement(drawing, "title", id=f"{name}-title").text = visible(self.title)
        ET.SubElement(drawing, "desc", id=f"{name}-text").text = visible(self.description)
        drawing.extend(_simplified(ET.fromstring(file.getvalue()), self.tips))
        return drawing


def _simplified(element: ET.Element, tips: Mapping[str, str]) -> list[ET.Element]:
    """What matplotlib wrote, without groups, without fonts, in the colours of the page, and with tooltips."""
    tag = element.tag.rpartition("}")[2]
    children = [one for child in element if not child.tag.endswith(("metadata", "style")) for one in _simplified(child, tips)]
    if tag in ("svg", "g", "defs") and element.get("id") not in tips:
        if tag != "defs" or not children:
            return children
    simple = ET.Element(tag)
    simple.text, simple[:] = element.text and element.text.strip("\n "), children
    if element.get("id") in tips:
        title = ET.Element("title")
        title.text = visible(tips[element.get("id")])
        simple.insert(0, title)
        return [simple]
    for key, value in element.items():
        key = key.rpartition("}")[2]
        if key == "style":
            value = re.sub("#[0-9a-f]{6}", lambda match: _VARIABLES.get(match[0], match[0]), value)
            value = "; ".join(rule for rule in value.split("; ") if not rule.startswith(_FROM_PAGE))
        elif key != "href":
            value = re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value.strip())
        if not value.startswith("rotate(-0 "):
            simple.set(key, value)
    return [simple]


def _cut(name: str, letters: int) -> str:
    """A name on one line of at most so many letters."""
    name = visible(name)
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _rows(chart: Chart, axes: Axes, names: Sequence[str], places: Sequence[float], notes: Sequence[str], right: float) -> None:
    """Names on the left of a chart of scores between 0 and 1, a vertical grid, and notes on the right."""
    axes.set(xlim=(0, 1), xticks=np.linspace(0, 1, 6))
    axes.set_yticks(places, [_cut(name, 18) for name in names], color=PALETTE["ink"], fontsize=_TEXT)
    axes.grid(axis="x")
    for label, name, place, note in zip(axes.get_yticklabels(), names, places, notes):
        chart.name(label, name)
        axes.annotate(note, (1, place), (right, 0), ("axes fraction", "data"), "offset points", ha="right", va="center")


@styled()
def intervals(rows: Sequence[tuple[str, Interval, float | None]], title: str) -> Chart:
    """Scores between 0 and 1 as dots, their intervals as lines, and a dashed tick at chance.

    Args:
        rows: (name, value with its interval, chance or None) each.
    """
    left, right, step = 112.0, 66.0, 26.0
    chart = Chart(title, step * len(rows) + 32)
    axes = chart.axes(left, 8, WIDTH - left - right, step * len(rows), ylim=(len(rows) - 0.5, -0.5))
    _rows(chart, axes, [name for name, *_ in rows], range(len(rows)), [_number(value.value) for _, value, _ in rows], right)
    for y, (name, value, chance) in enumerate(rows):
        if chance is not None:
            axes.plot([chance] * 2, [y - 0.3, y + 0.3], color=PALETTE["miss"], linestyle=(0, (1.5, 1.5)), linewidth=1.5)
        if not math.isnan(value.low):
            axes.plot([value.low, value.high], [y, y], color=PALETTE["k0"], linewidth=2)
        if not math.isnan(value.value):
            look = {"color": PALETTE["k0"], "markeredgecolor": PALETTE["page"], "markersize": 9}
            chart.tip(axes.plot(value.value, y, "o", **look)[0], f"{name}: {value}")
    chart.description = "; ".join(
        f"{name} {value}" + ("" if chance is None else f", by chance {_number(chance)}") for name, value, chance in rows
    )
    return chart


_DARK = 0.61  # fraction of a row from which the colour of the page can be read better than ink, in light and in dark


@styled()
def confusion(counts: np.ndarray, names: Sequence[str], title: str = "Confusion matrix", *, in_page: bool = False) -> Chart:
    """A confusion matrix: counts and their fractions of the row; right answers blue, wrong ones red, the darker the more.

    Args:
        counts: (C, C), rows the truth, columns the answer.
        names: C names, in the order of the rows.
        in_page: small cells and short names, which tooltips give in full; else long names are wrapped.

    Raises:
        ValueError: names do not fit the matrix.
    """
    counts, n = np.asarray(counts), len(names)
    if counts.shape != (n, n):
        raise ValueError(f"{n} names do not fit a matrix of shape {counts.shape}")
    left, right, top, bottom = 118.0, 24.0, 76.0, 18.0
    cell = float(np.clip((WIDTH - left - right) / n, 20, 44)) if in_page else 44.0
    support = counts.sum(axis=1)
    fractions = counts / np.maximum(support, 1)[:, None]
    shown = [_cut(name, 15) if in_page else textwrap.fill(visible(name), max(24, len(name) // 2)) for name in names]
    chart = Chart(title, top + cell * n + bottom, max(left + cell * n + right, WIDTH if in_page else 0))
    axes = chart.axes(left, top, cell * n, cell * n, xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), xlabel="answer", ylabel="truth (images)")
    look = {"color": PALETTE["ink"], "fontsize": _SMALL if cell > 30 else _TINY}
    slant = 90 if any("\n" in name for name in shown) else 55
    axes.set_xticks(range(n), shown, rotation=slant, rotation_mode="anchor", ha="left", va="center", **look)
    axes.set_yticks(range(n), [f"{name} ({number})" for name, number in zip(shown, support)], **look)
    axes.tick_params(labeltop=True, labelbottom=False)
    if in_page:
        for label, name in zip((*axes.get_xticklabels(), *axes.get_yticklabels()), 2 * list(names)):
            chart.name(label, name)
    for i, j in np.ndindex(n, n):
        count, fraction = counts[i, j], float(fractions[i, j])
        fill = to_rgba(PALETTE["right" if i == j else "wrong"], 0.1 + 0.9 * fraction) if count else PALETTE["card"]
        box = axes.add_artist(Rectangle((j - 0.485, i - 0.485), 0.97, 0.97, facecolor=fill, linewidth=0))
        chart.tip(box, f"{names[i]}, answered {names[j]}: {count} of {support[i]}")
        if count:
            text = f"{count}\n{fraction:.0%}" if cell > 30 else str(count)
            ink = PALETTE["page" if fraction > _DARK else "ink"]
            axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=_SMALL if cell > 40 else _TINY)
    most = top_confusions(counts, names)
    chart.description = f"{np.trace(counts)} of {counts.sum()} images rightly answered."
    chart.description += f" Most often confused: {'; '.join(most)}." if most else ""
    return chart


def top_confusions(counts: np.ndarray, names: Sequence[str], n: int = 3) -> list[str]:
    """The n most frequent mistakes in words; fewer where fewer were made."""
    off = np.array(counts)
    np.fill_diagonal(off, 0)
    pairs = [np.unravel_index(place, off.shape) for place in np.argsort(-off, axis=None, kind="stable")[:n]]
    return [f"{names[i]} answered as {names[j]} ({off[i, j]} of {counts[i].sum()})" for i, j in pairs if off[i, j]]


@styled()
def class_bars(names: Sequence[str], scores: Mapping[str, np.ndarray], support: np.ndarray, title: str) -> Chart:
    """Bars of several scores (C,) between 0 and 1 for each class, with the number of its images."""
    left, right, top, bar, gap = 112.0, 62.0, 26.0, 7.0, 10.0
    step = bar * len(scores) + gap
    chart = Chart(title, top + step * len(names) + 18)
    axes = chart.axes(left, top, WIDTH - left - right, step * len(names), ylim=(step * len(names), 0))
    notes = [(f"{scores['F1'][i]:.2f}, " if "F1" in scores else "") + str(n) for i, n in enumerate(support)]
    _rows(chart, axes, names, step * np.arange(len(names)) + (step - gap) / 2, notes, right)
    for k, (key, values) in enumerate(scores.items()):
        lengths = np.nan_to_num(np.asarray(values, float))
        tops = step * np.arange(len(names)) + bar * k
        bars = axes.barh(tops, lengths, bar - 1, align="edge", color=PALETTE[("k4", "k1", "k0")[k % 3]], label=key)
        for box, name, value in zip(bars, names, values):
            chart.tip(box, f"{name}: {key} {value:.3f}")
    place = {"loc": "lower left", "bbox_to_anchor": (-left / (WIDTH - left - right), 1), "borderaxespad": 0, "ncols": 3}
    axes.legend(**place, handlelength=1, handleheight=1, columnspacing=1.2, handletextpad=0.4)
    heading = "F1, images" if "F1" in scores else "images"
    axes.annotate(heading, (1, 1), (right, 9), "axes fraction", "offset points", ha="right", color=PALETTE["soft"], fontsize=_SMALL)
    chart.description = "; ".join(
        f"{name}: {', '.join(f'{key} {values[i]:.2f}' for key, values in scores.items())}, {support[i]} images"
        for i, name in enumerate(names)
    )
    return chart


@styled()
def reliability(edges: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray, title: str) -> Chart:
    """How often answers of a confidence are right, bin by bin, beside the diagonal of calibrated ones, and the images of each bin.

    Args:
        edges: (B + 1,) of the bins. confidence, accuracy: (B,) means in them, not read where a bin is empty. counts: (B,).
    """
    left, top, plot, low = 40.0, 10.0, 236.0, 44.0
    chart = Chart(title, top + plot + low + 52)
    upper = chart.axes(left, top, WIDTH - left - 10, plot, xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=np.linspace(0, 1, 6))
    lower = chart.axes(
        left, top + plot + 30, WIDTH - left - 10, low, xlim=(0, 1), xticks=np.linspace(0, 1, 6), yticks=[0], yticklabels=["n"]
    )
    lower.set_ylim(0, max(counts.max(initial=0), 1))
    upper.grid(axis="y")
    lower.grid(axis="y")
    used = np.flatnonzero(counts)
    widths = np.diff(edges)[used] - 0.006
    bars = upper.bar(edges[used] + 0.003, accuracy[used], widths, align="edge", color=to_rgba(PALETTE["k4"], 0.7))
    for i, bar in zip(used, bars):
        tip = f"{accuracy[i]:.0%} right, {confidence[i]:.0%} claimed, {counts[i]} images"
        chart.tip(bar, f"confidence {edges[i]:.2f} to {edges[i + 1]:.2f}: {tip}")
        upper.plot([confidence[i]] * 2, [confidence[i], accuracy[i]], color=PALETTE["miss"], linewidth=1.5)
    upper.plot(confidence[used], accuracy[used], "o", color=PALETTE["k0"], markeredgecolor=PALETTE["page"], markersize=7)
    upper.plot([0, 1], [0, 1], color=PALETTE["soft"], linestyle=(0, (5, 4)), linewidth=1)
    for box in lower.bar(edges[used] + 0.003, counts[used], widths, align="edge", color=PALETTE["k1"]):
        text = f"{box.get_height():.0f}"
        place = (box.get_x() + box.get_width() / 2, box.get_height())
        lower.annotate(text, place, (0, 2), textcoords="offset points", ha="center", color=PALETTE["soft"], fontsize=_TINY)
    chart.description = "; ".join(f"{confidence[i]:.2f} claimed, {accuracy[i]:.2f} right, {counts[i]} images" for i in used)
    return chart


@styled()
def curves(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str, *, epochs: Sequence[int] = (), best_epoch: int = 0) -> Chart:
    """Learning curves side by side, one panel and one axis a score; values that are not finite are left out.

    Args:
        panels: heading -> line -> a value an epoch; the heading of a single panel is not drawn.
        epochs: of the values; 1, 2, ... where it is empty.
        best_epoch: whose weights the run has, marked by a line; 0 for none.
    """
    left, right, top, plot = 44.0, 10.0, 20.0, 150.0
    heading = 18.0 if len(panels) > 1 else 0.0
    most = max(map(len, panels.values()))
    chart, notes = Chart(title, top + heading + plot + 26 + 16 * most, WIDTH * len(panels)), []
    for p, (panel, lines) in enumerate(panels.items()):
        axes = chart.axes(WIDTH * p + left, top + heading, WIDTH - left - right, plot)
        if heading:
            axes.set_title(visible(panel), pad=18)
        for k, (name, values) in enumerate(lines.items()):
            points = [(e, v) for e, v in zip(epochs or range(1, len(values) + 1), values) if math.isfinite(v)]
            colour, stroke = _LINES[k % len(_LINES)]
            # A name that begins with "_" would be left out of the legend. A line through one point shows nothing.
            look = {"color": SERIES[colour], "linestyle": stroke, "linewidth": 2, "label": " " * name.startswith("_") + _cut(name, 34)}
            axes.plot(*zip(*points) if points else ((), ()), marker="o" if len(points) == 1 else None, **look)
            notes += [f"{name} {v:.4g} in epoch {e}" for e, v in points[:: max(len(points) - 1, 1)]]
        if best_epoch:
            axes.axvline(best_epoch, color=PALETTE["soft"], linestyle=(0, (3, 3)), linewidth=1)
            first, last = axes.get_xlim()
            side = ("left", "center", "right")[int(np.clip((best_epoch - first) / (last - first) * 5 // 2, 0, 2))]
            place = ("data", "axes fraction")
            axes.annotate(f"best epoch: {best_epoch}", (best_epoch, 1), (0, 4), place, "offset points", ha=side, fontsize=_SMALL)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        legend = axes.legend(loc="upper left", bbox_to_anchor=(0, -20 / plot), borderaxespad=0, borderpad=0, labelspacing=0.35)
        for text, name in zip(legend.get_texts(), lines):
            chart.name(text, name)
    chart.description = "; ".join(notes) + (f"; best epoch: {best_epoch}" if best_epoch else "")
    return chart


def _mark(axes: Axes, points: np.ndarray, index: int, **look: object) -> None:
    """The (N, 2) points of a class; its marker distinguishes it where colours repeat, and in grey."""
    marker = _MARKERS[(index + index // len(SERIES)) % len(_MARKERS)]
    axes.plot(*points.T, marker, color=SERIES[index % len(SERIES)], **look)


@styled()
def embedding_map(places: np.ndarray, labellings: Sequence[tuple[str, Sequence[str]]], title: str, *, order: Sequence[str] = ()) -> Chart:
    """The same (N, 2) places once for each labelling, side by side, as the Foregut paper's figure 2 by region and by class.

    Args:
        labellings: (heading, N labels) each.
        order: labels in the order of the legends; others follow, sorted.
    """
    rank, side = {name: i for i, name in enumerate(order)}, 330.0
    n_rows = -(-max(len(set(labels)) for _, labels in labellings) // 2)
    chart = Chart(title, side + 34 + 15 * n_rows, WIDTH * len(labellings))
    for p, (heading, labels) in enumerate(labellings):
        axes = chart.axes(WIDTH * p + 15, 20, side, side, xticks=[], yticks=[], title=visible(heading))
        labels = np.asarray(labels, dtype=object)
        for i, name in enumerate(sorted(set(labels), key=lambda name: (rank.get(name, len(rank)), name))):
            points = places[labels == name]
            label = " " * name.startswith("_") + f"{_cut(name, 28)} ({len(points)})"
            _mark(axes, points, i, label=label, alpha=0.85, markeredgecolor=PALETTE["page"], markeredgewidth=0.4, markersize=5)
        # Below the map: inside it a legend would hide images.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2, fontsize=_TINY)
    return chart


_MAP_SIDE = 1000.0


@styled()
def point_map(
    name: str, title: str, places: np.ndarray, classes: np.ndarray, regions: np.ndarray
) -> tuple[Markup, np.ndarray, list[Markup]]:
    """A map for a page, whose style sheet colours each point by its classes `c<k>` and `r<k>`.

    Args:
        places: (N, 2). classes, regions: (N,) indices.

    Returns:
        the drawing; (N, 2) the places in its units; the mark of each class, for a legend ("" for one without points).
    """
    span = np.ptp(places, axis=0)
    scale = (_MAP_SIDE - 48) / (span.max() or 1.0)
    height = float(np.clip(span[1] * scale + 48, _MAP_SIDE * 0.55, _MAP_SIDE))
    chart = Chart(title, height, _MAP_SIDE)
    chart.description = f"{len(places)} images as points"
    axes = chart.axes(0, 0, _MAP_SIDE, height, xticks=[], yticks=[], xlim=(0, _MAP_SIDE), ylim=(0, height))
    centred = (places - (places.max(axis=0) + places.min(axis=0)) / 2) * scale + [_MAP_SIDE / 2, height / 2]
    radius = 12.0 if len(places) < 200 else 9.0 if len(places) < 1000 else 6.0
    for k in np.unique(classes):
        _mark(axes, centred[classes == k], int(k), markersize=2 * radius)
    drawing = chart.element(name)
    del drawing.attrib["style"]
    points, marks = drawing.findall("use"), [Markup("")] * (int(classes.max()) + 1)
    # matplotlib draws class by class; the page counts points in the order of the images.
    order = np.argsort(classes, kind="stable")
    for point, i in zip(points, order):
        colours = f"p c{classes[i] % len(SERIES)} r{regions[i] % len(SERIES)}"
        point.attrib = {"class": colours} | {key: point.get(key) for key in ("href", "x", "y")}
        box = f"{-1.3 * radius:g} {-1.3 * radius:g} {2.6 * radius:g} {2.6 * radius:g}"
        marks[classes[i]] = Markup('<svg class="mark {}" viewBox="{}" aria-hidden="true"><use href="{}"/></svg>').format(
            colours.rpartition(" ")[0], box, point.get("href")
        )
        drawing.remove(point)
    for path in drawing.iter("path"):
        path.attrib.pop("style", None)
    drawing.extend(points[k] for k in np.argsort(order))
    ET.SubElement(drawing, "circle", {"r": "18", "cx": "-99", "cy": "-99", "class": "ring"})
    return Markup(ET.tostring(drawing, encoding="unicode")), centred * [1, -1] + [0, height], marks
