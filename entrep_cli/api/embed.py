"""`embed`: images to unit vectors and class probabilities, written into the run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from entrep_cli import console, processes
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.results import Result, Table
from entrep_cli.workspace import Run, data_dir, open_run, runs_dir

if TYPE_CHECKING:
    from entrep_cli.methods.base import Model
    from entrep_cli.retrieval.pipeline import Stages


@dataclass(frozen=True)
class EmbeddedSet:
    """A set of images that a run has embedded; `stages` says where the time went, None where nothing was computed."""

    name: str
    images: int
    dimensions: int
    folder: Path
    stages: Stages | None

    @property
    def computed(self) -> str:
        return "computed" if self.stages else "cached"


@dataclass(frozen=True)
class EmbeddedSets(Result):
    """All sets of a run that were requested; `engine` is what computed them, or would have computed them if they were not cached."""

    run: Run
    engine: str
    sets: tuple[EmbeddedSet, ...]

    def tables(self) -> list[Table]:
        rows = [(s.name, s.images, s.dimensions, s.computed) for s in self.sets]
        main = Table(f"Embeddings of run {self.run.name}", ["set", "images", "dimensions", ""], rows)
        return [main, *(_stages_table(s.name, s.stages) for s in self.sets if s.stages)]

    def to_dict(self) -> dict[str, Any]:
        sets = {
            s.name: {"images": s.images, "dimensions": s.dimensions, "folder": str(s.folder), "stages": s.stages and s.stages.as_dict()}
            for s in self.sets
        }
        return {"run": self.run.name, "engine": self.engine, "sets": sets}


def embed(
    *,
    data: str | Path | None = None,
    run: str | None = None,
    folder: Sequence[str | Path] = (),
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    compile: bool = False,
    engine: Literal["torch", "onnx"] = "torch",
) -> EmbeddedSets:
    """Embed a dataset's training images, its test folder and further folders: float32 unit vectors and class probabilities.

    Sets that the run already has for the same images and model are not computed again.

    Args:
        data: the dataset folder.
        run: name or folder of a run; by default the one that completed last.
        folder: folders of images without labels.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: `fp32`, `bf16`, `fp16`, or `auto`: that of the run's earlier embeddings, otherwise the fastest for a ViT.
        batch_size: images per batch; chosen automatically by default.
        compile: compile the model with torch first.
        engine: `onnx` uses the files that `export` wrote.

    Raises:
        UsageError: options that cannot be combined.
        RunError: the run cannot be written to.
        DataError: lists all images that cannot be read.
    """
    from entrep_cli.retrieval.embeddings import embeddings_of
    from entrep_cli.retrieval.pipeline import Stages, choose_batch
    from entrep_cli.retrieval.sets import dataset_sets, open_for_embedding

    if engine == "onnx" and (compile or precision != "auto"):
        raise UsageError("--precision and --compile are of the torch engine.", hint="leave them out, or --engine torch")
    root, opened, folders = data_dir(data), open_run(run), [Path(place) for place in folder]
    if not os.access(opened.folder, os.W_OK):
        hint = f"copy it: `cp -r {shlex.quote(str(opened.folder))} {shlex.quote(str(runs_dir()))}/`, then --run {shlex.quote(opened.name)}"
        raise RunError(f"Run {opened.name!r} may not be written to, and embeddings go into it.", where=opened.folder, hint=hint)
    if missing := [str(place) for place in folders if not place.is_dir()]:
        raise DataError("No such folder to embed.", faults=missing, hint="name folders of images with --folder")
    with processes.main_first():
        sets = dataset_sets(root, folders)
    if engine == "onnx":
        from entrep_cli.methods.exporting import open_exported

        if device not in ("auto", "cpu"):
            raise UsageError("The onnx engine computes on the CPU.", hint="--device cpu, or --engine torch")
        model: Model = open_exported(opened)
    else:
        model = open_for_embedding(opened, device, precision, compiled=compile)
    size, reason = processes.on_main(lambda: choose_batch(model, batch_size))
    console.say(f"Batch: {size} images ({reason}).")
    any_engine = engine == "torch" and precision == "auto" and not compile
    results = []
    for name, items in sets.items():
        stages = Stages()
        done = embeddings_of(opened, name, items, model, any_engine=any_engine, batch_size=size, stages=stages)
        if stages.images:
            console.say(f"Bottleneck: {stages.bottleneck}; the model waited {stages.waited:.1f} s for pixels.")
        place = opened.path("embeddings", name)
        results.append(EmbeddedSet(name, len(done), done.vectors.shape[1], place, stages if stages.images else None))
    return EmbeddedSets(opened, model.engine, tuple(results))


def _stages_table(name: str, stages: Stages) -> Table:
    beside = f"reader and transform in {stages.threads} threads beside the model" if stages.threads else "pixels from the cache"
    title = f"Stages of {name}: {stages.images} images in {stages.elapsed:.1f} s ({beside})"
    return Table(title, ["stage", "seconds", "of the time"], stages.rows())
