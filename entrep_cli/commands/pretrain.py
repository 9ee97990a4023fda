"""`entrep pretrain`: encoders from images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import Interrupted, UsageError
from entrep_cli.workspace import CHECKPOINT, CONFIG, data_dir, data_dir_exists, new_run

METHODS = ("mics",)


def pretrain(
    method: Annotated[str, typer.Argument(help="mics: two encoders, of white light and of narrow band.")],
    data: options.Data = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", help="A folder of images to learn from as well; may be repeated.", show_default=False),
    ] = None,
    recipe: options.RecipeName = None,
    set_: options.Assignments = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    epochs: options.Epochs = None,
    seed: options.RecipeSeed = None,
    fold: options.Fold = None,
    name: Annotated[str | None, typer.Option(help="The run's name (default: mics-pretrain).", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a pre-training that was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")] = False,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print the effective recipe as TOML and stop.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> dict[str, Any]:
    """Example: entrep pretrain mics --recipe mics-tiny --epochs 3

    Pre-train both encoders on the training images of the dataset, and on all images of --images; no label is
    read. The validation and test part of the split and the test folder stay out, unless --images names
    them. `entrep train mics --weights RUN` goes on with the encoders. Where there are labels, a linear probe
    shows what the features are worth, beside those before the pre-training.
    """
    from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe, recipe_toml

    if method not in METHODS:
        raise UsageError(f"There is no pre-training of {method!r}.", hint=f"choose one of: {', '.join(METHODS)}")
    if resume and overwrite:
        raise UsageError("--resume goes on with a run, --overwrite begins it anew.", hint="give one of them")

    from entrep_cli.methods.mics import MicsRecipe
    from entrep_cli.methods.mics_pretraining import PRETRAINING

    started = new_run(PRETRAINING, name, resume=True) if resume else None
    if started and not recipe and started.path(CONFIG).is_file():
        recipe = str(started.path(CONFIG))
    base = read_recipe(recipe or method)
    if base.get("method", method) not in (method, PRETRAINING):
        what = f"{recipe or started.name!r} is a recipe of {base['method']}, not of {method}."
        raise UsageError(what, hint="--recipe mics or mics-tiny; with --resume, --name names the run")
    short = options.short_settings(backbone=backbone, weights=weights, epochs=None, seed=seed)
    limit = {} if epochs is None else {"pretraining": {"train": {"epochs": epochs}}}
    whole = build_recipe(MicsRecipe, {**base, "method": method}, parse_assignments(set_ or []), short, limit)
    settings = whole.for_pretraining()
    if show_recipe:
        console.plain(recipe_toml(settings))
        return {"recipe": settings.model_dump(mode="json", exclude_none=True)}

    from entrep_cli.commands.options import say_catalog
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import read_catalog_and_split, split_path
    from entrep_cli.experiments.mics import RunPictures, loss_rows
    from entrep_cli.methods.mics_pretraining import gather, pretrain_run

    catalog = split = None
    if data or data_dir_exists() or not images:  # folders alone are enough
        root = data_dir(data)
        catalog, split = read_catalog_and_split(root) if split_path().is_file() else (Catalog.read(root), None)
        say_catalog(catalog)
    if fold is not None and split is None:
        raise UsageError("--fold needs a dataset that is split into folds.", hint="`entrep split --folds 5`")
    seen, about = gather(catalog, split, fold, images or ())
    run = started or new_run(PRETRAINING, name, overwrite=overwrite)
    try:
        pictures = RunPictures(run, settings)
        _, manifest = pretrain_run(seen, about, settings, run, device=device, precision=precision, resume=resume, pictures=pictures)
    except BaseException as error:
        run.remove_if_empty()
        if isinstance(error, KeyboardInterrupt) and run.path(CHECKPOINT).is_file():
            named = "".join(options.flags(images=folder) for folder in images or ())
            again = f"`entrep pretrain {method} --resume{options.flags(name=run.name, data=data, fold=fold)}{named}`"
            raise Interrupted(
                "Interrupted; the pre-training is kept up to its last checkpoint.", where=run.folder, hint=f"go on with {again}"
            ) from None
        raise
    title = f"Run {run.name}: losses; the weights of epoch {manifest['epoch']} are kept, where the held-out sum is least"
    console.table(title, ["loss", "first epoch", "last epoch", "kept"], loss_rows(run))
    console.say("The two contrastive losses count the other images of a batch: held out and in training they are not alike.")
    probe = _show_probe(run, catalog, split, fold, device)
    console.say(f"Written: {run.path('losses.png')}" + (f", {run.path('reconstructions')}" if settings.pretraining.pictures else ""))
    again = recipe if recipe and not started else None
    size, own = settings.image.size, [f"backbone.options={_inline(settings.backbone.options)}"] if settings.backbone.options else []
    dinov2 = "".join(options.flags(set=assignment) for assignment in [f"image.size={size}", *own])
    console.next_commands(
        f"entrep train mics{options.flags(recipe=again, data=data, weights=run.name, fold=fold)}",
        f"entrep train mics{options.flags(recipe=again, data=data, weights=run.name, fold=fold)} --label-fraction 0.05",
        f"entrep train dinov2{options.flags(data=data, backbone=settings.backbone.name, weights=run.name, fold=fold)}{dinov2}",
    )
    return {"run": run.name, "folder": str(run.folder), **manifest, "probe": probe}


def _show_probe(run, catalog, split, fold: int | None, device: str) -> dict[str, Any] | None:
    from entrep_cli.experiments.mics import linear_probe

    if catalog is None or split is None:
        console.say("No linear probe: it needs labels and a split.")
        return None
    found = linear_probe(run, catalog, split, fold, device=device)
    if found is None:
        console.say("No linear probe: the training part has labels of one class alone.")
        return None
    console.table(
        f"Linear probe: logistic regression on frozen features, {found.n_train} training images; "
        f"on {found.n_val} validation images, 95% intervals over groups",
        ["features", "accuracy", "macro F1"],
        [
            (found.before_name, *map(str, found.before.values())),
            ("after pre-training", *map(str, found.after.values())),
            ("difference, paired", *map(str, found.difference.values())),
        ],
    )
    return found.as_dict()


def _inline(options_: dict[str, Any]) -> str:
    """A table of options as TOML in one line."""
    import json

    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in options_.items()) + "}"
