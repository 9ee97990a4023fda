"""`dinov2`: a pretrained image backbone, frozen or fine-tuned, and a small head (Foregut paper, 4.3).

With a frozen backbone every image, and a few augmented views of it, goes through the backbone once;
the head then trains on cached features in seconds. `tune = "full"` fine-tunes the backbone instead.
`target` says what the head tells apart: all classes, as the paper's direct baseline (5.1.3), the regions,
as its coarse model (4.3.4), or the classes of one region, as its binary experts (4.3.1). All of them read
the same cached features, whichever comes first.
"""

from __future__ import annotations

import csv
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from entrep_cli import console, processes
from entrep_cli.data.augment import AugmentSettings, augment
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.mixing import MixSettings, batch_views
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import RunError, UsageError
from entrep_cli.methods import Fit
from entrep_cli.models.backbones import Backbone, BackboneSettings, create_backbone
from entrep_cli.models.checkpointing import set_checkpointing
from entrep_cli.models.device import autocast
from entrep_cli.models.heads import Head, HeadSettings
from entrep_cli.models.inputs import ImageSettings
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.training.loop import Fitted, LoopSettings, epoch_generator, fit
from entrep_cli.training.objective import LossSettings, Objective
from entrep_cli.training.sampling import balanced_order, batches, class_weights
from entrep_cli.training.shares import gathered
from entrep_cli.training.validation import MONITOR, batched, classification_scores
from entrep_cli.workspace import (
    METRICS,
    MODEL,
    Run,
    atomic_path,
    cache_dir,
    fingerprint,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)

_BEGUN = "begun.json"  # `runs.train_run` leaves there what the training was begun on
_TOLD = "training.json"  # what is worth knowing of a training beside its scores


class Dinov2Recipe(Recipe):
    """The settings of `dinov2`.

    Attributes:
        target: `class`, `region`, or the name of a region: then the run is the expert among its classes,
            a binary one for a pair such as ear-left and ear-right (of three or more, ours).
        tune: `head` freezes the backbone; `full` fine-tunes it.
        freeze_norm: with `full`, keep batch statistics as the pretrained weights have them.
        checkpointing: with `full`, keep no activations inside the backbone's blocks, and work them out again for
            the gradients: less memory, a third more time, the same gradients.
        views: augmented views of each training image whose features are cached, with `head`.
        embedding: what retrieval compares: the `head`'s last hidden layer, `backbone` features, or
            `both`, each as a unit vector, one after the other.
        batch_size: images at a time where nothing is learned.
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


class Dinov2(nn.Module):
    """A backbone and its head; the trained model of the method."""

    Recipe = Dinov2Recipe
    low_precision = ("backbone",)  # what may compute in a lower precision where images are embedded
    has_text_tower = False

    def __init__(self, backbone: Backbone, recipe: Dinov2Recipe, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.recipe = recipe
        self.taxonomy = taxonomy
        self.preprocess = backbone.preprocess(**recipe.image.model_dump())
        self.backbone = backbone
        self.head = Head(backbone.dim, len(taxonomy), recipe.head)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) pixels to (N, C) logits."""
        return self.head(self.backbone(pixels))

    def train(self, mode: bool = True) -> Dinov2:
        super().train(mode)
        if self.recipe.freeze_norm:
            self.backbone.freeze_norm()
        return self

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone(pixels)
        hidden = self.head.body(features)
        parts = {"backbone": [features], "head": [hidden], "both": [features, hidden]}[self.recipe.embedding]
        embeddings = F.normalize(torch.cat([F.normalize(part, dim=1) for part in parts], dim=1), dim=1)
        return embeddings, self.head.output(hidden).softmax(dim=1)

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.infer(pixels)[0]

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.infer(pixels)[1]

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        raise UsageError(
            "dinov2 has no text tower, so it cannot answer texts (track 3).",
            mend="use a run of a method that has one",
        )

    def classify_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self.embed_texts(texts)

    def save(self, run: Run) -> None:
        from safetensors.torch import save

        write_bytes_atomic(run.path(MODEL), save({k: v.contiguous().cpu() for k, v in self.state_dict().items()}))

    @classmethod
    def load(cls, run: Run, recipe: Dinov2Recipe, taxonomy: Taxonomy, device: torch.device) -> Dinov2:
        from safetensors.torch import load_file

        model = cls(Backbone(recipe.backbone, recipe.image.size), recipe, taxonomy)
        model.load_state_dict(load_file(run.path(MODEL)))
        return model.to(device).eval()

    @classmethod
    def fit(
        cls,
        train: Catalog,
        val: Catalog,
        recipe: Dinov2Recipe,
        run: Run,
        *,
        device: torch.device,
        precision: str = "fp32",
        resume: bool = False,
    ) -> tuple[Dinov2, Fit]:
        """Train on the classes of both parts; `target` is worked out here, for flips are known by class.

        Raises:
            UsageError: no such target, a logistic head over a backbone that learns, or a loss or mixing that would not be used.
            RunError: a part has no image of the target, or training images of fewer than two of its classes.
        """
        if recipe.head.kind == "logistic" and recipe.tune != "head":
            raise UsageError("A logistic head is solved on fixed features, and the backbone learns.", mend="--tune head, or head.kind=mlp")
        _check_used(recipe)
        taxonomy = train.taxonomy.of_target(recipe.target)
        check_target(train, val, recipe)
        _say_target(of_target(train, recipe.target), of_target(val, recipe.target), recipe.target)
        torch.manual_seed(recipe.seed)
        backbone, origin = create_backbone(recipe.backbone, recipe.image.size)
        _warn_of_leaks(origin, run)
        model = cls(backbone, recipe, taxonomy).to(device)
        if recipe.checkpointing:
            set_checkpointing(backbone.model, recipe.tune)
        if recipe.tune == "head":
            fitted = _fit_head(model, train, val, run, origin, device, resume)
        else:
            fitted = _fit_full(model, of_target(train, recipe.target), of_target(val, recipe.target), run, device, precision, resume)
        return model.eval(), Fit(fitted.scores, fitted.epoch, origin, fitted.parameters, fitted.seconds)


