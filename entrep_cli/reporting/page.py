"""The report of a run: one HTML file with all in it, which opens anywhere and asks no network.

All names and texts are escaped by the template engine; the one script is named in the page's own policy by its
hash, so that no other can run.
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

from entrep_cli import __version__
from entrep_cli.console import visible
from entrep_cli.evaluation.intervals import Interval
from entrep_cli.reporting import charts
from entrep_cli.reporting.content import MAX_THUMBNAILS, Content, EmbeddingMap
from entrep_cli.reporting.pages import render
from entrep_cli.reporting.pictures import MAP_SIDE
from entrep_cli.workspace import write_text_atomic

_SCORES = {"recall@1": "Recall@1", "recall@5": "Recall@5", "recall@10": "Recall@10", "mrr": "MRR", "map": "mAP"}
_NAMES = {"class": "by class", "finding": "by finding", "text to finding": "text to image, by finding"}


def write_report(content: Content, path: Path) -> Path:
    """Write the page of a report, replaced in one step; `path`."""
    write_text_atomic(path, report_page(content))
    return path


def report_page(content: Content) -> str:
    """The page as HTML."""
    script = Path(__file__).with_name("report.js").read_text("utf-8")
    scores, drawn = content.scores, content.map and _map(content.map)
    return render(
        "report.html.j2",
        content=content,
        version=__version__,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        numbers=_numbers(content),
        overall=_overall(content),
        retrieval=_retrieval(content),
        confusion=_confusion(content),
        confusions=charts.top_confusions(scores.classification.confusion, scores.classification.class_names),
        bars=_bars(content),
        per_class=scores.classification.as_dict()["per_class"],
        reliabilities=_reliabilities(content),
        curves=_curves(content),
        map=drawn,
        relevance_names=_NAMES,
        sections=_sections(content),
    )


def _sections(content: Content) -> dict[str, str]:
    """Anchor -> heading of the sections that this report has, in their order."""
    sections = {
        "run": ("What was trained", True),
        "scores": ("Scores", True),
        "classes": ("Classes", True),
        "calibration": ("Confidence", True),
        "stages": ("Stages", bool(content.stages)),
        "curves": ("Learning curves", True),
        "map": ("Map", True),
        "retrieval": ("Retrieval", bool(content.sheets)),
        "mistakes": ("Mistakes", True),
        "published": ("Published", bool(content.published)),
        "next": ("Next", True),
    }
    return {anchor: heading for anchor, (heading, there) in sections.items() if there}


def _numbers(content: Content) -> list[dict[str, str]]:
    """The few numbers on top: name, value, interval, and a word on what to hold it against."""
    s, targets = content.scores.classification, content.scores.classification.support
    largest = targets.max() / max(targets.sum(), 1)
    found = [
        _big("Accuracy", s.accuracy, f"{largest:.3f} by always answering the largest class"),
        _big("Macro F1", s.macro_f1, f"mean over {int((targets > 0).sum())} classes that are there"),
    ]
    retrieval = content.scores.retrieval
    for key in ("class", "text to finding"):
        if key in retrieval and retrieval[key].scored.any():
            chance = content.scores.chance.get(key)
            told = _NAMES[key] + ("" if chance is None else f"; {chance:.3f} by chance")
            found.append(_big("Recall@1", retrieval[key].means["recall@1"], told))
    ece = content.calibration.ece
    tempered = content.calibration.tempered
    after = "0 is best" if tempered is None else f"0 is best; {tempered.ece:.3f} with the temperature"
    return [*found, _big("Calibration error", ece, after)]


def _big(name: str, value: Interval, told: str) -> dict[str, str]:
    bounds = "" if math.isnan(value.low) else f"{value.low:.3f} to {value.high:.3f}"
    return {"name": name, "value": "n/a" if math.isnan(value.value) else f"{value.value:.3f}", "bounds": bounds, "told": told}


def _overall(content: Content) -> Markup:
    s = content.scores.classification
    counts = s.support
    chance = float(counts.max() / max(counts.sum(), 1))
    rows = [("accuracy", s.accuracy, chance), ("macro F1", s.macro_f1, None), ("weighted F1", s.weighted_f1, None)]
    return charts.interval_chart("overall", "Classification, with 95% intervals", rows)


def _retrieval(content: Content) -> list[dict[str, Any]]:
    """For each relevance its chart and what must be known of it."""
    found = []
    for key, scores in content.scores.retrieval.items():
        if not scores.scored.any():
            continue
        chance = content.scores.chance.get(key)
        rows = [(_SCORES.get(name, name), value, chance if name == "recall@1" else None) for name, value in scores.means.items()]
        heading = _NAMES.get(key, key)
        found.append(
            {
                "heading": heading,
                "queries": int(scores.scored.sum()),
                "left_out": scores.n_without_relevant,
                "chance": chance,
                "chart": charts.interval_chart(f"retrieval-{len(found)}", f"Retrieval {heading}, with 95% intervals", rows),
            }
        )
    return found


def _confusion(content: Content) -> Markup:
    s = content.scores.classification
    return charts.confusion_chart("confusion", "Confusion matrix", s.confusion, s.class_names)


def _bars(content: Content) -> Markup:
    s = content.scores.classification
    values = {"precision": s.precision, "recall": s.recall, "F1": s.f1}
    return charts.class_bars("bars", "Precision, recall and F1 of each class", s.class_names, values, s.support)


def _reliabilities(content: Content) -> list[dict[str, Any]]:
    calibration = content.calibration
    shown = [("As it answers", calibration.plain)]
    if calibration.tempered is not None:
        shown.append((f"At temperature {calibration.temperature:.2f}", calibration.tempered))
    return [
        {
            "heading": heading,
            "ece": found.ece,
            "nll": found.nll,
            "brier": found.brier,
            "used": int((found.counts > 0).sum()),
            "bins": len(found.counts),
            "chart": charts.reliability_chart(
                f"reliability-{i}", f"Reliability, {heading.lower()}", found.edges, found.confidence, found.accuracy, found.counts
            ),
        }
        for i, (heading, found) in enumerate(shown)
    ]


def _curves(content: Content) -> list[tuple[str, Markup]]:
    curves = content.curves
    if curves is None:
        return []
    return [
        (heading, charts.line_chart(f"curve-{i}", f"{heading} by epoch", lines, curves.epochs, curves.kept))
        for i, (heading, lines) in enumerate(curves.panels.items())
    ]


def _map(found: EmbeddingMap) -> dict[str, Any]:
    """The drawing, its legends, and what the script needs of each point."""
    drawing, places = charts.map_chart("map-chart", f"Map of embeddings, {found.how}", found.places, found.classes, found.regions)
    told = {
        "x": np.round(places[:, 0], 1).tolist(),
        "y": np.round(places[:, 1], 1).tolist(),
        "names": [visible(name) for name in found.captions],
        "classes": found.classes.tolist(),
        "classNames": [visible(name) for name in found.class_names],
        "columns": found.columns,
        "side": MAP_SIDE,
        "step": _step(found) if found.sprite else 0,
    }
    counts = np.bincount(found.classes, minlength=len(found.class_names))
    regions = np.bincount(found.regions, minlength=len(found.region_names))
    return {
        "drawing": drawing,
        "data": script_json(told),
        "sprite": Markup(found.sprite),
        "how": found.how,
        "n": len(found.captions),
        "n_part": found.n_part,
        "classes": [(name, counts[k], charts.mark(k, f"p c{k % charts.N_COLOURS}")) for k, name in enumerate(found.class_names)],
        "regions": [(name, regions[k], k % charts.N_COLOURS) for k, name in enumerate(found.region_names)],
    }


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a `<script>` element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _step(found: EmbeddingMap) -> int:
    """Every how many images one has a picture."""
    return -(-len(found.captions) // MAX_THUMBNAILS)
