"""`entrep synth`: a phantom dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def synth(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    images: Annotated[int, typer.Option(help="Training images.", min=7)] = 700,
    test_images: Annotated[int, typer.Option(help="Test images.", min=7)] = 210,
    seed: options.Seed = 0,
) -> Result:
    """Example: entrep synth phantom

    Draw a phantom ENT dataset in the contest's layout: training images with labels and texts, test
    queries of the three tracks, and their truth. It is a test bench, not medicine: good for trying
    the commands, worthless as evidence.
    """
    result = entrep.synth(folder, images=images, test_images=test_images, seed=seed)
    console.show(result)
    console.next_commands(f"entrep split{console.flags(data=folder)}")
    return result
