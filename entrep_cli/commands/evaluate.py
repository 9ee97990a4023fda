"""`entrep evaluate`: scores with intervals, of a run on a split or of a submission."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def evaluate(
    data: options.Data = None,
    run: options.RunName = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val or test (the default); queries: the test folder and its truth.", show_default=False),
    ] = None,
    fold: options.OtherFold = None,
    mask_groups: Annotated[
        bool | None,
        typer.Option(
            "--mask-groups/--no-mask-groups",
            help="Whether frames of the query's group are left out of the answers (default: yes).",
            show_default=False,
        ),
    ] = None,
    submission: Annotated[Path | None, typer.Option(help="Score this zip or JSON instead.", show_default=False)] = None,
    truth: Annotated[Path | None, typer.Option(help="The truth file of the submission.", show_default=False)] = None,
    track: Annotated[int | None, typer.Option(help="The track of the submission.", show_default=False)] = None,
    class_aware: options.ClassAware = "off",
    class_weight: options.ClassWeight = None,
    refine: options.Refine = None,
    tta: options.Tta = False,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep evaluate --split test

    Score a run on a split: accuracy, F1, per class, Recall@1/5/10, MRR and mAP, with 95% bootstrap
    intervals over groups; and how far its probabilities can be trusted, as they are and at the
    temperature that validation chooses. With --class-aware or --refine, retrieval is scored without it and
    with it. Or score a submission:
    entrep evaluate --submission track1.zip --truth truth_cls.json --track 1
    """
    result = entrep.evaluate(
        data=data,
        run=run,
        split=split,
        fold=fold,
        mask_groups=mask_groups,
        submission=submission,
        truth=truth,
        track=track,
        class_aware=class_aware,
        class_weight=class_weight,
        refine=refine,
        tta=tta,
        device=device,
    )
    console.show(result)
    for note in result.notes:
        console.warn(note)
    console.say(f"Written: {', '.join(map(str, result.files))}")
    if result.run is not None:
        place = console.flags(run=result.run.reference, data=data)
        page = console.flags(split=split if split in ("val", "queries") else None, fold=fold)
        track = 1 if result.run.manifest["target"] == "class" else 2
        again = [] if submission else [f"entrep predict --track {track}{place}"]
        console.next_commands(f"entrep report{place}{page}", *again)
    return result
