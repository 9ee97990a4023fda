"""`entrep ensemble`: several runs that answer together, as one run."""

from __future__ import annotations

from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def ensemble(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more, of one dataset, split and fold.")],
    name: Annotated[str | None, typer.Option(help="The ensemble's name (default: ensemble).", show_default=False)] = None,
    weights: Annotated[
        str, typer.Option(help="validation: what it finds best; equal; or a number for each run, as in 0.5,0.3,0.2.")
    ] = "validation",
    data: options.Data = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")] = False,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep ensemble clip-lora dinov2

    Let runs answer together, as one run that every command takes: the weighted mean of their calibrated
    probabilities, and a ranking by the weighted mean of their similarities. Weights and temperatures come
    from validation; the test subset is not read. The runs stay where they are and are still needed.
    """
    result = entrep.ensemble(runs, name=name, weights=weights, data=data, overwrite=overwrite, device=device)
    console.show(result)
    if result.built.gains:
        console.say("Weights and temperatures were chosen on these images; the test subset shows what they are worth.")
    here = console.flags(data=data, run=result.run.name)
    queries = "" if result.built.scores else " --split queries"
    console.next_commands(f"entrep evaluate{here}{queries}", f"entrep embed{here}", f"entrep predict --track 2{here}")
    return result
