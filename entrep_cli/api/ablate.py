"""`ablate`: the components of a paper or of a recipe, one by one, in one table; `ablation_rows`: what there is to train."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli.api.common import say_catalog
from entrep_cli.errors import Interrupted, UsageError
from entrep_cli.recipes.recipe import Recipe, build_recipe, parse_assignments, read_recipe, short_settings
from entrep_cli.results import Result, Table
from entrep_cli.workspace import data_dir, runs_dir

if TYPE_CHECKING:
    from entrep_cli.experiments.ablation_table import AblationTable, Row


@dataclass(frozen=True)
class AblationRows(Result):
    """The rows of an ablation for one recipe: what would be trained, and which row each is compared with."""

    paper: str
    recipe: Recipe
    rows: tuple[Row, ...]
    trainings: int

    def tables(self) -> list[Table]:
        names = {row.key: row.name for row in self.rows}
        rows = [(row.key, row.name, names.get(row.against or "", "")) for row in self.rows]
        return [Table(f"Rows of {self.paper}: {self.trainings} trainings", ["key", "row", "compared with"], rows)]

    def to_dict(self) -> dict[str, Any]:
        rows = [{"key": row.key, "name": row.name, "against": row.against} for row in self.rows]
        return {"ablation": self.paper, "trainings": self.trainings, "rows": rows}


def ablation_rows(
    paper: str,
    *,
    recipe: str | None = None,
    set: Sequence[str] = (),
    backbone: str | None = None,
    weights: str | None = None,
    epochs: int | None = None,
    pretrain_epochs: int | None = None,
    rows: Sequence[str] = (),
    seed: int | None = None,
    seeds: int = 3,
    folds: int | None = None,
) -> AblationRows:
    """The rows that `ablate` would train with the same arguments.

    Raises:
        UsageError: no such ablation, recipe or row, or invalid settings.
    """
    from entrep_cli.experiments.ablation import ABLATIONS
    from entrep_cli.methods import method_class

    if paper not in ABLATIONS:
        raise UsageError(f"No ablation named {paper!r}.", hint=f"choose one of: {', '.join(ABLATIONS)}")
    ablation = ABLATIONS[paper]
    base = read_recipe(recipe or ablation.recipe)
    if base.get("method", ablation.method) != ablation.method:
        raise UsageError(f"The ablation {paper} is one of {ablation.method}, not of {base['method']}.", hint=f"--recipe {ablation.recipe}")
    short = short_settings(backbone=backbone, weights=weights, epochs=epochs, seed=seed)
    limit: dict[str, Any] = {} if pretrain_epochs is None else {"pretraining": {"train": {"epochs": pretrain_epochs}}}
    settings = build_recipe(method_class(ablation.method).Recipe, base, parse_assignments(set), short, limit)
    chosen = every = ablation.rows_of(settings)
    if rows:
        named = [row for row in every if any(fnmatchcase(row.key, pattern) for pattern in rows)]
        refined = {row.against for row in named if row.refine}  # a refinement needs the row that it refines
        chosen = [row for row in every if row in named or row.key in refined]
        if not chosen:
            raise UsageError(f"No row is called {' or '.join(rows)}.", hint=f"--rows with one of: {', '.join(row.key for row in every)}")
    return AblationRows(paper, settings, tuple(chosen), sum(not row.refine for row in chosen) * seeds * (folds or 1))


def ablate(
    paper: str,
    *,
    data: Path | str | None = None,
    recipe: str | None = None,
    set: Sequence[str] = (),
    backbone: str | None = None,
    weights: str | None = None,
    epochs: int | None = None,
    pretrain_epochs: int | None = None,
    rows: Sequence[str] = (),
    seed: int | None = None,
    seeds: int = 3,
    split: str = "test",
    fold: int | None = None,
    folds: int | None = None,
    name: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> AblationTable:
    """Train a recipe without its components, then with each of them in turn, and score all rows in one table.

    Completed trainings stay under `runs/ablations/`: the same call resumes an interrupted ablation, and more seeds, folds or
    rows are added to it.

    Args:
        paper: `mlcf`, `mics`, or `best` for single factors of a recipe.
        data: the dataset folder.
        rows: patterns of row keys, such as "all-*"; all rows by default.
        seeds: number of trainings per row.
        split: the images that are scored.
        fold: the fold left out.
        folds: number of folds that are left out in turn; each is scored by the models that left it out.
        name: name of the folder; by default that of the paper.
        overwrite: start again, and delete what was trained.

    Raises:
        UsageError: invalid arguments.
        RunError: the folder holds runs with other settings.
        Interrupted: on Ctrl-C.
    """
    if name is not None and not re.fullmatch(r"\w[\w.+-]*", name):
        raise UsageError(f"{name!r} cannot be the name of a folder.", hint="use letters, digits, - and _")
    short: dict[str, Any] = {"backbone": backbone, "weights": weights, "epochs": epochs, "pretrain_epochs": pretrain_epochs, "seed": seed}
    plan = ablation_rows(paper, recipe=recipe, set=set, rows=rows, **short)
    from entrep_cli.data.splits import read_catalog_and_split
    from entrep_cli.experiments.ablation import run_ablation

    root = data_dir(None if data is None else Path(data))
    catalog, division = read_catalog_and_split(root)
    say_catalog(catalog)
    how: dict[str, Any] = {"seeds": seeds, "split": split, "fold": fold, "folds": folds or 0, "device": device, "precision": precision}
    try:
        return run_ablation(name or paper, catalog, division, plan.rows, plan.recipe, root, overwrite=overwrite, **how)
    except KeyboardInterrupt:
        hint = "the same command resumes it" + (", without --overwrite" if overwrite else "")
        folder = runs_dir() / "ablations" / (name or paper)
        raise Interrupted("Interrupted; the completed trainings are saved.", where=folder, hint=hint) from None
