from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from entrep_cli.evaluation.intervals import Interval
from entrep_cli.reporting import drawing
from entrep_cli.reporting.drawing import PALETTE

HOSTILE = "[red]<script>alert(1)</script>\x1b[2J & \"'"
SEVEN = ["nose-right", "nose-left", "ear-right", "ear-left", "vc-open", "vc-closed", "throat"]


def drawn(chart: drawing.Chart) -> ET.Element:
    """The chart of a page as XML: whatever is not escaped does not parse."""
    return checked(chart.svg("name"))


def checked(markup) -> ET.Element:
    root = ET.fromstring(str(markup))
    assert root.tag == "svg" and root.get("role") == "img"
    ids = {e.get("id") for e in root.iter() if e.get("id")}
    assert set(root.get("aria-labelledby").split()) <= ids and root.find("title").text and root.find("desc").text
    assert not list(root.iter("script")) and "\x1b" not in str(markup) and {e.get("href", "#")[1:] for e in root.iter()} <= {*ids, ""}
    assert not any(re.search(r"nan|inf", e.get(key, "")) for e in root.iter() for key in ("d", "x", "y", "transform"))
    return root


def tips(root: ET.Element) -> list[str]:
    return [e.text for e in root.iter("title")][1:]


def texts(root: ET.Element) -> list[str]:
    return [e.text for e in root.iter("text")]


