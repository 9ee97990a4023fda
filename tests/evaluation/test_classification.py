import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from entrep_cli.errors import DataError
from entrep_cli.evaluation.classification import ClassificationScores
from entrep_cli.evaluation.intervals import bootstrap_many

NAMES = ["nose", "ear", "throat", "larynx"]


def test_against_values_worked_out_by_hand():
    # Truth 0 0 0 0 1 1 2, predicted 0 0 0 1 1 2 2; class 3 does not occur.
    scores = ClassificationScores([0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 2, 2], NAMES)
    assert scores.confusion.tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert scores.support.tolist() == [4, 2, 1, 0]
    assert scores.precision.tolist() == [3 / 3, 1 / 2, 1 / 2, 0]
    assert scores.recall.tolist() == [3 / 4, 1 / 2, 1 / 1, 0]
    assert scores.f1 == pytest.approx([6 / 7, 1 / 2, 2 / 3, 0])
    assert scores.accuracy.value == pytest.approx(5 / 7)
    # Macro over the three classes that occur.
    assert scores.macro_precision == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert scores.macro_recall == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert scores.macro_f1.value == pytest.approx((6 / 7 + 1 / 2 + 2 / 3) / 3)
    assert scores.weighted_precision == pytest.approx((4 * 1 + 2 / 2 + 1 / 2) / 7)
    assert scores.weighted_recall == pytest.approx(5 / 7)
    assert scores.weighted_f1.value == pytest.approx((4 * 6 / 7 + 2 / 2 + 2 / 3) / 7)


def test_a_class_only_ever_predicted_counts_in_the_macro_mean():
    scores = ClassificationScores([0, 0], [0, 1], NAMES)
    assert scores.macro_recall == pytest.approx((1 / 2 + 0) / 2)
    assert scores.weighted_recall == pytest.approx(1 / 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_against_scikit_learn(pairs):
    truth, predicted = np.array(pairs).T
    scores = ClassificationScores(truth, predicted, list("abcde"), resamples=2)
    assert np.array_equal(scores.confusion, confusion_matrix(truth, predicted, labels=range(5)))
    assert scores.accuracy.value == pytest.approx(accuracy_score(truth, predicted))
    per_class = precision_recall_fscore_support(truth, predicted, labels=range(5), zero_division=0)
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1, scores.support), per_class, strict=True):
        assert ours == pytest.approx(theirs)
    for average in ("macro", "weighted"):
        theirs = precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)[:3]
        names = (f"{average}_precision", f"{average}_recall")
        assert [getattr(scores, name) for name in names] == pytest.approx(theirs[:2])
        assert getattr(scores, f"{average}_f1").value == pytest.approx(theirs[2])


def test_intervals_against_scikit_learn_on_every_resample():
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=60)
    predicted = np.where(rng.random(60) < 0.7, truth, rng.integers(4, size=60))
    exams = rng.integers(15, size=60)
    scores = ClassificationScores(truth, predicted, NAMES, exams, resamples=40, seed=3)

    def naive(metric):
        def statistic(counts):
            return np.array([[metric(np.repeat(truth, row), np.repeat(predicted, row))] for row in counts])

        return bootstrap_many(statistic, 60, exams, resamples=40, seed=3)[0]

    expected = {
        "accuracy": naive(accuracy_score),
        "macro_f1": naive(lambda t, p: f1_score(t, p, average="macro", zero_division=0)),
        "weighted_f1": naive(lambda t, p: f1_score(t, p, average="weighted", zero_division=0)),
    }
    for name, interval in expected.items():
        ours = getattr(scores, name)
        assert (ours.value, ours.low, ours.high) == pytest.approx((interval.value, interval.low, interval.high)), name


def test_the_dictionary_is_json():
    scores = ClassificationScores([0, 1, 1], [0, 1, 0], NAMES, groups=["a", "b", "b"])
    read = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert read == scores.as_dict()
    assert read["n_items"] == 3
    assert read["per_class"][1] == {
        "class": "ear",
        "precision": 1,
        "recall": 0.5,
        "f1": 2 / 3,
        "support": 2,
    }
    assert read["accuracy"]["value"] == read["weighted"]["recall"] == 2 / 3
    assert read["macro"]["f1"]["low"] <= read["macro"]["f1"]["high"]


@pytest.mark.parametrize(
    ("truth", "predicted", "names", "groups", "message"),
    [
        ([0, 1], [0], NAMES, None, "differ in length"),
        ([], [], NAMES, None, "Nothing to score"),
        (
            [0, 4],
            [0, 0],
            NAMES,
            None,
            r"1 class ids of the truth are not among 0..3 \(item 1 has 4\)",
        ),
        ([0, 1], [0, -1], NAMES, None, "of the predictions"),
        ([0.0, 1.0], [0, 1], NAMES, None, "whole numbers"),
        (["nose"], ["ear"], NAMES, None, "whole numbers"),
        ([0, 1], [0, 1], ["a", "a"], None, "repeat"),
        ([0, 1], [0, 1], NAMES, ["exam"], "1 group keys"),
    ],
)
def test_what_cannot_be_scored_is_refused(truth, predicted, names, groups, message):
    with pytest.raises(DataError, match=message):
        ClassificationScores(truth, predicted, names, groups)
