"""`entrep reproduce`: a paper from one command, its tables beside ours."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def reproduce(
    paper: Annotated[str, typer.Argument(help="foregut: Fusion at the Foregut.")],
    data: options.Data = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Score this run, by name or folder, and train nothing.", show_default=False)
    ] = None,
    recipe: options.RecipeName = None,
    set_: options.Assignments = None,
    seed: options.RecipeSeed = None,
    split: options.On = "test",
    name: Annotated[
        str | None, typer.Option(help="The name of the run that is trained (default: the paper's).", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train it again.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> Result:
    """Example: entrep reproduce foregut --recipe foregut-tiny

    Do a paper's whole work on your data: split (80/10/10, where no split exists), train, score, draw,
    and print its tables beside ours, each with its data and what counted as relevant. A complete run is
    scored again and not trained again; an interrupted one is resumed. Where the pretrained weights are
    not on this machine, the tables say "not run".
    """
    place: dict[str, Any] = {"name": name, "overwrite": overwrite, "device": device, "precision": precision}
    result = entrep.reproduce(paper, data=data, run=run, recipe=recipe, set=set_ or (), seed=seed, split=split, **place)
    console.show(result)
    console.say(*(f"Note: {note}" for note in result.notes))
    if result.missing is not None:
        console.warn(f"Nothing was trained: {result.missing.what} {result.missing.where or ''}", f"hint: {result.missing.hint}")
        console.say("To see it all on phantom data, from scratch and without weights: entrep reproduce foregut --recipe foregut-tiny")
    elif result.run is not None:
        console.say(f"Written: {', '.join(map(str, result.files))}")
        here = console.flags(data=data, run=result.run.reference)
        console.next_commands(f"entrep predict --track 1{here}", f"entrep predict --track 2{here}")
    return result
