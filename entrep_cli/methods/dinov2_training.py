"""The two ways to train `dinov2`: a head on features of a frozen backbone, which are worked out once, or all of it."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from entrep_cli import console, processes
from entrep_cli.data.augment import augment, batch_views
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.methods.base import FitContext
from entrep_cli.models.device import autocast
from entrep_cli.models.heads import Head
from entrep_cli.training.gathering import gathered
from entrep_cli.training.loop import LoopResult, LoopSettings, epoch_generator, fit
from entrep_cli.training.objective import Objective
from entrep_cli.training.sampling import balanced_order, batches, class_weights
from entrep_cli.training.validation import MONITOR, batched, classification_scores
from entrep_cli.workspace import METRICS, Run, atomic_path, cache_dir, fingerprint, write_csv_atomic, write_json_atomic

if TYPE_CHECKING:
    from entrep_cli.methods.dinov2 import Dinov2, Dinov2Recipe

_TOLD = "training.json"  # what is worth knowing of a training beside its scores


def fit_head(model: Dinov2, origin: dict[str, Any], context: FitContext) -> LoopResult:
    """Train the head on features of several views; `train` and `val` have all classes, the target is worked out here.

    The precision is that of the backbone's features; the head learns in float32.
    """
    recipe, train, val, run = model.recipe, context.train, context.val, context.run
    device, precision, resume = context.device, context.precision, context.resume
    if recipe.backbone.weights == "none":
        console.warn("The frozen backbone has random weights; its features mean little. --tune full trains it.")
    model.requires_grad_(False).eval()
    with processes.main_first():
        views = [_view_features(model, train, origin, view, device, precision) for view in range(recipe.views + 1)]
        val_features, val_classes = _view_features(model, val, origin, 0, device, precision)
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
    head = model.head.requires_grad_(True)
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
        _tell_oversampling(run, targets, _epoch_order(targets, recipe.train, torch.Generator().manual_seed(recipe.seed)), model.taxonomy)
    return _run_loop(head, losses, validate, targets, recipe, run, resume)


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
        _tell_oversampling(run, targets, order, taxonomy)
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
    _tell(run, c=chosen["c"])
    scores = {key: value for key, value in chosen.items() if key != "c"}
    return LoopResult(0, scores, 0, time.monotonic() - started, sum(p.numel() for p in head.parameters()))


def _better(scores: dict[str, float]) -> tuple[float, float]:
    return scores[MONITOR], -scores["val_loss"]


def fit_full(model: Dinov2, context: FitContext) -> LoopResult:
    """Train backbone and head; `train` and `val` have the classes of the target alone."""
    recipe, train, val, run = model.recipe, context.train, context.val, context.run
    device, precision, resume = context.device, context.precision, context.resume
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
        _tell_oversampling(run, targets, _epoch_order(targets, recipe.train, torch.Generator().manual_seed(recipe.seed)), model.taxonomy)
    return _run_loop(model, losses, validate, targets, recipe, run, resume, precision)


def _run_loop(
    module: nn.Module, losses: Callable, validate: Callable, targets, recipe: Dinov2Recipe, run: Run, resume: bool, precision: str = "fp32"
) -> LoopResult:
    steps = len(batches(torch.arange(len(targets)), recipe.train.batch_size))
    started = recipe.backbone.weights != "none"  # random weights learn as fast as the head
    pretrained = {name for name, _ in module.named_parameters() if started and name.startswith("backbone.")}
    how = {"monitor": MONITOR, "seed": recipe.seed, "resume": resume, "pretrained": pretrained, "precision": precision}
    return fit(module, losses, steps, validate, recipe.train, run, **how)


# ---------------------------------------------------------------- parts


def _targets(taxonomy: Taxonomy, target: str) -> torch.Tensor:
    """(C,) for each class index its index in the target's taxonomy, -1 where it is none of its classes."""
    names, own = taxonomy.names_in_target(target), taxonomy.of_target(target)
    return torch.tensor([own.index(names[name]) if name in names else -1 for name in taxonomy.names])