def of_target(catalog: Catalog, target: str) -> Catalog:
    """The images that a `target` is about, with its classes as labels; images without a label are left out.

    Raises:
        UsageError: as `Taxonomy.of_target`.
    """
    taxonomy, names = catalog.taxonomy.of_target(target), catalog.taxonomy.names_in_target(target)
    frame = catalog.frame[catalog.frame["label"].isin(list(names))].reset_index(drop=True)
    return replace(catalog, frame=frame.assign(label=frame["label"].map(names)), taxonomy=taxonomy)


def check_target(train: Catalog, val: Catalog, recipe: Dinov2Recipe) -> None:
    """Whether a target can be learned from these parts.

    Raises:
        UsageError: as `Taxonomy.of_target`.
        RunError: a part has no image of the target, or training images of one of its classes alone.
    """
    own = {name: of_target(part, recipe.target) for name, part in (("train", train), ("val", val))}
    names = own["train"].taxonomy.names
    for name, part in own.items():
        if not len(part):
            raise RunError(f"The {name} part of the split has no image of {', '.join(names)}.", mend="split again: `entrep split`")
    there = [name for name, n in own["train"].counts().items() if n]
    # Of one class alone there is still something to retrieve, by the backbone.
    if len(there) < 2 and (recipe.target != "class" or recipe.head.kind == "logistic"):
        raise RunError(
            f"All training images of {', '.join(names)} are {there[0]}: nothing to tell apart.",
            mend="split again: `entrep split`, or add images",
        )


def _check_used(recipe: Dinov2Recipe) -> None:
    """UsageError for settings that nothing would read."""
    faults = []
    if recipe.head.kind == "logistic" and recipe.loss != LossSettings():
        faults.append("loss: a logistic head is solved, by its own loss")
    if recipe.tune == "head" and recipe.mixing != MixSettings():
        faults.append("mixing: the features of a frozen backbone are of whole images, worked out once")
    if faults:
        raise UsageError("The recipe has settings that nothing would read.", faults=faults, mend="leave them out, or --tune full")


def _say_target(train: Catalog, val: Catalog, target: str) -> None:
    if target != "class":
        classes = ", ".join(train.taxonomy.names)
        console.say(f"Target {target}: {len(train)} training and {len(val)} validation images of {classes}.")
    if lacking := [name for name, n in train.counts().items() if not n]:
        console.warn(f"{len(lacking)} classes have no training images: {', '.join(lacking)}.")


# ---------------------------------------------------------------- the two ways to train


