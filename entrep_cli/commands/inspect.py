"""`entrep inspect`: what a dataset holds, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import UsageError
from entrep_cli.workspace import Run, data_dir, open_run

if TYPE_CHECKING:
    import numpy as np

    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.inspection import Inspection
    from entrep_cli.data.remarks import Remark

LINES = 3  # of details shown under what must be corrected; all are in the JSON and, in the main, on the page


def inspect(
    data: options.Data = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page, with pictures.", show_default=False)] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Rank suspected label errors, by predictions out of fold.")] = False,
    run: Annotated[str | None, typer.Option("--run", help="Compare by this run's embeddings too.", show_default=False)] = None,
    private: Annotated[bool, typer.Option("--private", help="Leave out names, texts and pictures: to show it to others.")] = False,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep inspect --html inspection.html

    Look at a dataset before anything is trained on it: counts, sizes, unreadable files, dark or blurred
    images, exact, near and mirrored duplicates, groups across the split, training images among the test
    queries, texts that do not fit. Nothing is changed. Exit code 1 where something must be corrected.
    """
    from entrep_cli.data.inspection import inspect_dataset
    from entrep_cli.submission.tracks import read_queries

    if html is not None and html.is_dir():
        raise UsageError(f"--html {str(html)!r} is a folder.", hint="name a file, for example --html inspection.html")
    root = data_dir(data)
    opened = open_run(run) if run is not None else None
    if labels and opened is not None:
        console.warn(
            f"run {opened.name} has learned these labels: its vectors are not out of fold, and may know the wrong ones by heart; "
            "what judges them is a logistic regression fitted anew, without the image's own group"
        )
    elif labels:
        console.say("Label errors are told by colours and edges of the pixels; --run NAME gives better features.")
    vectors = None if opened is None else lambda catalog: _embedded(opened, catalog, device)
    found = inspect_dataset(root, labels=labels, vectors=vectors, read_queries=read_queries)
    _show(found, private)
    document = found.as_dict(private)
    if html is not None:
        from entrep_cli.reporting.inspect_page import write_page

        document["html"] = str(write_page(found, html, private=private))
        console.say(f"Page: {html}")
    if found.ok:
        console.next_commands(f"entrep split{options.flags(data=data)}")
    return document


def _embedded(run: Run, catalog: Catalog, device: str) -> tuple[np.ndarray, str]:
    """The run's vectors of the images of a catalog, kept in the run as by `entrep embed`."""
    from entrep_cli.retrieval.embeddings import embeddings_of
    from entrep_cli.retrieval.sets import TRAIN, catalog_items, open_model

    return embeddings_of(run, TRAIN, catalog_items(catalog), open_model(run, device)).vectors, f"embeddings of run {run.name}"


def _show(found: Inspection, private: bool) -> None:
    """One page in the terminal."""
    counts, groups = found.counts, found.groups
    layouts = [layout.split(" in ")[0] if private else layout for layout in found.layouts]
    rows = [
        ("layouts", "; ".join(layouts) or "none known"),
        ("images", f"{counts['images']}, {counts['labelled']} labelled; test images {len(found.pictures) - counts['images']}"),
        ("sizes", _first(counts["sizes"])),
        ("modes", _first(counts["modes"])),
        ("view", f"{counts['view']:.0%} of a picture, median" if found.pictures else "-"),
    ]
    if groups:
        several = f"{groups['several_images']} of several images, the largest of {groups['largest']}"
        rows += [
            ("regions", _first(counts["regions"], 9)),
            ("groups", f"{groups['groups']}, {several}"),
            ("texts", ", ".join(f"{name} {n}" for name, n in counts["texts"].items() if n)),
        ]
    if not private:
        console.say(*(f"Note: {note}." for note in found.notes))
    # Sentences stand in one column: further columns of a table are numbers, aligned right.
    console.table("Dataset" if private else f"Dataset {found.root}", [""], [(f"{name:<9}{text}",) for name, text in rows])
    if counts.get("classes"):
        console.table(f"Classes ({found.taxonomy})", ["class", "images"], list(counts["classes"].items()))
    for title, severity in (("Must be corrected", "must fix"), ("To look at", "note")):
        lines = [line for remark in found.remarks if remark.severity == severity for line in _lines(remark, private)]
        console.table(title, [""], [(line,) for line in lines or ["nothing"]])


def _lines(remark: Remark, private: bool) -> list[str]:
    """A remark for the terminal, with its hint; what must be corrected with its first details too."""
    lines = [f"{remark.kind}: {remark.what}"]
    if remark.severity == "must fix":
        details = () if private else remark.details
        lines += [f"  - {detail}" for detail in details[:LINES]]
        lines += [f"  - and {len(details) - LINES} more"] if len(details) > LINES else []
    return [*lines, *([f"  hint: {remark.hint}"] if remark.hint else [])]


def _first(table: dict[str, int], n: int = 4) -> str:
    rows = list(table.items())
    more = f", {len(rows) - n} others" if len(rows) > n else ""
    return ", ".join(f"{name} ({count})" for name, count in rows[:n]) + more
