"""The contract of a method: what `entrep train` fits, and all that other commands ask of a trained model.

A new method is one file with a subclass of `Method`, one recipe, and one line in `entrep_cli.methods.METHODS`, or a
package of its own that declares the entry point `entrep.methods`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn

from entrep_cli.errors import UsageError

if TYPE_CHECKING:
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.images import Preprocess
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.recipes.recipe import Recipe
    from entrep_cli.workspace import Run


class Inference(NamedTuple):
    """What a model says of N images.

    Attributes:
        embeddings: (N, D) unit rows.
        probabilities: (N, C) over the classes of the model's taxonomy.
        stage: (N,) which stage of a cascade decided, from 1; None for a model of one stage.
    """

    embeddings: torch.Tensor
    probabilities: torch.Tensor
    stage: torch.Tensor | None = None


@dataclass(frozen=True)
class FitContext:
    """What a training gets.

    Attributes:
        train, val: the images to learn from, and those on which everything is chosen.
        recipe: the method's own, complete.
        run: where checkpoints, logs and the model go.
        device: where to compute. precision: `fp32`, `bf16` or `fp16`, as in `models.device.autocast`.
        resume: go on from the checkpoint of the run.
    """

    train: Catalog
    val: Catalog
    recipe: Any
    run: Run
    device: torch.device
    precision: str = "fp32"
    resume: bool = False


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns.

    Attributes:
        model: ready for inference.
        validation: scores of the epoch that was chosen; `epoch` is its number, 0 where nothing is trained.
        weights: where the base weights came from.
        parameters: how many were trained.
        seconds: of training, those of an interrupted session included.
        precision: what was computed in, where it is not what the context asked for.
    """

    model: Method
    validation: dict[str, float]
    epoch: int
    weights: dict[str, Any]
    parameters: int = 0
    seconds: float = 0.0
    precision: str | None = None


class Method(nn.Module):
    """A trained model, whatever the method. Pixels are (N, 3, H, W) uint8 as `preprocess` makes them.

    Class attributes:
        name: as `entrep train` calls the method.
        Recipe: its configuration.
        trainable: False for what is made of runs.
        scales_out: several processes can train it together.
        low_precision: the modules that may compute in bf16 or fp16 at inference, by their paths; none: always fp32.

    Attributes:
        recipe, taxonomy, preprocess: what it was made with.
        engine: what computes, as embeddings record it: `fp32`, `bf16`, `fp16`, ` compiled` after it.
    """

    name: ClassVar[str]
    Recipe: ClassVar[type[Recipe]]
    trainable: ClassVar[bool] = True
    scales_out: ClassVar[bool] = False
    low_precision: ClassVar[tuple[str, ...]] = ()

    recipe: Any
    taxonomy: Taxonomy
    preprocess: Preprocess
    engine: str = "fp32"

    # ------------------------------------------------------------ what a method must have

    @classmethod
    @abstractmethod
    def fit(cls, context: FitContext) -> Fitted:
        """Train on one subset, choose everything on the other."""

    @abstractmethod
    def infer(self, pixels: torch.Tensor) -> Inference:
        """Embeddings and probabilities in one pass."""

    @abstractmethod
    def save(self, run: Run) -> None:
        """Write what `load` needs into the run folder."""

    @classmethod
    @abstractmethod
    def load(cls, run: Run, recipe: Any, taxonomy: Taxonomy, device: torch.device) -> Method:
        """Read a model back, ready for inference."""

    # ------------------------------------------------------------ what a method may have

    @property
    def reads_text(self) -> bool:
        """Whether texts can be embedded: the method has a text tower, and it has learned something."""
        return False

    @property
    def target(self) -> str:
        """What is classified: `class`, `region`, or the name of the region whose classes are told apart."""
        return "class"

    @property
    def members(self) -> Sequence[Method]:
        """The models an ensemble is made of; none for a single model."""
        return ()

    @property
    def member_runs(self) -> Sequence[Run]:
        """The runs of `members`, in the same order."""
        return ()

    @property
    def batch_size(self) -> int:
        """Images a batch where nothing is learned."""
        return 32

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, D) unit rows."""
        return self.infer(pixels).embeddings

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, C) probabilities over the classes of the taxonomy."""
        return self.infer(pixels).probabilities

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, D) unit rows.

        Raises:
            UsageError: the model reads no text.
        """
        raise UsageError(
            f"{self.recipe.method} has no text tower, so it cannot answer texts (track 3).",
            hint="use a run of a method that has one: `entrep train clip-lora`",
        )

    def classify_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, C) probabilities over the classes of the taxonomy.

        Raises:
            UsageError: the model reads no text.
        """
        return self.embed_texts(texts)
