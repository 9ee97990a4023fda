"""Ablations: the components of a paper, one by one, each trained alike, in one table with intervals.

Each row is trained with several seeds, and over several folds where that is asked, and every training is a
run of its own under `runs/ablations/NAME/`: complete ones are not trained again, an interrupted one goes on,
so that the same command always completes the table. Every image is scored by a model that did not learn from
it; over folds, the images of all of them are pooled. Scores of a row are means over its seeds; the interval
comes from drawing the groups of the scored images anew, and differences between rows are paired. Whether a
difference is more than chance says the test that `entrep compare` takes, corrected for the number of rows.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation.scored import QUERIES, check_scored, embedded_by, scored_subset, texts_for
from entrep_cli.evaluation.selection import select
from entrep_cli.evaluation.subsets import SubsetScores, score_subset
from entrep_cli.experiments.ablation_table import AblationTable, Row, Scored, row_scores
from entrep_cli.methods.base import Model
from entrep_cli.methods.runs import train_run
from entrep_cli.recipes.recipe import Recipe, build_recipe, recipe_toml
from entrep_cli.retrieval.embeddings import Embeddings, embedded_sets, embeddings_of
from entrep_cli.retrieval.sets import TRAIN, catalog_items, open_model
from entrep_cli.workspace import CONFIG, Run, runs_dir


@dataclass(frozen=True)
class Ablation:
    """A paper's ablation: the method it is of, the recipe it starts from, and its rows for any recipe of that method."""

    method: str
    recipe: str
    rows: str  # module:function, imported when it is used

    def rows_of(self, recipe: Recipe) -> list[Row]:
        module, function = self.rows.split(":")
        return getattr(importlib.import_module(module), function)(recipe)


ABLATIONS = {
    "best": Ablation("clip-lora", "best", "entrep_cli.experiments.best:rows"),
    "mlcf": Ablation("clip-lora", "mlcf", "entrep_cli.experiments.mlcf:rows"),
    "mics": Ablation("mics", "mics", "entrep_cli.experiments.mics:rows"),
}


@dataclass(frozen=True)
class _Training:
    """One training of a row: with a seed, and by a fold or none.

    Attributes:
        before: the run that it starts from: one for all rows and seeds, but another for each fold, whose images it must not learn from.
    """

    row: Row
    seed: int
    fold: int | None
    settings: Recipe
    run: Run
    before: Run | None


def run_ablation(
    name: str,
    catalog: Catalog,
    division: Split,
    rows: Sequence[Row],
    recipe: Recipe,
    root: Path,
    *,
    seeds: int = 3,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
    fold: int | None = None,
    folds: int = 0,
    overwrite: bool = False,
) -> AblationTable:
    """Train and score every row with every seed, and write `table.json` and `table.csv`.

    Args:
        name: of the folder under `runs/ablations/`.
        division: of the images of the catalog.
        root: the dataset folder.
        seeds: the recipe's seed and those after it.
        split: what is scored: `test`, `val`, or `queries`, the dataset's test folder with its truth.
        fold: the one fold held out for testing, of a division into folds.
        folds: so many of them in turn, from the first on, each scored by the models that it was held out from; 0 for `fold` alone.

    Raises:
        UsageError: folds that the division does not have, or that would not be scored each on its own images.
        RunError: the folder holds runs of other settings, or no images are left to score.
    """
    check_scored(split)
    check_folds(division, folds, fold, split)
    held_out = list(range(folds)) if folds else [fold]
    images = {k: scored_subset(catalog, division, root, split, k) for k in held_out}  # faults in it must show before hours of training
    folder = runs_dir() / "ablations" / name
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    # Whole tables first, of all rows by a fold, then more folds, then more seeds.
    plan = [
        _training(row, seed, k, recipe, folder, bool(folds))
        for seed in range(recipe.seed, recipe.seed + seeds)
        for k in held_out
        for row in rows
        if not row.refine
    ]
    if split == "val" and any(row.refine for row in rows):
        console.warn("refinements are chosen on the validation split, and are scored on it: those rows are too good")
    before = {training.before.name: training for training in plan if training.before}
    before_runs = [(t.before, t.row.before.recipe(_settings(t.row, recipe)), t.fold) for t in before.values()]
    _check_runs([*((t.run, t.settings, t.fold) for t in plan), *before_runs], catalog, division)
    before_settings = {run.name: settings for run, settings, _ in before_runs}
    trainings: dict[str, list[Scored]] = {row.key: [] for row in rows}
    for i, training in enumerate(plan, 1):
        row, by_fold = training.row, "" if training.fold is None else f", fold {training.fold}"
        console.say("", f"Training {i} of {len(plan)}: {row.name}, seed {training.seed}{by_fold}")
        how = {"device": device, "precision": precision, "fold": training.fold}
        if not training.run.complete:
            if training.before and not training.before.complete:
                console.say(f"First {training.before.name}, for all rows that start from it.")
                with _started(training.before):
                    row.before.train(catalog, division, before_settings[training.before.name], training.before, **how)
            with _started(training.run):
                train_run(catalog, division, training.settings, training.run, **how, resume=True)
        refined = [other for other in rows if other.refine and other.against == row.key]
        for key, scores in _scores(training, images[training.fold], catalog, division, root, split, device, refined):
            trainings[key].append(Scored(training.run, training.seed, scores))
    scored, chance = row_scores(rows, trainings)
    n_images, fingerprint = sum(map(len, images.values())), division.fingerprint
    table = AblationTable(name, folder, split, n_images, seeds, folds, division.folds, fingerprint, recipe, chance, scored)
    table.write()
    return table


