"""`dinov2`: a pretrained image backbone, frozen or fine-tuned, and a small head (Foregut paper, 4.3).

With a frozen backbone every image, and a few augmented views of it, goes through the backbone once;
the head then trains on cached features in seconds. `tune = "full"` fine-tunes the backbone instead.
`target` says what the head tells apart: all classes, as the paper's direct baseline (5.1.3), the regions,
as its coarse model (4.3.4), or the classes of one region, as its binary experts (4.3.1). All of them read
the same cached features, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from entrep_cli import console
from entrep_cli.data.augment import MixSettings
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import RunError, UsageError
from entrep_cli.methods.base import FitContext, Fitted, Inference, Method, Subject, load_tensors, save_tensors
from entrep_cli.methods.dinov2_training import Dinov2Recipe, fit_full, fit_head
from entrep_cli.methods.runs import warn_of_leaks
from entrep_cli.models.backbones import Backbone, create_backbone
from entrep_cli.models.heads import Head
from entrep_cli.models.towers import set_checkpointing, tower_of
from entrep_cli.training.objective import LossSettings
from entrep_cli.workspace import Run


class Dinov2(Method):
    """A backbone and its head; the trained model of the method."""

    Recipe = Dinov2Recipe
    scales_out = True
    low_precision = ("backbone",)

    def __init__(self, backbone: Backbone, recipe: Dinov2Recipe, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.recipe = recipe
        self.taxonomy = taxonomy
        self.preprocess = Preprocess(**recipe.image.model_dump(), **backbone.statistics)
        self.backbone = backbone
        self.head = Head(backbone.dim, len(taxonomy), recipe.head)

    @property
    def target(self) -> str:
        return self.recipe.target

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) pixels to (N, C) float32 logits; under autocast the backbone alone is in a lower precision."""
        features = self.backbone(pixels).float()
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features)

    def train(self, mode: bool = True) -> Dinov2:
        super().train(mode)
        if self.recipe.freeze_norm:
            self.backbone.freeze_norm()
        return self

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> Inference:
        features = self.backbone(pixels)
        hidden = self.head.body(features)
        parts = {"backbone": [features], "head": [hidden], "both": [features, hidden]}[self.recipe.embedding]
        embeddings = F.normalize(torch.cat([F.normalize(part, dim=1) for part in parts], dim=1), dim=1)
        return Inference(embeddings, self.head.output(hidden).softmax(dim=1))

    def subjects(self, pixels: torch.Tensor, classes: Sequence[int]) -> list[Subject]:
        backbone = self.backbone

        def answer(features: torch.Tensor) -> torch.Tensor:
            return self.head(backbone.pool(features))

        return [Subject(backbone.model, backbone.features, answer, classes, class_token=backbone.settings.pooling == "token")]

    def save(self, run: Run) -> None:
        save_tensors(run, self.state_dict())

    @classmethod
    def load(cls, run: Run, recipe: Dinov2Recipe, taxonomy: Taxonomy, device: torch.device) -> Dinov2:
        model = cls(Backbone(recipe.backbone, recipe.image.size), recipe, taxonomy)
        model.load_state_dict(load_tensors(run))
        return model.to(device).eval()

    @classmethod
    def fit(cls, context: FitContext) -> Fitted:
        """Train on the classes of both parts; `target` is worked out here, for flips are known by class.

        Raises:
            UsageError: no such target, a logistic head over a backbone that learns, or a loss or mixing that would not be used.
            RunError: a subset has no image of the target, or training images of fewer than two of its classes.
        """
        recipe, train, val = context.recipe, context.train, context.val
        if recipe.head.kind == "logistic" and recipe.tune != "head":
            raise UsageError("A logistic head is solved on fixed features, and the backbone learns.", hint="--tune head, or head.kind=mlp")
        _check_used(recipe)
        taxonomy = train.taxonomy.of_target(recipe.target)
        check_target(train, val, recipe)
        _say_target(train.of_target(recipe.target), val.of_target(recipe.target), recipe.target)
        torch.manual_seed(recipe.seed)
        backbone, origin = create_backbone(recipe.backbone, recipe.image.size)
        warn_of_leaks(origin, context.run)
        model = cls(backbone, recipe, taxonomy).to(context.device)
        if recipe.checkpointing:
            set_checkpointing(backbone.model, recipe.tune)
        precision = context.precision
        if recipe.tune == "head":
            if precision != "fp32" and not tower_of(backbone.model).is_vit:
                console.say(f"Features: in fp32; of {precision} convolutions gain little, and lose more than a ViT.")
                precision = "fp32"
            learned = fit_head(model, backbone, model.head, origin, replace(context, precision=precision))
        else:
            learned = fit_full(model, replace(context, train=train.of_target(recipe.target), val=val.of_target(recipe.target)))
        return Fitted(model.eval(), learned.scores, learned.epoch, origin, learned.parameters, learned.seconds, precision)


def check_target(train: Catalog, val: Catalog, recipe: Dinov2Recipe) -> None:
    """Whether a target can be learned from these parts.

    Raises:
        UsageError: as `Taxonomy.of_target`.
        RunError: a subset has no image of the target, or training images of one of its classes alone.
    """
    own = {name: part.of_target(recipe.target) for name, part in (("train", train), ("val", val))}
    names = own["train"].taxonomy.names
    for name, part in own.items():
        if not len(part):
            raise RunError(f"The {name} subset of the split has no image of {', '.join(names)}.", hint="split again: `entrep split`")
    there = [name for name, n in own["train"].counts().items() if n]
    # Of one class alone there is still something to retrieve, by the backbone.
    if len(there) < 2 and (recipe.target != "class" or recipe.head.kind == "logistic"):
        raise RunError(
            f"All training images of {', '.join(names)} are {there[0]}: nothing to tell apart.",
            hint="split again: `entrep split`, or add images",
        )


def _check_used(recipe: Dinov2Recipe) -> None:
    """UsageError for settings that nothing would read."""
    faults = []
    if recipe.head.kind == "logistic" and recipe.loss != LossSettings():
        faults.append("loss: a logistic head is solved by the loss of logistic regression")
    if recipe.tune == "head" and recipe.mixing != MixSettings():
        faults.append("mixing: the features of a frozen backbone are of whole images, worked out once")
    if faults:
        raise UsageError("The recipe has settings that nothing would read.", faults=faults, hint="leave them out, or --tune full")


def _say_target(train: Catalog, val: Catalog, target: str) -> None:
    if target != "class":
        classes = ", ".join(train.taxonomy.names)
        console.say(f"Target {target}: {len(train)} training and {len(val)} validation images of {classes}.")
    if lacking := [name for name, n in train.counts().items() if not n]:
        console.warn(f"{len(lacking)} classes have no training images: {', '.join(lacking)}.")
