"""Options of several commands, with one wording each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from entrep_cli import console
from entrep_cli.api.common import check_class_aware, say_catalog, say_selection  # noqa: F401 - until every verb has its function
from entrep_cli.console import flags  # noqa: F401
from entrep_cli.errors import UsageError
from entrep_cli.recipes.recipe import short_settings  # noqa: F401

if TYPE_CHECKING:
    from entrep_cli.recipes.recipe import Recipe

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="The dataset folder (default: $ENTREP_DATA, else that of the split, else data). It is only read.", show_default=False
    ),
]
RunName = Annotated[
    str | None,
    typer.Option("--run", help="A run by name or folder (default: the one that completed last).", show_default=False),
]
Device = Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda, cuda:1 or mps.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.", min=0)]
Groups = Annotated[
    str,
    typer.Option(
        help="Images that must stay together: auto (groups.csv, else the patient id in names, and near-duplicates), exam (the same by "
        r"exam, without near-duplicates), none, or as auto by a pattern whose one group is the patient in a file name, as '^(P\d+)_'.",
        metavar="RULE",
    ),
]
MaskGroups = Annotated[
    bool, typer.Option("--mask-groups/--no-mask-groups", help="Whether frames of the query's group are left out of the answers.")
]
_RECIPES = sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.toml"))
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help=f"A TOML file, or a built-in recipe: {', '.join(_RECIPES)}.", show_default=False)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting of the recipe, as in head.dropout=0.5; may be repeated.", show_default=False),
]
Backbone = Annotated[
    str | None, typer.Option(help="The model by name: of open_clip for clip-lora, of timm for dinov2 and mics.", show_default=False)
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Start from: a weights file, a name of `entrep weights list`, hub (those of the backbone, if cached), none (random), "
        "or a run (of dinov2, mics, prototype).",
        show_default=False,
    ),
]
Tune = Annotated[str | None, typer.Option(help="What is learned: head, lora or full.", show_default=False)]
LabelFraction = Annotated[
    float | None,
    typer.Option(
        "--label-fraction", help="Of mics: the fraction of each class's training images that keep their label.", show_default=False
    ),
]
Epochs = Annotated[int | None, typer.Option(help="At most this many epochs.", min=1, show_default=False)]
RecipeSeed = Annotated[int | None, typer.Option("--seed", help="Same seed, same run.", min=0, show_default=False)]
Precision = Annotated[str, typer.Option(help="Number format of the towers in training: auto (the fastest here), fp32, bf16 or fp16.")]
On = Annotated[str, typer.Option("--split", help="Scored on test or val of the split, or on queries: the test folder and its truth.")]
ScoredSplit = Annotated[str, typer.Option("--split", help="test or val; queries: the test folder and its truth.")]
OtherFold = Annotated[int | None, typer.Option("--fold", help="Another fold than that of the run.", min=0, show_default=False)]
Fold = Annotated[int | None, typer.Option(help="The fold held out for testing, of a split into folds.", min=0, show_default=False)]
Tta = Annotated[
    bool, typer.Option("--tta", help="Test-time augmentation: look at each image and its flip; sides stay right.", show_default=False)
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="How many answers to a query.")]
ClassMode = Literal["off", "hard", "soft"]
ClassAware = Annotated[
    ClassMode,
    typer.Option(
        "--class-aware",
        metavar="MODE",
        help="Rank by predicted classes too: off, hard (only images taken for the query's class) or soft (a weighted bonus).",
    ),
]
ClassWeight = Annotated[
    float | None,
    typer.Option(
        "--class-weight",
        min=0,
        help="How much the same class weighs beside the cosine in --class-aware soft (default: what validation chooses).",
        show_default=False,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="A sentence around each text query, as 'an endoscopic image showing {}' (default: the text alone).",
        show_default=False,
    ),
]
Refine = Annotated[
    str | None,
    typer.Option(
        "--refine",
        help="Refine image rankings by any of whiten,dba,qe,rerank, in this order, each as validation sets it.",
        show_default=False,
    ),
]


def show_recipe(recipe: Recipe, resume: bool) -> dict[str, Any]:
    """Print the complete settings of a training as TOML; the same for JSON.

    Raises:
        UsageError: together with `--resume`.
    """
    if resume:
        raise UsageError("--show-recipe trains nothing.", hint="the recipe of a run is its config.toml: --recipe runs/NAME/config.toml")
    from entrep_cli.recipes.recipe import recipe_toml

    console.plain(recipe_toml(recipe))
    return {"recipe": recipe.model_dump(mode="json", exclude_none=True)}
