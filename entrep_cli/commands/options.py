"""Options that several commands share, with one wording each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from entrep_cli import console
from entrep_cli.api.common import say_catalog  # noqa: F401 - until every verb has its function
from entrep_cli.console import flags  # noqa: F401
from entrep_cli.errors import UsageError
from entrep_cli.recipes.recipe import short_settings  # noqa: F401
from entrep_cli.workspace import Run

if TYPE_CHECKING:
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import Split
    from entrep_cli.methods import Model
    from entrep_cli.retrieval.class_aware import ClassRule
    from entrep_cli.retrieval.refinement import Tuned

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
    bool, typer.Option("--mask-groups/--no-mask-groups", help="Whether frames of the query's own group are left out of the answers.")
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
        help="Start from: a weights file, a name of `entrep weights list`, hub (the backbone's own, if cached), none (random), "
        "or a run (of dinov2, mics, prototype).",
        show_default=False,
    ),
]
Tune = Annotated[str | None, typer.Option(help="What is learned: head, lora or full.", show_default=False)]
LabelFraction = Annotated[
    float | None,
    typer.Option("--label-fraction", help="Of mics: the share of each class's training images that keep their label.", show_default=False),
]
Epochs = Annotated[int | None, typer.Option(help="At most this many epochs.", min=1, show_default=False)]
RecipeSeed = Annotated[int | None, typer.Option("--seed", help="Same seed, same run.", min=0, show_default=False)]
Precision = Annotated[str, typer.Option(help="Number format of the towers in training: auto (the fastest here), fp32, bf16 or fp16.")]
On = Annotated[str, typer.Option("--split", help="Scored on test or val of the split, or on queries: the test folder and its truth.")]
Fold = Annotated[int | None, typer.Option(help="The fold kept for testing, of a split into folds.", min=0, show_default=False)]
Tta = Annotated[
    bool, typer.Option("--tta", help="Test-time augmentation: look at each image and its flip; sides are kept right.", show_default=False)
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="How many answers to a query.")]
FEW_QUERIES = 30  # of which one changes Recall@1 by more than 3 points
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
        help="How much a shared class weighs beside the cosine in --class-aware soft (default: what validation chooses).",
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


def check_class_aware(mode: str, weight: float | None) -> None:
    """UsageError for a weight that nothing would use, or that is none; before anything heavy begins."""
    if weight is None:
        return
    if mode != "soft":
        raise UsageError(f"--class-weight goes with --class-aware soft, not with {mode}.", hint="--class-aware soft, or leave it out")
    if not math.isfinite(weight):
        raise UsageError(f"The class weight must be a number, not {weight}.", hint="--class-weight 0.05")


def class_rule(
    mode: str, weight: float | None, run: Run, model: Model, read: Callable[[], tuple[Catalog, Split]]
) -> tuple[ClassRule, dict[str, Any]]:
    """What `--class-aware` and `--class-weight` mean for a run, told aloud, and the same for JSON.

    Args:
        read: gives the catalog and the split of the run, for a weight that is not given and not yet tuned.
    """
    from entrep_cli.retrieval.class_aware import ClassRule
    from entrep_cli.retrieval.class_weight import tuned_weight

    if mode != "soft" or weight is not None:
        rule = ClassRule(mode, weight or 0.0)
        if mode == "soft":
            console.say(f"Class-aware: weight {weight:g} (as given).")
        return rule, {"mode": mode, "weight": weight, "validation": None}
    tuned = tuned_weight(run, model, read)
    (recall, mrr), (new_recall, new_mrr) = tuned.before, tuned.after
    better = f"Recall@1 by class {recall:.3f} -> {new_recall:.3f}, MRR {mrr:.3f} -> {new_mrr:.3f}"
    reason = better if tuned.weight else f"Recall@1 by class {recall:.3f}, and no weight does better: the cosine decides alone"
    console.say(f"Class-aware: weight {tuned.weight:g} (chosen on {tuned.queries} validation images: {reason}).")
    if tuned.weight and tuned.queries < FEW_QUERIES:
        console.warn(f"the class weight was chosen on {tuned.queries} validation images alone; --class-weight W gives another")
    return ClassRule(mode, tuned.weight), {"mode": mode, "weight": tuned.weight, "validation": tuned.as_dict()}


def refinement_of(
    text: str | None, run: Run, model: Model, read: Callable[[], tuple[Catalog, Split]], *, flip: bool = False
) -> Tuned | None:
    """What `--refine` means for a run, told aloud; None without it.

    Args:
        read: gives the catalog and the split of the run.
        flip: for test-time augmentation, whose vectors are others.
    """
    if text is None:
        return None
    from entrep_cli.retrieval.refinement_choice import parse_steps, tuned_refinement

    tuned = tuned_refinement(run, model, *read(), parse_steps(text), flip=flip)
    chosen = [f"{step} {setting}" for step, setting in tuned.refinement.as_dict().items() if setting is not None and step != "shortlist"]
    (recall, mrr), (new_recall, new_mrr) = tuned.before, tuned.after
    better = f"Recall@1 by class {recall:.3f} -> {new_recall:.3f}, MRR {mrr:.3f} -> {new_mrr:.3f}"
    reason = better if chosen else f"Recall@1 by class {recall:.3f}, and no setting does better: the cosine decides alone"
    console.say(f"Refined by {', '.join(chosen) or 'nothing'} (chosen on {tuned.queries} validation images: {reason}).")
    return tuned
