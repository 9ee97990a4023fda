"""The factors of a fine-tuning, one at a time over one recipe of `clip-lora`.

    entrep split --folds 5
    entrep ablate best --recipe mobilenetv2-clip --weights FILE --folds 3 --seeds 1 --rows base --rows 'loss-*'

Every row is the recipe with one thing changed, and is compared with the recipe itself; what the recipe has
already is no row, and a component that it has, such as a metric loss, is taken away in another. The factors are
those that the teams of ENTRep 2025 name, and what papers on fine-tuning and on image retrieval offer.
"""

from __future__ import annotations

from typing import Any

from entrep_cli.data.augment import AugmentSettings
from entrep_cli.errors import UsageError
from entrep_cli.experiments.ablation import Row
from entrep_cli.methods.clip_lora import ClipLoraRecipe
from entrep_cli.models.clip import build_clip, read_architecture
from entrep_cli.models.towers import tower_of
from entrep_cli.recipes.recipe import build_recipe
from entrep_cli.retrieval.refinement import STEPS

_STILL = {name: 0 for name in AugmentSettings.model_fields if name != "naive_flip"}
_STRONG_COLOUR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.08}
_REFINED = {
    "whiten": "whitened embeddings",
    "dba": "database augmentation",
    "qe": "query expansion",
    "rerank": "k-reciprocal re-ranking",
}


def rows(recipe: ClipLoraRecipe) -> list[Row]:
    """base, the recipe as it is, and a row for every factor: of images, augmentation, mixing, losses, rates, averages, model, answers."""
    made = []
    for key, name, table in _factors(recipe):
        # A factor that the recipe has already would be the base again.
        if build_recipe(ClipLoraRecipe, recipe.model_dump(), table) != recipe:
            made.append(Row(key, name, [table], against="base"))
    refined = [Row(f"refine-{step}", _REFINED[step], [], against="base", refine=(step,)) for step in STEPS]
    every = Row("refine-all", "all four refinements", [], against="base", refine=STEPS)
    return [Row("base", "base", []), *made, *refined, every]


