"""`entrep ablate`: the components of a paper or of a recipe, one by one, in one table."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def ablate(
    paper: Annotated[
        str, typer.Argument(help="mlcf: Multi-Level CLS Token Fusion. mics: pre-training, fusion, shift. best: factors of a recipe.")
    ],
    data: options.Data = None,
    recipe: options.RecipeName = None,
    set_: options.Assignments = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    epochs: options.Epochs = None,
    pretrain_epochs: Annotated[
        int | None, typer.Option(help="At most this many epochs of each pre-training of mics.", min=1, show_default=False)
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", help="Only rows whose key (see --list) matches this, as 'all-*'; may be repeated.", show_default=False),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the rows, their keys and how many trainings they are, and stop.")] = False,
    seed: options.RecipeSeed = None,
    seeds: Annotated[int, typer.Option(help="Trainings a row; their scores are averaged.", min=1)] = 3,
    split: options.On = "test",
    fold: options.Fold = None,
    folds: Annotated[
        int | None, typer.Option(help="Leave out so many folds of the split in turn, each to be scored on.", min=1, show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder under runs/ablations (default: the paper's).", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew, and delete what was trained.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> Result:
    """Example: entrep ablate mlcf --recipe tiny --epochs 3 --seeds 1

    Train a recipe without its components, then with one after the other, each alike and with several
    seeds, and score all in one table. Completed trainings stay: the same command resumes an interrupted
    one, and more --seeds, --folds or --rows add to it. With --folds only training images are scored, each
    by models that left it out, so that no choice has used the test subset. What rows of mics start from
    is pre-trained once, for all of them.
    """
    settings: dict[str, Any] = {
        "recipe": recipe,
        "set": set_ or (),
        "backbone": backbone,
        "weights": weights,
        "epochs": epochs,
        "pretrain_epochs": pretrain_epochs,
        "rows": rows or (),
        "seed": seed,
        "seeds": seeds,
        "folds": folds,
    }
    if list_:
        plan = entrep.ablation_rows(paper, **settings)
        console.show(plan)
        return plan
    place: dict[str, Any] = {"name": name, "overwrite": overwrite, "device": device, "precision": precision}
    result = entrep.ablate(paper, data=data, split=split, fold=fold, **settings, **place)
    console.show(result)
    console.say(f"Written: {result.folder / 'table.json'}, {result.folder / 'table.csv'}")
    console.next_commands(f"entrep evaluate{console.flags(data=data, run=result.rows[-1].runs[0].reference)}")
    return result
