"""The recipe of a hybrid, and its components: which there are, how each is trained, checked and read back."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import DataError, RunError, UsageError, WeightsError
from entrep_cli.methods.base import FitContext
from entrep_cli.methods.clip_lora import ClipLoraRecipe
from entrep_cli.methods.dinov2 import Dinov2, Dinov2Recipe, check_target
from entrep_cli.methods.prototype import PrototypeRecipe
from entrep_cli.methods.runs import component_of, load_model, train_component
from entrep_cli.models.inputs import ImageSettings
from entrep_cli.models.pretrained import weights_path
from entrep_cli.recipes.recipe import Recipe, Section, build_recipe, read_recipe
from entrep_cli.workspace import CONFIG, Run


class ComponentSettings(Section):
    """A component that is trained by a separate recipe.

    Attributes:
        recipe: name of a built-in recipe, or a TOML file; "" for none.
        settings: changes to that recipe, as in {train = {epochs = 6}}.
    """

    recipe: str = ""
    settings: dict[str, Any] = {}


class HybridRecipe(Recipe):
    """The settings of `hybrid`.

    Attributes:
        seed: seed of all random numbers, for every component; `prototype.seed` and `experts.seed` are not used.
        threshold: the prototypes' answer is final from this confidence on: 0.99 in the paper; `tune` chooses the threshold
            on validation; -1 accepts every answer, a value above 1 none.
        confidence: `similarity` is the cosine to the nearest prototype, as in the paper; `probability` is the calibrated
            probability of its class (ours).
        abstain: an image whose predicted class has a lower calibrated probability than this, at the stage that decided, is
            marked as out of distribution; 0 marks none (ours).
        towers: a clip-lora training that provides the towers of the prototypes; without a `recipe`, none.
        prototype: see `PrototypeRecipe`.
        baseline: how the baseline is trained; without a `recipe`, as `experts`.
        experts: how the region model and the experts are trained, and the baseline where it has no recipe.
            `backbone.weights = "baseline"` is the backbone of the baseline.
        expert_head: kind of head of the experts: section 4.3.3 of the paper says mlp, section 5.1.1 logistic.
        expert_balance: how the experts balance their classes, as in `train.balance`; the paper oversamples positives (5.1.1).
        batch_size: images per batch outside of training (validation and inference).
    """

    method: Literal["hybrid"] = "hybrid"
    threshold: float | Literal["tune"] = 0.99
    confidence: Literal["similarity", "probability"] = "similarity"
    abstain: Annotated[float, Field(ge=0, le=1)] = 0.0
    expert_balance: Literal["oversample", "weights", "none"] = "oversample"
    batch_size: Annotated[int, Field(ge=1)] = 32
    towers: ComponentSettings = ComponentSettings()
    prototype: PrototypeRecipe = PrototypeRecipe()
    baseline: ComponentSettings = ComponentSettings()
    experts: Dinov2Recipe = Dinov2Recipe()
    expert_head: Literal["mlp", "linear", "logistic"] = "mlp"  # after `experts`, with which it is checked

    @field_validator("experts")
    @classmethod
    def _targets_are_known(cls, experts: Dinov2Recipe) -> Dinov2Recipe:
        if experts.target != "class":
            raise ValueError("the hybrid sets the targets of its components itself; leave experts.target at class")
        return experts

    @field_validator("expert_head")
    @classmethod
    def _solved_on_fixed_features(cls, kind: str, others: ValidationInfo) -> str:
        if kind == "logistic" and "experts" in others.data and others.data["experts"].tune != "head":
            raise ValueError("a logistic head is solved on fixed features; set experts.tune=head")
        return kind


def component_recipes(recipe: HybridRecipe, taxonomy: Taxonomy, run: Run) -> dict[str, Recipe]:
    """The recipe of every part by its name, in the order of training.

    Raises:
        DataError: a taxonomy in which nothing is to be told apart, or with a region that no target can name.
        UsageError: recipes of other methods, or components that wait for each other.
    """
    several = [region for region in taxonomy.regions if sum(c.region == region for c in taxonomy.classes) > 1]
    if len(taxonomy) < 2:
        raise DataError(f"The only class is {taxonomy.names[0]!r}: nothing to tell apart.", hint="label images of others as well")
    if taken := {"class", "region"} & set(several):
        raise DataError(f"A region of several classes cannot be called {taken.pop()!r}.", hint="rename it in taxonomy.toml")
    seed = {"seed": recipe.seed}
    recipes: dict[str, Recipe] = {}
    prototype = recipe.prototype.model_copy(update=seed)
    if recipe.towers.recipe:
        recipes["towers"] = _own_recipe("towers", ClipLoraRecipe, recipe.towers, seed)
        backbone = prototype.backbone.model_copy(update={"weights": Run(run.path("towers")).reference})
        prototype = prototype.model_copy(update={"backbone": backbone})
    recipes["prototype"] = prototype
    fine = recipe.experts.model_copy(update=seed)
    waits = fine.backbone.weights == "baseline"
    if recipe.baseline.recipe:
        recipes["baseline"] = _own_recipe("baseline", Dinov2Recipe, recipe.baseline, {**seed, "target": "class"})
    elif waits:
        raise UsageError(
            'The experts start from the baseline (experts.backbone.weights = "baseline"), and it starts as they do.',
            hint="give the baseline a recipe: --set baseline.recipe=dinov2-tiny",
        )
    else:
        recipes["baseline"] = fine
    if waits:
        if (theirs := recipes["baseline"].backbone.name) != fine.backbone.name:
            raise UsageError(
                f"The experts start from the baseline, and it has the backbone {theirs!r}, not {fine.backbone.name!r}.",
                hint=f"--set experts.backbone.name={theirs}",
            )
        fine = fine.model_copy(update={"backbone": fine.backbone.model_copy(update={"weights": Run(run.path("baseline")).reference})})
    if len(taxonomy.regions) > 1:
        recipes["region"] = fine.model_copy(update={"target": "region"})
    binary = {
        "head": fine.head.model_copy(update={"kind": recipe.expert_head}),
        "train": fine.train.model_copy(update={"balance": recipe.expert_balance}),
    }
    for region in several:
        name = "expert-" + re.sub(r"[^\w.+-]+", "_", region)
        while name in recipes:
            name += "_"
        recipes[name] = fine.model_copy(update={**binary, "target": region})
    return recipes


def _own_recipe(name: str, kind: type[Recipe], settings: ComponentSettings, fixed: dict[str, Any]) -> Any:
    table = read_recipe(settings.recipe)
    method = kind.model_fields["method"].default
    if table.get("method") != method:
        what = f"{name}.recipe must be one of {method}, and {settings.recipe!r} is one of {table.get('method')}."
        raise UsageError(what, hint=f"--set {name}.recipe=NAME, of {method}")
    return build_recipe(kind, table, settings.settings, fixed)


def check_components(recipes: Mapping[str, Recipe], train: Catalog, val: Catalog) -> None:
    """What would stop a later part must show before the first is trained."""
    taxonomy = train.taxonomy
    experts = [name for name in recipes if name.startswith("expert-")]
    fine = [name for name in ("baseline", "region", *experts) if name in recipes]
    if not experts:
        console.say("No region has several classes: no experts are trained, and the coarse model decides alone.")
    if "region" not in recipes:
        console.say(f"All classes are of one region, {taxonomy.regions[0]!r}: no coarse model is trained, and its expert decides alone.")
    for name in fine:
        check_target(train, val, recipes[name])
    own = recipes["towers" if "towers" in recipes else "prototype"]
    weights = own.backbone.weights
    if "towers" in recipes or weights == "hub" or weights_path(weights).is_file():  # a run has its own image settings
        check_views(own.image, recipes["baseline"].image)
    check_views(*(recipes[name].image for name in fine))


def check_views(*views: Preprocess | ImageSettings) -> None:
    """Pixels of one size can be scaled to another; pixels padded to a square cannot become ones cut to it."""
    if len({(view.fit, view.field_of_view) for view in views}) > 1:
        raise UsageError(
            "Prototypes and DINOv2 models see images cut in different ways.",
            faults=[f"fit {view.fit}, field_of_view {str(view.field_of_view).lower()}" for view in views],
            hint="give towers, prototype, baseline and experts the same image.fit and image.field_of_view",
        )


def section_of(name: str, recipe: HybridRecipe) -> str:
    """Where the recipe of a hybrid holds the settings of a part."""
    if name == "towers" or name == "baseline" and recipe.baseline.recipe:
        return f"{name}.settings"
    return "prototype" if name == "prototype" else "experts"


def train_one(name: str, section: str, context: FitContext) -> tuple[Any, dict[str, Any]]:
    """A component, trained or complete already, and its manifest.

    A checkpoint file marks the whole as one to go on with, while there is anything to go on from.

    Args:
        section: see `section_of`, for the messages.
        context: of the whole, with the recipe of the component.
    """
    component = Run(context.run.path(name))
    complete = ": it is complete." if context.resume and component.complete else ""
    console.say("", f"Component {name} ({context.recipe.method}){complete}")
    try:
        with component_of(context.run, component):
            return train_component(component, context)
    except WeightsError as error:
        named = f"of a hybrid, --backbone is --set {section}.backbone.name=NAME, and --weights is --set {section}.backbone.weights=FILE"
        raise WeightsError(error.what, where=error.where, faults=error.faults, hint=f"{error.hint}; {named}") from error


def load_one(run: Run, name: str, hashes: Mapping[str, str], device: torch.device) -> Any:
    """A part as the hybrid was completed with; baseline and towers are only checked."""
    part = Run(run.path(name))
    try:
        there = part.manifest["files"]
        changed = [f"{file} is another one" for file, sha256 in hashes.items() if there.get(file) != sha256]
        if changed:
            raise RunError(f"Component {name!r} was trained anew.", faults=changed)
        return None if name in ("towers", "baseline") else load_model(part, str(device))
    except RunError as error:
        raise RunError(
            f"Component {name!r} of run {run.name!r} cannot be used: {error.what}",
            where=error.where or part.folder,
            faults=error.faults,
            hint="copy the whole run folder again from where it was trained, or "
            f"`entrep train --recipe {shlex.quote(str(run.path(CONFIG)))} --name {run.name} --overwrite`",
        ) from error


def share_backbones(models: Sequence[Dinov2]) -> None:
    """Let models whose backbones are the same have one between them: it is run once for all of their heads."""
    for i, model in enumerate(models):
        own = model.backbone.state_dict()
        for other in models[:i]:
            theirs = other.backbone.state_dict()
            alike = other.backbone.settings.model_dump(exclude={"weights"}) == model.backbone.settings.model_dump(exclude={"weights"})
            if alike and other.preprocess == model.preprocess and all(torch.equal(own[key], theirs[key]) for key in own):
                model.backbone = other.backbone
                break
