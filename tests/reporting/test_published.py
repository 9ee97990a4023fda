"""Published figures: copied right, as far as arithmetic can tell, and never shown as ours."""

from __future__ import annotations

import pytest

from entrep_cli.reporting.published import NOT_RUN, published

FOREGUT = published("foregut")
REPORTS = [t for t in FOREGUT.tables if "support" in t.columns]


def test_all_tables_of_results_are_there():
    assert [t.number for t in FOREGUT.tables] == list(range(4, 14))


@pytest.mark.parametrize("table", REPORTS, ids=lambda t: str(t.number))
def test_averages_follow_from_the_rows(table):
    """A slip in copying would show: the printed averages are those of the printed rows, to rounding."""
    classes = [values for name, values in table.rows.items() if "average" not in name]
    counts = [values[3] for values in classes]
    for column in range(3):
        scores = [values[column] for values in classes]
        assert table.rows["macro average"][column] == pytest.approx(sum(scores) / len(scores), abs=2e-4)
        weighted = sum(s * n for s, n in zip(scores, counts)) / sum(counts)
        assert table.rows["weighted average"][column] == pytest.approx(weighted, abs=2e-4)
    assert sum(counts) == 186 == table.rows["macro average"][3]
    # Accuracy is the recall weighted by support.
    assert table.accuracy == pytest.approx(table.rows["weighted average"][1], abs=1e-4)
    for precision, recall, f1, _ in classes:
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=2e-4)


def test_the_comparison_repeats_the_reports():
    nine = FOREGUT.table(9)
    for row, number in (("prototypes", 4), ("baseline", 6), ("hybrid", 8)):
        report = FOREGUT.table(number)
        assert nine.rows[row] == (report.accuracy, report.rows["macro average"][2], report.rows["weighted average"][2])


def test_ours_stand_beside_and_what_is_missing_was_not_run():
    table = FOREGUT.table(9)
    rows = table.beside({"hybrid": {"accuracy": 0.5}})
    assert len(table.headings) == len(rows[0]) == 7
    assert {r[0]: r[1:] for r in rows}["hybrid"] == ("0.9409", "0.5000", "0.9442", "-", "0.9410", "-")
    assert all(cell == NOT_RUN for row in table.beside(None) for cell in row[2::2])
    report = {r[0]: r[1:] for r in FOREGUT.table(4).beside({"accuracy": {"precision": 0.25}})}
    assert report["accuracy"] == ("0.5591", "0.2500", "", "", "", "", "", "")
    assert report["ear-left"][-2:] == ("18", "-")
