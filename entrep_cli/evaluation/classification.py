"""Scores of a classifier: accuracy, precision, recall, F1 and the confusion matrix.

    scores = ClassificationScores(truth, predicted, taxonomy_names, groups=exams)
    print(scores.macro_f1)  # 0.781 [0.722, 0.833]

Per class c, from the confusion matrix M (rows truth, columns prediction), with 0 / 0 = 0:

    precision_c = M_cc / sum_i M_ic    recall_c = M_cc / sum_j M_cj
    F1_c = 2 M_cc / (sum_i M_ic + sum_j M_cj)

Macro is the plain mean over the classes that occur in truth or prediction, as scikit-learn's
default labels do; a class of the taxonomy that nobody met is no evidence. In a bootstrap resample
these are the classes that occur in it. Weighted is the mean weighted by support, the count in
truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from entrep_cli.errors import DataError
from entrep_cli.evaluation.intervals import Interval, Sample
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
            raise DataError("There is nothing to score: no image has both a truth and a prediction.")
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
        return self._intervals["accuracy"]

    @property
    def macro_f1(self) -> Interval:
        return self._intervals["macro F1"]

    @property
    def weighted_f1(self) -> Interval:
        return self._intervals["weighted F1"]

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
        return {
            "n_items": len(self.truth),
            "accuracy": self.accuracy.as_dict(),
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
    def _intervals(self) -> dict[str, Interval]:
        return self.sample.intervals(resamples=self.resamples, seed=self.seed)

    @property
    def sample(self) -> Sample:
        """Accuracy, macro F1 and weighted F1 as functions of a resample."""
        cells, n_cells = self._cells, self.n_classes**2

        def statistics(counts: np.ndarray) -> np.ndarray:
            # The confusion matrices of a whole block of resamples are one weighted histogram.
            places = cells + np.arange(len(counts))[:, None] * n_cells
            flat = np.bincount(places.ravel(), weights=counts.ravel(), minlength=len(counts) * n_cells)
            confusions = flat.reshape(len(counts), self.n_classes, self.n_classes)
            f1 = precision_recall_f1(confusions)[2]
            accuracy = np.trace(confusions, axis1=-2, axis2=-1) / confusions.sum(axis=(-2, -1))
            return np.stack([accuracy, macro(f1, confusions, self.reject), weighted(f1, confusions)], axis=-1)

        return Sample(("accuracy", "macro F1", "weighted F1"), len(self.truth), self.groups, statistics)


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


def precision_recall_f1(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three (..., C) from confusion matrices (..., C, C); 0 / 0 is 0."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    predicted, support = confusion.sum(axis=-2), confusion.sum(axis=-1)

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.divide(numerator, denominator, out=np.zeros_like(hits), where=denominator > 0)

    return ratio(hits, predicted), ratio(hits, support), ratio(2 * hits, predicted + support)


def macro(per_class: np.ndarray, confusion: np.ndarray, reject: bool = False) -> np.ndarray:
    """Mean of (..., C) over the classes that occur in truth or prediction; with `reject` the last is none."""
    occurs = (confusion.sum(axis=-2) + confusion.sum(axis=-1)) > 0
    if reject:
        occurs[..., -1] = False
    return (per_class * occurs).sum(axis=-1) / occurs.sum(axis=-1)


def weighted(per_class: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Mean of (..., C) weighted by the support of each class."""
    support = confusion.sum(axis=-1)
    return (per_class * support).sum(axis=-1) / support.sum(axis=-1)
