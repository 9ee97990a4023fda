"""The report of a run: one HTML file with all in it, which opens anywhere and asks no network.

All names and texts are escaped by the template engine and the drawings; the one script is named in the page's
policy by its hash, so that no other can run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from entrep_cli.console import visible
from entrep_cli.evaluation.intervals import Interval
from entrep_cli.evaluation.metrics import METRICS
from entrep_cli.reporting import drawing
from entrep_cli.reporting.content import Content
from entrep_cli.reporting.embedding_map import EmbeddingMap
from entrep_cli.reporting.pages import HERE, render
from entrep_cli.reporting.pictures import MAP_SIDE
from entrep_cli.version import __version__
from entrep_cli.workspace import write_text_atomic

_NAMES = {"class": "by class", "finding": "by finding", "text to finding": "text to image, by finding"}


def write_report(content: Content, path: Path) -> Path:
    """Write the page of a report, replaced in one step; `path`."""
    write_text_atomic(path, report_page(content))
    return path


def report_page(content: Content) -> str:
    """The page as HTML."""
    script = (HERE / "report.js").read_text("utf-8")
    s, curves = content.scores.classification, content.curves
    largest = float(s.support.max() / max(s.support.sum(), 1))
    overall = [(METRICS[key].name, value, largest if key == "accuracy" else None) for key, value in s.intervals.items()]
    bars = {"precision": s.precision, "recall": s.recall, "F1": s.f1}
    panels = curves.panels if curves else {}
    return render(
        "report.html.j2",
        content=content,
        version=__version__,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        numbers=_numbers(content, largest),
        overall=drawing.intervals(overall, "Classification, with 95% intervals").svg("overall"),
        retrieval=_retrieval(content),
        confusion=drawing.confusion(s.confusion, s.class_names, in_page=True).svg("confusion"),
        confusions=drawing.top_confusions(s.confusion, s.class_names),
        bars=drawing.class_bars(s.class_names, bars, s.support, "Precision, recall and F1 of each class").svg("bars"),
        per_class=s.as_dict()["per_class"],
        reliabilities=_reliabilities(content),
        curves=[
            (
                heading,
                drawing.curves({heading: lines}, f"{heading} by epoch", epochs=curves.epochs, best_epoch=curves.best_epoch).svg(
                    f"curve-{i}"
                ),
            )
            for i, (heading, lines) in enumerate(panels.items())
        ],
        map=content.map and _map(content.map),
        relevance_names=_NAMES,
        sections=_sections(content),
    )


def _sections(content: Content) -> dict[str, str]:
    """Anchor -> heading of the sections that this report has, in their order."""
    optional = {"stages": content.stages, "retrieval": content.sheets, "published": content.published}
    headings = {
        "run": "What was trained",
        "scores": "Scores",
        "classes": "Classes",
        "calibration": "Confidence",
        "stages": "Stages",
        "curves": "Learning curves",
        "map": "Map",
        "retrieval": "Retrieval",
        "mistakes": "Mistakes",
        "published": "Published",
        "next": "Next",
    }
    return {anchor: heading for anchor, heading in headings.items() if optional.get(anchor, True)}


def _numbers(content: Content, largest: float) -> list[dict[str, str]]:
    """The few numbers on top: name, value, interval, and what to compare it with."""
    s, calibration = content.scores.classification, content.calibration
    numbers = [
        _big("Accuracy", s.accuracy, f"{largest:.3f} by always answering the largest class"),
        _big("Macro F1", s.macro_f1, f"mean over the {int((s.support > 0).sum())} classes with images"),
    ]
    for key in ("class", "text to finding"):
        if (scores := content.scores.retrieval.get(key)) and scores.scored.any():
            chance = content.scores.chance.get(key)
            numbers.append(
                _big("Recall@1", scores.means["recall@1"], _NAMES[key] + ("" if chance is None else f"; {chance:.3f} by chance"))
            )
    after = "" if calibration.tempered is None else f"; {calibration.tempered.ece:.3f} with the temperature"
    return [*numbers, _big("Calibration error", calibration.ece, f"0 is best{after}")]


def _big(name: str, value: Interval, note: str) -> dict[str, str]:
    bounds = "" if math.isnan(value.low) else f"{value.low:.3f} to {value.high:.3f}"
    return {"name": name, "value": "n/a" if math.isnan(value.value) else f"{value.value:.3f}", "bounds": bounds, "note": note}


def _retrieval(content: Content) -> list[dict[str, Any]]:
    """For each relevance its chart and what must be known of it."""
    shown = []
    for key, scores in content.scores.retrieval.items():
        if not scores.scored.any():
            continue
        chance, heading = content.scores.chance.get(key), _NAMES.get(key, key)
        rows = [(METRICS[key].name, value, chance if key == "recall@1" else None) for key, value in scores.means.items()]
        chart = drawing.intervals(rows, f"Retrieval {heading}, with 95% intervals").svg(f"retrieval-{len(shown)}")
        counts = {"queries": int(scores.scored.sum()), "left_out": scores.n_without_relevant}
        shown.append({"heading": heading, "chance": chance, "chart": chart, **counts})
    return shown


def _reliabilities(content: Content) -> list[dict[str, Any]]:
    calibration = content.calibration
    shown = {"Without temperature": (calibration.plain, calibration.scores)}
    if calibration.tempered is not None:
        shown[f"At temperature {calibration.temperature:.2f}"] = calibration.tempered, calibration.tempered_scores
    return [
        {
            "heading": heading,
            "scores": [(METRICS[key].name, format(value.value, METRICS[key].format)) for key, value in scores.items()],
            "used": int((bins.counts > 0).sum()),
            "bins": len(bins.counts),
            "chart": drawing.reliability(
                bins.edges, bins.confidence, bins.accuracy, bins.counts, f"Reliability, {heading[0].lower()}{heading[1:]}"
            ).svg(f"reliability-{i}"),
        }
        for i, (heading, (bins, scores)) in enumerate(shown.items())
    ]


def _map(drawn: EmbeddingMap) -> dict[str, Any]:
    """The drawing, its legends, and what the script needs of each point."""
    title = f"Map of embeddings, {drawn.how}"
    chart, places, marks = drawing.point_map("map-chart", title, drawn.places, drawn.classes, drawn.regions)
    points = {
        "x": np.round(places[:, 0], 1).tolist(),
        "y": np.round(places[:, 1], 1).tolist(),
        "names": [visible(name) for name in drawn.captions],
        "classes": drawn.classes.tolist(),
        "classNames": [visible(name) for name in drawn.class_names],
        "columns": drawn.columns,
        "side": MAP_SIDE,
        "step": drawn.step if drawn.sprite else 0,
    }
    counts, regions = np.bincount(drawn.classes), np.bincount(drawn.regions)
    return {
        "chart": chart,
        "data": script_json(points),
        "sprite": Markup(drawn.sprite),
        "how": drawn.how,
        "n": len(drawn.captions),
        "n_images": drawn.n_images,
        "classes": [legend for legend in zip(drawn.class_names, counts, marks) if legend[1]],
        "regions": [(name, n, k % len(drawing.SERIES)) for k, (name, n) in enumerate(zip(drawn.region_names, regions)) if n],
    }


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a `<script>` element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
