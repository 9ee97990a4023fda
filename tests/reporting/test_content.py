from __future__ import annotations

import numpy as np

from entrep_cli.reporting import content


def test_the_worst_mistakes_are_the_most_confident_wrong_answers():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95], [0.3, 0.7]])
    assert content.worst_mistakes(probabilities, np.array([0, 0, 0, 1, 0]), 2).tolist() == [1, 4]
    assert content.worst_mistakes(probabilities, probabilities.argmax(axis=1), 2).tolist() == []


def test_curves_of_one_measure_share_a_panel():
    rows = [{"epoch": "1", "train_loss": "2", "val_loss": "", "val_macro_f1": "0.5", "shift": "x"}, {"epoch": "2", "train_loss": "1"}]
    curves = content.learning_curves(rows, 2)
    assert curves.epochs == (1, 2) and curves.best_epoch == 2 and list(curves.panels) == ["Loss", "Macro F1"]
    assert curves.panels["Loss"]["train loss"] == (2.0, 1.0) and "val loss" not in curves.panels["Loss"]
    for nothing in ([], [{"loss": "1"}], [{"epoch": "1", "loss": "x"}], [{"epoch": "one", "loss": "1"}]):
        assert content.learning_curves(nothing, 0) is None
