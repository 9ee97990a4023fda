"""Whether probabilities mean what they say, and the one number that corrects most of it.

    measured = reliability(probabilities, targets)
    print(measured.ece, measured.nll, measured.brier)
    t = fit_temperature(val_probabilities, val_targets)  # on validation, never on what is scored
    reliability(with_temperature(probabilities, t), targets)

A classifier is calibrated where a fraction p of all answers given with confidence p is right (Guo et al. 2017, *On
Calibration of Modern Neural Networks*). ECE, NLL and Brier score are defined in `metrics.py`. NLL and Brier are proper
scores: they also fall where the answers get better. The ECE is not, and it is biased upward on few images, in
resamples of them the more: its value may lie below its interval.

Temperature scaling (section 4.2) divides the logits by one T > 0. Probabilities are all that it needs:
p is proportional to exp(z), so softmax(z / T) is p^(1/T), normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from entrep_cli.errors import DataError
from entrep_cli.evaluation.intervals import Sample
from entrep_cli.evaluation.metrics import CALIBRATION, LEAST, METRICS, N_BINS, confidence_bins, confidence_gaps, metrics_of
from entrep_cli.retrieval.ranking import Keys


@dataclass(frozen=True, eq=False)
class Reliability:
    """How confidence and accuracy agree, bin by bin and in all.

    Attributes:
        edges: (B + 1,) of the bins, 0 to 1; a bin is open below and closed above.
        confidence: (B,) mean confidence of the images of each bin; NaN where there are none.
        accuracy: (B,) fraction of them that is right; NaN where there are none.
        counts: (B,) int64, images of each bin.
        ece, nll, brier: see `metrics.py`.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    ece: float
    nll: float
    brier: float

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; NaN is None."""
        bins = zip(self.edges[1:].tolist(), self.confidence.tolist(), self.accuracy.tolist(), self.counts.tolist())
        return {
            "ece": self.ece,
            "nll": self.nll,
            "brier": self.brier,
            "bins": [{"up_to": edge, "confidence": c if n else None, "accuracy": a if n else None, "images": n} for edge, c, a, n in bins],
        }


def reliability(probabilities: np.ndarray, targets: np.ndarray, bins: int = N_BINS) -> Reliability:
    """The reliability diagram of N answers and its three measures.

    Args:
        probabilities: (N, C).
        targets: (N,) class indices.
        bins: how many of equal width; 15 as in Guo et al.

    Raises:
        DataError: nothing to score, or rows that are no probabilities, or class indices that they do not have.
    """
    probabilities, targets = _checked(probabilities, targets)
    confidence, right, place = confidence_bins(probabilities, targets, bins)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (np.bincount(place, weights=column, minlength=bins) / counts for column in (confidence, right))
    measures = calibration_sample(probabilities, targets).values
    ece = float((METRICS["ECE"].score(np.ones((1, len(targets))) @ confidence_gaps(probabilities, targets, bins)) / len(targets))[0])
    return Reliability(np.linspace(0, 1, bins + 1), confidence, accuracy, counts, ece, measures["NLL"], measures["Brier"])


def calibration_sample(probabilities: np.ndarray, targets: np.ndarray, groups: Keys | None = None) -> Sample:
    """Every metric of calibration as a function of a resample, for intervals and paired differences.

    Args:
        probabilities, targets: as for `reliability`; groups: (N,) exam keys.
    """
    probabilities, targets = _checked(probabilities, targets)
    metrics = metrics_of(CALIBRATION)
    items = {m.key: m.items(probabilities, targets) for m in metrics}
    means = [m.key for m in metrics if not m.score]
    columns = np.stack([items[key] for key in means], axis=1)

    def statistics(counts: np.ndarray) -> np.ndarray:
        sums = dict(zip(means, (counts @ columns).T))
        sums |= {m.key: m.score(counts @ items[m.key]) for m in metrics if m.score}
        return np.stack([sums[m.key] for m in metrics], axis=1) / counts.sum(axis=1, keepdims=True)

    return Sample(tuple(m.key for m in metrics), len(targets), groups, statistics, tuple(m.format for m in metrics))


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The temperature at which (N, C) probabilities have the least NLL against (N,) class indices; 1 where all are of one class.

    By the bounded search of prototypes (`models.prototypes.fit_temperature`), with Platt's targets, so that images which
    are all answered correctly do not make every answer a certain one.
    """
    import torch

    from entrep_cli.models import prototypes

    probabilities, targets = _checked(probabilities, targets)
    temperature = prototypes.fit_temperature(torch.from_numpy(_logs(probabilities)), torch.from_numpy(targets))
    return 1.0 if temperature is None else temperature


def with_temperature(probabilities: np.ndarray, t: float) -> np.ndarray:
    """(N, C) float64 probabilities at temperature `t` > 0: above 1 less sure, below 1 surer; the order of the classes stays."""
    if not t > 0:
        raise ValueError(f"a temperature is above 0, not {t}")
    logs = _logs(np.asarray(probabilities, np.float64)) / t
    # In float64: in float32 two classes that differ could become equal, and the answer another.
    scaled = np.exp(logs - logs.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, LEAST))


def _checked(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets)
    if probabilities.ndim != 2 or len(probabilities) != len(targets) or not len(targets):
        raise DataError(f"Probabilities {probabilities.shape} and classes {targets.shape} do not fit each other, or are empty.")
    # NaN fails the comparison as it must; rows of bfloat16 miss 1 by a little more than those of float32.
    if not ((probabilities >= 0).all() and (np.abs(probabilities.sum(axis=1) - 1) < 0.02).all()):
        raise DataError("Some rows are not class probabilities.", hint="Make the embeddings again with `entrep embed`.")
    if targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() >= probabilities.shape[1]:
        raise DataError(f"Classes are whole numbers of 0 to {probabilities.shape[1] - 1}.")
    return probabilities, targets.astype(np.int64)
