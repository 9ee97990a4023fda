"""`entrep train`: fit a method, leave a run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.methods import DEFAULT_METHOD, trainable
from entrep_cli.results import Result


def train(
    method: Annotated[str | None, typer.Argument(help=f"{', '.join(trainable())} (default: {DEFAULT_METHOD}).", show_default=False)] = None,
    data: options.Data = None,
    recipe: options.RecipeName = None,
    set_: options.Assignments = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    tune: options.Tune = None,
    label_fraction: options.LabelFraction = None,
    epochs: options.Epochs = None,
    seed: options.RecipeSeed = None,
    fold: options.Fold = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Train a run for each of this many folds, all of the split; the result is an ensemble of them.", min=3, show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name (default: the method's).", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")] = False,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print the effective recipe as TOML and stop.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> Result | dict[str, Any]:
    """Example: entrep train --recipe tiny

    Train a method on the split and leave a run: a folder under runs/ with the model, its settings
    and its learning curve. The training subset is learned from, the validation subset chooses, the test
    subset is not read. With --folds 5, after `entrep split --folds 5`, each fold gets a run, every image is
    predicted by the run that left it out, and all of them answer together.
    """
    settings: dict[str, Any] = {
        "recipe": recipe,
        "set": set_ or (),
        "backbone": backbone,
        "weights": weights,
        "tune": tune,
        "label_fraction": label_fraction,
        "epochs": epochs,
        "seed": seed,
    }
    if show_recipe:
        return options.show_recipe(entrep.effective_recipe(method, **settings), resume)
    place: dict[str, Any] = {"name": name, "resume": resume, "overwrite": overwrite, "device": device, "precision": precision}
    result = entrep.train(method, data=data, fold=fold, folds=folds, **settings, **place)
    console.show(result)
    here = console.flags(data=data, run=result.run.name)
    if result.cross_validation is not None:
        console.say(f"Written: {', '.join(str(path) for path in result.files)}")
        console.next_commands(f"entrep evaluate --split queries{here}", f"entrep predict --track 1{here}")
    else:
        commands = ["evaluate", "embed", *(f"predict --track {track}" for track in result.tracks)]
        console.next_commands(*(f"entrep {command}{here}" for command in commands))
    return result
