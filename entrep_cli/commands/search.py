"""`entrep search`: the cases most like an image or a finding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def search(
    query: Annotated[str, typer.Argument(help="An image file; with a text tower, also a finding such as 'a spur on the septum'.")],
    run: options.RunName = None,
    top_k: options.TopK = 10,
    mask_groups: options.MaskGroups = False,
    class_aware: options.ClassAware = "off",
    class_weight: options.ClassWeight = None,
    template: options.Template = None,
    label: Annotated[
        str | None,
        typer.Option(help="The query's true class, to tell hits from misses (default: its label, if it is embedded).", show_default=False),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Draw query and answers on this sheet, a PNG (default: one in the run's searches).", show_default=False),
    ] = None,
    sheet: Annotated[bool, typer.Option("--sheet/--no-sheet", help="Whether a sheet is drawn.")] = True,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep search 'septal spur'

    Show the embedded images most like an image or a finding, best first, as a table and on a sheet. For an
    image, name its file: entrep search some/image.png. It and its exact copies are never among the answers.
    Where its class is known, hits and misses are marked. With --class-aware all embedded images are ranked
    exactly, without the index.
    """
    result = entrep.search(
        query,
        run=run,
        top_k=top_k,
        mask_groups=mask_groups,
        class_aware=class_aware,
        class_weight=class_weight,
        template=template,
        label=label,
        save=save,
        sheet=sheet,
        device=device,
    )
    console.show(result)
    if result.sheet:
        console.say(f"Sheet: {result.sheet}")
    return result
