"""The metrics: one table that evaluate, compare, ablate, report and ensemble read. A new metric is one entry.

    METRICS["recall@3"] = Metric("recall@3", "Recall@3", RETRIEVAL, items=lambda first_rank, *_: (first_rank > 0) & (first_rank <= 3))

From one entry come the value, its bootstrap interval and the permutation test, so a metric is given by what adds up
over items: numbers of each item, which are averaged, or the confusion matrix.

Per class c, from the confusion matrix M (rows truth, columns prediction), with 0 / 0 = 0:

    precision_c = M_cc / sum_i M_ic    recall_c = M_cc / sum_j M_cj
    F1_c = 2 M_cc / (sum_i M_ic + sum_j M_cj)

Macro is the plain mean over the classes that occur in truth or prediction, as scikit-learn's default labels do; in a
bootstrap resample these are the classes that occur in it. Weighted is the mean weighted by support, the count in truth.

Of one query with R relevant items in the gallery (masked items do not count), of which the first stands at rank r,
and with h(i) = 1 where rank i is relevant:

    Recall@k             1 if r <= k else 0     (the hit rate: one relevant answer is enough)
    reciprocal rank      1 / r
    average precision    1/R sum_i h(i) (h(1) + ... + h(i)) / i

Of the probabilities p of an image with the true class y and the confidence max p:

    ECE    sum over bins b of |b| / N |accuracy of b - mean confidence of b|, bins of equal width, each open below
           and closed above (Guo et al. 2017, *On Calibration of Modern Neural Networks*, section 2, equation 3)
    NLL    mean of -log p_y
    Brier  mean over images of sum_c (p_c - [c = y])^2: 0 to 2, for two classes twice scikit-learn's
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

CLASSIFICATION, CALIBRATION, RETRIEVAL = "classification", "calibration", "retrieval"
TEXTS = "text to finding"
# What asks, and what is relevant, of each retrieval task that runs are compared by.
TASKS = {"class": ("image", "class"), "finding": ("image", "finding"), TEXTS: ("text", "finding")}
N_BINS = 15  # as Guo et al.
# A probability too small for float32 is 0 there, and its logarithm would be infinite.
LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        key: in documents, and in the table `METRICS`.
        name: in headings.
        of: CLASSIFICATION, CALIBRATION or RETRIEVAL.
        items: (n,) values of items, of which the metric is the mean; bools make McNemar's test possible. Arguments by `of`:
            `(truth, predicted)`, (n,) class ids; `(probabilities, targets)`, (n, C) and (n,);
            `(first_rank, average_precision, n_relevant)` of the queries that have a relevant item, rank 0 for none.
        score: of classification, where `items` is None: (B, C, C) confusion matrices and whether the last class is "no answer"
            to (B,). Of calibration, where `items` gives (n, K): their (B, K) sums to (B,), which are divided by the items.
        higher_is_better: the direction.
        format: of a number in a table.
        headline: the tasks (CLASSIFICATION, CALIBRATION, or one of `TASKS`) for which it stands in the short tables of
            compare, ablate and ensemble; evaluate and report have all.
        reach: how many first answers it needs, of retrieval; None where it reads the whole ranking.
    """

    key: str
    name: str
    of: str
    items: Callable[..., np.ndarray] | None = None
    score: Callable[..., np.ndarray] | None = None
    higher_is_better: bool = True
    format: str = ".3f"
    headline: Collection[str] = (CLASSIFICATION, *TASKS)
    reach: int | None = None

    def column(self, task: str) -> str:
        """The heading in tables of several tasks: "accuracy", "image Recall@1, class"."""
        query, relevance = TASKS.get(task, ("", ""))
        return f"{query} {self.name}, {relevance}" if query else self.name


def metrics_of(of: str) -> list[Metric]:
    """The entries of one kind."""
    return [metric for metric in METRICS.values() if metric.of == of]


