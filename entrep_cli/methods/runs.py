"""From a method's name to a complete run folder, and back to a model."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from entrep_cli import console, processes
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import RunError, UsageError, first_line
from entrep_cli.methods import METHODS, method_class
from entrep_cli.methods.base import FitContext, Fitted, Method, in_classes_of
from entrep_cli.models.device import choose_device, choose_precision, make_deterministic
from entrep_cli.recipes.recipe import Recipe, build_recipe, recipe_toml
from entrep_cli.training.loop import end_training
from entrep_cli.version import __version__
from entrep_cli.workspace import (
    CHECKPOINT,
    CONFIG,
    MANIFEST,
    MODEL,
    Run,
    fingerprint,
    runs_dir,
    trained_on,
    write_json_atomic,
    write_text_atomic,
)

STARTED = "started.json"  # what a training was started on, so that it cannot go on with something else
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "faiss-cpu")


def train_run(
    catalog: Catalog,
    split: Split,
    recipe: Recipe,
    run: Run,
    *,
    device: str = "auto",
    precision: str = "auto",
    fold: int | None = None,
    resume: bool = False,
) -> tuple[Method, dict[str, Any]]:
    """Train `recipe` into `run`; the model and its manifest.

    The run is complete, and found by the other commands, only when this returns. With `resume` one that is
    complete already is loaded and not trained again. In several processes every one calls this, and the main
    one alone writes into the run.

    Raises:
        RunError: a part without images, or a run to resume that was started with another recipe or split.
        UsageError: a method that several processes cannot share.
    """
    kind = method_class(recipe.method)
    if processes.size() > 1 and not kind.scales_out:
        several = [name for name in METHODS if method_class(name).scales_out]
        raise UsageError(
            f"{recipe.method} is trained in one process, and {processes.size()} were started.",
            hint=f"run it without a launcher; several processes can train {' and '.join(several)}",
        )
    place, reason = choose_device(device)
    console.say(f"Device: {place} ({reason}).")
    make_deterministic()
    train, val = (catalog.subset(split.images(part, fold)) for part in ("train", "val"))
    for name, part in (("train", train), ("val", val)):
        if not len(part):
            raise RunError(f"The {name} subset of the split is empty.", hint="make another one: `entrep split`")
    started = started_on(run) if resume else {}
    # A training goes on in the precision it was started in, also where a busy machine would be measured otherwise.
    chosen, reason = (started["precision"], "as it was started") if "precision" in started else choose_precision(precision, place)
    console.say(f"Precision: {chosen} ({reason}).")
    about = about_data(catalog, split, fold)
    if resume and run.complete:
        _check_started(run, recipe, about)
        return load_model(run, device), run.manifest
    with processes.private_copy(run) as own:
        return _train(FitContext(train, val, recipe, own, place, chosen, resume), about)


def about_data(catalog: Catalog, split: Split, fold: int | None) -> dict[str, Any]:
    """What a manifest tells of the data and the split that a run was made from."""
    return {
        "data": {"layouts": list(catalog.layouts), "catalog": catalog.fingerprint},
        "split": {
            "seed": split.seed,
            "ratios": list(split.ratios),
            "folds": split.folds,
            "groups": split.group_rule,
            "small_to_train": split.small_to_train,
            "fold": fold,
            "fingerprint": split.fingerprint,
        },
    }


@contextlib.contextmanager
def component_of(whole: Run, part: Run) -> Iterator[None]:
    """While a part of a run is trained: the whole is marked as one to go on with, as long as there is anything to go on from."""
    # Written first: a power cut leaves no time for it.
    write_text_atomic(whole.path(CHECKPOINT), f"The checkpoints of run {whole.name} are those of its components.\n")
    try:
        yield
    finally:
        if not part.complete and not part.path(CHECKPOINT).is_file():
            shutil.rmtree(part.folder, ignore_errors=True)
            if not any(whole.folder.glob(f"*/{MANIFEST}")):
                whole.path(CHECKPOINT).unlink()


def train_component(component: Run, context: FitContext) -> tuple[Method, dict[str, Any]]:
    """Train a run that is a component of another one, in a folder inside of it and on the same images.

    With `resume` a complete component is loaded and not trained again, and an incomplete one goes on.

    Args:
        context: of the whole, whose run it has, with the recipe of the component.

    Raises:
        RunError: as `train_run`.
    """
    about = started_on(context.run).get("about") or {
        # Not started by `train_run`: the images are all that is known.
        "data": {"layouts": list(context.train.layouts), "catalog": fingerprint([context.train.fingerprint, context.val.fingerprint])},
        "split": {"fold": None, "fingerprint": None},
    }
    if context.resume and component.complete:
        _check_started(component, context.recipe, about)
        return load_model(component, str(context.device)), component.manifest
    component.folder.mkdir(exist_ok=True)
    component.path(MANIFEST).unlink(missing_ok=True)
    return _train(replace(context, run=component), about)


def _train(context: FitContext, about: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
    """`about` is what the manifest says of the data and the split."""
    run, recipe = context.run, context.recipe
    if context.resume:
        _check_started(run, recipe, about)
    write_text_atomic(run.path(CONFIG), recipe_toml(recipe))
    write_json_atomic(run.path(STARTED), {**trained_on(about), "precision": context.precision, "about": about})
    fitted = method_class(recipe.method).fit(context)
    fitted.model.save(run)
    images = {name: len(in_classes_of(fitted.model, subset)) for name, subset in (("train", context.train), ("val", context.val))}
    complete_run(run, fitted, about, images, device=str(context.device), precision=context.precision)
    return fitted.model, run.manifest


def complete_run(
    run: Run, fitted: Fitted, about: Mapping[str, Any], images: Mapping[str, int], *, device: str, precision: str, **more: Any
) -> None:
    """Write `run.json`: what the run is, what it was made from and what it cost; `more` is told as it is given.

    Args:
        about: see `about_data`; images: how many of each part were used.
    """
    model = fitted.model
    run.mark_complete(
        {
            "entrep": __version__,
            "method": model.name,
            "reads_text": model.reads_text,
            "target": model.target,
            "taxonomy": model.taxonomy.as_dict(),
            "preprocess": model.preprocess.as_dict(),
            "weights": fitted.weights,
            "validation": fitted.validation,
            "epoch": fitted.epoch,
            "data": {**about["data"], "images": dict(images)},
            "split": about["split"],
            "device": device,
            "precision": fitted.precision or precision,
            "parameters": fitted.parameters,
            "seconds": round(fitted.seconds, 1),
            "versions": versions(),
            **more,
        }
    )
    end_training(run)


def versions() -> dict[str, str]:
    """Of Python and of the libraries that the numbers of a run depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def started_on(run: Run) -> dict[str, Any]:
    """What the training of a run was started on, {} where it has not started."""
    return json.loads(run.path(STARTED).read_text("utf-8")) if run.path(STARTED).is_file() else {}