def check_folds(division: Split, folds: int, fold: int | None, split: str) -> None:
    """UsageError where rows cannot be scored over `folds` folds of a division."""
    if not folds:
        return
    if not division.folds:
        raise UsageError("--folds needs a split into folds.", hint="`entrep split --folds 5`")
    if folds > division.folds:
        raise UsageError(f"The split has {division.folds} folds, not {folds}.", hint=f"--folds {division.folds} or fewer")
    if fold is not None or split != "test":
        raise UsageError("With --folds every fold is scored by the models that left it out.", hint="leave out --fold and --split")


def _training(row: Row, seed: int, fold: int | None, recipe: Recipe, folder: Path, by_fold: bool) -> _Training:
    of_fold = f"-fold{fold}" if by_fold else ""
    run, before = Run(folder / f"{row.key}{of_fold}-seed{seed}"), row.before and Run(folder / f"{row.before.key}{of_fold}")
    return _Training(row, seed, fold, _settings(row, recipe, {"seed": seed}, before), run, before)


def _settings(row: Row, recipe: Recipe, more: dict[str, int] | None = None, before: Run | None = None) -> Recipe:
    start = {"backbone": {"weights": before.reference}} if before else {}
    return build_recipe(type(recipe), recipe.model_dump(), *row.settings, start, more or {})


@contextlib.contextmanager
def _started(run: Run) -> Iterator[None]:
    """The folder of a training; one that ends before its first checkpoint leaves none, and forbids no other settings."""
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        run.remove_if_empty()
        raise


def _check_runs(runs: Sequence[tuple[Run, Recipe, int | None]], catalog: Catalog, division: Split) -> None:
    """Every run that exists must have been made with these settings, on these data and by this split and fold."""
    faults = []
    for run, settings, fold in runs:
        if run.path(CONFIG).is_file() and run.path(CONFIG).read_text("utf-8") != recipe_toml(settings):
            faults.append(f"{run.name}: other settings")
        elif run.complete and (run.manifest["split"]["fingerprint"], run.manifest["split"]["fold"]) != (division.fingerprint, fold):
            faults.append(f"{run.name}: another split")
        elif run.complete and run.manifest["data"]["catalog"] != catalog.fingerprint:
            faults.append(f"{run.name}: other labels or images")
    if faults:
        raise RunError(
            "The ablation was started with other settings or other data.",
            where=runs[0][0].folder.parent,
            faults=faults,
            hint="give it another --name, or start again with --overwrite",
        )


def _scores(
    training: _Training, images: Catalog, catalog: Catalog, division: Split, root: Path, split: str, device: str, refined: Sequence[Row]
) -> Iterator[tuple[str, SubsetScores]]:
    """The scores of a row by its key, and those of the rows that refine it by theirs."""
    run = training.run
    model = open_model(run, device)
    embeddings = _embeddings(run, model, images, catalog, root, split, whole=bool(refined))
    yield training.row.key, score_subset(images, embeddings, texts=texts_for(model, images))
    for row in refined:
        refinement = select(run, model, (catalog, division), refine=row.refine).refinement.value
        scores = score_subset(images, embeddings, refinement=refinement)
        kinds = {key: f"{key}, {refinement}" for key in scores.retrieval if f"{key}, {refinement}" in scores.retrieval}
        yield row.key, replace(scores, retrieval={key: scores.retrieval[name] for key, name in kinds.items()})


def _embeddings(run: Run, model: Model, images: Catalog, catalog: Catalog, root: Path, split: str, *, whole: bool) -> Embeddings:
    """Those of the scored images, written into the run; with `whole`, those of all images of the catalog are."""
    if whole:
        embeddings_of(run, TRAIN, catalog_items(catalog), model)
    elif split != QUERIES and TRAIN not in embedded_sets(run):
        return embeddings_of(run, f"split-{split}", catalog_items(images), model)
    return embedded_by(run, model, images, catalog, root, split)
