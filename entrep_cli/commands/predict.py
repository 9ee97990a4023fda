"""`entrep predict`: a validated submission."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def predict(
    track: Annotated[int, typer.Option(help="1 classification, 2 image-to-image, 3 text-to-image.")],
    data: options.Data = None,
    run: options.RunName = None,
    queries: Annotated[
        Path | None, typer.Option(help="A folder of images, or a query file (default: the dataset's test folder).", show_default=False)
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(help="Where tracks 2 and 3 search: queries, test (the default), train, all, or a folder.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Tracks 2 and 3: how many answers to a query (default: 10).", show_default=False)
    ] = None,
    tta: options.Tta = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Track 1: scores at the temperature that the run's validation images choose.")
    ] = False,
    mask_groups: options.MaskGroups = False,
    class_aware: options.ClassAware = "off",
    class_weight: options.ClassWeight = None,
    refine: options.Refine = None,
    template: options.Template = None,
    out: Annotated[Path | None, typer.Option(help="The zip to write (default: in the run folder).", show_default=False)] = None,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep predict --track 1

    Answer the queries of a track and write the submission zip, with the ranked answers as CSV beside
    it. What is written is checked by the same code as `entrep validate`. Answers come from the
    images, never from label files.
    """
    result = entrep.predict(
        track=track,
        data=data,
        run=run,
        queries=queries,
        gallery=gallery,
        top_k=top_k,
        tta=tta,
        calibrate=calibrate,
        mask_groups=mask_groups,
        class_aware=class_aware,
        class_weight=class_weight,
        refine=refine,
        template=template,
        out=out,
        device=device,
    )
    console.show(result)
    more = console.flags(run=result.run.reference, queries=None if queries is None else result.answered.folder, data=data)
    score = console.flags(data=data, submission=result.submission, truth=result.truth, track=track)
    console.next_commands(
        *([f"entrep evaluate{score}"] if result.truth else []),
        *(f"entrep predict --track {n}{more}" for n in result.open_tracks),
        f"# then upload {shlex.quote(str(result.submission))}",
    )
    return result
