"""`entrep explain`: where a model looks in images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    run: options.RunName = None,
    text: Annotated[str | None, typer.Option(help="Where this finding is visible, by a text tower.", show_default=False)] = None,
    class_: Annotated[
        str | None, typer.Option("--class", help="What speaks for this class (default: the one predicted).", show_default=False)
    ] = None,
    by: Annotated[
        Literal["auto", "rollout", "gradient-rollout", "layer-cam", "hires-cam", "grad-cam"],
        typer.Option(help="auto: gradient-rollout for a ViT, else layer-cam. The rollouts follow the attention that ViTs have."),
    ] = "auto",
    save: Annotated[
        Path | None,
        typer.Option(help="FILE.png for all on one sheet, or a folder (default: RUN/explain, a file an image).", show_default=False),
    ] = None,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep explain phantom/test/imgs/030*.png

    Show where a model looks: every image as the model saw it, under the heat of what speaks for the class
    it predicts, for --class, or for a --text. Heat says what the answer rests on, not whether it is right.
    """
    result = entrep.explain(images, run=run, text=text, class_=class_, by=by, save=save, device=device)
    console.show(result)
    console.say(
        "Brightest tenth: the fraction of all heat, also of what is too weak to be drawn, on the hottest tenth of the picture; "
        "10% where it looks everywhere alike, 100% where it looks nowhere else."
    )
    return result
