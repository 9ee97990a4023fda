"""Labels that out-of-fold predictions contradict with confidence: a ranked list for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from entrep_cli.data.frames import pd
from entrep_cli.data.images import field_of_view
from entrep_cli.data.pixels import Measure
from entrep_cli.errors import DataError

FOLDS = 5
_SIDE, _CELLS, _BINS = 64, 8, 8


def label_suspects(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Images whose label is contradicted, the surest first.

    Confident learning (Northcutt, Jiang and Chuang, JAIR 70, 2021, section 3.1): the threshold of a class is
    the mean probability of it among the images labelled so. An image is a suspect where another class
    reaches its own threshold, and is more probable than the label. Ranked by the normalized margin
    p(label) - max p(other) (their section 3.2).

    Args:
        probabilities: (N, C) out of fold: of a model that was not trained on the image, nor on its group.
        labels: (N,) class indices.

    Returns:
        one row a suspect: row, label, suggested (class indices), p_label, p_suggested, margin.

    Raises:
        ValueError: the shapes do not fit.
    """
    p, labels = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    if p.ndim != 2 or labels.shape != p.shape[:1] or (len(labels) and not 0 <= labels.min() <= labels.max() < p.shape[1]):
        raise ValueError(f"labels of shape {labels.shape} do not fit probabilities of shape {p.shape}")
    rows = np.arange(len(p))
    # A class without images has no threshold that anything could reach.
    thresholds = np.array([p[labels == c, c].mean() if (labels == c).any() else np.inf for c in range(p.shape[1])])
    others = np.where(p >= thresholds, p, -1.0)
    others[rows, labels] = -1.0
    suggested = others.argmax(axis=1) if p.shape[1] else np.zeros(len(p), np.int64)
    best = others[rows, suggested]
    given = p[rows, labels]
    frame = pd.DataFrame(
        {"row": rows, "label": labels, "suggested": suggested, "p_label": given, "p_suggested": best, "margin": given - best}
    )
    return frame[best > given].sort_values(["margin", "row"], kind="stable", ignore_index=True)


def out_of_fold(features: np.ndarray, labels: np.ndarray, groups: Sequence[str], n_classes: int, *, seed: int = 0) -> np.ndarray:
    """(N, C) probabilities of each image by a logistic regression that saw none of its group.

    Five grouped, stratified folds, or as many as the smallest class has groups; a class of one group is
    never predicted for it. Features are standardised within the training folds.

    Args:
        features: (N, D).
        labels: (N,) class indices. groups: (N,).

    Raises:
        DataError: fewer than four groups, or a single class: nothing to learn from.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels, groups = np.asarray(labels), np.asarray(groups, dtype=str)
    per_class = [len(set(groups[labels == c])) for c in np.unique(labels)]
    if len(per_class) < 2 or len(set(groups)) < 4:
        raise DataError("Too few labelled images to judge labels by each other.", hint="leave out --labels")
    folds = int(np.clip(min(per_class), 2, FOLDS))
    probabilities = np.zeros((len(labels), n_classes))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(features, labels, groups)
    for train, test in split:
        classes = np.unique(labels[train])
        if len(classes) < 2:
            probabilities[np.ix_(test, classes)] = 1
            continue
        # Strong shrinkage: a model that is sure of everything makes suspects of its mistakes.
        strength = 2.0 / features.shape[1]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(features[train], labels[train])
        probabilities[np.ix_(test, classes)] = model.predict_proba(features[test])
    return probabilities


def pixel_features(image: Image.Image) -> np.ndarray:
    """(704,) float32: colour of 8 x 8 cells of the lit view, and where edges run in them (ours).

    Eight signed directions of the gradient, by strength, as in histograms of oriented gradients (Dalal and
    Triggs, CVPR 2005), square roots of each cell's fractions. What is left is not what is right.
    """
    times = max(1, min(image.size) // 200)
    small = image.reduce(times)
    view = small.crop(field_of_view(np.asarray(small))).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    grey = np.asarray(view.convert("L"), np.float32)
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    direction = ((np.arctan2(down, right) / (2 * np.pi) * _BINS).round() % _BINS).astype(int)
    step = _SIDE // _CELLS
    cell = (np.arange(_SIDE) // step)[:, None] * _CELLS + np.arange(_SIDE) // step
    edges = np.bincount((cell * _BINS + direction).ravel(), strength.ravel(), _CELLS * _CELLS * _BINS).reshape(-1, _BINS)
    edges = np.sqrt(edges / (edges.sum(axis=1, keepdims=True) + 16 * step))
    colour = np.asarray(view.resize((_CELLS, _CELLS), Image.Resampling.BOX), np.float32) / 255
    return np.concatenate([colour.ravel(), edges.ravel()]).astype(np.float32)


PIXEL_FEATURES = Measure("features-1", (_CELLS * _CELLS * (3 + _BINS),), "f4", pixel_features)
