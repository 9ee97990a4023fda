"""The settings of `dinov2`, and its two ways to train: a head on cached features of a frozen backbone, or all of it."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from entrep_cli import console, processes
from entrep_cli.data.augment import AugmentSettings, MixSettings, augment, batch_views
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.methods.base import FitContext, Model
from entrep_cli.models.backbones import Backbone, BackboneSettings
from entrep_cli.models.device import autocast
from entrep_cli.models.heads import Head, HeadSettings
from entrep_cli.models.inputs import ImageSettings
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.training.gathering import gathered
from entrep_cli.training.loop import LoopResult, LoopSettings, epoch_generator, fit
from entrep_cli.training.objective import LossSettings, Objective
from entrep_cli.training.sampling import balanced_order, batches, class_weights
from entrep_cli.training.validation import MONITOR, batched, classification_scores
from entrep_cli.workspace import METRICS, Run, atomic_path, cache_dir, fingerprint, write_csv_atomic, write_json_atomic

_LOG = "training.json"  # what is worth knowing of a training beside its scores


class Dinov2Recipe(Recipe):
    """The settings of `dinov2`.

    Attributes:
        target: what is classified: `class`, `region`, or the classes of one region, by the region's name: a binary expert
            for a pair such as ear-left and ear-right (for three or more classes: ours).
        tune: `head` freezes the backbone; `full` fine-tunes it.
        freeze_norm: with `full`, leave the statistics of batch normalisation at their pretrained values.
        checkpointing: with `full`, recompute the activations of the backbone's blocks in the backward pass: less memory,
            a third more time, the same gradients.
        views: with `head`, augmented views of each training image whose features are cached, besides the image itself.
        embedding: what retrieval compares: the last hidden layer of the `head`, the features of the `backbone`, or `both`,
            concatenated as unit vectors.
        batch_size: images per batch outside of training (feature extraction, validation and inference).
        mixing: of training images, with `full`.
    """

    method: Literal["dinov2"] = "dinov2"
    target: str = "class"
    tune: Literal["head", "full"] = "head"
    freeze_norm: bool = True
    checkpointing: bool = False
    views: Annotated[int, Field(ge=0)] = 4
    embedding: Literal["backbone", "head", "both"] = "head"
    batch_size: Annotated[int, Field(ge=1)] = 32
    image: ImageSettings = ImageSettings()
    backbone: BackboneSettings = BackboneSettings()
    augment: AugmentSettings = AugmentSettings()
    mixing: MixSettings = MixSettings()
    loss: LossSettings = LossSettings()
    head: HeadSettings = HeadSettings()
    # Smoothed labels and averaged weights, for a validation part is small and a single epoch's score
    # swings; no balancing. Chosen on the training part of a real set, by grouped folds (README).
    train: LoopSettings = LoopSettings(label_smoothing=0.1, average=0.99, balance="none")


def fit_head(model: Model, backbone: Backbone, head: Head, origin: dict[str, Any], context: FitContext) -> LoopResult:
    """Train the head on features of several views; `train` and `val` have all classes, the target is worked out here.

    The precision is that of the backbone's features; the head learns in float32.
    """
    recipe, train, val, run, device = context.recipe, context.train, context.val, context.run, context.device
    if recipe.backbone.weights == "none":
        console.warn("The frozen backbone has random weights; its features mean little. --tune full trains it.")
    model.requires_grad_(False).eval()
    with processes.main_first():
        views = [_view_features(backbone, model.preprocess, train, view, origin, context) for view in range(recipe.views + 1)]
        val_features, val_classes = _view_features(backbone, model.preprocess, val, 0, origin, context)
    seen = _targets(train.taxonomy, recipe.target)[torch.stack([t for _, t in views])]  # (V + 1, N), -1 outside of the target
    own = seen[0] >= 0
    features = torch.stack([f[own] for f, _ in views])  # (V + 1, n, D)
    seen = seen[:, own]  # a flipped view has its mirror's class
    val_targets = _targets(val.taxonomy, recipe.target)[val_classes]
    val_features, val_targets = val_features[val_targets >= 0], val_targets[val_targets >= 0]

    @torch.no_grad()
    def validate(head: Head) -> dict[str, float]:
        return classification_scores(head(val_features.to(head.output.weight.device)).cpu(), val_targets)

    # Only the head is handed to the loop: it is all that is learned, checkpointed and averaged.
    head.requires_grad_(True)
    if recipe.head.kind == "logistic":
        fitted = _solve_head(head.cpu(), features, seen, validate, model.taxonomy, recipe, run)  # scikit-learn is at home there
        model.to(device)
        return fitted
    targets = seen[0]
    objective = _objective(targets, model.taxonomy, recipe, device)

    def losses(epoch: int) -> Iterator[torch.Tensor]:
        generator = epoch_generator(recipe.seed, epoch)
        order = _epoch_order(targets, recipe.train, generator)
        view = torch.randint(len(features), (len(order),), generator=generator)
        view = view.masked_fill(seen[view, order] < 0, 0)  # a flip that leaves the target: the image itself instead
        for pick, shown in zip(batches(order, recipe.train.batch_size), _cut_like(view, order, recipe)):
            yield objective(head(features[shown, pick].to(device)), seen[shown, pick].to(device))

    if recipe.train.balance == "oversample":
        _log_oversampling(run, targets, _epoch_order(targets, recipe.train, torch.Generator().manual_seed(recipe.seed)), model.taxonomy)
    return _run_loop(head, losses, validate, targets, replace(context, precision="fp32"))


def _solve_head(
    head: Head, features: torch.Tensor, seen: torch.Tensor, validate: Callable, taxonomy: Taxonomy, recipe: Dinov2Recipe, run: Run
) -> LoopResult:
    """Logistic regressions on all views, (V + 1, n, D) and (V + 1, n), one for each strength; the best of validation stays.

    Nothing is learned by epochs, so nothing is shown less often: to oversample is to repeat the images of
    every class until they are as many as those of the largest (ours).
    """
    started = time.monotonic()
    targets = seen[0]
    order = torch.arange(len(targets))
    if recipe.train.balance == "oversample":
        order = _repeated(targets)
        _log_oversampling(run, targets, order, taxonomy)
    rows, wanted = features[:, order].flatten(0, 1), seen[:, order].flatten()
    rows, wanted = rows[wanted >= 0], wanted[wanted >= 0]
    weights = class_weights(targets, len(taxonomy))[wanted] if recipe.train.balance == "weights" else None
    head.standardise(rows)
    with torch.no_grad():
        hidden = head.body(rows)
    tried: list[dict[str, float]] = []
    best: dict[str, torch.Tensor] = {}
    for c in sorted(recipe.head.c):
        if not head.solve(hidden, wanted, c, weights):
            console.say(f"The logistic regression with C = {c:g} has not converged.")
        tried.append({"c": c, **validate(head)})
        if max(tried, key=_better) is tried[-1]:
            best = {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best)
    chosen = max(tried, key=_better)
    console.say(f"Logistic regression: C = {chosen['c']:g} (of {len(tried)}, chosen on validation).")
    write_csv_atomic(run.path(METRICS), list(chosen), ([f"{row[key]:.6g}" for key in chosen] for row in tried))
    _log(run, c=chosen["c"])
    scores = {key: value for key, value in chosen.items() if key != "c"}
    return LoopResult(0, scores, 0, time.monotonic() - started, sum(p.numel() for p in head.parameters()))


def _better(scores: dict[str, float]) -> tuple[float, float]:
    return scores[MONITOR], -scores["val_loss"]


def fit_full(model: Model, context: FitContext) -> LoopResult:
    """Train backbone and head; `train` and `val` have the classes of the target alone."""
    recipe, train, val = context.recipe, context.train, context.val
    device, precision = context.device, context.precision
    with processes.main_first():
        pixels = load_pixels(train.paths, train.digests, model.preprocess, "training images")
        val_pixels = load_pixels(val.paths, val.digests, model.preprocess, "validation images")
    targets, val_targets = torch.from_numpy(train.targets), torch.from_numpy(val.targets)
    objective = _objective(targets, model.taxonomy, recipe, device)

    def losses(epoch: int) -> Iterator[torch.Tensor]:
        generator = epoch_generator(recipe.seed, epoch)
        for pick in batches(_epoch_order(targets, recipe.train, generator), recipe.train.batch_size):
            seen = torch.from_numpy(pixels[pick.numpy()])
            own = processes.portion(len(pick))
            seen, wanted, _ = batch_views(seen, targets[pick], model.taxonomy, recipe.augment, recipe.mixing, generator, own)
            with autocast(device, precision):
                logits = model(seen.to(device))
            logits = gathered(logits, len(pick))
            yield objective(logits, wanted.to(device))

    @torch.no_grad()
    def validate(model: nn.Module) -> dict[str, float]:
        logits = []
        for batch in batched(val_pixels, recipe.batch_size):
            with autocast(device, precision):
                logits.append(model(batch.to(device)).cpu())
        return classification_scores(torch.cat(logits), val_targets)

    if recipe.train.balance == "oversample":
        _log_oversampling(
            context.run, targets, _epoch_order(targets, recipe.train, torch.Generator().manual_seed(recipe.seed)), model.taxonomy
        )
    return _run_loop(model, losses, validate, targets, context)


def _run_loop(module: nn.Module, losses: Callable, validate: Callable, targets: torch.Tensor, context: FitContext) -> LoopResult:
    recipe = context.recipe
    steps = len(batches(torch.arange(len(targets)), recipe.train.batch_size))
    started = recipe.backbone.weights != "none"  # random weights learn as fast as the head
    pretrained = {name for name, _ in module.named_parameters() if started and name.startswith("backbone.")}
    how = {"monitor": MONITOR, "seed": recipe.seed, "resume": context.resume, "pretrained": pretrained, "precision": context.precision}
    return fit(module, losses, steps, validate, recipe.train, context.run, **how)


# ---------------------------------------------------------------- features, targets and the order of an epoch


def _targets(taxonomy: Taxonomy, target: str) -> torch.Tensor:
    """(C,) for each class index its index in the target's taxonomy, -1 where it is none of its classes."""
    names, own = taxonomy.names_in_target(target), taxonomy.of_target(target)
    return torch.tensor([own.index(names[name]) if name in names else -1 for name in taxonomy.names])