def _fit_head(
    model: Dinov2, train: Catalog, val: Catalog, run: Run, origin: dict[str, Any], device: torch.device, resume: bool
) -> Fitted:
    recipe = model.recipe
    if recipe.backbone.weights == "none":
        console.warn("The frozen backbone has random weights; its features mean little. --tune full trains it.")
    model.requires_grad_(False).eval()
    with processes.main_first():
        views = [_view_features(model, train, origin, view, device) for view in range(recipe.views + 1)]
        val_features, val_classes = _view_features(model, val, origin, 0, device)
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
) -> Fitted:
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
    text = io.StringIO()
    writer = csv.DictWriter(text, list(chosen), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in tried)
    write_text_atomic(run.path(METRICS), text.getvalue())
    _tell(run, c=chosen["c"])
    scores = {key: value for key, value in chosen.items() if key != "c"}
    return Fitted(0, scores, 0, time.monotonic() - started, sum(p.numel() for p in head.parameters()))


def _better(scores: dict[str, float]) -> tuple[float, float]:
    return scores[MONITOR], -scores["val_loss"]


def _fit_full(
    model: Dinov2, train: Catalog, val: Catalog, run: Run, device: torch.device, precision: str, resume: bool
) -> Fitted:
    recipe = model.recipe
    with processes.main_first():
        pixels = load_pixels(train.paths, train.digests, model.preprocess, "training images")
        val_pixels = load_pixels(val.paths, val.digests, model.preprocess, "validation images")
    targets, val_targets = torch.from_numpy(train.targets), torch.from_numpy(val.targets)
    objective = _objective(targets, model.taxonomy, recipe, device)

    def losses(epoch: int) -> Iterator[torch.Tensor]:
        generator = epoch_generator(recipe.seed, epoch)
        for pick in batches(_epoch_order(targets, recipe.train, generator), recipe.train.batch_size):
            seen = torch.from_numpy(pixels[pick.numpy()])
            own = processes.part(len(pick))
            seen, wanted, _ = batch_views(seen, targets[pick], model.taxonomy, recipe.augment, recipe.mixing, generator, own)
            with autocast(device, precision):
                logits = model(seen.to(device))
            logits = gathered(logits, len(pick))
            yield objective(logits.float(), wanted.to(device))

    @torch.no_grad()
    def validate(model: nn.Module) -> dict[str, float]:
        logits = [model(batch.to(device)).cpu() for batch in batched(val_pixels, recipe.batch_size)]
        return classification_scores(torch.cat(logits), val_targets)

    if recipe.train.balance == "oversample":
        _tell_oversampling(run, targets, _epoch_order(targets, recipe.train, torch.Generator().manual_seed(recipe.seed)), model.taxonomy)
    return _run_loop(model, losses, validate, targets, recipe, run, resume, precision)


def _run_loop(
    module: nn.Module, losses: Callable, validate: Callable, targets, recipe: Dinov2Recipe, run: Run, resume: bool, precision: str = "fp32"
) -> Fitted:
    steps = len(batches(torch.arange(len(targets)), recipe.train.batch_size))
    pretrained = {name for name, _ in module.named_parameters() if name.startswith("backbone.")}
    how = {"monitor": MONITOR, "seed": recipe.seed, "resume": resume, "pretrained": pretrained, "precision": precision}
    return fit(module, losses, steps, validate, recipe.train, run, **how)


# ---------------------------------------------------------------- parts


def _warn_of_leaks(origin: dict[str, Any], run: Run) -> None:
    begun = json.loads(run.path(_BEGUN).read_text("utf-8")) if run.path(_BEGUN).is_file() else {}
    if any(key in begun and begun[key] != value for key, value in origin.get("trained_on", {}).items()):
        console.warn(
            f"{origin['weights']} was trained on other data, another split or another fold: where it has learned from images "
            "that are now validation or test ones, the scores are too good."
        )


def _targets(taxonomy: Taxonomy, target: str) -> torch.Tensor:
    """(C,) for each class index its index in the target's taxonomy, -1 where it is none of its classes."""
    names, own = taxonomy.names_in_target(target), taxonomy.of_target(target)
    return torch.tensor([own.index(names[name]) if name in names else -1 for name in taxonomy.names])


def _view_features(
    model: Dinov2, part: Catalog, origin: dict[str, Any], view: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) features and (N,) class indices of view `view`: 0 is the image itself, the others augmented.

    Kept on disk by pixels, backbone, weights, preprocessing and augmentation. Of all classes of the part,
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
    with console.progress(f"Features of view {view}" if view else "Features", len(part)) as advance, torch.inference_mode():
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
