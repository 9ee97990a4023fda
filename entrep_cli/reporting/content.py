"""What a report says, before it is drawn: plain values, from a run's scores on one split.

Every name, text and picture of the data has gone through `Pictures` by then, so that a private report holds
none of them anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from entrep_cli.evaluation.calibration import Reliability
from entrep_cli.evaluation.intervals import Interval
from entrep_cli.evaluation.subsets import SubsetScores
from entrep_cli.reporting.embedding_map import EmbeddingMap

Kind = Literal["query", "hit", "miss", "truth"]


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet: `picture` is its address, "" for none; `lines` stand under its name."""

    kind: Kind
    name: str
    picture: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A query and its answers, best first, then relevant images that they miss.

    Attributes:
        heading: what the query is, for a text the text itself.
        summary: how well it was answered.
    """

    heading: str
    summary: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class SheetSet:
    """Sheets of one relevance: some of the best answered queries, some of the worst."""

    relevance: str
    best: tuple[Sheet, ...]
    worst: tuple[Sheet, ...]


@dataclass(frozen=True)
class Mistake:
    """A wrong answer; `attention` is the picture under its attention map, "" for none."""

    name: str
    truth: str
    answer: str
    p_truth: float
    p_answer: float
    picture: str
    attention: str = ""


@dataclass(frozen=True)
class Mistakes:
    """The most confident wrong answers; `by` names the method of the attention maps, `reason` says why they are missing."""

    shown: tuple[Mistake, ...]
    n: int
    by: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Calibration:
    """How far confidences can be trusted, as they are and at a temperature fitted on validation images.

    Attributes:
        scores: every metric of calibration with its interval, by its key.
        tempered, tempered_scores, temperature: None without validation images to fit one on.
        n_fitted: images it was fitted on; `same_images`: they are the ones that are scored here.
    """

    plain: Reliability
    scores: Mapping[str, Interval]
    tempered: Reliability | None = None
    tempered_scores: Mapping[str, Interval] | None = None
    temperature: float | None = None
    n_fitted: int = 0
    same_images: bool = False

    @property
    def ece(self) -> Interval:
        return self.scores["ECE"]


@dataclass(frozen=True)
class Curves:
    """Learning curves: heading -> line -> a value an epoch; `best_epoch` is that of the run's weights, 0 for none."""

    epochs: tuple[int, ...]
    panels: Mapping[str, Mapping[str, tuple[float, ...]]]
    best_epoch: int


@dataclass(frozen=True)
class Table:
    """A table with its heading and what a reader must know; `ours` are the rows of it that are ours."""

    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ours: tuple[int, ...] = ()


@dataclass(frozen=True)
class Content:
    """A whole report.

    Attributes:
        facts: heading -> name -> value, of the run.
        recipe: its effective configuration as TOML; "" where that is private.
        commands: that make the run again; `next_commands`: what to do with it.
        stages: of a hybrid, as `Hybrid.stage_counts` gives them.
        published: tables of papers beside ours.
    """

    run: str
    split: str
    n_images: int
    n_groups: int
    data: str
    facts: Mapping[str, Mapping[str, str]]
    recipe: str
    commands: tuple[str, ...]
    next_commands: tuple[str, ...]
    scores: SubsetScores
    calibration: Calibration
    curves: Curves | None
    map: EmbeddingMap | None
    sheets: tuple[SheetSet, ...]
    mistakes: Mistakes
    stages: tuple[Mapping[str, Any], ...] = ()
    published: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    private: bool = False
    made: str = ""


def worst_mistakes(probabilities: np.ndarray, targets: np.ndarray, n: int) -> np.ndarray:
    """Numbers of the n most confident wrong answers, the most confident first; ties in the order of the images."""
    answers = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(answers != targets)
    return wrong[np.argsort(-probabilities[wrong, answers[wrong]], kind="stable")][:n]


_MEASURES = {"loss": "Loss", "accuracy": "Accuracy", "macro_f1": "Macro F1"}


def learning_curves(rows: Sequence[Mapping[str, str]], best_epoch: int) -> Curves | None:
    """The rows of a `metrics.csv` as curves, those of one measure in one panel; None without epochs or numbers.

    What is neither a loss nor a known score goes into a panel of that name.
    """
    if not rows or "epoch" not in rows[0]:
        return None
    lines = {key: tuple(_float(row.get(key)) for row in rows) for key in rows[0] if key and key != "epoch"}
    panels: dict[str, dict[str, tuple[float, ...]]] = {}
    for key, values in lines.items():
        if not np.isfinite(values).any():
            continue
        heading = next((name for end, name in _MEASURES.items() if key == end or key.endswith(f"_{end}")), key.replace("_", " "))
        panels.setdefault(heading, {})[key.replace("_", " ")] = values
    try:
        epochs = tuple(int(float(row["epoch"])) for row in rows)
    except ValueError:
        return None
    return Curves(epochs, panels, best_epoch) if panels else None


def _float(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")
