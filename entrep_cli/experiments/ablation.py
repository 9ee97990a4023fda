"""Ablations: the components of a paper, one by one, each trained alike, in one table with intervals.

Each row is trained with several seeds, and over several folds where that is asked, and every training is a
run of its own under `runs/ablations/NAME/`: complete ones are not trained again, an interrupted one goes on,
so that the same command always finishes the table. Every image is scored by a model that did not learn from
it; over folds, the images of all of them are pooled. Scores of a row are means over its seeds; the interval
comes from drawing the groups of the scored images anew, and differences between rows are paired. Whether a
difference is more than chance says the test that `entrep compare` takes, corrected for the number of rows.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation.comparison import GroupTotals, averaged, holm, permutation_test
from entrep_cli.evaluation.intervals import Interval, Sample, pooled
from entrep_cli.evaluation.scored import QUERIES, check_scored, scored_subset, seen_by, texts_for
from entrep_cli.evaluation.selection import select
from entrep_cli.evaluation.subsets import TEXTS, SubsetScores, joined_subsets, score_subset, totals_of
from entrep_cli.methods.runs import train_run
from entrep_cli.recipes.recipe import Recipe, build_recipe, recipe_toml
from entrep_cli.retrieval.embeddings import Embeddings, embedded_sets, embeddings_of
from entrep_cli.retrieval.sets import TRAIN, catalog_items, open_model
from entrep_cli.workspace import CONFIG, Run, runs_dir, write_csv_atomic, write_json_atomic

# What a table shows: its heading, the scores it comes from, and which of them.
SHOWN = {
    "accuracy": ("classification", "accuracy"),
    "macro F1": ("classification", "macro F1"),
    "image Recall@1, class": ("class", "recall@1"),
    "image MRR, class": ("class", "mrr"),
    "text Recall@1, finding": (TEXTS, "recall@1"),
}


@dataclass(frozen=True)
class Before:
    """A training that rows start from (`backbone.weights`): one run in the ablation's folder, shared by all that name it.

    Attributes:
        key: the name of its run.
        recipe: what it is made with, from the recipe of a row; the same for all rows that name it.
        train: makes the run, or goes on with it, from catalog, split, recipe and run, by `device`, `precision` and `fold`.
    """

    key: str
    recipe: Callable[[Any], Recipe]
    train: Callable[..., None]


@dataclass(frozen=True)
class Row:
    """One row of an ablation.

    Attributes:
        key: short name, part of the names of its runs.
        name: as the table shows it.
        settings: tables over the recipe, later ones over earlier ones.
        against: the key of the row it is compared with.
        before: what must be trained first.
        refine: steps that refine the rankings of the runs of the row it is compared with, set on the validation part of
            each (`retrieval.refinement`); nothing is trained for it then.
    """

    key: str
    name: str
    settings: Sequence[dict[str, Any]]
    against: str | None = None
    before: Before | None = None
    refine: tuple[str, ...] = ()


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
class RowScores:
    """What a row came to.

    Attributes:
        row: it.
        runs: one a training, by seed and fold.
        scores: by the headings of `SHOWN`, the mean over seeds; a score that the method cannot have is left out.
        values: of each of `runs`, on what it was scored on alone.
        change: the difference from the row it is compared with.
        p: of that difference by `permutation_test`, corrected by Holm for all rows of the table.
    """

    row: Row
    runs: list[Run]
    scores: dict[str, Interval]
    values: list[dict[str, float]]
    change: dict[str, Interval]
    p: dict[str, float]

    @property
    def spread(self) -> dict[str, float]:
        """The standard deviation of each score over trainings, seeds and folds alike; 0 of one alone."""
        values = {name: [v[name] for v in self.values if name in v] for name in self.scores}
        return {name: float(np.std(own, ddof=1)) if len(own) > 1 else 0.0 for name, own in values.items()}

    def as_dict(self) -> dict[str, Any]:
        manifests = [run.manifest for run in self.runs]
        return {
            "key": self.row.key,
            "row": self.row.name,
            "against": self.row.against,
            **({"before": self.row.before.key} if self.row.before else {}),
            **({"refine": list(self.row.refine)} if self.row.refine else {}),
            "scores": {name: {**value.as_dict(), "spread": self.spread[name]} for name, value in self.scores.items()},
            "change": {name: {**value.as_dict(), "p_holm": self.p.get(name)} for name, value in self.change.items()},
            "parameters": manifests[0]["parameters"],
            "seconds": float(np.mean([manifest["seconds"] for manifest in manifests])),
            "runs": [
                {
                    "run": run.reference,
                    "fold": m["split"]["fold"],
                    "validation": m["validation"],
                    "epoch": m["epoch"],
                    "seconds": m["seconds"],
                    "scores": values,
                }
                for run, m, values in zip(self.runs, manifests, self.values)
            ],
        }


@dataclass(frozen=True)
class _Training:
    """One training of a row: with a seed, and by a fold or none."""

    row: Row
    seed: int
    fold: int | None
    settings: Recipe
    run: Run


def run_ablation(
    name: str,
    catalog: Catalog,
    split: Split,
    rows: Sequence[Row],
    recipe: Recipe,
    root: Path,
    *,
    seeds: int = 3,
    on: str = "test",
    device: str = "auto",
    precision: str = "auto",
    fold: int | None = None,
    folds: int = 0,
    overwrite: bool = False,
) -> tuple[list[RowScores], dict[str, float]]:
    """Train and score every row with every seed, and write `table.json` and `table.csv`; also Recall@1 by chance.

    Args:
        name: of the folder under `runs/ablations/`.
        root: the dataset folder.
        seeds: the recipe's seed and those after it.
        on: `test` or `val` of the split, or `queries`, the dataset's test folder with its truth.
        fold: the one fold kept for testing, of a split into folds.
        folds: so many of them in turn, from the first on, each scored on the one that is left out; 0 for `fold` alone.

    Raises:
        UsageError: folds that the split does not have, or that would not be scored each on its own images.
        RunError: the folder holds runs of other settings, or the part to be scored is empty.
    """
    check_scored(on)
    check_folds(split, folds, fold, on)
    left_out = list(range(folds)) if folds else [fold]
    scored = {k: scored_subset(catalog, split, root, on, k) for k in left_out}  # faults in it must show before hours of training
    folder = runs_dir() / "ablations" / name
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    # Whole tables first, of all rows by a fold, then more folds, then more seeds.
    plan = [
        _training(row, seed, k, recipe, folder, bool(folds))
        for seed in range(recipe.seed, recipe.seed + seeds)
        for k in left_out
        for row in rows
        if not row.refine
    ]
    if on == "val" and any(row.refine for row in rows):
        console.warn("what refines rankings is set on the validation part, and is scored on it: those rows are too good")
    first = {
        _before(t, bool(folds)).name: (_before(t, bool(folds)), t.row.before.recipe(_own_settings(t.row, recipe)), t.fold)
        for t in plan
        if t.row.before
    }
    _check_runs([*((t.run, t.settings, t.fold) for t in plan), *first.values()], catalog, split)
    refined_by = {row.against: [other for other in rows if other.refine and other.against == row.against] for row in rows if row.refine}
    found: dict[str, list[tuple[_Training, SubsetScores]]] = {row.key: [] for row in rows}
    for i, training in enumerate(plan, 1):
        row, by_fold = training.row, "" if training.fold is None else f", fold {training.fold}"
        console.say("", f"Training {i} of {len(plan)}: {row.name}, seed {training.seed}{by_fold}")
        how = {"device": device, "precision": precision, "fold": training.fold}
        if not training.run.complete:
            if row.before and not (before := _before(training, bool(folds))).complete:
                console.say(f"First {before.name}, for all rows that start from it.")
                with _started(before):
                    row.before.train(catalog, split, first[before.name][1], before, **how)
            with _started(training.run):
                train_run(catalog, split, training.settings, training.run, **how, resume=True)
        for key, scores in _scores(training, scored[training.fold], catalog, split, root, on, device, refined_by.get(row.key, ())):
            found[key].append((training, scores))
    pools = {key: [joined_subsets([s for t, s in own if t.seed == seed]) for seed in _seeds(own)] for key, own in found.items()}
    samples = {key: [_samples(scores) for scores in own] for key, own in pools.items()}
    p_values = _p_values(rows, pools)
    table = [
        RowScores(
            row,
            [t.run for t, _ in found[row.key]],
            _pooled(samples[row.key]),
            [_values(scores) for _, scores in found[row.key]],
            _pooled(samples[row.key], samples[row.against]) if row.against in samples else {},
            p_values[row.key],
        )
        for row in rows
    ]
    chance = {key: value for own in pools.values() for scores in own for key, value in scores.chance.items()}
    document = {
        "ablation": name,
        "on": on,
        "images": sum(map(len, scored.values())),
        "seeds": seeds,
        "folds": folds,
        "chance": {shown: chance[key] for shown, (key, score) in SHOWN.items() if score == "recall@1" and key in chance},
        "split": split.fingerprint,
        "recipe": recipe.model_dump(mode="json"),
        "rows": [row.as_dict() for row in table],
    }
    write_json_atomic(folder / "table.json", document)
    write_csv_atomic(folder / "table.csv", _COLUMNS, _rows(table))
    return table, document["chance"]


def check_folds(split: Split, folds: int, fold: int | None, on: str) -> None:
    """UsageError where rows cannot be scored over `folds` folds of a split."""
    if not folds:
        return
    if not split.folds:
        raise UsageError("--folds needs a split into folds.", hint="`entrep split --folds 5`")
    if folds > split.folds:
        raise UsageError(f"The split has {split.folds} folds, not {folds}.", hint=f"--folds {split.folds} or fewer")
    if fold is not None or on != "test":
        raise UsageError("With --folds every fold is scored by the models that left it out.", hint="leave out --fold and --split")


def _training(row: Row, seed: int, fold: int | None, recipe: Recipe, folder: Path, by_fold: bool) -> _Training:
    run = Run(folder / (f"{row.key}-fold{fold}-seed{seed}" if by_fold else f"{row.key}-seed{seed}"))
    training = _Training(row, seed, fold, recipe, run)
    started = [{"backbone": {"weights": _before(training, by_fold).reference}}] if row.before else []
    return replace(training, settings=build_recipe(type(recipe), recipe.model_dump(), *row.settings, *started, {"seed": seed}))


def _own_settings(row: Row, recipe: Recipe) -> Recipe:
    return build_recipe(type(recipe), recipe.model_dump(), *row.settings)


def _before(training: _Training, by_fold: bool) -> Run:
    """The run that a row starts from: one for all, but another for each fold, whose images it must not have seen."""
    key = training.row.before.key
    return Run(training.run.folder.with_name(f"{key}-fold{training.fold}" if by_fold else key))


def _seeds(trainings: list[tuple[_Training, SubsetScores]]) -> list[int]:
    return list(dict.fromkeys(training.seed for training, _ in trainings))


@contextlib.contextmanager
def _started(run: Run) -> Iterator[None]:
    """The folder of a training; one that ends before there is anything to go on from leaves none, and forbids no other settings."""
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        run.remove_if_empty()
        raise


def _check_runs(runs: Sequence[tuple[Run, Recipe, int | None]], catalog: Catalog, split: Split) -> None:
    """Every run that is there must have been made with these settings, on these data and by this split and fold."""
    faults = []
    for run, settings, fold in runs:
        if run.path(CONFIG).is_file() and run.path(CONFIG).read_text("utf-8") != recipe_toml(settings):
            faults.append(f"{run.name}: other settings")
        elif run.complete and (run.manifest["split"]["fingerprint"], run.manifest["split"]["fold"]) != (split.fingerprint, fold):
            faults.append(f"{run.name}: another split")
        elif run.complete and run.manifest["data"]["catalog"] != catalog.fingerprint:
            faults.append(f"{run.name}: other labels or images")
    if faults:
        where = runs[0][0].folder.parent
        raise RunError(
            "The ablation was started otherwise.",
            where=where,
            faults=faults,
            hint="give it another --name, or begin again with --overwrite",
        )


def _scores(
    training: _Training, part: Catalog, catalog: Catalog, split: Split, root: Path, on: str, device: str, refined: Sequence[Row]
) -> Iterator[tuple[str, SubsetScores]]:
    """The scores of a row by its key, and those of the rows that refine it by theirs."""
    run = training.run
    model = open_model(run, device)
    seen = _seen(run, model, part, catalog, root, on, whole=bool(refined))
    yield training.row.key, score_subset(part, seen, texts=texts_for(model, part))
    for row in refined:
        refinement = select(run, model, (catalog, split), refine=row.refine).refinement.value
        scores = score_subset(part, seen, refinement=refinement)
        kinds = {key: f"{key}, {refinement}" for key in scores.retrieval if f"{key}, {refinement}" in scores.retrieval}
        yield row.key, replace(scores, retrieval={key: scores.retrieval[name] for key, name in kinds.items()})


def _seen(run: Run, model: Any, part: Catalog, catalog: Catalog, root: Path, on: str, *, whole: bool) -> Embeddings:
    """The scored images as a run sees them, kept in the run; with `whole`, all images of the catalog are."""
    if whole:
        embeddings_of(run, TRAIN, catalog_items(catalog), model)
    elif on != QUERIES and TRAIN not in embedded_sets(run):
        return embeddings_of(run, f"part-{on}", catalog_items(part), model)
    return seen_by(run, model, part, catalog, root, on)


def _samples(scores: SubsetScores) -> dict[str, Sample]:
    """By the names of `SubsetScores`."""
    retrieval = {name: s.sample for name, s in scores.retrieval.items() if s.scored.any()}
    return {"classification": scores.classification.sample, **retrieval}


def _values(scores: SubsetScores) -> dict[str, float]:
    """By the headings of `SHOWN`."""
    samples = _samples(scores)
    found = {}
    for shown, (key, score) in SHOWN.items():
        if key in samples:
            row = samples[key].statistics(np.ones((1, samples[key].n), np.int64))[0]
            found[shown] = float(row[samples[key].names.index(score)])
    return found


def _pooled(samples: list[dict[str, Sample]], against: Sequence[dict[str, Sample]] = ()) -> dict[str, Interval]:
    common = [key for key in samples[0] if all(key in other for other in (*samples, *against))]
    intervals = {key: pooled([s[key] for s in samples], [s[key] for s in against]) for key in common}
    return {shown: intervals[key][score] for shown, (key, score) in SHOWN.items() if key in intervals}


def _p_values(rows: Sequence[Row], pools: dict[str, list[SubsetScores]]) -> dict[str, dict[str, float]]:
    """By row and heading of `SHOWN`; none of what refined rankings cannot change."""
    totals = {key: [totals_of(scores) for scores in own] for key, own in pools.items()}
    found: dict[str, dict[str, float]] = {row.key: {} for row in rows}
    for shown, (kind, _) in SHOWN.items():
        pairs: dict[str, tuple[GroupTotals, GroupTotals]] = {}
        for row in rows:
            if row.against not in totals or row.refine and kind == "classification":
                continue
            both = [[own.get(shown) for own in totals[key]] for key in (row.key, row.against)]
            if all(None not in own for own in both):
                pairs[row.key] = tuple(map(averaged, both))
        for key, p in zip(pairs, holm([permutation_test(*pair) for pair in pairs.values()])):
            found[key][shown] = p
    return found


_COLUMNS = ["row", "score", "value", "low", "high", "spread over trainings", "change", "change low", "change high", "p (Holm)"]


def _rows(table: list[RowScores]) -> Iterator[list[str]]:
    for row in table:
        for name, value in row.scores.items():
            change = row.change.get(name)
            moved = [f"{x:.4f}" for x in (change.value, change.low, change.high)] if change else ["", "", ""]
            moved.append(f"{row.p[name]:.4f}" if name in row.p else "")
            yield [row.row.name, name, *(f"{x:.4f}" for x in (value.value, value.low, value.high, row.spread[name])), *moved]
