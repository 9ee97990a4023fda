"""`entrep train`: fit a method, leave a run."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from entrep_cli import console, processes
from entrep_cli.commands import options
from entrep_cli.errors import Interrupted, UsageError
from entrep_cli.methods import DEFAULT_METHOD, METHODS, method_class
from entrep_cli.workspace import CHECKPOINT, CONFIG, data_dir, new_run


def train(
    method: Annotated[Optional[str], typer.Argument(help=f"{', '.join(METHODS)} (default: {DEFAULT_METHOD}).", show_default=False)] = None,
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
    name: Annotated[Optional[str], typer.Option(help="The run's name (default: the method's).", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")] = False,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print the effective recipe as TOML and stop.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> dict[str, Any]:
    """Example: entrep train --recipe tiny

    Train a method on the split and leave a run: a folder under runs/ with the model, its settings
    and its learning curve. The training part is learned from, the validation part chooses, the test
    part is not touched.
    """
    from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe, recipe_toml

    if resume and overwrite:
        raise UsageError("--resume goes on with a run, --overwrite begins it anew.", mend="give one of them")
    begun = processes.on_main(lambda: new_run(method or DEFAULT_METHOD, name, resume=True)) if resume else None
    if begun and not recipe and begun.path(CONFIG).is_file():
        recipe = str(begun.path(CONFIG))
    base = read_recipe(recipe) if recipe else {}
    wanted = method or base.get("method") or DEFAULT_METHOD
    if base.get("method", wanted) != wanted:
        again = f" --resume{options.flags(name=begun.name)}" if begun else options.flags(recipe=recipe)
        raise UsageError(f"Recipe {recipe!r} is one of {base['method']}, not of {wanted}.", mend=f"entrep train {base['method']}{again}")
    short = options.short_settings(
        backbone=backbone, weights=weights, tune=tune, label_fraction=label_fraction, epochs=epochs, seed=seed
    )
    settings = build_recipe(method_class(wanted).Recipe, base, parse_assignments(set_ or []), short)
    if show_recipe:
        console.plain(recipe_toml(settings))
        return {"recipe": settings.model_dump(mode="json", exclude_none=True)}

    from entrep_cli.commands.split import say_catalog
    from entrep_cli.data.splits import read_catalog_and_split
    from entrep_cli.methods.runs import train_run

    with processes.main_first():
        catalog, split = read_catalog_and_split(data_dir(data))
    say_catalog(catalog)
    split.images("train", fold)  # a fault in --fold must show before a folder is made
    run = begun or processes.on_main(lambda: new_run(wanted, name, overwrite=overwrite))
    try:
        _, manifest = train_run(catalog, split, settings, run, device=device, precision=precision, fold=fold, resume=resume)
    except BaseException as error:
        if processes.is_main():
            run.remove_if_empty()
        if isinstance(error, KeyboardInterrupt) and run.path(CHECKPOINT).is_file():
            again = f"`entrep train --resume{options.flags(name=run.name, data=data, fold=fold)}`"
            raise Interrupted(
                "Interrupted; the training is kept up to its last checkpoint.", where=run.folder, mend=f"go on with {again}"
            ) from None
        raise
    console.table(
        f"Run {run.name}: " + (f"best of validation in epoch {manifest['epoch']}" if manifest["epoch"] else "validation"),
        ["score", "value"],
        list(manifest["validation"].items()),
    )
    place = options.flags(data=data, run=run.name)
    track = 1 if getattr(settings, "target", "class") == "class" else 2  # a coarse model or an expert has no classes to submit
    console.next_commands(*(f"entrep {command}{place}" for command in ("evaluate", "embed", f"predict --track {track}")))
    return {"run": run.name, "folder": str(run.folder), **manifest}