def _view_features(
    model: Dinov2, part: Catalog, origin: dict[str, Any], view: int, device: torch.device, precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) features and (N,) class indices of view `view`: 0 is the image itself, the others augmented.

    Kept on disk by pixels, backbone, weights, precision, preprocessing and augmentation. Of all classes of the part,
    whatever the model's target is, so that one pass of the backbone serves every target.
    """
    recipe = model.recipe
    targets = torch.from_numpy(part.targets)
    # Augmentation draws batch by batch, so the size of a batch is part of what a view is.
    view_key = (
        [view, recipe.seed, recipe.batch_size, recipe.augment.model_dump(), part.taxonomy.mirrors, part.targets.tolist()] if view else []
    )
    # Random weights come from the seed; how weights are called and where they stand changes nothing.
    identity = [recipe.backbone.name, recipe.backbone.pooling, recipe.backbone.options, origin.get("sha256", recipe.seed)]
    identity += [precision] if precision != "fp32" else []
    key = fingerprint([identity, model.preprocess.as_dict(), view_key, part.digests])
    path = cache_dir("features") / f"{key}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as kept:
                # A view's classes follow from what its key holds; of the images themselves only the pixels are in it.
                return torch.from_numpy(kept["features"]), torch.from_numpy(kept["targets"]) if view else targets
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
            path.unlink()  # damaged: computed again
    pixels = load_pixels(part.paths, part.digests, model.preprocess, "images")
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + view)
    features, shown = [], []
    title = f"Features of view {view}" if view else "Features"
    with console.progress(title, len(part)) as advance, torch.inference_mode(), autocast(device, precision):
        for batch, wanted in zip(batched(pixels, recipe.batch_size), targets.split(recipe.batch_size)):
            if view:
                batch, wanted, _ = augment(batch, wanted, part.taxonomy, recipe.augment, generator)
            features.append(model.backbone(batch.to(device)).float().cpu())
            shown.append(wanted)
            advance(len(batch))
    found = {"features": torch.cat(features).numpy(), "targets": torch.cat(shown).numpy()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **found)
    return torch.from_numpy(found["features"]), torch.from_numpy(found["targets"])


def _epoch_order(targets: torch.Tensor, settings: LoopSettings, generator: torch.Generator) -> torch.Tensor:
    if settings.balance == "oversample":
        return balanced_order(targets, generator)
    return torch.randperm(len(targets), generator=generator)


def _repeated(targets: torch.Tensor) -> torch.Tensor:
    """Indices into (n,) targets in which every class comes as often as the largest, its images in turn."""
    members = [(targets == label).nonzero().flatten() for label in targets.unique()]
    largest = max(map(len, members))
    return torch.cat([own.repeat(-(-largest // len(own)))[:largest] for own in members])


def _tell_oversampling(run: Run, targets: torch.Tensor, order: torch.Tensor, taxonomy: Taxonomy) -> None:
    """Say, and keep in the run, how many images a class has and how often they are shown: in an epoch, or in all."""
    has, shown = (torch.bincount(t, minlength=len(taxonomy)).tolist() for t in (targets, targets[order]))
    for name, n, m in zip(taxonomy.names, has, shown):
        console.say(f"oversampled: {n} images of class {name} shown as {m}")
    _tell(run, oversampled={name: {"images": n, "shown": m} for name, n, m in zip(taxonomy.names, has, shown)})


def _tell(run: Run, **more: Any) -> None:
    path = run.path(_TOLD)
    write_json_atomic(path, {**(json.loads(path.read_text("utf-8")) if path.is_file() else {}), **more})


def _cut_like(view: torch.Tensor, order: torch.Tensor, recipe: Dinov2Recipe) -> Iterator[torch.Tensor]:
    sizes = [len(batch) for batch in batches(order, recipe.train.batch_size)]
    return iter(view.split(sizes))


def _objective(targets: torch.Tensor, taxonomy: Taxonomy, recipe: Dinov2Recipe, device: torch.device) -> Objective:
    weights = class_weights(targets, len(taxonomy)) if recipe.train.balance == "weights" else None
    return Objective(taxonomy, recipe.loss, recipe.train.label_smoothing, weights).to(device)
