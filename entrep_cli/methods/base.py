"""The contract of a method: what `entrep train` fits, and all that other commands ask of a trained model.

A new method is one file with a subclass of `Method`, one recipe, and one line in `entrep_cli.methods.METHODS`, or a
package of its own that declares the entry point `entrep.methods`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import nn

from entrep_cli import console
from entrep_cli.errors import UsageError, first_line
from entrep_cli.results import Table
from entrep_cli.workspace import MODEL, Run, write_bytes_atomic

if TYPE_CHECKING:
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.images import Preprocess
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.recipes.recipe import Recipe


COMPILED = " compiled"  # after the name of what computes


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
class Subject:
    """What an explanation looks into: an image tower on the way from pixels to scores.

    Attributes:
        tower: a model of timm, or an image tower of open_clip; any other one together with `layers`.
        encode: (n, 3, H, W) uint8 pixels to what `answer` reads; runs the tower.
        answer: to (n, K) scores.
        columns: for each of the images `rows` the column of its score.
        class_token: whether a ViT is read out at its class token, and not at the mean of its patches.
        rows: the images that this tower answers, by their indices; None for all.
        component: the name of the tower in a model of several; "" in a model of one.
        layers: modules in the order of the pass whose outputs are (n, D, h, w) maps of the image, the last one best.
    """

    tower: nn.Module
    encode: Callable[[torch.Tensor], Any]
    answer: Callable[[Any], torch.Tensor]
    columns: Sequence[int]
    class_token: bool = False
    rows: Sequence[int] | None = None
    component: str = ""
    layers: Sequence[nn.Module] = ()


class Decisions(NamedTuple):
    """What a cascade decided for N images, on the CPU.

    Attributes:
        classes: (N,) class indices.
        stages: (N,) which stage decided, from 1.
        confidences: (N,) the calibrated probability of that class by that stage.
        abstained: (N,) bool, marked as out of distribution.
    """

    classes: torch.Tensor
    stages: torch.Tensor
    confidences: torch.Tensor
    abstained: torch.Tensor


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


class Model(nn.Module, ABC):
    """What answers: a trained method, or an exported one. Pixels are (N, 3, H, W) uint8 as `preprocess` makes them.

    Attributes:
        recipe, taxonomy, preprocess: what it was made with.
        low_precision: the modules that may compute in bf16 or fp16 at inference, by their paths; none: always fp32.
        engine: what computes, as embeddings record it: `fp32`, `bf16`, `fp16`, ` compiled` after it.
    """

    low_precision: ClassVar[tuple[str, ...]] = ()

    recipe: Any
    taxonomy: Taxonomy
    preprocess: Preprocess
    engine: str = "fp32"

    @abstractmethod
    def infer(self, pixels: torch.Tensor) -> Inference:
        """Embeddings and probabilities in one pass."""

    # ------------------------------------------------------------ what it is

    @property
    def name(self) -> str:
        """The method, as `entrep train` calls it."""
        return self.recipe.method

    @property
    def reads_text(self) -> bool:
        """Whether texts can be embedded: there is a text tower, and it has learned something."""
        return False

    @property
    def target(self) -> str:
        """What is classified: `class`, `region`, or the name of the region whose classes are distinguished."""
        return "class"

    @property
    def members(self) -> Sequence[Model]:
        """The models an ensemble is made of; none for a single model."""
        return ()

    @property
    def member_runs(self) -> Sequence[Run]:
        """The runs of `members`, in the same order."""
        return ()

    def combine(self, answers: Sequence[tuple[torch.Tensor, ...]]) -> Inference:
        """The answer of the whole from those of each of `members`, of the same images."""
        raise NotImplementedError(f"{self.name} has no members")

    @property
    def batch_size(self) -> int:
        """Images at a time where nothing is learned."""
        return self.recipe.batch_size

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    # ------------------------------------------------------------ images

    def answer(self, pixels: torch.Tensor) -> Inference:
        """`infer`, by the compiled code after `compile_answers`."""
        return self.infer(pixels)

    def compile_answers(self, backend: str = "inductor") -> None:
        """Have torch compile `answer`: once for each size of batch, on the first one.

        UsageError of the first `answer`: torch cannot compile the model on this machine.
        """
        infer = torch.compile(self.infer, backend=backend)

        def answer(pixels: torch.Tensor) -> Inference:
            try:
                return infer(pixels)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise UsageError(f"The model cannot be compiled here: {first_line(error)}", hint="leave out --compile") from error

        self.answer = answer  # type: ignore[method-assign]
        self.engine += COMPILED

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, D) unit rows."""
        return self.infer(pixels).embeddings

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, C) probabilities over the classes of the taxonomy."""
        return self.infer(pixels).probabilities

    def decide_images(self, paths: Sequence[Path], digests: Sequence[str]) -> Decisions | None:
        """Which stage of a cascade decides on image files, `digests` being of their pixels; None for a model of one stage."""
        return None

    def stage_counts(self, decisions: Decisions, targets: torch.Tensor | None = None) -> list[dict[str, Any]]:
        """The decisions of a cascade counted: one row a stage and one for all, as `show_stages` prints them.

        Args:
            targets: (N,) class indices; without them rows do not count what is right.
        """
        return []

    def subjects(self, pixels: torch.Tensor, classes: Sequence[int]) -> list[Subject]:
        """What `explain_images` looks into for the (N,) classes asked about, as indices; every image is a row of one subject.

        Raises:
            UsageError: the model has no image tower to look into, or cannot answer a class.
        """
        raise self._unexplained()

    def _unexplained(self) -> UsageError:
        return UsageError(
            f"A model of the method {self.name} cannot be explained: it names no image tower to look into.",
            hint="explain a run that it is made of: `entrep explain IMAGE --run RUN`",
        )

    # ------------------------------------------------------------ texts

    def text_subject(self, vector: torch.Tensor, n: int) -> Subject:
        """What is looked into for the cosines of n images to a text of the (1, D) embedding `vector`."""
        raise self._unexplained()

    def text_graph(self, texts: Sequence[str]) -> tuple[nn.Module, torch.Tensor] | None:
        """For an export: a module from (M, L) int64 tokens to (M, D) unit rows, and the tokens of texts; None without one."""
        return None

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, D) unit rows.

        Raises:
            UsageError: the model reads no text.
        """
        raise UsageError(
            f"{self.name} has no text tower, so it cannot answer texts (track 3).",
            hint="use a run of a method that has one: `entrep train clip-lora`",
        )

    def classify_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, C) probabilities over the classes of the taxonomy.

        Raises:
            UsageError: the model reads no text.
        """
        return self.embed_texts(texts)


class Method(Model):
    """A method: how its models are trained, saved and read back.

    Class attributes:
        Recipe: its configuration, with a `batch_size`: images at a time where nothing is learned.
        scales_out: several processes can train it together.
    """

    Recipe: ClassVar[type[Recipe]]
    scales_out: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def fit(cls, context: FitContext) -> Fitted:
        """Train on one subset, choose everything on the other."""

    @abstractmethod
    def save(self, run: Run) -> None:
        """Write what `load` needs into the run folder."""

    @classmethod
    @abstractmethod
    def load(cls, run: Run, recipe: Any, taxonomy: Taxonomy, device: torch.device) -> Method:
        """Read a model back, ready for inference."""


def save_tensors(run: Run, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the weights of a model into its run."""
    write_bytes_atomic(run.path(MODEL), save({name: value.contiguous().cpu() for name, value in tensors.items()}))


def load_tensors(run: Run) -> dict[str, torch.Tensor]:
    """The weights of a model as `save_tensors` wrote them, on the CPU."""
    return load_file(run.path(MODEL))


def in_classes_of(model: Model, catalog: Catalog) -> Catalog:
    """A catalog with the classes of a model as labels: regions, or the images of one region alone, where it distinguishes those.

    What is scored against the answers of a model is labelled so.
    """
    return catalog if model.target == "class" else catalog.of_target(model.target)


def stage_table(title: str, stages: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `Model.stage_counts` as a table."""
    columns = {"by": "decided by"}
    rows = [["-" if value is None else value for value in row.values()] for row in stages]
    return Table(title, [columns.get(key, key) for key in stages[0]], rows)


def show_stages(title: str, stages: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of `Model.stage_counts`."""
    table = stage_table(title, stages)
    console.table(table.title, table.columns, table.rows)
