"""What the verbs of the Python API return: numbers with names, as tables, as a dictionary, as a frame, as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import pandas as pd


@runtime_checkable
class Bounded(Protocol):
    """A number with an interval, as `evaluation.intervals.Interval`; its `str` is what a table shows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: one line above it.
        columns: the headings.
        rows: cells, one a heading: text, numbers, or numbers with an interval.
        left: headings of further columns, beside the first, that hold text.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    left: Sequence[str] = field(default=())

    def frame(self) -> pd.DataFrame:
        """The table as a data frame; a number with an interval gets three columns: NAME, NAME low, NAME high."""
        import pandas as pd

        data: dict[str, list[object]] = {}
        for name, cells in zip(self.columns, zip(*self.rows) if self.rows else [()] * len(self.columns)):
            if any(isinstance(cell, Bounded) for cell in cells):
                numbers = [(c.value, c.low, c.high) if isinstance(c, Bounded) else (c, None, None) for c in cells]
                data |= {key: list(column) for key, column in zip((name, f"{name} low", f"{name} high"), zip(*numbers))}
            else:
                data[name] = list(cells)
        return pd.DataFrame(data)

    def to_latex(self) -> str:
        """The table as a LaTeX `tabular` in booktabs style, with the title as a comment; special characters are escaped."""
        cells = [[_latex(f"{cell:.3f}" if isinstance(cell, float) else str(cell)) for cell in row] for row in self.rows]
        aligned = "".join("l" if i == 0 or name in self.left else "r" for i, name in enumerate(self.columns))
        lines = [" & ".join(row) + r" \\" for row in ([_latex(name) for name in self.columns], *cells)]
        title = " ".join(self.title.split())
        body = "\n".join(lines[1:])
        return f"% {title}\n\\begin{{tabular}}{{{aligned}}}\n\\toprule\n{lines[0]}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


class Result:
    """Base of what a verb returns. A subclass says what its tables and its dictionary are.

    Attributes:
        notes: what a reader of the numbers must know.
    """

    notes: Sequence[str] = ()

    @property
    def files(self) -> list[Path]:
        """What was written."""
        return []

    def tables(self) -> list[Table]:
        """What the command shows, the main table first."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values; what `--json` prints."""
        raise NotImplementedError

    def frame(self) -> pd.DataFrame:
        """The main table as a data frame."""
        return self.tables()[0].frame()

    def to_latex(self) -> str:
        """The main table as LaTeX."""
        return self.tables()[0].to_latex()


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def _latex(text: str) -> str:
    return " ".join(text.translate(_LATEX).split())
