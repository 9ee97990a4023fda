"""`dinov2`: a pretrained image backbone, frozen or fine-tuned, and a small head (Foregut paper, 4.3).

With a frozen backbone every image, and a few augmented views of it, goes through the backbone once;
the head then trains on cached features in seconds. `tune = "full"` fine-tunes the backbone instead.
The direct seven-class baseline of the paper (5.1.3); its coarse and binary experts are further heads
on the same features.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from entrep_cli import console
from entrep_cli.data.augment import AugmentSettings, augment
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import UsageError
from entrep_cli.methods import Fit
from entrep_cli.models.backbones import Backbone, BackboneSettings, create_backbone
from entrep_cli.models.device import autocast
from entrep_cli.models.heads import Head, HeadSettings
from entrep_cli.models.inputs import ImageSettings
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.training.loop import LoopSettings, epoch_generator, fit
from entrep_cli.training.sampling import balanced_order, batches, class_weights
from entrep_cli.training.validation import MONITOR, batched, classification_scores
from entrep_cli.workspace import MODEL, Run, atomic_path, cache_dir, fingerprint, write_bytes_atomic


class Dinov2Recipe(Recipe):
    """The settings of `dinov2`.

    Attributes:
        tune: `head` freezes the backbone; `full` fine-tunes it.
        freeze_norm: with `full`, keep batch statistics as the pretrained weights have them.
        views: augmented views of each training image whose features are cached, with `head`.
        embedding: what retrieval compares: the `head`'s last hidden layer, `backbone` features, or
            `both`, each as a unit vector, one after the other.
        batch_size: images at a time where nothing is learned.
    """

    method: Literal["dinov2"] = "dinov2"
    tune: Literal["head", "full"] = "head"
    freeze_norm: bool = True
    views: int = 4
    embedding: Literal["backbone", "head", "both"] = "head"
    batch_size: int = 32
    image: ImageSettings = ImageSettings()
    backbone: BackboneSettings = BackboneSettings()
    augment: AugmentSettings = AugmentSettings()
    head: HeadSettings = HeadSettings()
    # Smoothed labels and averaged weights, for a validation part is small and a single epoch's score
    # swings; no balancing. Chosen on the training part of a real set, by grouped folds (README).
    train: LoopSettings = LoopSettings(label_smoothing=0.1, average=0.99, balance="none")


class Dinov2(nn.Module):
    """A backbone and its head; the trained model of the method."""

    Recipe = Dinov2Recipe
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
        torch.manual_seed(recipe.seed)
        backbone, origin = create_backbone(recipe.backbone, recipe.image.size)
        model = cls(backbone, recipe, train.taxonomy).to(device)
        if recipe.tune == "head":
            fitted = _fit_head(model, train, val, run, origin, device, resume)
        else:
            fitted = _fit_full(model, train, val, run, device, precision, resume)
        return model.eval(), Fit(fitted.scores, fitted.epoch, origin, fitted.parameters, fitted.seconds)


# ---------------------------------------------------------------- the two ways to train


def _fit_head(model: Dinov2, train: Catalog, val: Catalog, run: Run, origin: dict, device: torch.device, resume: bool):
    recipe = model.recipe
    if recipe.backbone.weights == "none":
        console.warn("The frozen backbone has random weights; its features mean little. --tune full trains it.")
    model.requires_grad_(False).eval()
    views = [_view_features(model, train, origin, view, device) for view in range(recipe.views + 1)]
    features = torch.stack([f for f, _ in views])  # (V + 1, N, D)
    targets = torch.stack([t for _, t in views])  # (V + 1, N); a flipped view has its mirror's class
    val_features, val_targets = _view_features(model, val, origin, 0, device)
    criterion = _criterion(targets[0], len(model.taxonomy), recipe.train, device)

    def losses(epoch: int) -> Iterator[torch.Tensor]:
        generator = epoch_generator(recipe.seed, epoch)
        order = _epoch_order(targets[0], recipe.train, generator)
        view = torch.randint(len(features), (len(order),), generator=generator)
        for pick, seen in zip(batches(order, recipe.train.batch_size), _cut_like(view, order, recipe)):
            yield criterion(head(features[seen, pick].to(device)), targets[seen, pick].to(device))

    @torch.no_grad()
    def validate(head: nn.Module) -> dict[str, float]:
        return classification_scores(head(val_features.to(device)).cpu(), val_targets)

    # Only the head is handed to the loop: it is all that is learned, checkpointed and averaged.
    head = model.head.requires_grad_(True)
    return _run_loop(head, losses, validate, targets[0], recipe, run, resume)


def _fit_full(model: Dinov2, train: Catalog, val: Catalog, run: Run, device: torch.device, precision: str, resume: bool):
    recipe = model.recipe
    pixels = load_pixels(train.paths, train.digests, model.preprocess, "training images")
    val_pixels = load_pixels(val.paths, val.digests, model.preprocess, "validation images")
    targets, val_targets = torch.from_numpy(train.targets), torch.from_numpy(val.targets)
    criterion = _criterion(targets, len(model.taxonomy), recipe.train, device)

    def losses(epoch: int) -> Iterator[torch.Tensor]:
        generator = epoch_generator(recipe.seed, epoch)
        for pick in batches(_epoch_order(targets, recipe.train, generator), recipe.train.batch_size):
            seen = torch.from_numpy(pixels[pick.numpy()])
            seen, wanted, _ = augment(seen, targets[pick], model.taxonomy, recipe.augment, generator)
            with autocast(device, precision):
                logits = model(seen.to(device))
            yield criterion(logits.float(), wanted.to(device))

    @torch.no_grad()
    def validate(model: nn.Module) -> dict[str, float]:
        logits = [model(batch.to(device)).cpu() for batch in batched(val_pixels, recipe.batch_size)]
        return classification_scores(torch.cat(logits), val_targets)

    return _run_loop(model, losses, validate, targets, recipe, run, resume, precision)


def _run_loop(
    module: nn.Module, losses: Callable, validate: Callable, targets, recipe: Dinov2Recipe, run: Run, resume: bool, precision: str = "fp32"
):
    steps = len(batches(torch.arange(len(targets)), recipe.train.batch_size))
    pretrained = {name for name, _ in module.named_parameters() if name.startswith("backbone.")}
    how = {"monitor": MONITOR, "seed": recipe.seed, "resume": resume, "pretrained": pretrained, "precision": precision}
    return fit(module, losses, steps, validate, recipe.train, run, **how)


# ---------------------------------------------------------------- parts


def _view_features(model: Dinov2, part: Catalog, origin: dict, view: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) features and (N,) targets of view `view`: 0 is the image itself, the others augmented.

    Kept on disk by pixels, backbone, weights, preprocessing and augmentation.
    """
    recipe = model.recipe
    targets = torch.from_numpy(part.targets)
    # Augmentation draws batch by batch, so the size of a batch is part of what a view is.
    view_key = (
        [view, recipe.seed, recipe.batch_size, recipe.augment.model_dump(), model.taxonomy.mirrors, part.targets.tolist()] if view else []
    )
    seed_key = recipe.seed if "sha256" not in origin else 0  # random weights come from the seed
    identity = {**recipe.backbone.model_dump(), **origin}
    key = fingerprint([identity, seed_key, model.preprocess.as_dict(), view_key, part.digests])
    path = cache_dir("features") / f"{key}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as kept:
                return torch.from_numpy(kept["features"]), torch.from_numpy(kept["targets"])
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
            path.unlink()  # damaged: computed again
    pixels = load_pixels(part.paths, part.digests, model.preprocess, "images")
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + view)
    features, shown = [], []
    with console.progress(f"Features of view {view}" if view else "Features", len(part)) as advance, torch.inference_mode():
        for batch, wanted in zip(batched(pixels, recipe.batch_size), targets.split(recipe.batch_size)):
            if view:
                batch, wanted, _ = augment(batch, wanted, model.taxonomy, recipe.augment, generator)
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


def _cut_like(view: torch.Tensor, order: torch.Tensor, recipe: Dinov2Recipe) -> Iterator[torch.Tensor]:
    sizes = [len(batch) for batch in batches(order, recipe.train.batch_size)]
    return iter(view.split(sizes))


def _criterion(targets: torch.Tensor, n_classes: int, settings: LoopSettings, device: torch.device) -> nn.Module:
    weight = class_weights(targets, n_classes).to(device) if settings.balance == "weights" else None
    return nn.CrossEntropyLoss(weight, label_smoothing=settings.label_smoothing)
