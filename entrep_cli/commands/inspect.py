"""`entrep inspect`: what a dataset holds, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def inspect(
    data: options.Data = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page, with pictures.", show_default=False)] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Rank suspected label errors, by predictions out of fold.")] = False,
    run: Annotated[str | None, typer.Option("--run", help="Compare by this run's embeddings too.", show_default=False)] = None,
    private: Annotated[bool, typer.Option("--private", help="Leave out names, texts and pictures: to show it to others.")] = False,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep inspect --html inspection.html

    Look at a dataset before anything is trained on it: counts, sizes, unreadable files, dark or blurred
    images, exact, near and mirrored duplicates, groups across the split, training images among the test
    queries, texts that do not fit. Nothing is changed. Exit code 1 where something must be fixed.
    """
    result = entrep.inspect(data=data, html=html, labels=labels, run=run, private=private, device=device)
    if not private:
        console.say(*(f"Note: {note}." for note in result.inspection.notes))
    console.show(result)
    if result.html is not None:
        console.say(f"Page: {result.html}")
    if result.ok:
        console.next_commands(f"entrep split{console.flags(data=data)}")
    return result
