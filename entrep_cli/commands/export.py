"""`entrep export`: a run's towers as ONNX."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def export(
    run: options.RunName = None,
    to: Annotated[Literal["onnx"], typer.Option("--to", help="The format.")] = "onnx",
) -> Result:
    """Example: entrep export

    Write the image tower of a run, and its text tower where it has one, as ONNX files that other
    programs can run, into runs/NAME/export; and say how far ONNX Runtime is from torch. Uint8 pixels go
    in, resized as the manifest says; `entrep embed --engine onnx` uses the file.
    """
    result = entrep.export(run=run, to=to)
    console.show(result)
    console.next_commands(f"entrep embed --engine onnx{console.flags(run=result.run.reference)}")
    return result
