"""`inspect`: what a dataset holds, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.errors import UsageError
from entrep_cli.results import Result, Table
from entrep_cli.workspace import data_dir, open_run

if TYPE_CHECKING:
    import numpy as np

    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.inspection import Inspection
    from entrep_cli.data.remarks import Remark

DETAILS = 3  # shown under what must be fixed; the JSON has all


@dataclass(frozen=True)
class InspectionResult(Result):
    """What a dataset holds, and what is wrong with it.

    Attributes:
        inspection: all of it.
        private: names, texts and places are left out of tables and JSON.
        html: the page that was written.
    """

    inspection: Inspection
    private: bool = False
    html: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing must be fixed."""
        return self.inspection.ok

    def tables(self) -> list[Table]:
        seen, counts = self.inspection, self.inspection.counts
        layouts = [layout.split(" in ")[0] if self.private else layout for layout in seen.layouts]
        rows = [
            ("layouts", "; ".join(layouts) or "none known"),
            ("images", f"{counts['images']}, {counts['labelled']} labelled; test images {len(seen.pictures) - counts['images']}"),
            ("sizes", _first(counts["sizes"])),
            ("modes", _first(counts["modes"])),
            ("view", f"{counts['view']:.0%} of a picture, median" if seen.pictures else "-"),
        ]
        if groups := seen.groups:
            rows += [
                ("regions", _first(counts["regions"], 9)),
                ("groups", f"{groups['groups']}, {groups['several_images']} of several images, the largest of {groups['largest']}"),
                ("texts", ", ".join(f"{name} {n}" for name, n in counts["texts"].items() if n)),
            ]
        # Sentences stand in one column: further columns of a table are numbers, aligned right.
        title = "Dataset" if self.private else f"Dataset {seen.root}"
        tables = [Table(title, [""], [(f"{name:<9}{text}",) for name, text in rows])]
        if counts.get("classes"):
            tables.append(Table(f"Classes ({seen.taxonomy})", ["class", "images"], list(counts["classes"].items())))
        for title, severity in (("Must be fixed", "must fix"), ("To look at", "note")):
            lines = [line for remark in seen.remarks if remark.severity == severity for line in _lines(remark, self.private)]
            tables.append(Table(title, [""], [(line,) for line in lines or ["nothing"]]))
        return tables

    def to_dict(self) -> dict[str, Any]:
        return self.inspection.as_dict(self.private) | ({} if self.html is None else {"html": str(self.html)})


def inspect(
    *,
    data: Path | str | None = None,
    html: Path | str | None = None,
    labels: bool = False,
    run: str | None = None,
    private: bool = False,
    device: str = "auto",
) -> InspectionResult:
    """Look at a dataset before anything is trained on it; nothing is changed, and whatever is wrong becomes a remark.

    Args:
        html: write one self-contained page, with pictures.
        labels: rank suspected label errors, by predictions out of fold.
        run: compare by this run's embeddings too.
        private: leave out names, texts and pictures.

    Raises:
        UsageError: `html` is a folder. DataError, RunError: no dataset folder, no such run.
    """
    from entrep_cli.data.inspection import inspect_dataset
    from entrep_cli.submission.tracks import read_queries

    if html is not None and Path(html).is_dir():
        raise UsageError(f"--html {str(html)!r} is a folder.", hint="name a file, for example --html inspection.html")
    root = data_dir(None if data is None else Path(data))
    opened = open_run(run) if run is not None else None
    if labels and opened is not None:
        console.warn(
            f"run {opened.name} was trained on these labels: its vectors are not out of fold, and may have memorised the wrong ones; "
            "a logistic regression judges them, fitted without the image's group"
        )
    elif labels:
        console.say("Label errors are ranked by colours and edges of the pixels; --run NAME gives better features.")

    def embed(catalog: Catalog) -> tuple[np.ndarray, str]:
        import numpy as np

        from entrep_cli.retrieval.embeddings import embeddings_of
        from entrep_cli.retrieval.sets import TRAIN, catalog_items, open_model

        assert opened is not None
        vectors = embeddings_of(opened, TRAIN, catalog_items(catalog), open_model(opened, device)).vectors
        return np.asarray(vectors), f"embeddings of run {opened.name}"

    inspection = inspect_dataset(root, labels=labels, vectors=None if opened is None else embed, read_queries=read_queries)
    if html is None:
        return InspectionResult(inspection, private)
    from entrep_cli.reporting.inspect_page import write_page

    return InspectionResult(inspection, private, write_page(inspection, Path(html), private=private))


def _lines(remark: Remark, private: bool) -> list[str]:
    """A remark as lines of a table, with its hint; what must be fixed with its first details too."""
    lines = [f"{remark.kind}: {remark.what}"]
    if remark.severity == "must fix":
        details = () if private else remark.details
        lines += [f"  - {detail}" for detail in details[:DETAILS]]
        lines += [f"  - and {len(details) - DETAILS} more"] if len(details) > DETAILS else []
    return [*lines, *([f"  hint: {remark.hint}"] if remark.hint else [])]


def _first(table: dict[str, int], n: int = 4) -> str:
    rows = list(table.items())
    more = f", {len(rows) - n} others" if len(rows) > n else ""
    return ", ".join(f"{name} ({count})" for name, count in rows[:n]) + more