def _view_features(
    backbone: Backbone, preprocess: Preprocess, images: Catalog, view: int, origin: dict[str, Any], context: FitContext
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) features and (N,) class indices of view `view`: 0 is the image itself, the others augmented.

    Cached by pixels, backbone, weights, precision, preprocessing and augmentation. Of all classes of the images,
    whatever the model's target is, so that one pass of the backbone serves every target.
    """
    recipe, device, precision = context.recipe, context.device, context.precision
    targets = torch.from_numpy(images.targets)
    # Augmentation draws batch by batch, so the size of a batch is part of what a view is.
    view_key = (
        [view, recipe.seed, recipe.batch_size, recipe.augment.model_dump(), images.taxonomy.mirrors, images.targets.tolist()]
        if view
        else []
    )
    # Random weights come from the seed; how weights are called and where they stand changes nothing.
    identity = [recipe.backbone.name, recipe.backbone.pooling, recipe.backbone.options, origin.get("sha256", recipe.seed)]
    identity += [precision] if precision != "fp32" else []
    key = fingerprint([identity, preprocess.as_dict(), view_key, images.digests])
    path = cache_dir("features") / f"{key}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as cached:
                # A view's classes follow from what its key holds; of the images themselves only the pixels are in it.
                return torch.from_numpy(cached["features"]), torch.from_numpy(cached["targets"]) if view else targets
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
            path.unlink()  # damaged: computed again
    pixels = load_pixels(images.paths, images.digests, preprocess, "images")
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + view)
    features, shown = [], []
    title = f"Features of view {view}" if view else "Features"
    with console.progress(title, len(images)) as advance, torch.inference_mode(), autocast(device, precision):
        for batch, wanted in zip(batched(pixels, recipe.batch_size), targets.split(recipe.batch_size)):
            if view:
                batch, wanted, _ = augment(batch, wanted, images.taxonomy, recipe.augment, generator)
            features.append(backbone(batch.to(device)).float().cpu())
            shown.append(wanted)
            advance(len(batch))
    arrays = {"features": torch.cat(features).numpy(), "targets": torch.cat(shown).numpy()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["targets"])


def _epoch_order(targets: torch.Tensor, settings: LoopSettings, generator: torch.Generator) -> torch.Tensor:
    if settings.balance == "oversample":
        return balanced_order(targets, generator)
    return torch.randperm(len(targets), generator=generator)


def _repeated(targets: torch.Tensor) -> torch.Tensor:
    """Indices into (n,) targets in which every class comes as often as the largest, its images in turn."""
    members = [(targets == label).nonzero().flatten() for label in targets.unique()]
    largest = max(map(len, members))
    return torch.cat([own.repeat(-(-largest // len(own)))[:largest] for own in members])


def _log_oversampling(run: Run, targets: torch.Tensor, order: torch.Tensor, taxonomy: Taxonomy) -> None:
    """Say, and keep in the run, how many images a class has and how often they are shown: in an epoch, or in all."""
    has, shown = (torch.bincount(t, minlength=len(taxonomy)).tolist() for t in (targets, targets[order]))
    for name, n, m in zip(taxonomy.names, has, shown):
        console.say(f"oversampled: {n} images of class {name} shown as {m}")
    _log(run, oversampled={name: {"images": n, "shown": m} for name, n, m in zip(taxonomy.names, has, shown)})


def _log(run: Run, **more: Any) -> None:
    path = run.path(_LOG)
    write_json_atomic(path, {**(json.loads(path.read_text("utf-8")) if path.is_file() else {}), **more})


def _cut_like(view: torch.Tensor, order: torch.Tensor, recipe: Dinov2Recipe) -> Iterator[torch.Tensor]:
    sizes = [len(batch) for batch in batches(order, recipe.train.batch_size)]
    return iter(view.split(sizes))


def _objective(targets: torch.Tensor, taxonomy: Taxonomy, recipe: Dinov2Recipe, device: torch.device) -> Objective:
    weights = class_weights(targets, len(taxonomy)) if recipe.train.balance == "weights" else None
    return Objective(taxonomy, recipe.loss, recipe.train.label_smoothing, weights).to(device)
