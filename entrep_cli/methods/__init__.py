"""What `entrep train` offers: a table of methods, and what a trained model can do.

A new method is one file with one class, and one line in `METHODS`. `ensemble` is there too, so that its runs are
read as any others, but it is made of runs and not trained.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from entrep_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.images import Preprocess
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.recipes.recipe import Recipe
    from entrep_cli.workspace import Run

# name -> module:class; modules are imported when a method is used, for they pull in torch
METHODS = {
    "clip-lora": "entrep_cli.methods.clip_lora:ClipLora",
    "dinov2": "entrep_cli.methods.dinov2:Dinov2",
    "ensemble": "entrep_cli.methods.ensemble:Ensemble",
    "hybrid": "entrep_cli.methods.hybrid:Hybrid",
    "mics": "entrep_cli.methods.mics:Mics",
    "prototype": "entrep_cli.methods.prototype:Prototype",
}
TRAINABLE = tuple(name for name in METHODS if name != "ensemble")  # an ensemble is made of runs
WITH_TEXT = ("clip-lora", "ensemble", "hybrid", "prototype")  # the methods whose models can embed texts
SCALES_OUT = ("clip-lora", "dinov2")  # the methods that several processes can train together
DEFAULT_METHOD = "clip-lora"  # one model for the three tracks


@dataclass(frozen=True)
class Fit:
    """What `fit` hands back beside the model.

    Attributes:
        validation: scores of the epoch kept; `epoch` is its number, 0 where nothing is trained.
        weights: where the base weights came from.
        parameters: how many learned.
        seconds: of training, those of an interrupted sitting included.
        precision: in which it computed, where that is not the one it was asked for.
    """

    validation: dict[str, float]
    epoch: int
    weights: dict[str, Any]
    parameters: int = 0
    seconds: float = 0.0
    precision: str | None = None


class Model(Protocol):
    """A trained model, whatever the method. Pixels are (N, 3, H, W) uint8 as `preprocess` makes them."""

    recipe: Recipe
    taxonomy: Taxonomy
    preprocess: Preprocess

    def infer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, D) unit embeddings and (N, C) probabilities in one pass."""

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, D) unit rows."""

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, D) unit rows; UsageError where the method has no text tower."""

    def classify_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, C) probabilities over the taxonomy's classes; UsageError where the method has no text tower."""

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, C) probabilities over the taxonomy's classes."""

    def save(self, run: Run) -> None:
        """Write what `load` needs into the run folder."""

    @classmethod
    def load(cls, run: Run, recipe: Recipe, taxonomy: Taxonomy, device: torch.device) -> Model:
        """Read a model back, ready for inference."""

    @classmethod
    def fit(
        cls, train: Catalog, val: Catalog, recipe: Recipe, run: Run, *, device: torch.device, precision: str, resume: bool
    ) -> tuple[Model, Fit]:
        """Train on one part, choose everything on the other; `precision` as in `models.device.autocast`."""


def method_class(name: str) -> type:
    """The class of a method by name; it has `Recipe`, `fit`, `load` and `reads_text`."""
    if name == "mics-pretrain":  # as the runs of `entrep pretrain mics` call themselves
        raise UsageError("A pre-training knows no classes and answers nothing.", hint="`entrep train mics --weights RUN` goes on from it")
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        raise UsageError(
            f"There is no method {name!r}.",
            hint=(f"did you mean {near[0]!r}? " if near else "") + f"choose one of: {', '.join(TRAINABLE)}",
        )
    module, attribute = METHODS[name].split(":")
    return getattr(importlib.import_module(module), attribute)
