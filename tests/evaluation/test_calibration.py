import json
import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from torch.nn import functional as F

from entrep_cli.errors import DataError
from entrep_cli.evaluation.calibration import calibration_sample, fit_temperature, reliability, with_temperature


def drawn(n=300, n_classes=4, sharpness=1.0, seed=0):
    """Logits (N, C), probabilities float32 and targets drawn from softmax(logits / sharpness): the right temperature is `sharpness`."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, n_classes, generator=generator) * 3
    targets = torch.multinomial((logits / sharpness).softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, logits.softmax(dim=1).numpy(), targets.numpy()


def test_the_measures_worked_out_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]])
    found = reliability(probabilities, np.array([0, 1, 1, 1]), bins=2)  # all in (0.5, 1]; three of four right
    assert found.counts.tolist() == [0, 4] and found.edges.tolist() == [0, 0.5, 1]
    assert math.isnan(found.accuracy[0]) and math.isnan(found.confidence[0])
    assert found.accuracy[1] == 0.75 and found.confidence[1] == pytest.approx((0.9 + 0.8 + 0.7 + 0.55) / 4)
    assert found.ece == pytest.approx(0.75 - 0.7375)
    assert found.nll == pytest.approx(-(math.log(0.9) + math.log(0.2) + math.log(0.7) + math.log(0.55)) / 4)
    assert found.brier == pytest.approx(2 * (0.1**2 + 0.8**2 + 0.3**2 + 0.45**2) / 4)
    finer = reliability(probabilities, np.array([0, 1, 1, 1]), bins=10)  # 0.8 and 0.9 close their bins
    assert finer.counts.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert finer.ece == pytest.approx((0.45 + 0.3 + 0.8 + 0.1) / 4)
    told = json.loads(json.dumps(finer.as_dict(), allow_nan=False))
    assert told["bins"][0] == {"up_to": 0.1, "confidence": None, "accuracy": None, "images": 0}
    assert told["ece"] == finer.ece and told["bins"][7]["accuracy"] == 0


def test_the_measures_agree_with_torch_and_scikit_learn():
    logits, probabilities, targets = drawn(n_classes=2)
    found = reliability(probabilities, targets, bins=10)
    assert found.nll == pytest.approx(float(F.cross_entropy(logits, torch.from_numpy(targets))), abs=1e-6)
    assert found.brier == pytest.approx(2 * brier_score_loss(targets, probabilities[:, 1]), abs=1e-6)
    right = probabilities.argmax(axis=1) == targets
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=10)
    there = found.counts > 0
    assert np.allclose(found.accuracy[there], accuracy) and np.allclose(found.confidence[there], confidence)


def test_a_resample_is_scored_as_its_images_would_be():
    _, probabilities, targets = drawn(n=40)
    sample = calibration_sample(probabilities, targets)
    counts = np.random.default_rng(0).integers(0, 3, (2, 40))
    for drawn_so, scores in zip(counts, sample.statistics(counts)):
        rows = np.repeat(np.arange(40), drawn_so)
        found = reliability(probabilities[rows], targets[rows])
        assert np.allclose(scores, [found.ece, found.nll, found.brier])
    assert set(sample.intervals(resamples=20)) == {"ECE", "NLL", "Brier"}


def test_a_temperature_on_probabilities_is_one_on_logits():
    logits, probabilities, targets = drawn()
    for t in (0.5, 1.0, 3.0):
        scaled = with_temperature(probabilities, t)
        assert np.allclose(scaled, (logits.double() / t).softmax(dim=1).numpy(), atol=1e-6)
        assert reliability(scaled, targets).nll == pytest.approx(float(F.cross_entropy(logits / t, torch.from_numpy(targets))), abs=1e-5)
    assert np.allclose(with_temperature(np.array([[1.0, 0.0]]), 2.0), [[1, 0]], atol=1e-12)
    with pytest.raises(ValueError, match="above 0"):
        with_temperature(probabilities, 0)


def test_a_temperature_never_changes_the_answer():
    probabilities = np.float32([[0.25, 0.25, 0.5], [0.4, 0.4, 0.2]])
    probabilities[0, 1] = np.nextafter(np.float32(0.5), np.float32(1))
    probabilities[1, 1] = np.nextafter(np.float32(0.4), np.float32(1))
    for t in (1e-3, 0.05, 1.0, 10.0):
        assert with_temperature(probabilities, t).argmax(axis=1).tolist() == [1, 1]


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_the_temperature_that_is_fitted_has_the_least_nll_and_brings_back_the_right_one(sharpness):
    _, probabilities, targets = drawn(n=4000, sharpness=sharpness)
    t = fit_temperature(probabilities, targets)
    assert t == pytest.approx(sharpness, rel=0.1)
    tried = np.geomspace(sharpness / 1.5, sharpness * 1.5, 80)
    best = tried[np.argmin([reliability(with_temperature(probabilities, one), targets).nll for one in tried])]
    assert t == pytest.approx(best, rel=0.03)  # a grid of steps of 1.0%, and Platt's targets
    before, after = reliability(probabilities, targets), reliability(with_temperature(probabilities, t), targets)
    assert after.nll <= before.nll and (sharpness == 1 or after.ece < before.ece)


def test_a_part_without_a_fault_makes_nothing_certain_and_one_class_alone_says_nothing():
    probabilities = np.full((60, 3), 0.15)
    targets = np.arange(60) % 3
    probabilities[np.arange(60), targets] = 0.7
    assert 0.2 < fit_temperature(probabilities, targets) < 1
    assert fit_temperature(probabilities, np.zeros(60, int)) == 1


@pytest.mark.parametrize(
    ("probabilities", "targets"),
    [
        (np.empty((0, 2)), np.empty(0, int)),
        ([[0.5, 0.5]], [0, 1]),
        ([[0.5, 0.2]], [0]),
        ([[float("nan"), 1.0]], [0]),
        ([[0.5, 0.5]], [2]),
        ([[0.5, 0.5]], [0.0]),
    ],
)
def test_what_are_no_probabilities_or_classes_is_refused(probabilities, targets):
    with pytest.raises(DataError):
        reliability(np.array(probabilities), np.array(targets))


def test_a_class_of_probability_zero_has_a_finite_loss():
    found = reliability(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, 0]))
    assert 40 < found.nll < 50 and found.brier == 1
