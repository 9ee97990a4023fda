"""`toy`: fixed random convolutions, and the class whose mean embedding is nearest. All that a method needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from entrep_cli.data.images import Preprocess
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.methods.base import FitContext, Fitted, Inference, Method, Subject, load_tensors, save_tensors
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.training.validation import batched, classification_scores
from entrep_cli.workspace import Run


class ToyRecipe(Recipe):
    """The settings of `toy`: `size` of the images in pixels, and the softmax `temperature` of the cosines."""

    method: Literal["toy"] = "toy"
    size: int = 64
    temperature: float = 0.05
    batch_size: int = 16


class Toy(Method):
    Recipe = ToyRecipe

    def __init__(self, recipe: ToyRecipe, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.recipe, self.taxonomy, self.preprocess = recipe, taxonomy, Preprocess(recipe.size)
        torch.manual_seed(recipe.seed)
        self.maps = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.Conv2d(16, 8, 3, 2), nn.ReLU())
        self.register_buffer("centre", torch.zeros(8 * 16))
        self.register_buffer("means", torch.zeros(len(taxonomy), 8 * 16))
        self.requires_grad_(False).eval()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.maps(pixels.float() / 255)

    def embedding(self, maps: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.adaptive_avg_pool2d(maps, 4).flatten(1) - self.centre, dim=1)

    def infer(self, pixels: torch.Tensor) -> Inference:
        embeddings = self.embedding(self.encode(pixels))
        return Inference(embeddings, (embeddings @ self.means.T / self.recipe.temperature).softmax(dim=1))

    def subjects(self, pixels: torch.Tensor, classes: Sequence[int]) -> list[Subject]:
        layers = [module for module in self.maps if isinstance(module, nn.ReLU)]
        return [Subject(self.maps, self.encode, lambda maps: self.embedding(maps) @ self.means.T, classes, layers=layers)]

    def save(self, run: Run) -> None:
        save_tensors(run, self.state_dict())

    @classmethod
    def load(cls, run: Run, recipe: ToyRecipe, taxonomy: Taxonomy, device: torch.device) -> Toy:
        model = cls(recipe, taxonomy)
        model.load_state_dict(load_tensors(run))
        return model.to(device)

    @classmethod
    @torch.no_grad()
    def fit(cls, context: FitContext) -> Fitted:
        started = time.monotonic()
        model = cls(context.recipe, context.train.taxonomy).to(context.device)

        def embed(images, what: str) -> torch.Tensor:
            pixels = load_pixels(images.paths, images.digests, model.preprocess, what)
            batches = batched(pixels, model.batch_size)
            return torch.cat([F.adaptive_avg_pool2d(model.encode(b.to(context.device)), 4).flatten(1) for b in batches])

        rows, targets = embed(context.train, "training images"), torch.from_numpy(context.train.targets)
        model.centre.copy_(rows.mean(dim=0))
        unit = F.normalize(rows - model.centre, dim=1)
        for label in targets.unique().tolist():
            model.means[label] = F.normalize(unit[targets == label].mean(dim=0), dim=0)
        seen = F.normalize(embed(context.val, "validation images") - model.centre, dim=1)
        scores = classification_scores((seen @ model.means.T).cpu() / model.recipe.temperature, torch.from_numpy(context.val.targets))
        return Fitted(model, scores, 0, {"name": "toy", "weights": "random"}, seconds=time.monotonic() - started)
