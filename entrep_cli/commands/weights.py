"""`entrep weights`: pretrained weights, where they come from, and whether they are here."""

from __future__ import annotations

from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.results import Result


def list_() -> Result:
    """Example: entrep weights list

    Every pretrained weight that a recipe or a method can start from: what for, how large, under which
    licence, and whether it is on this machine. Asks no network.
    """
    result = entrep.weights_list()
    console.show(result)
    console.next_commands("entrep weights fetch NAME", "entrep weights check")
    return result


def check(
    name: Annotated[
        str | None, typer.Argument(help="As in `entrep weights list` (default: all of which a file is here).", show_default=False)
    ] = None,
    load: Annotated[bool, typer.Option("--load/--no-load", help="Also load them strictly into their model.")] = True,
) -> Result:
    """Example: entrep weights check

    Are weights complete? Every file is here, has its size and SHA-256 where those are known, and loads
    strictly into its model, without a network. Exit code 1 where a file is missing or damaged; weights
    of which nothing is here are no fault unless they are named.
    """
    result = entrep.weights_check(name, load=load)
    console.show(result)
    for entry in result.results:
        for fault in entry["faults"]:
            console.warn(f"{entry['name']}: {fault}")
    if result.damaged:
        console.next_commands(f"entrep weights fetch {' '.join(result.damaged)}")
    elif not result.results:
        console.next_commands("entrep weights list")
    return result


def fetch(names: Annotated[list[str], typer.Argument(help="As in `entrep weights list`.", metavar="NAME")]) -> Result:
    """Example: entrep weights fetch dinov2-s

    Download weights into the hub's cache, where training looks for them, and check their size and SHA-256
    where those are known. What is cached is not fetched again; an interrupted download goes on.
    Nothing else in entrep ever downloads anything.
    """
    result = entrep.weights_fetch(names)
    console.show(result)
    console.next_commands(*result.next_commands)
    return result