def _factors(recipe: ClipLoraRecipe) -> list[tuple[str, str, dict[str, Any]]]:
    """(key, name, table over the recipe)."""
    epochs, rate, batch_size = recipe.train.epochs, recipe.train.backbone_learning_rate, recipe.train.batch_size
    factors: list[tuple[str, str, dict[str, Any]]] = [
        ("fit-pad", "padded", {"image": {"fit": "pad"}}),
        ("fit-squash", "squashed to a square", {"image": {"fit": "squash"}}),
        ("fit-crop", "middle cut out", {"image": {"fit": "crop"}}),
        ("fit-circle", "cut to the lit circle", {"image": {"field_of_view": True}}),
        *((f"size-{side}", f"{side} pixels", {"image": {"size": side}}) for side in (128, 160, 192, 224)),
        ("augment-none", "no augmentation", {"augment": _STILL}),
        ("augment-no-flip", "no flips", {"augment": {"flip": 0.0}}),
        ("augment-naive-flip", "flips that keep the label", {"augment": {"naive_flip": True}}),
        ("augment-rotation-45", "rotation to 45 degrees", {"augment": {"rotation": 45.0}}),
        ("augment-rotation-180", "rotation to 180 degrees", {"augment": {"rotation": 180.0}}),
        ("augment-colour", "stronger colour jitter", {"augment": _STRONG_COLOUR}),
        ("augment-grey", "a fifth turned grey", {"augment": {"grey": 0.2}}),
        ("augment-crop", "crops of half the area", {"augment": {"crop": 0.5}}),
        ("augment-cutout", "half with a cutout", {"augment": {"cutout": 0.5}}),
        ("mix-none", "nothing mixed", {"mixing": {"mixup": 0.0, "mosaic": 0.0}}),
        ("mix-mixup", "a third mixed up in class", {"mixing": {"mixup": 0.33}}),
        ("mix-mosaic", "a fifth mosaics in class", {"mixing": {"mosaic": 0.2}}),
        ("mix-slerp", "embeddings mixed in class", {"mix": True}),
        ("sample-as-is", "classes as often as they are", {"train": {"balance": "none"}}),
        ("sample-half", "half the batch", {"train": {"batch_size": max(batch_size // 2, recipe.images_per_class)}}),
        ("loss-hard", "no smoothing", {"train": {"label_smoothing": 0.0}}),
        ("loss-smooth", "smoothing 0.1", {"train": {"label_smoothing": 0.1}}),
        ("loss-plain", "plain cross-entropy", {"loss": {"focal": 0.0, "region": 0.0}}),
        ("loss-focal", "focal, gamma 2", {"loss": {"focal": 2.0}}),
        ("loss-region", "region loss, 0.5", {"loss": {"region": 0.5}}),
        ("metric-none", "no loss on embeddings", {"metric": {"kind": "none"}}),
        ("metric-supcon", "supervised contrast, 0.5", {"metric": {"kind": "supcon", "weight": 0.5}}),
        ("metric-multi", "multi-similarity, 0.5", {"metric": {"kind": "multi-similarity", "weight": 0.5}}),
        # Its terms are 32 times a cosine, some ten times those of the others.
        ("metric-proxy", "proxy anchor, 0.05", {"metric": {"kind": "proxy-anchor", "weight": 0.05}}),
        ("rate-half", "half the backbone's rate", {"train": {"backbone_learning_rate": rate / 2}}),
        ("rate-double", "twice the backbone's rate", {"train": {"backbone_learning_rate": rate * 2}}),
        ("rate-one", "one rate for all stages", {"train": {"layer_decay": 1.0}}),
        ("rate-layers", "layer-wise rates, 0.7", {"train": {"layer_decay": 0.7}}),
        ("rate-layers-double", "twice the rate, layer-wise, 0.7", {"train": {"backbone_learning_rate": rate * 2, "layer_decay": 0.7}}),
        ("rate-at-once", "all from the first epoch", {"train": {"head_epochs": 0, "unfreeze_epochs": 0}}),
        ("rate-head-first", "head first", {"train": {"head_epochs": max(1, epochs // 5)}}),
        ("rate-unfreeze", "head first, unfrozen from the top", {"train": {"head_epochs": 1, "unfreeze_epochs": 1}}),
        ("rate-decay", "weight decay 0.05", {"train": {"weight_decay": 0.05}}),
        ("average-none", "no average of weights", {"train": {"average": 0.0}}),
        ("average-weights", "averaged weights", {"train": {"average": 0.98}}),
        ("average-last", "averaged weights, last epoch", {"train": {"average": 0.98, "keep": "last"}}),
        ("keep-best", "best epoch of validation", {"train": {"keep": "best"}}),
        ("keep-last", "last epoch", {"train": {"keep": "last"}}),
        ("epochs-double", "twice the epochs", {"train": {"epochs": 2 * epochs, "patience": 2 * recipe.train.patience}}),
        ("text-none", "no texts", {"texts": {"contrast": 0.0}}),
        ("text-contrast", "prompts, contrast", {"texts": {"contrast": 0.5}}),
    ]
    architecture = read_architecture(recipe.backbone.name)
    depth = tower_of(build_clip(architecture, recipe.image.size).visual).n_levels
    levels = list(range(depth // 2 + 1, depth + 1))
    factors += [
        ("model-last", "the last level alone", {"fusion": {"levels": [depth], "slerp": False}}),
        ("model-levels", "several levels", {"fusion": {"levels": levels, "slerp": False}}),
        ("model-slerp", "several levels, on the sphere", {"fusion": {"levels": levels, "slerp": True}}),
    ]
    try:
        build_clip(architecture, recipe.image.size, "gem")
    except UsageError:
        return factors  # not a tower whose pooling can be exchanged
    return [*factors, ("model-gem", "generalised mean", {"backbone": {"pooling": "gem"}})]