def check_started(run: Run, recipe: Recipe, wanted: Mapping[str, Any], *, again: str, elsewhere: str) -> None:
    """RunError where a training was started with other settings or on other images, and must not go on with these.

    Args:
        wanted: what `started_on` must say of the images.
        again, elsewhere: the hint for another recipe, and for other images.
    """
    if run.path(CONFIG).is_file() and run.path(CONFIG).read_text("utf-8") != recipe_toml(recipe):
        raise RunError(f"Run {run.name!r} was started with another recipe.", where=run.path(CONFIG), hint=again)
    started = started_on(run)
    if started and any(started.get(key) != value for key, value in wanted.items()):
        raise RunError(
            f"Run {run.name!r} was started on other data, another split or another fold.", where=run.path(STARTED), hint=elsewhere
        )


def warn_of_leaks(origin: Mapping[str, Any], run: Run) -> None:
    """Say where the run that a training starts from (`trained_on` of its origin) may have seen what is scored now."""
    started = started_on(run)
    if any(key in started and started[key] != value for key, value in origin.get("trained_on", {}).items()):
        console.warn(
            f"{origin['weights']} was trained on other data, another split or another fold: where it has learned from images "
            "that are now validation or test ones, the scores are too good."
        )


def _check_started(run: Run, recipe: Recipe, about: dict[str, Any]) -> None:
    elsewhere = "split as it was then, or begin again with --overwrite"
    check_started(run, recipe, trained_on(about), again=_as_started(run), elsewhere=elsewhere)


def _as_started(run: Run) -> str:
    """How to go on with a run as it was started; with a part of another run or of an ablation, `train` by its name cannot."""
    if run.folder.parent.resolve() != runs_dir().resolve():
        return "bring back the recipe it was started with, or begin the whole again with --overwrite"
    return f"`entrep train --recipe {shlex.quote(str(run.path(CONFIG)))} --name {run.name} --resume`, or begin anew with --overwrite"


def load_model(run: Run, device: str = "auto") -> Method:
    """The model of a complete run, checked against the hashes in its manifest.

    Raises:
        RunError: half written, damaged, or made by a method that this entrep does not have.
    """
    manifest = run.manifest
    run.check_files()
    missing = [name for name in (CONFIG, MODEL) if not run.path(name).is_file()]
    if missing:
        raise RunError(f"Run {run.name!r} has no {' and no '.join(missing)}.", where=run.folder, hint="train it again")
    make_deterministic()
    kind = method_class(manifest["method"])
    recipe = build_recipe(kind.Recipe, tomllib.loads(run.path(CONFIG).read_text("utf-8")))
    taxonomy = Taxonomy.from_dict(manifest["taxonomy"])
    try:
        return kind.load(run, recipe, taxonomy, choose_device(device)[0])
    except (RuntimeError, KeyError) as error:
        raise RunError(
            f"The model of run {run.name!r} cannot be read: {first_line(error)}", where=run.path(MODEL), hint="train it again"
        ) from error
