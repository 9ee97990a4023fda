"""`entrep pretrain`: encoders from images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


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
) -> Result | dict[str, Any]:
    """Example: entrep pretrain mics --recipe mics-tiny --epochs 3

    Pre-train both encoders on the training images of the dataset, and on all images of --images; no label is
    read. The validation and test subsets and the test folder stay out, unless --images names
    them. `entrep train mics --weights RUN` starts from the encoders. If images have labels, a linear probe
    compares the features with those before the pre-training.
    """
    settings: dict[str, Any] = {
        "recipe": recipe,
        "set": set_ or (),
        "backbone": backbone,
        "weights": weights,
        "epochs": epochs,
        "seed": seed,
    }
    if show_recipe:
        return options.show_recipe(entrep.pretraining_recipe(method, **settings), resume)
    place: dict[str, Any] = {"name": name, "resume": resume, "overwrite": overwrite, "device": device, "precision": precision}
    result = entrep.pretrain(method, data=data, images=images or (), fold=fold, **settings, **place)
    console.show(result)
    console.say("The two contrastive losses count the other images of a batch: held-out and training values are not comparable.")
    console.say(f"Written: {', '.join(map(str, result.files))}")
    here = console.flags(recipe=None if resume else recipe, data=data, weights=result.run.name, fold=fold)
    backbone_flags = console.flags(data=data, backbone=result.recipe.backbone.name, weights=result.run.name, fold=fold)
    console.next_commands(
        f"entrep train mics{here}",
        f"entrep train mics{here} --label-fraction 0.05",
        f"entrep train dinov2{backbone_flags}{''.join(console.flags(set=one) for one in result.backbone_assignments)}",
    )
    return result
