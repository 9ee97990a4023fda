"""The charts of a report: pure functions from numbers to SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from entrep_cli.evaluation.intervals import Interval
from entrep_cli.reporting.svg import WIDTH, chart, element, label, line, rectangle, text, ticks

N_COLOURS = 8  # `--k0` to `--k7` in report.css: Okabe and Ito's, told apart by colour-blind people
_STROKES = (None, "6 3", "2 2", "8 3 2 3")  # lines are told apart in grey by these
_CELL, _LEAST_CELL, _MOST_CELL = 260.0, 15.0, 44.0
# Marks of a map, within a circle of radius 1; with the colours they tell apart what one alone cannot.
MARKS = (
    "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",
    "M-.9-.9h1.8v1.8h-1.8z",
    "M0-1.25L1.25 0L0 1.25L-1.25 0z",
    "M0-1.2L1.1.9H-1.1z",
    "M0 1.2L1.1-.9H-1.1z",
    "M-.4-1.2h.8v.8h.8v.8h-.8v.8h-.8v-.8h-.8v-.8h.8z",
    "M-1.1-.6L-.6-1.1L0-.5L.6-1.1L1.1-.6L.5 0L1.1.6L.6 1.1L0 .5L-.6 1.1L-1.1.6L-.5 0z",
)


def interval_chart(name: str, title: str, rows: Sequence[tuple[str, Interval, float | None]]) -> Markup:
    """Scores between 0 and 1 as dots with their intervals as whiskers, and a tick where chance stands.

    Args:
        rows: (name, value with its interval, chance or None) each.
    """
    left, right, step, top = 112.0, 66.0, 26.0, 8.0
    height = top + step * len(rows) + 24

    def x(value: float) -> float:
        return left + value * (WIDTH - left - right)

    parts = _vertical_grid(x, top, height - 20)
    for i, (row, value, chance) in enumerate(rows):
        y = top + step * (i + 0.5)
        parts.append(label(left - 8, y + 4, row, 18, anchor="end"))
        if chance is not None:
            parts.append(line(x(chance), y - 8, x(chance), y + 8, "chance"))
        if not math.isnan(value.low):
            parts.append(line(x(value.low), y, x(value.high), y, "whisker"))
        if not math.isnan(value.value):
            parts.append(element("circle", element("title", f"{row}: {value}"), cx=x(value.value), cy=y, r=4.5, class_="dot"))
        parts.append(text(WIDTH, y + 4, _number(value.value), "number", "end"))
    told = "; ".join(f"{row} {value}" + ("" if chance is None else f", by chance {_number(chance)}") for row, value, chance in rows)
    return chart(name, title, told, height, parts)


def confusion_chart(name: str, title: str, counts: np.ndarray, names: Sequence[str]) -> Markup:
    """The (C, C) counts as a grid, rows the truth, columns the answer; darker is a greater share of the row."""
    n = len(names)
    cell = min(max(_CELL / n, _LEAST_CELL), _MOST_CELL)
    left, top = 98.0, 84.0
    width, height = max(WIDTH, left + cell * n + 2), top + cell * n + 2
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = "number" if cell >= 20 else "tiny"
    parts = []
    for i, row in enumerate(names):
        middle = left + cell * (i + 0.5)
        parts.append(label(left - 6, top + cell * (i + 0.5) + 4, row, 15, "small", "end"))
        parts.append(label(middle + 3, top - 6, row, 14, "small", transform=f"rotate(-55 {middle + 3:.1f} {top - 6:.1f})"))
        for j, column in enumerate(names):
            corner, share = (left + cell * j, top + cell * i), float(shares[i, j])
            tip = element("title", f"{row}, answered {column}: {counts[i, j]} of {counts[i].sum()}")
            look = "cell right" if i == j else "cell"
            opacity = 0.1 + 0.9 * share if share else None
            parts.append(rectangle(*corner, cell - 1, cell - 1, look if share else "cell none", tip, fill_opacity=opacity))
            if counts[i, j]:
                # Between a light and a dark cell stands no grey in which both inks are hard to read: the share decides.
                ink = f"{size} {'on' if share > 0.5 else 'off'}"
                parts.append(text(corner[0] + (cell - 1) / 2, corner[1] + cell / 2 + 3.5, counts[i, j], ink, "middle"))
    return chart(name, title, _confusions(counts, names), height, parts, width=width)


def _confusions(counts: np.ndarray, names: Sequence[str]) -> str:
    right, total = int(np.trace(counts)), int(counts.sum())
    most = top_confusions(counts, names)
    return f"{right} of {total} images rightly answered." + (f" Most often confused: {'; '.join(most)}." if most else "")


def top_confusions(counts: np.ndarray, names: Sequence[str], n: int = 3) -> list[str]:
    """The n most frequent mistakes in words; fewer where fewer were made."""
    off = np.array(counts)
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:n]
    places = [np.unravel_index(place, off.shape) for place in order]
    return [f"{names[i]} answered as {names[j]} ({off[i, j]} of {counts[i].sum()})" for i, j in places if off[i, j]]


def class_bars(name: str, title: str, names: Sequence[str], scores: Mapping[str, np.ndarray], support: np.ndarray) -> Markup:
    """Bars of several scores (C,) between 0 and 1 for each class, with the number of its images."""
    left, right, bar, gap, top = 112.0, 62.0, 7.0, 10.0, 26.0
    step = bar * len(scores) + gap
    height = top + step * len(names) + 18

    def x(value: float) -> float:
        return left + value * (WIDTH - left - right)

    parts = _vertical_grid(x, top - 4, height - 16)
    place = 0.0
    for k, key in enumerate(scores):
        parts += [rectangle(place, 2, 10, 10, f"bar b{k}"), text(place + 14, 11, key, "small")]
        place += 30 + 5.5 * len(key)
    parts.append(text(WIDTH, 11, "F1, images" if "F1" in scores else "images", "small soft", "end"))
    for i, row in enumerate(names):
        y = top + step * i
        parts.append(label(left - 8, y + step / 2 - gap / 2 + 4, row, 18, anchor="end"))
        for k, (key, values) in enumerate(scores.items()):
            tip = element("title", f"{row}: {key} {values[i]:.3f}")
            parts.append(rectangle(left, y + bar * k, max(x(float(values[i])) - left, 0.8), bar - 1, f"bar b{k}", tip))
        f1 = f"{scores['F1'][i]:.2f}, " if "F1" in scores else ""
        parts.append(text(WIDTH, y + step / 2 - gap / 2 + 4, f"{f1}{support[i]}", "number", "end"))
    told = "; ".join(
        f"{row}: {', '.join(f'{key} {values[i]:.2f}' for key, values in scores.items())}, {support[i]} images"
        for i, row in enumerate(names)
    )
    return chart(name, title, told, height, parts)


def reliability_chart(name: str, title: str, edges: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray) -> Markup:
    """How often answers of a confidence are right, bin by bin, with the diagonal of honest ones and the images of each bin.

    Args:
        edges: (B + 1,) of the bins. confidence, accuracy: (B,) means in them, not read where a bin is empty. counts: (B,).
    """
    left, top, side, low = 40.0, 10.0, 236.0, 44.0
    width, plot = WIDTH - left - 10, side
    base, height = top + plot, top + plot + low + 52

    def x(value: float) -> float:
        return left + value * width

    def y(value: float) -> float:
        return base - value * plot

    parts = []
    for tick in ticks(0, 1):
        parts += [line(left, y(tick), left + width, y(tick)), text(left - 6, y(tick) + 4, f"{tick:g}", "small soft", "end")]
    most = max(int(counts.max(initial=0)), 1)
    for i in np.flatnonzero(counts):
        a, b, right, n = float(edges[i]), float(edges[i + 1]), float(accuracy[i]), int(counts[i])
        tip = element("title", f"confidence {a:.2f} to {b:.2f}: {right:.0%} right, {confidence[i]:.0%} claimed, {n} images")
        parts.append(rectangle(x(a) + 1, y(right), x(b) - x(a) - 2, base - y(right), "bar b0 pale", tip))
        parts.append(line(x(float(confidence[i])), y(float(confidence[i])), x(float(confidence[i])), y(right), "gap"))
        parts.append(element("circle", cx=x(float(confidence[i])), cy=y(right), r=3.5, class_="dot"))
        tall = low * n / most
        parts.append(rectangle(x(a) + 1, base + 30 + low - tall, x(b) - x(a) - 2, tall, "bar b1"))
        parts.append(text((x(a) + x(b)) / 2, base + 27 + low - tall, n, "tiny soft", "middle"))
    parts.append(line(x(0), y(0), x(1), y(1), "honest"))
    foot = base + 30 + low
    parts += [text(x(tick), foot + 13, f"{tick:g}", "small soft", "middle") for tick in ticks(0, 1)]
    parts += [line(left, foot, left + width, foot), text(left - 6, foot - 6, "n", "small soft", "end")]
    used = [i for i in range(len(counts)) if counts[i]]
    told = "; ".join(f"{confidence[i]:.2f} claimed, {accuracy[i]:.2f} right, {counts[i]} images" for i in used)
    return chart(name, title, told, height, parts)


def line_chart(name: str, title: str, lines: Mapping[str, Sequence[float]], epochs: Sequence[int], kept: int = 0) -> Markup:
    """Learning curves over epochs, an axis of their own, the kept epoch marked; values that are none are left out."""
    left, right, top, plot = 44.0, 10.0, 20.0, 150.0
    values = [v for series in lines.values() for v in series if math.isfinite(v)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    first, last = min(epochs), max(epochs)

    def x(epoch: float) -> float:
        return left + (0.5 if first == last else (epoch - first) / (last - first)) * (WIDTH - left - right)

    def y(value: float) -> float:
        return top + plot - (value - low) / (high - low) * plot

    parts = []
    for tick in ticks(low, high, 4):
        parts += [line(left, y(tick), WIDTH - right, y(tick)), text(left - 6, y(tick) + 4, f"{tick:.4g}", "small soft", "end")]
    whole = sorted({round(tick) for tick in ticks(first, last, 6)} | ({first} if first == last else set()))
    parts += [text(x(tick), top + plot + 15, tick, "small soft", "middle") for tick in whole]
    if kept:
        near = "end" if x(kept) > WIDTH - 80 else "start" if x(kept) < left + 40 else "middle"
        parts.append(line(x(kept), top - 6, x(kept), top + plot, "kept"))
        parts.append(text(x(kept), top - 9, f"kept: {kept}", "small soft", near))
    for k, series in enumerate(lines.values()):
        points = [(x(epoch), y(value)) for epoch, value in zip(epochs, series) if math.isfinite(value)]
        look = {"class_": f"curve c{k % N_COLOURS}", "stroke_dasharray": _STROKES[k % len(_STROKES)]}
        if len(points) > 1:
            parts.append(element("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points), **look))
        elif points:
            parts.append(element("circle", cx=points[0][0], cy=points[0][1], r=3.5, class_=f"point c{k % N_COLOURS}"))
    foot = top + plot + 34
    for k, key in enumerate(lines):
        y_of = foot + 16 * k
        parts.append(line(left, y_of - 4, left + 24, y_of - 4, f"curve c{k % N_COLOURS}", stroke_dasharray=_STROKES[k % len(_STROKES)]))
        parts.append(label(left + 30, y_of, key, 34, "small"))
    told = "; ".join(_told(key, series, epochs) for key, series in lines.items())
    return chart(name, title, told + (f"; kept: epoch {kept}" if kept else ""), foot + 16 * len(lines) - 8, parts)


def _told(name: str, series: Sequence[float], epochs: Sequence[int]) -> str:
    return f"{name} {series[0]:.4g} in epoch {epochs[0]}, {series[-1]:.4g} in epoch {epochs[-1]}"


MAP_SIDE = 1000.0  # units of a map; its marks have a radius of some 8


def map_chart(name: str, title: str, places: np.ndarray, classes: np.ndarray, regions: np.ndarray) -> tuple[Markup, np.ndarray]:
    """Points of a map, each a mark with the classes `c<k>` and `r<k>`, by which the page colours them.

    Args:
        places: (N, 2). classes, regions: (N,) indices.

    Returns:
        the drawing, and (N, 2) the places in its units.
    """
    span = np.ptp(places, axis=0).max() or 1.0
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    scaled = (places - middle) / span * (MAP_SIDE - 48) * [1, -1]
    box = np.ptp(scaled, axis=0)
    height = float(min(MAP_SIDE, max(box[1] + 48, MAP_SIDE * 0.55)))
    scaled += [MAP_SIDE / 2, height / 2]
    radius = 12.0 if len(places) < 200 else 9.0 if len(places) < 1000 else 6.0
    marks = element("defs", *(element("path", id=f"{name}-m{k}", d=path, transform=f"scale({radius})") for k, path in enumerate(MARKS)))
    points = [
        element("use", href=f"#{name}-m{mark_of(int(c))}", x=float(x), y=float(y), class_=f"p c{c % N_COLOURS} r{r % N_COLOURS}")
        for (x, y), c, r in zip(scaled, classes, regions)
    ]
    ring = element("circle", r=18, cx=-99, cy=-99, class_="ring")
    return chart(name, title, f"{len(places)} images as points", height, [marks, *points, ring], width=MAP_SIDE), scaled


def mark_of(index: int) -> int:
    """The mark of a class: another one where the colours begin anew."""
    return (index + index // N_COLOURS) % len(MARKS)


def mark(index: int, class_: str) -> Markup:
    """One mark alone, for a legend."""
    path = element("path", d=MARKS[mark_of(index)])
    return element("svg", path, viewBox="-1.4 -1.4 2.8 2.8", class_=f"mark {class_}", aria_hidden="true")


def _vertical_grid(x, top: float, bottom: float) -> list[Markup]:
    lines = [line(x(tick), top, x(tick), bottom) for tick in ticks(0, 1)]
    return [*lines, *(text(x(tick), bottom + 14, f"{tick:g}", "small soft", "middle") for tick in ticks(0, 1))]


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"
