from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from entrep_cli.evaluation.intervals import Interval
from entrep_cli.reporting import charts
from entrep_cli.reporting.svg import element, label, ticks

HOSTILE = "[red]<script>alert(1)</script>\x1b[2J & \"'"
SVG = "{http://www.w3.org/2000/svg}"


def drawn(markup) -> ET.Element:
    """The drawing as XML: whatever is not escaped does not parse."""
    root = ET.fromstring(str(markup))
    assert root.tag == "svg" and root.get("role") == "img"
    ids = {e.get("id") for e in root.iter() if e.get("id")}
    assert set(root.get("aria-labelledby").split()) <= ids and root.find("title").text and root.find("desc").text
    assert not list(root.iter("script")) and "\x1b" not in str(markup)
    return root


def numbers(root: ET.Element) -> list[float]:
    keys = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height")
    return [float(x) for e in root.iter() for key, x in e.items() if key in keys]


def test_elements_escape_texts_and_attributes():
    assert element("text", "<b>", x=1.0, title='"><script>') == '<text x="1" title="&#34;&gt;&lt;script&gt;">&lt;b&gt;</text>'
    assert element("g", element("a"), None_=None) == "<g><a></a></g>"
    assert "<title>abcdefgh</title>abc…" in label(0, 0, "abcdefgh", 4)


@pytest.mark.parametrize("low, high, expected", [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, [3]), (0.21, 0.29, [0.22, 0.24, 0.26, 0.28])])
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_an_interval_stands_where_its_numbers_are():
    rows = [(HOSTILE, Interval(0.5, 0.25, 0.75), 0.1), ("alone", Interval(1.0, math.nan, math.nan), None)]
    root = drawn(charts.interval_chart("a", "Scores", rows))
    (whisker,) = [e for e in root.iter("line") if e.get("class") == "whisker"]
    dots = [float(e.get("cx")) for e in root.iter("circle")]
    low, high = float(whisker.get("x1")), float(whisker.get("x2"))
    assert dots[0] == pytest.approx((low + high) / 2) and high - low == pytest.approx(dots[1] - dots[0])
    assert "0.500 [0.250, 0.750], by chance 0.100" in root.find("desc").text
    assert all(math.isfinite(x) for x in numbers(root))


def test_a_confusion_matrix_shows_counts_and_names_what_is_confused():
    counts = np.array([[3, 1, 0], [0, 2, 2], [0, 0, 5]])
    names = ["nose-left", HOSTILE, "throat"]
    root = drawn(charts.confusion_chart("c", "Confusion", counts, names))
    cells = list(root.iter("rect"))
    assert len(cells) == 9 and [e.get("class") for e in cells[:3]] == ["cell right", "cell", "cell none"]
    assert sorted(e.text for e in root.iter("text") if e.text and e.text.isdigit()) == ["1", "2", "2", "3", "5"]
    assert charts.top_confusions(counts, names)[0] == f"{HOSTILE} answered as throat (2 of 4)"
    assert charts.top_confusions(np.eye(3, dtype=int), names) == []
    wide = drawn(charts.confusion_chart("c", "Confusion", np.eye(40, dtype=int), [f"class {i}" for i in range(40)]))
    assert float(wide.get("width")) >= 40 * 15  # a page scrolls it; cells stay large enough to read


def test_bars_are_as_long_as_their_scores():
    scores = {"precision": np.array([1.0, 0.5]), "recall": np.array([0.5, 0.25]), "F1": np.array([0.667, 0.0])}
    root = drawn(charts.class_bars("b", "By class", ["a", HOSTILE], scores, np.array([4, 2])))
    bars = [float(e.get("width")) for e in root.iter("rect") if float(e.get("height")) == 6]
    assert bars[1] == pytest.approx(bars[0] / 2) and bars[3] == pytest.approx(bars[0] / 2) and bars[4] == pytest.approx(bars[0] / 4)


def test_a_reliability_diagram_leaves_empty_bins_out():
    nan = math.nan
    edges, confidence, accuracy = np.linspace(0, 1, 5), np.array([nan, 0.4, nan, 0.9]), np.array([nan, 0.5, nan, 0.7])
    root = drawn(charts.reliability_chart("r", "Reliability", edges, confidence, accuracy, np.array([0, 2, 0, 10])))
    assert len(list(root.iter("circle"))) == 2 and all(math.isfinite(x) for x in numbers(root))
    assert "0.40 claimed, 0.50 right, 2 images" in root.find("desc").text
    low, high = (float(e.get("height")) for e in root.iter("rect") if e.get("class") == "bar b1")
    assert high == pytest.approx(5 * low)


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [1.0, math.nan, 2.0], [math.nan, math.nan]])
def test_curves_of_any_length_and_with_gaps(values):
    root = drawn(charts.line_chart("l", "Loss", {HOSTILE: values, "other": values}, range(1, len(values) + 1), kept=1))
    assert all(math.isfinite(x) for x in numbers(root)) and "nan" not in "".join(e.get("points", "") for e in root.iter())
    assert any(e.text == "kept: 1" for e in root.iter("text"))


def test_a_map_keeps_all_points_inside_and_their_shape():
    places = np.random.default_rng(0).normal(size=(30, 2)) * [5, 1]
    markup, where = charts.map_chart("m", "Map", places, np.arange(30) % 9, np.arange(30) % 3)
    root = drawn(markup)
    width, height = float(root.get("width")), float(root.get("height"))
    assert len(list(root.iter("use"))) == 30
    assert (where > 0).all() and (where[:, 0] < width).all() and (where[:, 1] < height).all()
    flipped = (places - places.mean(axis=0)) * [1, -1]  # up is up
    centred = where - where.mean(axis=0)
    assert np.allclose(centred / flipped, (centred / flipped)[0, 0])
    used = {e.get("href") for e in root.iter("use")}
    assert used <= {f"#{e.get('id')}" for e in root.iter("path")} and len(used) > 3
    same, _ = charts.map_chart("m", "Map", np.zeros((4, 2)), np.zeros(4, int), np.zeros(4, int))
    assert not re.search("nan|inf", str(same).split("</desc>")[1])
