"""`entrep cache`: what is cached to be faster the next time."""

from __future__ import annotations

from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.results import Result


def list_() -> Result:
    """Example: entrep cache list

    What lies under runs/cache, by kind: all of it can be computed again.
    """
    result = entrep.cache_list()
    console.show(result)
    if any(kind.files for kind in result.kinds):
        console.next_commands("entrep cache clear", "entrep cache clear pixels --older-than 7")
    return result


def clear(
    kind: Annotated[str | None, typer.Argument(help="pixels, features, images, measures (default: all).", show_default=False)] = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", help="Only what was written so many days ago.", min=0, metavar="DAYS", show_default=False),
    ] = None,
) -> Result:
    """Example: entrep cache clear

    Free the disk of what can be computed again, and say how much that was. Safe beside a running
    training: what is being written, or was written in the last seconds, is left. Only files in
    runs/cache go, and no link is followed.
    """
    result = entrep.cache_clear(kind, older_than=older_than)
    console.show(result)
    if result.left:
        console.say(f"{result.left} files were left: they are being written, or were a moment ago.")
    for fault in result.faults:
        console.warn(f"not removed: {fault}")
    return result