def headline_columns(tasks: Collection[str]) -> dict[str, tuple[str, Metric]]:
    """Heading -> task and metric, task by task, of a table that compares."""
    shown = [(task, m) for task in tasks for m in METRICS.values() if task in m.headline and m.of == (RETRIEVAL if task in TASKS else task)]
    return {metric.column(task): (task, metric) for task, metric in shown}


# ---------------------------------------------------------------- formulas


def precision_recall_f1(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three (..., C) from confusion matrices (..., C, C); 0 / 0 is 0."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    predicted, support = confusion.sum(axis=-2), confusion.sum(axis=-1)

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.divide(numerator, denominator, out=np.zeros_like(hits), where=denominator > 0)

    return ratio(hits, predicted), ratio(hits, support), ratio(2 * hits, predicted + support)


def macro(per_class: np.ndarray, confusion: np.ndarray, reject: bool = False) -> np.ndarray:
    """Mean of (..., C) over the classes that occur in truth or prediction; with `reject` without the last."""
    occurs = (confusion.sum(axis=-2) + confusion.sum(axis=-1)) > 0
    if reject:
        occurs[..., -1] = False
    return (per_class * occurs).sum(axis=-1) / occurs.sum(axis=-1)


def weighted(per_class: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Mean of (..., C) weighted by the support of each class."""
    support = confusion.sum(axis=-1)
    return (per_class * support).sum(axis=-1) / support.sum(axis=-1)


def confidence_bins(probabilities: np.ndarray, targets: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each image its confidence, whether the answer is right (0 or 1), and the bin of the confidence."""
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == targets).astype(float)
    return confidence, right, np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")


def confidence_gaps(probabilities: np.ndarray, targets: np.ndarray, bins: int = N_BINS) -> np.ndarray:
    """(n, bins): confidence less accuracy of each image, in the column of its bin."""
    confidence, right, place = confidence_bins(probabilities, targets, bins)
    gaps = np.zeros((len(targets), bins))
    gaps[np.arange(len(targets)), place] = confidence - right
    return gaps


def _log_loss(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum((probabilities * np.eye(probabilities.shape[1])[targets]).sum(axis=1), LEAST))


def _brier(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return ((probabilities - np.eye(probabilities.shape[1])[targets]) ** 2).sum(axis=1)


def _hit_within(k: int) -> Callable[..., np.ndarray]:
    return lambda first_rank, *_: (first_rank > 0) & (first_rank <= k)


# ---------------------------------------------------------------- the table

METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("accuracy", "accuracy", CLASSIFICATION, items=np.equal),
        Metric("macro F1", "macro F1", CLASSIFICATION, score=lambda m, reject: macro(precision_recall_f1(m)[2], m, reject)),
        Metric("weighted F1", "weighted F1", CLASSIFICATION, score=lambda m, _: weighted(precision_recall_f1(m)[2], m), headline=()),
        Metric("ECE", "ECE", CALIBRATION, confidence_gaps, lambda sums: np.abs(sums).sum(axis=1), higher_is_better=False, headline=()),
        Metric("NLL", "NLL", CALIBRATION, _log_loss, higher_is_better=False, headline=(CALIBRATION,)),
        Metric("Brier", "Brier", CALIBRATION, _brier, higher_is_better=False, headline=()),
        Metric("recall@1", "Recall@1", RETRIEVAL, _hit_within(1), reach=1),
        Metric("recall@5", "Recall@5", RETRIEVAL, _hit_within(5), reach=5, headline=()),
        Metric("recall@10", "Recall@10", RETRIEVAL, _hit_within(10), reach=10, headline=()),
        Metric("mrr", "MRR", RETRIEVAL, lambda first_rank, *_: (first_rank > 0) / np.maximum(first_rank, 1), headline=("class", "finding")),
        Metric("map", "mAP", RETRIEVAL, lambda _, average_precision, __: average_precision, headline=()),
    )
}
