from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageOps

from entrep_cli.data.label_errors import PIXEL_FEATURES, label_suspects, out_of_fold, pixel_features
from entrep_cli.errors import DataError
from tests.data.scenes import scene


def test_suspects_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
    # Thresholds: class 0 (0.9 + 0.8 + 0.3) / 3 = 0.667, class 1 (0.8 + 0.9) / 2 = 0.85; 0.7 does not reach 0.85.
    assert not len(label_suspects(p, np.array([0, 0, 1, 1, 0])))
    # Now class 1 is (0.2 + 0.9 + 0.7) / 3 = 0.6 and class 0 (0.9 + 0.2) / 2 = 0.55.
    frame = label_suspects(p, np.array([0, 1, 0, 1, 1]))
    assert frame["row"].tolist() == [1, 2] and frame["suggested"].tolist() == [0, 1]
    assert frame["margin"].tolist() == pytest.approx([-0.6, -0.6])


def test_labels_that_do_not_fit_are_a_bug():
    with pytest.raises(ValueError):
        label_suspects(np.zeros((3, 2)), np.array([0, 1, 2]))
    assert not len(label_suspects(np.zeros((0, 3)), np.zeros(0, int)))


def test_swapped_labels_come_first():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 400)
    features = rng.normal(size=(400, 12)) + 3 * np.eye(4, 12)[truth]
    labels = truth.copy()
    swapped = rng.choice(400, 20, replace=False)
    labels[swapped] = (labels[swapped] + rng.integers(1, 4, 20)) % 4
    groups = [str(i // 2) for i in range(400)]
    p = out_of_fold(features, labels, groups, 4)
    assert p.shape == (400, 4) and np.allclose(p.sum(axis=1), 1) and (p == out_of_fold(features, labels, groups, 4)).all()
    frame = label_suspects(p, labels)
    top = frame.head(20)
    assert np.isin(top["row"], swapped).mean() >= 0.9
    right = frame[np.isin(frame["row"], swapped)]
    assert (right["suggested"].to_numpy() == truth[right["row"]]).mean() >= 0.9


def test_no_image_is_judged_by_its_own_group():
    # One group a class, and features that tell the group: nothing can be learned of the left-out one.
    labels = np.repeat([0, 1], 30)
    groups = np.repeat([f"g{i}" for i in range(12)], 5)
    features = np.eye(12)[np.repeat(np.arange(12), 5)]
    p = out_of_fold(features, labels, groups, 2)
    assert np.abs(p - 0.5).max() < 0.2


def test_too_few_images_to_judge():
    for labels, groups in (([0, 0, 0, 0], "abcd"), ([0, 1, 0, 1], "aabc")):
        with pytest.raises(DataError, match="Too few"):
            out_of_fold(np.zeros((4, 2)), np.array(labels), list(groups), 2)


def test_pixel_features_know_the_sides():
    image = scene(0)
    one, two = pixel_features(image), pixel_features(ImageOps.mirror(image))
    assert one.shape == PIXEL_FEATURES.shape and np.isfinite(one).all() and np.abs(one - two).max() > 0.1
