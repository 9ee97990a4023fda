"""From a method's name to a complete run folder, and back to a model."""

from __future__ import annotations

import json
import platform
import tomllib
from importlib.metadata import version
from typing import Any


from entrep_cli import __version__, console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import RunError, first_line
from entrep_cli.methods import Model, method_class
from entrep_cli.models.device import choose_device, choose_precision, make_deterministic
from entrep_cli.recipes.recipe import Recipe, build_recipe, recipe_toml
from entrep_cli.training.loop import end_training
from entrep_cli.workspace import CONFIG, MODEL, Run, write_json_atomic, write_text_atomic

_BEGUN = "begun.json"  # what a training was begun on, so that it cannot go on with something else
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
) -> tuple[Model, dict[str, Any]]:
    """Train `recipe` into `run`; the model and its manifest.

    The run is complete, and found by the other commands, only when this returns.

    Raises:
        RunError: a part without images, or a run to resume that was begun with another recipe or split.
    """
    place, reason = choose_device(device)
    console.say(f"Device: {place} ({reason}).")
    make_deterministic()
    train, val = (catalog.subset(split.images(part, fold)) for part in ("train", "val"))
    for name, part in (("train", train), ("val", val)):
        if not len(part):
            raise RunError(f"The {name} part of the split is empty.", mend="make another one: `entrep split`")
    text = recipe_toml(recipe)
    if resume and run.path(CONFIG).is_file() and run.path(CONFIG).read_text("utf-8") != text:
        raise RunError(
            f"Run {run.name!r} was begun with another recipe.",
            where=run.path(CONFIG),
            mend=f"`entrep train --recipe {run.path(CONFIG)} --name {run.name} --resume`",
        )
    data = {"catalog": catalog.fingerprint, "split": split.fingerprint, "fold": fold}
    begun = json.loads(run.path(_BEGUN).read_text("utf-8")) if resume and run.path(_BEGUN).is_file() else {}
    # A training goes on in the precision it was begun in, also where a busy machine would be measured otherwise.
    chosen, reason = (begun.pop("precision"), "as it was begun") if "precision" in begun else choose_precision(precision, place)
    console.say(f"Precision: {chosen} ({reason}).")
    if begun and begun != data:
        raise RunError(
            f"Run {run.name!r} was begun on other data, another split or another fold.",
            where=run.path(_BEGUN),
            mend="split as it was then, or begin again with --overwrite",
        )
    write_text_atomic(run.path(CONFIG), text)
    write_json_atomic(run.path(_BEGUN), {**data, "precision": chosen})
    model, fit = method_class(recipe.method).fit(train, val, recipe, run, device=place, precision=chosen, resume=resume)
    model.save(run)
    run.finish(
        {
            "entrep": __version__,
            "method": recipe.method,
            "taxonomy": catalog.taxonomy.as_dict(),
            "preprocess": model.preprocess.as_dict(),
            "weights": fit.weights,
            "validation": fit.validation,
            "epoch": fit.epoch,
            "data": {
                "layouts": list(catalog.layouts),
                "catalog": catalog.fingerprint,
                "images": {"train": len(train), "val": len(val)},
            },
            "split": {
                "seed": split.seed,
                "ratios": list(split.ratios),
                "folds": split.folds,
                "fold": fold,
                "fingerprint": split.fingerprint,
            },
            "device": str(place),
            "precision": chosen,
            "parameters": fit.parameters,
            "seconds": round(fit.seconds, 1),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        }
    )
    end_training(run)
    return model, run.manifest


def load_model(run: Run, device: str = "auto") -> Model:
    """The model of a complete run, checked against the hashes in its manifest.

    Raises:
        RunError: half written, damaged, or made by a method that this entrep does not have.
    """
    manifest = run.manifest
    run.check_files()
    missing = [name for name in (CONFIG, MODEL) if not run.path(name).is_file()]
    if missing:
        raise RunError(f"Run {run.name!r} has no {' and no '.join(missing)}.", where=run.folder, mend="train it again")
    make_deterministic()
    kind = method_class(manifest["method"])
    recipe = build_recipe(kind.Recipe, tomllib.loads(run.path(CONFIG).read_text("utf-8")))
    taxonomy = Taxonomy.from_dict(manifest["taxonomy"])
    try:
        return kind.load(run, recipe, taxonomy, choose_device(device)[0])
    except (RuntimeError, KeyError) as error:
        raise RunError(
            f"The model of run {run.name!r} cannot be read: {first_line(error)}", where=run.path(MODEL), mend="train it again"
        ) from error
