"""Scores of a classifier: accuracy, precision, recall, F1 and the confusion matrix; `metrics.py` has the formulas.

    scores = ClassificationScores(truth, predicted, taxonomy.names, groups=exams)
    print(scores.macro_f1)  # 0.781 [0.722, 0.833]

A class of the taxonomy that occurs neither in truth nor in prediction is left out of the macro means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from entrep_cli.errors import DataError
from entrep_cli.evaluation.comparison import GroupTotals, confusion_score, mean_score
from entrep_cli.evaluation.intervals import Interval, Sample
from entrep_cli.evaluation.metrics import CLASSIFICATION, Metric, macro, metrics_of, precision_recall_f1, weighted
from entrep_cli.retrieval.ranking import Keys


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """All scores of n predictions among C classes.

    Args:
        truth: (n,) integer class ids, 0..C-1.
        predicted: (n,) integer class ids, 0..C-1.
        class_names: C different names, in the order of the ids.
        groups: (n,) exam keys for the intervals; None for independent items.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
        reject: the last class stands for "no answer": predicted it counts as wrong, and it is left out
            of the macro means, as no image is of it.

    Raises:
        DataError: nothing to score, lengths differ, an id is out of range, names repeat.
    """

    truth: np.ndarray
    predicted: np.ndarray
    class_names: Sequence[str]
    groups: Keys | None = None
    resamples: int = 1000
    seed: int = 0
    reject: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "truth", np.asarray(self.truth))
        object.__setattr__(self, "predicted", np.asarray(self.predicted))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if len(set(self.class_names)) != self.n_classes:
            raise DataError(f"Class names repeat: {', '.join(self.class_names)}.")
        if self.truth.ndim != 1 or self.truth.shape != self.predicted.shape:
            raise DataError(f"Truth {self.truth.shape} and predictions {self.predicted.shape} differ in length.")
        if not len(self.truth):
            raise DataError("Nothing to score: no image has both a truth and a prediction.")
        if self.groups is not None and len(self.groups) != len(self.truth):
            raise DataError(f"{len(self.groups)} group keys do not fit {len(self.truth)} predictions.")
        for name, ids in (("truth", self.truth), ("predictions", self.predicted)):
            if ids.dtype.kind not in "iu":
                raise DataError(f"Class ids of the {name} must be whole numbers, not {ids.dtype}.")
            wrong = np.flatnonzero((ids < 0) | (ids >= self.n_classes))
            if len(wrong):
                raise DataError(
                    f"{len(wrong)} class ids of the {name} are not among 0..{self.n_classes - 1} (item {wrong[0]} has {ids[wrong[0]]})."
                )

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(C, C) int64 counts, rows truth, columns prediction."""
        return np.bincount(self._cells, minlength=self.n_classes**2).reshape(self.n_classes, self.n_classes)

    @property
    def support(self) -> np.ndarray:
        """(C,) int64, items of each class in truth."""
        return self.confusion.sum(axis=1)

    @property
    def precision(self) -> np.ndarray:
        """(C,) of each class; 0 where it was never predicted."""
        return precision_recall_f1(self.confusion)[0]

    @property
    def recall(self) -> np.ndarray:
        """(C,) of each class; 0 where it never occurred."""
        return precision_recall_f1(self.confusion)[1]

    @property
    def f1(self) -> np.ndarray:
        """(C,) of each class; 0 where it neither occurred nor was predicted."""
        return precision_recall_f1(self.confusion)[2]

    @property
    def accuracy(self) -> Interval:
        return self.intervals["accuracy"]

    @property
    def macro_f1(self) -> Interval:
        return self.intervals["macro F1"]

    @property
    def weighted_f1(self) -> Interval:
        return self.intervals["weighted F1"]

    @property
    def macro_precision(self) -> float:
        return float(macro(self.precision, self.confusion, self.reject))

    @property
    def macro_recall(self) -> float:
        return float(macro(self.recall, self.confusion, self.reject))

    @property
    def weighted_precision(self) -> float:
        return float(weighted(self.precision, self.confusion))

    @property
    def weighted_recall(self) -> float:
        """Equal to the accuracy, by definition."""
        return float(weighted(self.recall, self.confusion))

    def as_dict(self) -> dict:
        """All scores as plain numbers, lists and strings, ready for JSON."""
        columns = zip(
            self.class_names,
            self.precision.tolist(),
            self.recall.tolist(),
            self.f1.tolist(),
            self.support.tolist(),
            strict=True,
        )
        averages = ("macro F1", "weighted F1")
        return {
            "n_items": len(self.truth),
            **{key: value.as_dict() for key, value in self.intervals.items() if key not in averages},
            "macro": {
                "precision": self.macro_precision,
                "recall": self.macro_recall,
                "f1": self.macro_f1.as_dict(),
            },
            "weighted": {
                "precision": self.weighted_precision,
                "recall": self.weighted_recall,
                "f1": self.weighted_f1.as_dict(),
            },
            "per_class": [dict(zip(("class", "precision", "recall", "f1", "support"), row, strict=True)) for row in columns],
            "confusion": self.confusion.tolist(),
        }

    @property
    def _cells(self) -> np.ndarray:
        """(n,) where in the flattened confusion matrix each item falls."""
        return self.truth.astype(np.int64) * self.n_classes + self.predicted

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Every metric of classification with its interval, by its key."""
        return self.sample.intervals(resamples=self.resamples, seed=self.seed)

    @property
    def sample(self) -> Sample:
        """Every metric of classification, as a function of a resample."""
        cells, n_cells, metrics = self._cells, self.n_classes**2, metrics_of(CLASSIFICATION)
        items = {m.key: np.asarray(m.items(self.truth, self.predicted), float) for m in metrics if m.items}

        def statistics(counts: np.ndarray) -> np.ndarray:
            # The confusion matrices of a whole block of resamples are one weighted histogram.
            places = cells + np.arange(len(counts))[:, None] * n_cells
            flat = np.bincount(places.ravel(), weights=counts.ravel(), minlength=len(counts) * n_cells)
            confusions = flat.reshape(len(counts), self.n_classes, self.n_classes)
            n = counts.sum(axis=1)
            return np.stack([counts @ items[m.key] / n if m.items else m.score(confusions, self.reject) for m in metrics], axis=-1)

        return Sample(tuple(m.key for m in metrics), len(self.truth), self.groups, statistics, tuple(m.format for m in metrics))

    def totals(self, metric: Metric) -> GroupTotals:
        """A metric as a function of what the items of each group add up to, for the permutation test."""
        if metric.items:
            return mean_score(metric.items(self.truth, self.predicted), self.groups)
        return confusion_score(metric, self.truth, self.predicted, self.n_classes, self.groups)


def report_cells(scores: ClassificationScores) -> dict[str, dict[str, float]]:
    """The scores as a classification report: precision, recall, F1 and support of each class, then their averages and the accuracy."""
    columns = ("precision", "recall", "F1", "support")
    rows = {
        name: dict(zip(columns, map(float, values)))
        for name, *values in zip(scores.class_names, scores.precision, scores.recall, scores.f1, scores.support)
    }
    n = float(len(scores.truth))
    rows["macro average"] = dict(zip(columns, (scores.macro_precision, scores.macro_recall, scores.macro_f1.value, n)))
    rows["weighted average"] = dict(zip(columns, (scores.weighted_precision, scores.weighted_recall, scores.weighted_f1.value, n)))
    rows["accuracy"] = {"precision": scores.accuracy.value}
    return rows
