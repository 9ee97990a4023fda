"""Whether probabilities mean what they say, and the one number that hints most of it.

    found = reliability(probabilities, targets)
    print(found.ece, found.nll, found.brier)
    t = fit_temperature(val_probabilities, val_targets)  # on validation, never on what is scored
    reliability(with_temperature(probabilities, t), targets)

A classifier is calibrated where of all answers given with confidence p a share p is right (Guo et al.
2017, *On Calibration of Modern Neural Networks*). Its three measures here, over N images with the
probabilities p, the true class y and the confidence max p:

    ECE    sum over bins b of |b| / N |accuracy of b - mean confidence of b|, bins of equal width, each open
           below and closed above (section 2, equation 3)
    NLL    mean of -log p_y
    Brier  mean over images of sum_c (p_c - [c = y])^2: 0 to 2, for two classes twice scikit-learn's

NLL and Brier are proper scores: they also fall where the answers get better. The ECE is not, and it is
biased upward on few images, in resamples of them the more: its value may lie below its interval.

Temperature scaling (section 4.2) divides the logits by one T > 0. Probabilities are all that it needs:
p is proportional to exp(z), so softmax(z / T) is p^(1/T), normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from entrep_cli.errors import DataError
from entrep_cli.evaluation.intervals import Sample
from entrep_cli.retrieval.ranking import Keys

MEASURES = ("ECE", "NLL", "Brier")
# What float32 holds of a probability too small for it is 0, and its logarithm would be infinite.
_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Reliability:
    """How confidence and accuracy agree, bin by bin and in all.

    Attributes:
        edges: (B + 1,) of the bins, 0 to 1; a bin is open below and closed above.
        confidence: (B,) mean confidence of the images of each bin; NaN where there is none.
        accuracy: (B,) share of them that is right; NaN where there is none.
        counts: (B,) int64, images of each bin.
        ece, nll, brier: see the module.
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


def reliability(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> Reliability:
    """The reliability diagram of N answers and its three measures.

    Args:
        probabilities: (N, C).
        targets: (N,) class indices.
        bins: how many of equal width; 15 as in Guo et al.

    Raises:
        DataError: nothing to score, or what are no probabilities or no classes of theirs.
    """
    probabilities, targets = _checked(probabilities, targets)
    sure, right, place = _confidences(probabilities, targets, bins)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (np.bincount(place, weights=column, minlength=bins) / counts for column in (sure, right))
    ece, nll, brier = calibration_sample(probabilities, targets, bins=bins).statistics(np.ones((1, len(targets)), np.int64))[0].tolist()
    return Reliability(np.linspace(0, 1, bins + 1), confidence, accuracy, counts, ece, nll, brier)


def calibration_sample(probabilities: np.ndarray, targets: np.ndarray, groups: Keys | None = None, *, bins: int = 15) -> Sample:
    """ECE, NLL and Brier score as functions of a resample, for intervals and paired differences.

    Args:
        probabilities, targets, bins: as for `reliability`; groups: (N,) exam keys.
    """
    probabilities, targets = _checked(probabilities, targets)
    sure, right, place = _confidences(probabilities, targets, bins)
    gaps = np.zeros((len(targets), bins))
    gaps[np.arange(len(targets)), place] = sure - right
    wanted = np.eye(probabilities.shape[1])[targets]
    own = (probabilities * wanted).sum(axis=1)
    losses = np.stack([-np.log(np.maximum(own, _LEAST)), ((probabilities - wanted) ** 2).sum(axis=1)], axis=1)

    def statistics(counts: np.ndarray) -> np.ndarray:
        n = counts.sum(axis=1, keepdims=True)
        return np.concatenate([np.abs(counts @ gaps).sum(axis=1, keepdims=True), counts @ losses], axis=1) / n

    return Sample(MEASURES, len(targets), groups, statistics)


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The temperature at which (N, C) probabilities have the least NLL against (N,) class indices; 1 where one class alone is seen.

    Found as for prototypes (`models.prototypes.fit_temperature`): by a bounded search, with Platt's targets,
    so that a part which is answered without a fault does not make every answer a certain one.
    """
    import torch

    from entrep_cli.models import prototypes

    probabilities, targets = _checked(probabilities, targets)
    found = prototypes.fit_temperature(torch.from_numpy(_logs(probabilities)), torch.from_numpy(targets))
    return 1.0 if found is None else found


def with_temperature(probabilities: np.ndarray, t: float) -> np.ndarray:
    """(N, C) float64 probabilities at temperature `t` > 0: above 1 less sure, below 1 surer; the order of the classes stays."""
    if not t > 0:
        raise ValueError(f"a temperature is above 0, not {t}")
    logs = _logs(np.asarray(probabilities, np.float64)) / t
    # In float64: in float32 two classes that differ could become equal, and the answer another.
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, _LEAST))


def _confidences(probabilities: np.ndarray, targets: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each image its confidence, whether it is right (0 or 1), and its bin."""
    sure = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == targets).astype(float)
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    return sure, right, np.searchsorted(inner, sure, side="left")


def _checked(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets)
    if probabilities.ndim != 2 or len(probabilities) != len(targets) or not len(targets):
        raise DataError(f"Probabilities {probabilities.shape} and classes {targets.shape} do not fit, or there are none.")
    # NaN fails the comparison as it must; rows of bfloat16 miss 1 by a little more than those of float32.
    if not ((probabilities >= 0).all() and (np.abs(probabilities.sum(axis=1) - 1) < 0.02).all()):
        raise DataError("Some rows are no class probabilities.", hint="Make the embeddings again with `entrep embed`.")
    if targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() >= probabilities.shape[1]:
        raise DataError(f"Classes are whole numbers of 0 to {probabilities.shape[1] - 1}.")
    return probabilities, targets.astype(np.int64)
