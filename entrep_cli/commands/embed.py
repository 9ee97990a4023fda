"""`entrep embed`: images to unit vectors, written into the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def embed(
    data: options.Data = None,
    run: options.RunName = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option("--folder", help="A folder of images to embed too, without labels; may be repeated.", show_default=False),
    ] = None,
    device: options.Device = "auto",
    precision: Annotated[
        str,
        typer.Option(help="Number format of the towers: auto (as images embedded before, else a ViT's fastest), fp32, bf16, fp16."),
    ] = "auto",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images at a time (default: what fits, printed).", show_default=False)
    ] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Have torch compile the model first: minutes, worth it on a GPU.")] = False,
    engine: Annotated[
        Literal["torch", "onnx"], typer.Option(help="What computes: torch, or ONNX Runtime with what `entrep export` wrote.")
    ] = "torch",
) -> Result:
    """Example: entrep embed

    Embed the dataset's training images and its test folder with a run: float32 unit vectors and
    class probabilities, under runs/NAME/embeddings. What the run has already, of the same images and
    model, is not computed again. Where the time went is shown by stages.
    """
    result = entrep.embed(
        data=data,
        run=run,
        folder=folder or (),
        device=device,
        precision=precision,
        batch_size=batch_size,
        compile=compile_,
        engine=engine,
    )
    console.show(result)
    console.next_commands(f"entrep index{console.flags(run=result.run.reference)}")
    return result
