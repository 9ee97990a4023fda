"""The rows of an ablation and what they came to: means over trainings, changes, p-values, as tables, JSON and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entrep_cli.evaluation.comparison import GroupTotals, averaged, holm, permutation_test
from entrep_cli.evaluation.intervals import Interval, Sample, pooled
from entrep_cli.evaluation.metrics import CLASSIFICATION, TEXTS, headline_columns
from entrep_cli.evaluation.subsets import SubsetScores, joined_subsets, totals_of
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.results import Result, Table
from entrep_cli.workspace import Run, write_csv_atomic, write_json_atomic

TASKS = (CLASSIFICATION, "class", TEXTS)  # what the table shows of the metrics
LEVEL = 0.05  # of significance


@dataclass(frozen=True)
class Before:
    """A training that rows start from (`backbone.weights`): one run in the ablation's folder for all that name it.

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
        key: short name, a piece of the names of its runs.
        name: as the table shows it.
        settings: tables over the recipe, later ones over earlier ones.
        against: the key of the row it is compared with.
        before: what must be trained first.
        refine: steps that refine the rankings of the runs of the row it is compared with, chosen on the validation split
            of each (`evaluation.selection`); nothing is trained for it then.
    """

    key: str
    name: str
    settings: Sequence[dict[str, Any]]
    against: str | None = None
    before: Before | None = None
    refine: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """What one training of a row scored: its run, its seed, and the scores of the images that the run left out."""

    run: Run
    seed: int
    scores: SubsetScores


@dataclass(frozen=True)
class RowScores:
    """What a row came to.

    Attributes:
        row: it.
        runs: one a training, by seed and fold.
        scores: by the headings of the table, the mean over seeds; a score that the method cannot have is left out.
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
        return {name: float(np.std(column, ddof=1)) if len(column) > 1 else 0.0 for name, column in values.items()}

    @property
    def parameters(self) -> int:
        """How many are learned."""
        return self.runs[0].manifest["parameters"]

    @property
    def seconds(self) -> float:
        """Of a training, the mean."""
        return float(np.mean([run.manifest["seconds"] for run in self.runs]))

    def as_dict(self) -> dict[str, Any]:
        return {
            "key": self.row.key,
            "row": self.row.name,
            "against": self.row.against,
            **({"before": self.row.before.key} if self.row.before else {}),
            **({"refine": list(self.row.refine)} if self.row.refine else {}),
            "scores": {name: {**value.as_dict(), "spread": self.spread[name]} for name, value in self.scores.items()},
            "change": {name: {**value.as_dict(), "p_holm": self.p.get(name)} for name, value in self.change.items()},
            "parameters": self.parameters,
            "seconds": self.seconds,
            "runs": [
                {
                    "run": run.reference,
                    "fold": run.manifest["split"]["fold"],
                    **{name: run.manifest[name] for name in ("validation", "epoch", "seconds")},
                    "scores": values,
                }
                for run, values in zip(self.runs, self.values)
            ],
        }


@dataclass(frozen=True)
class AblationTable(Result):
    """All rows of an ablation.

    Attributes:
        name: name of the ablation.
        folder: where its runs and this table are.
        split: the images that were scored.
        images: their number.
        seeds: trainings per row, by fold.
        folds: how many of the `n_folds` of the split were scored in turn; 0 for a split without folds.
        fingerprint: fingerprint of the split.
        recipe: the recipe that the rows start from.
        chance: Recall@1 by chance, by the headings of the table.
    """

    name: str
    folder: Path
    split: str
    images: int
    seeds: int
    folds: int
    n_folds: int
    fingerprint: str
    recipe: Recipe
    chance: dict[str, float]
    rows: list[RowScores]

    @property
    def columns(self) -> list[str]:
        """The headings of the scores that a row has."""
        return [column for column in headline_columns(TASKS) if any(column in row.scores for row in self.rows)]

    def tables(self) -> list[Table]:
        columns, rows = self.columns, self.rows
        where = f"{self.folds} of {self.n_folds} folds" if self.folds else self.split
        mean = f"mean of {self.seeds} seed{'s' * (self.seeds > 1)}, 95% intervals over groups (texts: over texts)"
        cells = [(r.row.name, *(r.scores.get(c, "-") for c in columns), f"{r.parameters:,}", f"{r.seconds:.0f}") for r in rows]
        cells.append(("by chance", *(self.chance.get(c, "-") for c in columns), "", ""))
        tables = [Table(f"{self.name} on {where}, {mean}", ["row", *columns, "learned", "s a run"], cells)]
        if len(rows[0].values) > 1:
            spread = [(r.row.name, *(r.spread.get(c, "-") for c in columns)) for r in rows]
            tables.append(Table(f"Standard deviation over {'seeds and folds' if self.folds else 'seeds'}", ["row", *columns], spread))
        changed = [row for row in rows if row.change]
        names, above = {r.row.key: r.row.name for r in rows}, dict(zip((r.row.key for r in rows), [None, *(r.row.key for r in rows)]))
        in_steps = all(r.row.against == above[r.row.key] for r in changed)
        labels = [r.row.name if in_steps else f"{r.row.name} - {names[r.row.against]}" for r in changed]
        if changed:
            what = f"Change from {'the row above' if in_steps else 'another row'}, paired"
            how = f"* where p <= {LEVEL:g}, answers swapped in whole groups, corrected for the rows"
            cells = [(label, *(_change(r.change.get(c), r.p.get(c, 1.0)) for c in columns)) for label, r in zip(labels, changed)]
            tables.append(Table(f"{what}; {how}", ["row", *columns], cells))
        return tables

    def to_dict(self) -> dict[str, Any]:
        return {
            "ablation": self.name,
            "folder": str(self.folder),
            **{name: getattr(self, name) for name in ("split", "images", "seeds", "folds", "chance", "fingerprint")},
            "recipe": self.recipe.model_dump(mode="json"),
            "rows": [row.as_dict() for row in self.rows],
        }

    def write(self) -> None:
        """Write `table.json` and `table.csv` into the folder."""
        document = self.to_dict()
        del document["folder"]  # a table names no place of this machine
        write_json_atomic(self.folder / "table.json", document)
        heading = ["row", "score", "value", "low", "high", "spread over trainings", "change", "change low", "change high", "p (Holm)"]
        lines = []
        for row in self.rows:
            for name, value in row.scores.items():
                change, p = row.change.get(name), row.p.get(name)
                numbers = [value.value, value.low, value.high, row.spread[name]]
                numbers += [change.value, change.low, change.high] if change else [None] * 3
                lines.append([row.row.name, name, *("" if x is None else f"{x:.4f}" for x in [*numbers, p])])
        write_csv_atomic(self.folder / "table.csv", heading, lines)