def matrix(n_classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(2, (n_classes, n_classes)) + np.diag(rng.poisson(50, n_classes))


def edges_are_white(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    frame = np.concatenate([pixels[:3].ravel(), pixels[-3:].ravel(), pixels[:, :3].ravel(), pixels[:, -3:].ravel()])
    return (frame == 255).all()


def test_a_chart_of_a_page_follows_its_colours_and_repeats():
    chart = drawing.intervals([("a", Interval(0.5, 0.25, 0.75), 0.1)], "Scores")
    svg = chart.svg("one")
    assert not re.search("#[0-9a-f]{6}|font-family|<style|date", svg) and {"k0", "miss"} <= set(re.findall(r"var\(--(\w+)\)", svg))
    assert svg == drawing.intervals([("a", Interval(0.5, 0.25, 0.75), 0.1)], "Scores").svg("one")
    ids = [set(re.findall(r'id="(.*?)"', chart.svg(name))) for name in ("one", "two")]
    assert len(ids[0]) > 2 and not ids[0] & ids[1]


def test_an_interval_stands_where_its_numbers_are():
    rows = [(HOSTILE, Interval(0.5, 0.25, 0.75), 0.1), ("alone", Interval(1.0, math.nan, math.nan), None)]
    chart = drawing.intervals(rows, "Scores")
    lines = [line.get_xdata() for line in chart.figure.axes[0].lines]
    assert [list(x) for x in lines] == [[0.1, 0.1], [0.25, 0.75], [0.5], [1.0]]
    root = drawn(chart)
    dots = [float(e.get("x")) for e in root.iter("use")]
    (whisker,) = [e.get("d") for e in root.iter("path") if "k0" in e.get("style") and e.get("d").count("L") == 1]
    low, high = (float(x) for x in re.findall(r"[ML] ([\d.]+)", whisker))
    assert dots[0] == pytest.approx((low + high) / 2, abs=0.1) and high - low == pytest.approx(dots[1] - dots[0], abs=0.1)
    assert "0.500 [0.250, 0.750], by chance 0.100" in root.find("desc").text
    assert any("…" in text for text in texts(root)) and tips(root)[0].startswith("[red]<script>alert(1)</script>\\x1b[2J")


def test_a_confusion_matrix_shows_counts_and_names_what_is_confused():
    counts = np.array([[3, 1, 0], [0, 2, 2], [0, 0, 5]])
    names = ["nose-left", HOSTILE, "throat"]
    root = drawn(drawing.confusion(counts, names, in_page=True))
    cells = [(e.find("title").text, e.find("path").get("style")) for e in root.iter("g") if e.find("path") is not None]
    assert len(cells) == 9 and cells[1][0] == "nose-left, answered " + drawing.visible(HOSTILE) + ": 1 of 4"
    assert [re.search(r"--(\w+)", style)[1] for _, style in cells[:3]] == ["right", "wrong", "card"]
    assert [text for text in texts(root) if "%" in text] == ["75%", "25%", "50%", "50%", "100%"]
    assert sorted(text for text in texts(root) if text.isdigit()) == ["1", "2", "2", "3", "5"]
    assert drawing.top_confusions(counts, names)[0] == f"{HOSTILE} answered as throat (2 of 4)"
    assert drawing.top_confusions(np.eye(3, dtype=int), names) == []
    wide = drawn(drawing.confusion(np.eye(40, dtype=int), [f"class {i}" for i in range(40)], in_page=True))
    # A page scrolls it; cells stay large enough to read.
    assert float(wide.get("width")) >= 40 * 15 and wide.get("style") == f"min-width: {wide.get('width')}px"


def test_counts_and_fractions_stand_in_the_cells():
    axes = drawing.confusion(np.array([[9, 1], [0, 0]]), ["ear", "nose"]).figure.axes[0]
    assert [(text.get_text(), text.get_color()) for text in axes.texts] == [("9\n90%", PALETTE["page"]), ("1\n10%", PALETTE["ink"])]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ear (10)", "nose (0)"]


def luminance(colour: np.ndarray) -> float:
    """Of WCAG 2."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_counts_can_be_read_on_every_cell(mode):
    block = drawing.HERE.joinpath("page.css").read_text().split(":root {")[1 + mode]
    colour = {name: np.array(matplotlib.colors.to_rgb(value)) for name, value in re.findall(r"--(\w+): (#\w+)", block)}
    for fraction in np.linspace(0.01, 1, 100):
        for kind in ("right", "wrong"):
            cell = luminance(colour["page"] + (0.1 + 0.9 * fraction) * (colour[kind] - colour["page"]))
            ink = luminance(colour["page" if fraction > drawing._DARK else "ink"])
            assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) > 3.3


@pytest.mark.parametrize(
    "names",
    [
        SEVEN,
        ["only"],
        ["a finding told in a great many words, far more than fit beside a row " * 2, "b"],
        ["$x_", r"$\frac{1}{2}$", "[bold]&<b>", "Ống tai trái", "", "100% {} \\"],
    ],
)
def test_any_names_are_drawn_and_none_is_cut(tmp_path, names):
    path = drawing.confusion(matrix(len(names)), names, "50$ of $it_ [red]").png(tmp_path / "confusion.png")
    assert edges_are_white(path)
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]


def test_text_is_drawn_letter_by_letter(tmp_path):
    """As a formula '$1$' would lose its signs and '$\\bad$' would raise."""
    one = drawing.confusion(matrix(2), ["$1$", r"$\bad$"], r"$\bad$").png(tmp_path / "a.png").read_bytes()
    other = drawing.confusion(matrix(2), ["1", r"\bad"], r"$\bad$").png(tmp_path / "b.png").read_bytes()
    assert one != other


def test_the_same_numbers_give_the_same_bytes_whatever_the_users_settings(tmp_path):
    first = drawing.confusion(matrix(3), list("abc"), "t").png(tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "savefig.facecolor": "red", "text.color": "green"}):
        second = drawing.confusion(matrix(3), list("abc"), "t").png(tmp_path / "b.png").read_bytes()
        assert matplotlib.rcParams["font.size"] == 20
    assert first == second
    assert b"Software" not in first and b"date" not in first.lower()[:200]


def test_a_failed_drawing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "confusion.png"
    path.write_bytes(b"old")

    def full_disk(figure, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="disk full"):
        drawing.confusion(matrix(2), ["a", "b"]).png(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("confusion.png", b"old")]


def test_names_must_fit_the_matrix():
    with pytest.raises(ValueError, match="2 names do not fit"):
        drawing.confusion(matrix(3), ["a", "b"])


def test_bars_are_as_long_as_their_scores():
    scores = {"precision": np.array([1.0, 0.5]), "recall": np.array([0.5, 0.25]), "F1": np.array([0.667, 0.0])}
    chart = drawing.class_bars(["a", HOSTILE], scores, np.array([4, 2]), "By class")
    assert [bar.get_width() for bar in chart.figure.axes[0].patches] == [1.0, 0.5, 0.5, 0.25, 0.667, 0.0]
    root = drawn(chart)
    assert {"a: precision 1.000", "a: F1 0.667"} <= set(tips(root)) and {"0.67, 4", "F1, images", "recall"} <= set(texts(root))


def test_a_reliability_diagram_leaves_empty_bins_out():
    nan = math.nan
    edges, confidence, accuracy = np.linspace(0, 1, 5), np.array([nan, 0.4, nan, 0.9]), np.array([nan, 0.5, nan, 0.7])
    chart = drawing.reliability(edges, confidence, accuracy, np.array([0, 2, 0, 10]), "Reliability")
    root = drawn(chart)
    assert len(list(root.iter("use"))) == 2 and len(tips(root)) == 2
    assert "0.40 claimed, 0.50 right, 2 images" in root.find("desc").text
    assert [bar.get_height() for bar in chart.figure.axes[1].patches] == [2, 10]


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [1.0, math.nan, 2.0], [math.nan, math.nan]])
def test_curves_of_any_length_and_with_gaps(values):
    chart = drawing.curves({"Loss": {HOSTILE: values, "_other": values}}, "Loss", best_epoch=1)
    finite = [value for value in values if math.isfinite(value)]
    assert [list(line.get_ydata()) for line in chart.figure.axes[0].lines[:2]] == [finite, finite]
    root = drawn(chart)
    assert "best epoch: 1" in texts(root) and any(text.strip() == "_other" for text in texts(root))


def test_curves_have_a_panel_a_score_and_mark_the_best_epoch(tmp_path):
    panels = {"sum": {"train": [3.0, 2.0], "held out": [3.5, 3.0]}, "$x_": {"train": [1.0, 0.5]}}
    chart = drawing.curves(panels, "t", best_epoch=2)
    lines = {axes.get_title(): [list(line.get_ydata()) for line in axes.lines] for axes in chart.figure.axes}
    assert lines["sum"][:2] == [[3.0, 2.0], [3.5, 3.0]] and lines["$x_"][0] == [1.0, 0.5] and len(lines["sum"]) == 3
    again = drawing.curves(panels, "t", best_epoch=2).png(tmp_path / "b.png")
    assert chart.png(tmp_path / "a.png").read_bytes() == again.read_bytes()
    assert drawing.curves({"sum": {"train": [3.0]}}, "t").png(tmp_path / "c.png").is_file()


def test_a_map_keeps_all_points_inside_and_their_shape():
    places = np.random.default_rng(0).normal(size=(30, 2)) * [5, 1]
    markup, where, marks = drawing.point_map("m", "Map", places, np.arange(30) % 9, np.arange(30) % 3)
    root = checked(markup)
    width, height = float(root.get("width")), float(root.get("height"))
    points = list(root.iter("use"))
    assert [e.get("class") for e in points] == [f"p c{i % 9 % 8} r{i % 3}" for i in range(30)]
    assert np.allclose([[float(e.get(key)) for key in "xy"] for e in points], where, atol=0.01)
    assert (where > 0).all() and (where[:, 0] < width).all() and (where[:, 1] < height).all()
    flipped = (places - places.mean(axis=0)) * [1, -1]  # up is up
    centred = where - where.mean(axis=0)
    assert np.allclose(centred / flipped, (centred / flipped)[0, 0])
    assert len({e.get("href") for e in points}) > 3 and not any(e.get("style") for e in root.iter())
    assert [re.search('href="(.*?)"', mark)[1] for mark in marks] == [e.get("href") for e in points[:9]]
    checked(drawing.point_map("m", "Map", np.zeros((4, 2)), np.zeros(4, int), np.zeros(4, int))[0])


def test_a_map_in_a_file_holds_both_labellings_and_any_name(tmp_path):
    places = np.random.default_rng(0).normal(size=(20, 2))
    labellings = [("regions", ["$x^2$ \\frac", "mũi trái"] * 10), ("classes", [f"{i}" for i in range(20)])]
    title = "A title that is long " * 8
    path, again = (drawing.embedding_map(places, labellings, title).png(tmp_path / name) for name in ("map.png", "again.png"))
    assert path.read_bytes() == again.read_bytes()
    with Image.open(path) as image:
        assert image.width > 1.3 * image.height and len(image.convert("RGB").getcolors(1 << 24)) > 20
