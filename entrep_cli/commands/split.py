"""`entrep split`: train, val and test, or folds."""

from __future__ import annotations

from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def split(
    data: options.Data = None,
    ratios: Annotated[str | None, typer.Option(help="Train, val and test; test may be 0 (default: 80/10/10).", show_default=False)] = None,
    folds: Annotated[int, typer.Option(help="Make this many folds instead (3 or more).", min=0)] = 0,
    seed: options.Seed = 0,
    groups: options.Groups = "auto",
    small_to_train: Annotated[
        bool, typer.Option("--small-to-train", help="Leave classes too small to divide in the training subset.")
    ] = False,
) -> Result:
    """Example: entrep split --ratios 80/10/10

    Divide the labelled images, stratified by class. Frames of one group (exam, patient, video) never
    stand in two subsets; with --groups auto nor do near-duplicates. Writes runs/split.csv; the same command
    gives the same bytes.
    """
    result = entrep.split(data=data, ratios=ratios, folds=folds, seed=seed, groups=groups, small_to_train=small_to_train)
    console.show(result)
    console.next_commands(f"entrep train{console.flags(data=data, fold=0 if folds else None)}")
    return result
