"""`train`: fit a method, leave a run; `effective_recipe`: the settings that a training would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console, processes
from entrep_cli.api.common import left_in_order, say_catalog
from entrep_cli.errors import UsageError
from entrep_cli.methods import DEFAULT_METHOD, method_class
from entrep_cli.recipes.recipe import Recipe, build_recipe, parse_assignments, read_recipe, short_settings
from entrep_cli.results import Result, Table
from entrep_cli.workspace import CONFIG, Run, data_dir, new_run

if TYPE_CHECKING:
    from entrep_cli.experiments.folds import CrossValidation


@dataclass(frozen=True)
class Trained(Result):
    """A complete run.

    Attributes:
        run: the run.
        manifest: what it was made from, what it cost, and its scores on validation.
        cross_validation: the scores of all folds, if every fold was trained.
    """

    run: Run
    manifest: dict[str, Any]
    cross_validation: CrossValidation | None = None

    @property
    def tracks(self) -> list[int]:
        """The tracks that the run can answer."""
        # A model of the regions, or an expert of one, has no classes to submit.
        return [*([1] if self.manifest["target"] == "class" else []), 2, *([3] if self.manifest["reads_text"] else [])]

    @property
    def files(self) -> list[Path]:
        """What the cross-validation wrote: its scores, and the prediction of every image."""
        from entrep_cli.experiments.folds import FILE, PREDICTIONS

        return [self.run.path(FILE), self.run.path(PREDICTIONS)] if self.cross_validation else []

    def tables(self) -> list[Table]:
        if self.cross_validation is not None:
            n_folds = len(next(iter(self.cross_validation.folds.values())))
            title = (
                f"Run {self.run.name}: {n_folds} folds, {self.cross_validation.images} images, each predicted by the run that left it out"
            )
            columns = ["score", "mean of folds", "their deviation", "pooled, with 95% interval"]
            return [Table(title, columns, self.cross_validation.rows())]
        epoch = self.manifest["epoch"]
        title = f"Run {self.run.name}: " + (f"best of validation in epoch {epoch}" if epoch else "validation")
        return [Table(title, ["score", "value"], list(self.manifest["validation"].items()))]

    def to_dict(self) -> dict[str, Any]:
        return {"run": self.run.name, "folder": str(self.run.folder), **self.manifest}


def effective_recipe(
    method: str | None = None,
    *,
    recipe: str | None = None,
    set: Sequence[str] = (),
    backbone: str | None = None,
    weights: str | None = None,
    tune: str | None = None,
    label_fraction: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
) -> Recipe:
    """The complete settings of a training: the method's defaults, then a recipe, then `set`, then the options.

    Args:
        recipe: a TOML file or a built-in recipe.
        set: assignments such as "head.dropout=0.5".

    Raises:
        UsageError: no such method or recipe, or invalid settings; every fault is listed.
    """
    short = short_settings(backbone=backbone, weights=weights, tune=tune, label_fraction=label_fraction, epochs=epochs, seed=seed)
    return _settings(method, recipe, set, short, console.flags(recipe=recipe))


def train(
    method: str | None = None,
    *,
    data: Path | str | None = None,
    recipe: str | None = None,
    set: Sequence[str] = (),
    backbone: str | None = None,
    weights: str | None = None,
    tune: str | None = None,
    label_fraction: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    fold: int | None = None,
    folds: int | None = None,
    name: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> Trained:
    """Train a method on the split, and write a run under `runs/`.

    The model learns from the training subset, the validation subset chooses, and the test subset is not read.

    Args:
        method: the method; by default that of the recipe, or `clip-lora`.
        data: the dataset folder.
        recipe, set, backbone, weights, tune, label_fraction, epochs, seed: the settings; see `effective_recipe`.
        fold: the fold left out, of a split into folds.
        folds: number of folds, all that the split has: train one run for each, and join them as an ensemble.
        name: name of the run; by default that of the method, with a number if the name is taken.
        resume: continue an interrupted training.
        overwrite: replace a run of this name once the new one is complete.
        device: where the model computes.
        precision: `auto`, `fp32`, `bf16` or `fp16`.

    Raises:
        UsageError: invalid settings or options.
        DataError: the dataset cannot be used.
        RunError: the split or the run cannot be used.
        Interrupted: on Ctrl-C, if a checkpoint to resume from was saved.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with a run, --overwrite starts it anew.", hint="give one of them")
    if folds and fold is not None:
        raise UsageError("--folds trains on every fold, --fold on one.", hint="give one of them")
    started = processes.on_main(lambda: new_run(method or DEFAULT_METHOD, name, resume=True)) if resume else None
    by_fold = bool(folds or started and started.path("fold-0").is_dir())
    if by_fold and processes.size() > 1:
        raise UsageError("--folds trains in one process.", hint="train fold by fold with --fold, or leave out the launcher")
    repeated = console.flags(recipe=recipe)
    if started and not recipe and (config := started.path(*["fold-0"] * by_fold, CONFIG)).is_file():
        recipe, repeated = str(config), f" --resume{console.flags(name=started.name)}"
    short = short_settings(backbone=backbone, weights=weights, tune=tune, label_fraction=label_fraction, epochs=epochs, seed=seed)
    settings = _settings(method, recipe, set, short, repeated)

    from entrep_cli.data.splits import read_catalog_and_split
    from entrep_cli.experiments.folds import check_folds, train_folds
    from entrep_cli.methods.runs import train_run

    with processes.main_first():
        catalog, split = read_catalog_and_split(data_dir(None if data is None else Path(data)))
    say_catalog(catalog)
    if by_fold:
        check_folds(split, folds)
    else:
        split.images("train", fold)  # a fault in `fold` must show before a folder is made
    run = started or processes.on_main(lambda: new_run(settings.method, name, overwrite=overwrite))
    with left_in_order(run, "training", f"entrep train --resume{console.flags(name=run.name, data=data, fold=fold)}"):
        if by_fold:
            _, scores = train_folds(catalog, split, settings, run, device=device, precision=precision, resume=resume)
            return Trained(run, run.manifest, scores)
        _, manifest = train_run(catalog, split, settings, run, device=device, precision=precision, fold=fold, resume=resume)
    return Trained(run, manifest)


def _settings(method: str | None, recipe: str | None, set: Sequence[str], short: dict[str, Any], repeated: str) -> Recipe:
    """As `effective_recipe`; `repeated` are the options to type again where the recipe is another method's."""
    base = read_recipe(recipe) if recipe else {}
    wanted = method or base.get("method") or DEFAULT_METHOD
    if base.get("method", wanted) != wanted:
        what = f"Recipe {recipe!r} is one of {base['method']}, not of {wanted}."
        raise UsageError(what, hint=f"entrep train {base['method']}{repeated}")
    if wanted == "ensemble":
        raise UsageError("An ensemble is made of runs, and not trained.", hint="entrep ensemble RUN RUN")
    return build_recipe(method_class(wanted).Recipe, base, parse_assignments(set), short)
