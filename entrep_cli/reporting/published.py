"""The figures that papers report, from one data file, to be shown beside ours and never taken for ours."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

NOT_RUN = "not run"
_COUNTS = ("support",)


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper, as printed there.

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
        missing, found = "-" if ours else NOT_RUN, []
        for name, values in published.items():
            cells = [name]
            for column in self.columns:
                mine = (ours or {}).get(name, {}).get(column)
                cells += [_number(values.get(column), column), missing if mine is None and column in values else _number(mine, column)]
            found.append(tuple(cells))
        return found

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
    tables = tuple(
        PublishedTable(
            table["number"],
            table["title"],
            table["data"],
            table.get("relevance", ""),
            tuple(table["columns"]),
            {name: tuple(values) for name, values in table["rows"].items()},
            table.get("accuracy"),
        )
        for table in content["table"]
        if table["paper"] == paper
    )
    return Paper(about["title"], about["authors"], about["source"], tuple(about["notes"]), tables)


@cache
def _content() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text("utf-8"))


def _number(value: float | None, column: str) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if column in _COUNTS else f"{value:.4f}"
