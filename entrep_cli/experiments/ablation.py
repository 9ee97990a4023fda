"""Ablations: the components of a paper, one by one, each trained alike, in one table with intervals.

Each row is trained with several seeds, and every training is a run of its own under
`runs/ablations/NAME/`: complete ones are not trained again, an interrupted one goes on, so that the same
command always finishes the table. Scores of a row are means over its seeds; the interval comes from
drawing the groups of the scored part anew, and differences between rows are paired.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.errors import RunError
from entrep_cli.experiments.scored import check_scored, scored_part, seen_by, texts_for
from entrep_cli.methods.runs import load_model, train_run
from entrep_cli.recipes.recipe import Recipe, build_recipe, recipe_toml
from entrep_cli.scoring.intervals import Interval, Sample, pooled
from entrep_cli.scoring.parts import TEXTS, score_part
from entrep_cli.workspace import CONFIG, Run, runs_dir, write_json_atomic, write_text_atomic

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
    """

    key: str
    name: str
    settings: Sequence[dict[str, Any]]
    against: str | None = None
    before: Before | None = None


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
    "mlcf": Ablation("clip-lora", "mlcf", "entrep_cli.experiments.mlcf:rows"),
    "mics": Ablation("mics", "mics", "entrep_cli.experiments.mics:rows"),
}


@dataclass(frozen=True)
class RowScores:
    """What a row came to.

    Attributes:
        row: it.
        runs: one a seed.
        scores: by the headings of `SHOWN`, the mean over seeds; a score that the method cannot have is left out.
        spread: the standard deviation over seeds of each, 0 with one seed.
        change: the difference from the row it is compared with.
    """

    row: Row
    runs: list[Run]
    scores: dict[str, Interval]
    spread: dict[str, float]
    change: dict[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        manifests = [run.manifest for run in self.runs]
        return {
            "key": self.row.key,
            "row": self.row.name,
            "against": self.row.against,
            **({"before": self.row.before.key} if self.row.before else {}),
            "scores": {name: {**value.as_dict(), "spread": self.spread[name]} for name, value in self.scores.items()},
            "change": {name: value.as_dict() for name, value in self.change.items()},
            "parameters": manifests[0]["parameters"],
            "seconds": float(np.mean([manifest["seconds"] for manifest in manifests])),
            "runs": [
                {"run": run.reference, "validation": m["validation"], "epoch": m["epoch"], "seconds": m["seconds"]}
                for run, m in zip(self.runs, manifests)
            ],
        }


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
    overwrite: bool = False,
) -> tuple[list[RowScores], dict[str, float]]:
    """Train and score every row with every seed, and write `table.json` and `table.csv`; also Recall@1 by chance.

    Args:
        name: of the folder under `runs/ablations/`.
        root: the dataset folder.
        seeds: the recipe's seed and those after it.
        on: `test` or `val` of the split, or `queries`, the dataset's test folder with its truth.

    Raises:
        RunError: the folder holds runs of other settings, or the part to be scored is empty.
    """
    check_scored(on)
    scored = scored_part(catalog, split, root, on, fold)  # faults in it must show before hours of training
    folder = runs_dir() / "ablations" / name
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    kind = type(recipe)
    plan = [(row, recipe.seed + k) for k in range(seeds) for row in rows]  # whole tables first, then more seeds
    settings = {
        (row.key, seed): build_recipe(kind, recipe.model_dump(), *row.settings, _started_from(row, name), {"seed": seed})
        for row, seed in plan
    }
    runs = {place: Run(folder / f"{place[0]}-seed{place[1]}") for place in settings}
    first = {row.before.key: row.before.recipe(build_recipe(kind, recipe.model_dump(), *row.settings)) for row in rows if row.before}
    _check_runs({**runs, **{key: Run(folder / key) for key in first}}, {**settings, **first}, catalog, split, fold)
    samples: dict[tuple[str, int], dict[str, Sample]] = {}
    chance: dict[str, float] = {}
    for i, (row, seed) in enumerate(plan, 1):
        place = row.key, seed
        console.say("", f"Training {i} of {len(plan)}: {row.name}, seed {seed}")
        run = runs[place]
        if not run.complete:
            if row.before and not (before := Run(folder / row.before.key)).complete:
                console.say(f"First {before.name}, for all rows that start from it.")
                with _begun(before):
                    row.before.train(catalog, split, first[before.name], before, device=device, precision=precision, fold=fold)
            with _begun(run):
                train_run(catalog, split, settings[place], run, device=device, precision=precision, fold=fold, resume=True)
        samples[place], by_chance = _samples(run, scored, catalog, root, on, device)
        chance |= by_chance
    of_row = {row.key: [samples[row.key, recipe.seed + k] for k in range(seeds)] for row in rows}
    found = [
        RowScores(
            row,
            [runs[row.key, recipe.seed + k] for k in range(seeds)],
            _pooled(of_row[row.key]),
            _spread(of_row[row.key]),
            _pooled(of_row[row.key], of_row[row.against]) if row.against in of_row else {},
        )
        for row in rows
    ]
    document = {
        "ablation": name,
        "on": on,
        "images": len(scored),
        "seeds": seeds,
        "chance": {shown: chance[key] for shown, (key, score) in SHOWN.items() if score == "recall@1" and key in chance},
        "split": split.fingerprint,
        "recipe": recipe.model_dump(mode="json"),
        "rows": [row.as_dict() for row in found],
    }
    write_json_atomic(folder / "table.json", document)
    write_text_atomic(folder / "table.csv", _csv(found))
    return found, document["chance"]