def row_scores(rows: Sequence[Row], trainings: dict[str, list[Scored]]) -> tuple[list[RowScores], dict[str, float]]:
    """What each row came to, over its folds pooled and its seeds averaged; and Recall@1 by chance, by heading.

    Args:
        trainings: of each row by its key.
    """
    columns = headline_columns(TASKS)
    seeds = {key: dict.fromkeys(t.seed for t in scored) for key, scored in trainings.items()}
    pools = {
        key: [joined_subsets([t.scores for t in scored if t.seed == seed]) for seed in seeds[key]] for key, scored in trainings.items()
    }
    samples = {key: [_samples(scores) for scores in pool] for key, pool in pools.items()}
    p_values = _p_values(rows, pools)

    def means(of: list[dict[str, Sample]], against: Sequence[dict[str, Sample]] = ()) -> dict[str, Interval]:
        common = [task for task in of[0] if all(task in other for other in (*of, *against))]
        intervals = {task: pooled([s[task] for s in of], [s[task] for s in against]) for task in common}
        return {shown: intervals[task][metric.key] for shown, (task, metric) in columns.items() if task in intervals}

    def values(scores: SubsetScores) -> dict[str, float]:
        each = {task: sample.values for task, sample in _samples(scores).items()}
        return {shown: each[task][metric.key] for shown, (task, metric) in columns.items() if task in each}

    table = [
        RowScores(
            row,
            [t.run for t in trainings[row.key]],
            means(samples[row.key]),
            [values(t.scores) for t in trainings[row.key]],
            means(samples[row.key], samples[row.against]) if row.against in samples else {},
            p_values[row.key],
        )
        for row in rows
    ]
    chance = {key: value for pool in pools.values() for scores in pool for key, value in scores.chance.items()}
    return table, {shown: chance[task] for shown, (task, metric) in columns.items() if metric.key == "recall@1" and task in chance}


def _samples(scores: SubsetScores) -> dict[str, Sample]:
    """By task."""
    retrieval = {task: s.sample for task, s in scores.retrieval.items() if s.scored.any()}
    return {CLASSIFICATION: scores.classification.sample, **retrieval}


def _p_values(rows: Sequence[Row], pools: dict[str, list[SubsetScores]]) -> dict[str, dict[str, float]]:
    """By row and heading; none of what refined rankings cannot change."""
    totals = {key: [totals_of(scores) for scores in pool] for key, pool in pools.items()}
    p_values: dict[str, dict[str, float]] = {row.key: {} for row in rows}
    for shown, (task, _) in headline_columns(TASKS).items():
        pairs: dict[str, tuple[GroupTotals, GroupTotals]] = {}
        for row in rows:
            if row.against not in totals or row.refine and task == CLASSIFICATION:
                continue
            both = [[scores.get(shown) for scores in totals[key]] for key in (row.key, row.against)]
            if all(None not in scores for scores in both):
                pairs[row.key] = tuple(map(averaged, both))
        for key, p in zip(pairs, holm([permutation_test(*pair) for pair in pairs.values()])):
            p_values[key][shown] = p
    return p_values


def _change(change: Interval | None, p: float) -> str:
    if change is None:
        return "-"
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]{'*' if p <= LEVEL else ''}"
