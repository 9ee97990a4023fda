"""The table of metrics: what is written into it once is shown by evaluate, compare, ablate and the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from entrep_cli.evaluation.calibration import calibration_sample, reliability
from entrep_cli.evaluation.comparison import compare, permutation_test
from entrep_cli.evaluation.evaluate import Calibration, Evaluation
from entrep_cli.evaluation.metrics import (
    CALIBRATION,
    CLASSIFICATION,
    METRICS,
    RETRIEVAL,
    Metric,
    headline_columns,
    macro,
    precision_recall_f1,
)
from entrep_cli.evaluation.subsets import score_subset, totals_of
from entrep_cli.experiments.ablation_table import AblationTable, Row, Scored, row_scores
from entrep_cli.experiments.comparison import Comparison, Contender
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.reporting.page import report_page
from entrep_cli.reporting.report import content_of
from tests.made_scored import make_scored

TOYS = (
    Metric("balanced", "balanced accuracy", CLASSIFICATION, score=lambda m, reject: macro(precision_recall_f1(m)[1], m, reject)),
    Metric("mistakes", "mistakes", CLASSIFICATION, items=np.not_equal, higher_is_better=False, format=".1%"),
    Metric("recall@3", "Recall@3", RETRIEVAL, lambda first_rank, *_: (first_rank > 0) & (first_rank <= 3), reach=3),
    Metric("doubt", "doubt", CALIBRATION, lambda probabilities, _: 1 - probabilities.max(axis=1), higher_is_better=False),
)


@pytest.fixture
def toys(monkeypatch):
    for metric in TOYS:
        monkeypatch.setitem(METRICS, metric.key, metric)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return make_scored(tmp_path_factory.mktemp("metrics"), skill=0.4, findings=("spur", "wax"))


def evaluation(scored) -> Evaluation:
    probabilities, targets = scored.embeddings.probabilities, scored.images.targets
    measures = calibration_sample(probabilities, targets, scored.images.groups).intervals()
    scores = score_subset(scored.images, scored.embeddings)
    calibration = Calibration(measures, reliability(probabilities, targets))
    return Evaluation("toy", scored.stem, scored.images.taxonomy, scores, ("a note",), True, None, calibration)


def cells(result) -> list[str]:
    return [str(cell) for table in result.tables() for row in (table.columns, *table.rows) for cell in row]


def test_a_new_metric_is_one_entry(toys, scored):
    made = evaluation(scored)
    frame = made.frame().set_index(["metric", "relevance"])
    truth, predicted = made.scores.classification.truth, made.scores.classification.predicted
    assert frame.loc[("balanced", ""), "value"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    ranks = made.scores.retrieval["class"].first_rank
    assert frame.loc[("recall@3", "class"), "value"] == pytest.approx(((ranks > 0) & (ranks <= 3)).mean())
    assert frame.loc[("doubt", ""), "value"] == pytest.approx(1 - scored.embeddings.probabilities.max(axis=1).mean())
    assert (frame["low"] <= frame["high"]).all() and {"balanced", "mistakes", "recall@3", "doubt"} <= set(cells(made))
    document = made.to_dict()
    assert document["classification"]["balanced"]["value"] == frame.loc[("balanced", ""), "value"]
    assert {"recall@3"} <= set(document["retrieval"]["finding"]) and document["calibration"]["as_it_is"]["doubt"]
    assert str(made.scores.classification.intervals["mistakes"]).count("%") == 3

    weak, strong = (
        totals_of(made.scores),
        totals_of(score_subset(scored.images, replace(scored.embeddings, probabilities=np.eye(7)[truth]))),
    )
    columns = headline_columns((CLASSIFICATION, "class", "finding"))
    scores = {c: compare([weak[c], strong[c]], resamples=20, higher_is_better=m.higher_is_better) for c, (_, m) in columns.items()}
    assert scores["mistakes"].marks == scores["balanced accuracy"].marks == [(), (0,)] and scores["mistakes"].best == 1
    assert scores["mistakes"].differences[0].p_mcnemar == scores["accuracy"].differences[0].p_mcnemar
    compared = Comparison([Contender(scored.run, t, 1, 1.0) for t in (weak, strong)], "test", None, True, 0.05, None, scores, [])
    assert {"balanced accuracy", "mistakes", "Recall@3"} <= set(cells(compared))
    assert {"balanced accuracy", "image Recall@3, finding"} <= set(compared.to_dict()["comparisons"])

    perfect = score_subset(scored.images, replace(scored.embeddings, probabilities=np.eye(7)[truth]))
    rows = [Row("base", "base", []), Row("more", "more", [], against="base")]
    trainings = {"base": [Scored(scored.run, 0, made.scores)], "more": [Scored(scored.run, 0, perfect)]}
    table, chance = row_scores(rows, trainings)
    ablation = AblationTable("toy", scored.run.folder, "test", 28, 1, 0, 0, "f", Recipe(method="toy"), chance, table)
    assert {"balanced accuracy", "image Recall@3, class"} <= set(cells(ablation))
    assert ablation.rows[1].change["mistakes"].value == -made.scores.classification.intervals["mistakes"].value
    assert ablation.rows[1].p["mistakes"] == permutation_test(strong["mistakes"], weak["mistakes"])

    page = report_page(content_of(scored))
    assert all(metric.name in page for metric in TOYS)


def test_without_it_nothing_of_it_is_shown(scored):
    assert not {"balanced", "mistakes", "recall@3", "doubt"} & set(cells(evaluation(scored)))


def test_the_short_tables_have_the_headline_metrics():
    shown = headline_columns((CLASSIFICATION, CALIBRATION, "class", "text to finding"))
    assert list(shown) == ["accuracy", "macro F1", "NLL", "image Recall@1, class", "image MRR, class", "text Recall@1, finding"]
    assert [metric.key for metric in METRICS.values() if not metric.higher_is_better] == ["ECE", "NLL", "Brier"]
