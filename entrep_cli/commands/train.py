"""`entrep train`: fit a method, leave a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrep_cli import console, processes
from entrep_cli.commands import options
from entrep_cli.errors import Interrupted, UsageError
from entrep_cli.methods import DEFAULT_METHOD, method_class, trainable
from entrep_cli.workspace import CHECKPOINT, CONFIG, Run, data_dir, new_run

if TYPE_CHECKING:
    from entrep_cli.experiments.folds import CrossValidation


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
    folds: Annotated[bool, typer.Option("--folds", help="Train on every fold of the split; the result is an ensemble of them.")] = False,
    name: Annotated[str | None, typer.Option(help="The run's name (default: the method's).", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")] = False,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print the effective recipe as TOML and stop.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> dict[str, Any]:
    """Example: entrep train --recipe tiny

    Train a method on the split and leave a run: a folder under runs/ with the model, its settings
    and its learning curve. The training part is learned from, the validation part chooses, the test
    part is not touched. With --folds, after `entrep split --folds 5`, there is a run for each fold, every
    image is predicted by the one that has not seen it, and all of them answer together.
    """
    from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe, recipe_toml

    if resume and overwrite:
        raise UsageError("--resume goes on with a run, --overwrite begins it anew.", hint="give one of them")
    if folds and fold is not None:
        raise UsageError("--folds trains on every fold, --fold on one.", hint="give one of them")
    started = processes.on_main(lambda: new_run(method or DEFAULT_METHOD, name, resume=True)) if resume else None
    folds = folds or bool(started and started.path("fold-0").is_dir())
    if folds and processes.size() > 1:
        raise UsageError("--folds trains in one process.", hint="train fold by fold with --fold, or leave out the launcher")
    config = started and (started.path("fold-0", CONFIG) if folds else started.path(CONFIG))
    if config and not recipe and config.is_file():
        recipe = str(config)
    base = read_recipe(recipe) if recipe else {}
    wanted = method or base.get("method") or DEFAULT_METHOD
    if base.get("method", wanted) != wanted:
        again = f" --resume{options.flags(name=started.name)}" if started else options.flags(recipe=recipe)
        raise UsageError(f"Recipe {recipe!r} is one of {base['method']}, not of {wanted}.", hint=f"entrep train {base['method']}{again}")
    short = options.short_settings(backbone=backbone, weights=weights, tune=tune, label_fraction=label_fraction, epochs=epochs, seed=seed)
    if wanted == "ensemble":
        raise UsageError("An ensemble is made of runs, and not trained.", hint="entrep ensemble RUN RUN")
    settings = build_recipe(method_class(wanted).Recipe, base, parse_assignments(set_ or []), short)
    if show_recipe:
        console.plain(recipe_toml(settings))
        return {"recipe": settings.model_dump(mode="json", exclude_none=True)}

    from entrep_cli.commands.options import say_catalog
    from entrep_cli.data.splits import read_catalog_and_split
    from entrep_cli.experiments.folds import check_folds, train_folds
    from entrep_cli.methods.runs import train_run

    with processes.main_first():
        catalog, split = read_catalog_and_split(data_dir(data))
    say_catalog(catalog)
    if folds:
        check_folds(split)
    else:
        split.images("train", fold)  # a fault in --fold must show before a folder is made
    run = started or processes.on_main(lambda: new_run(wanted, name, overwrite=overwrite))
    try:
        if folds:
            _, found = train_folds(catalog, split, settings, run, device=device, precision=precision, resume=resume)
            return _show_folds(run, found, data)
        model, manifest = train_run(catalog, split, settings, run, device=device, precision=precision, fold=fold, resume=resume)
    except BaseException as error:
        if processes.is_main():
            run.remove_if_empty()
        if isinstance(error, KeyboardInterrupt) and run.path(CHECKPOINT).is_file():
            again = f"`entrep train --resume{options.flags(name=run.name, data=data, fold=fold)}`"
            raise Interrupted(
                "Interrupted; the training is kept up to its last checkpoint.", where=run.folder, hint=f"go on with {again}"
            ) from None
        raise
    console.table(
        f"Run {run.name}: " + (f"best of validation in epoch {manifest['epoch']}" if manifest["epoch"] else "validation"),
        ["score", "value"],
        list(manifest["validation"].items()),
    )
    place = options.flags(data=data, run=run.name)
    # A coarse model or an expert has no classes to submit.
    tracks = [*([1] if model.target == "class" else []), 2, *([3] if model.reads_text else [])]
    commands = ["evaluate", "embed", *(f"predict --track {track}" for track in tracks)]
    console.next_commands(*(f"entrep {command}{place}" for command in commands))
    return {"run": run.name, "folder": str(run.folder), **manifest}


def _show_folds(run: Run, found: CrossValidation, data: Path | None) -> dict[str, Any]:
    """The cross-validation as a table."""
    from entrep_cli.experiments.folds import FILE, PREDICTIONS

    n_folds = len(next(iter(found.folds.values())))
    console.table(
        f"Run {run.name}: {n_folds} folds, {found.images} images, each predicted by the run that has not seen it",
        ["score", "mean of folds", "their deviation", "pooled, with 95% interval"],
        found.rows(),
    )
    console.say(f"Written: {run.path(FILE)}, {run.path(PREDICTIONS)}")
    place = options.flags(data=data, run=run.name)
    console.next_commands(f"entrep evaluate --split queries{place}", f"entrep predict --track 1{place}")
    return {"run": run.name, "folder": str(run.folder), **run.manifest}
