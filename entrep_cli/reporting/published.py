"""The figures that papers report, from one data file, and which of them stand beside a run.

A paper's numbers come from the authors' split and relevance, a board's from a private test; they are shown
beside ours, named so, and never taken for ours.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.evaluation.classification import ClassificationScores, report_cells
from entrep_cli.evaluation.scored import Scored
from entrep_cli.evaluation.subsets import TEXTS, SubsetScores
from entrep_cli.reporting.content import Table

NOT_RUN = "not run"
_COUNTS = ("support",)
_PAPER = "foregut"
# Of a run of this method the classes are those of this table; a hybrid has more, in its `paper/`.
_TABLE_OF = {"hybrid": 8, "prototype": 4, "dinov2": 6}
_BOARDS = {11: "track 1", 12: "track 2", 13: "track 3"}
_ROW_OF = {8: "hybrid", 4: "prototypes", 6: "baseline"}  # in Table 9
Cells = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper, as printed.

    Attributes:
        number: of the table in the paper.
        data, relevance: on what it was measured, and what counted as right; "" where that is no question.
        columns: names of the C scores.
        rows: name of a row -> C numbers, fractions or counts.
        accuracy: from the caption; None where it has none.
    """

    number: int
    title: str
    data: str
    relevance: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]
    accuracy: float | None = None

    def beside(self, ours: Mapping[str, Mapping[str, float]] | None) -> list[tuple[str, ...]]:
        """Rows of (name, then for each column the paper's and ours), with "accuracy" as a last row where the paper has one.

        Args:
            ours: row -> column -> value; "not run" stands everywhere where it is empty or None, "-" for single ones
                that are missing, as of a class that our data do not have.
        """
        published = {name: dict(zip(self.columns, values)) for name, values in self.rows.items()}
        if self.accuracy is not None:
            published["accuracy"] = {self.columns[0]: self.accuracy}
        missing, table = "-" if ours else NOT_RUN, []
        for name, values in published.items():
            cells = [name]
            for column in self.columns:
                mine = (ours or {}).get(name, {}).get(column)
                cells += [_number(values.get(column), column), missing if mine is None and column in values else _number(mine, column)]
            table.append(tuple(cells))
        return table

    @property
    def headings(self) -> list[str]:
        """Of `beside`."""
        return ["", *(f"{column}, {whose}" for column in self.columns for whose in ("paper", "ours"))]


@dataclass(frozen=True)
class Paper:
    """A paper's tables, and what a reader of them must know."""

    title: str
    authors: str
    source: str
    notes: tuple[str, ...]
    tables: tuple[PublishedTable, ...]

    def table(self, number: int) -> PublishedTable:
        return next(table for table in self.tables if table.number == number)


def published(paper: str) -> Paper:
    """The tables of a paper by its short name; KeyError for one that is not in the data file."""
    content = _content()
    about = content["paper"][paper]
    tables = []
    for table in content["table"]:
        if table["paper"] == paper:
            rows = {name: tuple(values) for name, values in table["rows"].items()}
            fields = {"relevance": "", **table, "columns": tuple(table["columns"]), "rows": rows}
            tables.append(PublishedTable(**{key: value for key, value in fields.items() if key != "paper"}))
    return Paper(about["title"], about["authors"], about["source"], tuple(about["notes"]), tuple(tables))


@cache
def _content() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text("utf-8"))


def _number(value: float | None, column: str) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if column in _COUNTS else f"{value:.4f}"


# ---------------------------------------------------------------- beside a run


def tables_beside(scored: Scored, scores: SubsetScores) -> tuple[Table, ...]:
    """The paper's tables that the run's method has a row in, then the challenge's boards; none for other classes than ENTRep's."""
    if scored.images.taxonomy.names != Taxonomy.entrep().names:
        return ()
    layouts = ", ".join(layout.split(" in ")[0] for layout in scored.run.manifest["data"]["layouts"])  # the folders are nobody's business
    where = f"{len(scored.images)} images of {layouts}, split {scored.split}"
    paper = published(_PAPER)
    ours = _ours(scored, scores)
    beside = [_beside(paper.table(number), cells, paper.title, where) for number, cells in sorted(ours.items())]
    return (*beside, *(_board(paper.table(number), scores, paper.title, where) for number in _BOARDS))


def _ours(scored: Scored, scores: SubsetScores) -> dict[int, Cells]:
    """Ours for the paper's tables: what `entrep reproduce` wrote for this split, else from the scores."""
    manifest = scored.run.manifest
    written = scored.run.path("paper", f"{scored.split}.json")
    if manifest["method"] == "hybrid" and written.is_file():
        document = json.loads(written.read_text("utf-8"))
        if document["images"] == len(scored.images):
            return {int(number): cells for number, cells in document["tables"].items()}
    number = _TABLE_OF.get(manifest["method"])
    if number is None:
        return {}
    s = scores.classification
    means = {"accuracy": s.accuracy.value, "macro F1": s.macro_f1.value, "weighted F1": s.weighted_f1.value}
    return {number: report_cells(s), 9: {_ROW_OF[number]: means}}


def _beside(table: PublishedTable, ours: Cells, paper: str, where: str) -> Table:
    relevance = f", relevance: {table.relevance}" if table.relevance else ""
    return Table(
        f"Table {table.number}: {table.title}",
        f"Paper: {paper}; {table.data}{relevance}. Ours: {where}. Other images and another split: no difference here is a finding.",
        tuple(table.headings),
        tuple(table.beside(ours)),
    )


def _board(table: PublishedTable, scores: SubsetScores, paper: str, where: str) -> Table:
    """A board with our numbers as a last row that is none of its entries."""
    ours = _on_board(table.number, scores)
    cells = [f"{ours[column]:.4f}" if column in ours else "-" for column in table.columns]
    rows = [(name, *(f"{value:.4f}" for value in values)) for name, values in table.rows.items()]
    counted = f" The board's relevance: {table.relevance}; ours: {_relevance(table.number)}." if table.relevance else ""
    return Table(
        f"{table.title}: best published results",
        f"As reported in {paper}, Table {table.number}; {table.data}. The last row is this run on {where}: not on the board."
        f"{counted} Other images: the numbers do not compare, they show what has been reached.",
        ("", *table.columns),
        (*rows, ("this run, on this split", *cells)),
        (len(rows),),
    )


def _on_board(number: int, scores: SubsetScores) -> dict[str, float]:
    if number == 11:
        s: ClassificationScores = scores.classification
        return {"accuracy": s.accuracy.value, "precision": s.weighted_precision, "recall": s.weighted_recall, "F1": s.weighted_f1.value}
    key = "class" if number == 12 else TEXTS
    if key not in scores.retrieval or not scores.retrieval[key].scored.any():
        return {}
    return {name: value.value for name, value in scores.retrieval[key].means.items()}


def _relevance(number: int) -> str:
    return "the same class, the query's group left out" if number == 12 else "images with the same finding"
