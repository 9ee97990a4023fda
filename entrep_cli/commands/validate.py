"""`entrep validate`: is a submission what the contest takes?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def validate(
    file: Annotated[Path, typer.Argument(help="A zip, or the JSON in it.")],
    track: Annotated[int, typer.Option(help="1 classification, 2 image-to-image, 3 text-to-image.")],
    queries: Annotated[
        Path | None,
        typer.Option(help="The query file, or the folder that holds it (default: the dataset's test folder).", show_default=False),
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(help="What tracks 2 and 3 may answer, as for predict (default: any image that is known).", show_default=False),
    ] = None,
    data: options.Data = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Compare with what this run predicts: are ids or sides exchanged? Tracks 1 and 2.", show_default=False),
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Compare with this truth file, likewise.", show_default=False)] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Write a corrected copy, if every fix is certain.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The corrected copy (default: NAME-fixed.zip beside the file).", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="How many examples of each fault to show.", min=1)] = 5,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep validate runs/clip-lora/submissions/track1.zip --track 1

    Check anybody's submission and list every fault with its fix. Nothing is extracted or executed. With
    --run or --truth, also detect ids in alphabetical order, ids from 1 and exchanged sides: a warning, never
    a fault. With --fix, write a corrected copy where no fix is a guess; the file itself stays as it is.

    Exit code 1 where the file has a fault, and no corrected copy without one.
    """
    result = entrep.validate(
        file, track=track, queries=queries, gallery=gallery, data=data, run=run, truth=truth, fix=fix, out=out, device=device
    )
    console.show(result)
    for line in result.warnings(limit):
        console.warn(line)
    if result.correction.certain and not fix:
        more = console.flags(track=track, queries=queries, gallery=gallery, data=data)
        console.next_commands(f"entrep validate {shlex.quote(str(file))}{more} --fix")
    if result.upload:
        console.say(f"It can be uploaded as it is: {result.upload}")
    return result