def _started_from(row: Row, name: str) -> dict[str, Any]:
    # By its place under the runs folder, so that the folder may be moved.
    return {"backbone": {"weights": f"ablations/{name}/{row.before.key}"}} if row.before else {}


@contextlib.contextmanager
def _begun(run: Run) -> Iterator[None]:
    """The folder of a training; one that ends before there is anything to go on from leaves none, and forbids no other settings."""
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        run.remove_if_empty()
        raise


def _check_runs(runs: dict, settings: dict, catalog: Catalog, split: Split, fold: int | None) -> None:
    """Every run that is there must have been made with these settings, on these data and by this split."""
    faults = []
    for place, run in runs.items():
        if run.path(CONFIG).is_file() and run.path(CONFIG).read_text("utf-8") != recipe_toml(settings[place]):
            faults.append(f"{run.name}: other settings")
        elif run.complete and (run.manifest["split"]["fingerprint"], run.manifest["split"]["fold"]) != (split.fingerprint, fold):
            faults.append(f"{run.name}: another split")
        elif run.complete and run.manifest["data"]["catalog"] != catalog.fingerprint:
            faults.append(f"{run.name}: other labels or images")
    if faults:
        where = next(iter(runs.values())).folder.parent
        raise RunError(
            "The ablation was begun otherwise.", where=where, faults=faults, mend="give it another --name, or begin again with --overwrite"
        )


def _samples(
    run: Run, scored: Catalog, catalog: Catalog, root: Path, on: str, device: str
) -> tuple[dict[str, Sample], dict[str, float]]:
    """Scores by the names of `PartScores`, and Recall@1 by chance by the same names."""
    model = load_model(run, device)
    scores = score_part(scored, seen_by(run, model, scored, catalog, root, on), texts=texts_for(model, scored))
    retrieval = {name: s.sample for name, s in scores.retrieval.items() if s.scored.any()}
    return {"classification": scores.classification.sample, **retrieval}, scores.chance


def _pooled(samples: list[dict[str, Sample]], against: list[dict[str, Sample]] = []) -> dict[str, Interval]:
    common = [key for key in samples[0] if all(key in other for other in (*samples, *against))]
    intervals = {key: pooled([s[key] for s in samples], [s[key] for s in against]) for key in common}
    return {shown: intervals[key][score] for shown, (key, score) in SHOWN.items() if key in intervals}


def _spread(samples: list[dict[str, Sample]]) -> dict[str, float]:
    def values(key: str, score: str) -> list[float]:
        found = [s[key] for s in samples]
        return [float(s.statistics(np.ones((1, s.n), np.int64))[0][s.names.index(score)]) for s in found]

    return {
        shown: float(np.std(values(key, score), ddof=1)) if len(samples) > 1 else 0.0
        for shown, (key, score) in SHOWN.items()
        if all(key in s for s in samples)
    }


def _csv(found: list[RowScores]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "score", "value", "low", "high", "spread over seeds", "change", "change low", "change high"])
    for row in found:
        for name, value in row.scores.items():
            change = row.change.get(name)
            moved = [f"{x:.4f}" for x in (change.value, change.low, change.high)] if change else ["", "", ""]
            writer.writerow([row.row.name, name, *(f"{x:.4f}" for x in (value.value, value.low, value.high, row.spread[name])), *moved])
    return text.getvalue()
