"""`entrep synth`: a phantom dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options


def synth(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    images: Annotated[int, typer.Option(help="Training images.", min=7)] = 700,
    test_images: Annotated[int, typer.Option(help="Test images.", min=7)] = 210,
    seed: options.Seed = 0,
) -> dict[str, Any]:
    """Example: entrep synth phantom

    Draw a phantom ENT dataset in the contest's layout: training images with labels and texts, test
    queries of the three tracks, and their truth. It is a test bench, not medicine: good for trying
    the commands, worthless as evidence.
    """
    from entrep_cli.data.phantom import write_phantom

    with console.progress("Drawing", images + test_images) as advance:
        drawn = 0

        def follow(done: int, total: int) -> None:
            nonlocal drawn
            advance(done - drawn)
            drawn = done

        summary = write_phantom(folder, images=images, test_images=test_images, seed=seed, progress=follow)
    train, test = summary["images"]["train"], summary["images"]["test"]
    console.table(
        f"Phantom dataset in {folder} ({summary['exams']['train']} training exams, {summary['exams']['test']} test exams)",
        ["class", "train", "test"],
        [*((name, train[name], test[name]) for name in train), ("total", sum(train.values()), sum(test.values()))],
    )
    console.next_commands(f"entrep split{options.flags(data=folder)}")
    return summary
