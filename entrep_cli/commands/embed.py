"""`entrep embed`: images to unit vectors, kept in the run."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from entrep_cli import console, processes
from entrep_cli.commands import options
from entrep_cli.errors import DataError, RunError, UsageError, together
from entrep_cli.workspace import Run, data_dir, open_run, runs_dir

if TYPE_CHECKING:
    from entrep_cli.methods.base import Model
    from entrep_cli.retrieval.embeddings import Items
    from entrep_cli.retrieval.pipeline import Stages

TORCH, ONNX = "torch", "onnx"


def embed(
    data: options.Data = None,
    run: options.RunName = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option("--folder", help="A folder of images to embed too, without labels; may be repeated.", show_default=False),
    ] = None,
    device: options.Device = "auto",
    precision: Annotated[
        str,
        typer.Option(help="Number format of the towers: auto (as images embedded before, else a ViT's fastest), fp32, bf16, fp16."),
    ] = "auto",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images at a time (default: what fits, said aloud).", show_default=False)
    ] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Have torch compile the model first: minutes, worth it on a GPU.")] = False,
    engine: Annotated[
        Literal["torch", "onnx"], typer.Option(help="What computes: torch, or ONNX Runtime with what `entrep export` wrote.")
    ] = TORCH,
) -> dict[str, Any]:
    """Example: entrep embed

    Embed the dataset's training images and its test folder with a run: float32 unit vectors and
    class probabilities, under runs/NAME/embeddings. What is there already, of the same images and
    model, is kept. Where the time went is told by stages.
    """
    from entrep_cli.retrieval.embeddings import embeddings_of
    from entrep_cli.retrieval.pipeline import Stages, choose_batch

    if engine == ONNX and (compile_ or precision != "auto"):
        raise UsageError("--precision and --compile are of the torch engine.", hint="leave them out, or --engine torch")
    root, opened = data_dir(data), open_run(run)
    if not os.access(opened.folder, os.W_OK):
        hint = f"copy it: `cp -r {shlex.quote(str(opened.folder))} {shlex.quote(str(runs_dir()))}/`, then --run {shlex.quote(opened.name)}"
        raise RunError(f"Run {opened.name!r} may not be written to, and embeddings are kept in it.", where=opened.folder, hint=hint)
    missing = [str(place) for place in folder or () if not place.is_dir()]
    if missing:
        raise DataError("There is no such folder to embed.", faults=missing, hint="name folders of images with --folder")
    with processes.main_first():
        sets = _sets(root, folder or [])
    model = _open(opened, engine, device, precision, compile_)
    size, reason = processes.on_main(lambda: choose_batch(model, batch_size))
    console.say(f"Batch: {size} images ({reason}).")
    any_engine = engine == TORCH and precision == "auto" and not compile_
    rows, told = [], {}
    for name, items in sets.items():
        stages = Stages()
        done = embeddings_of(opened, name, items, model, any_engine=any_engine, batch_size=size, stages=stages)
        if stages.images:
            _show(name, stages)
        rows.append((name, len(done), done.vectors.shape[1], "computed" if stages.images else "kept"))
        told[name] = stages.as_dict() if stages.images else None
    console.table(f"Embeddings of run {opened.name}", ["set", "images", "dimensions", ""], rows)
    console.next_commands(f"entrep index{options.flags(run=opened.reference)}")
    return {
        "run": opened.name,
        "engine": model.engine,
        "sets": {
            name: {"images": n, "dimensions": d, "folder": str(opened.path("embeddings", name)), "stages": told[name]}
            for name, n, d, _ in rows
        },
    }


def _sets(root: Path, folders: list[Path]) -> dict[str, Items]:
    """All that is to be embedded, by the names of the sets; DataError lists the faults of all."""
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import split_groups
    from entrep_cli.data.testsets import find_test_sets, read_test_folder
    from entrep_cli.retrieval.sets import TRAIN, catalog_items, folder_items, set_name

    sets, faulty = {}, []
    try:
        sets[TRAIN] = catalog_items(Catalog.read(root, groups=split_groups(root)))
    except DataError as error:
        faulty.append(error)
    for test_set in [*find_test_sets(root), *map(read_test_folder, folders)]:
        try:
            sets[set_name(test_set, root)] = folder_items(test_set, root)
        except DataError as error:
            faulty.append(error)
    if faulty:
        raise together(faulty)
    return sets


def _open(run: Run, engine: str, device: str, precision: str, compile_: bool) -> Model:
    """The model as it will compute, which is said with its reason."""
    if engine == ONNX:
        from entrep_cli.methods.exporting import open_exported

        if device not in ("auto", "cpu"):
            raise UsageError("The onnx engine computes on the CPU.", hint="--device cpu, or --engine torch")
        return open_exported(run)
    from entrep_cli.methods.runs import load_model
    from entrep_cli.models.precision import choose_inference_precision, lower, precision_beside
    from entrep_cli.retrieval.sets import embedded_precision, open_model

    together = precision == "auto" and run.manifest["method"] == "ensemble"  # then each member has its own
    model = open_model(run, device) if together else load_model(run, device)
    if processes.size() > 1 and model.members:
        raise UsageError("An ensemble is embedded in one process.", hint="embed each member first, then this without a launcher")
    place = model.device
    if together:
        chosen, reason = model.engine, "as the members' images were embedded"
    elif precision == "auto":
        chosen, reason = precision_beside(embedded_precision(run), place, model)
    else:
        chosen, reason = choose_inference_precision(precision, place, model)
    lower(model, chosen)
    console.say(f"Device: {place}. Precision: {chosen} ({reason}).")
    if compile_:
        model.compile_answers()
    return model


def _show(name: str, stages: Stages) -> None:
    beside = f"reader and transform in {stages.threads} threads beside the model" if stages.threads else "pixels as they were kept"
    title = f"Stages of {name}: {stages.images} images in {stages.elapsed:.1f} s ({beside})"
    console.table(title, ["stage", "seconds", "share"], stages.rows())
    console.say(f"Bottleneck: {stages.bottleneck}; the model waited {stages.waited:.1f} s for pixels.")
