"""`ensemble`: several runs that answer together, as one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.api.common import left_in_order, say_catalog
from entrep_cli.errors import UsageError
from entrep_cli.results import Result, Table
from entrep_cli.workspace import Run, data_dir, new_run

if TYPE_CHECKING:
    from entrep_cli.experiments.ensemble import Built

_SCORES_A_TABLE = 3  # more do not fit beside each other into 80 columns


@dataclass(frozen=True)
class EnsembleResult(Result):
    """An ensemble that was made.

    Attributes:
        run: the run of the ensemble.
        built: the members, their weights, and scores on validation.
        weights: how the members are weighted, as in the argument.
    """

    run: Run
    built: Built
    weights: str

    def tables(self) -> list[Table]:
        built, title = self.built, f"Members of {self.run.name} (weights: {self.weights})"
        tables = [Table(title, ["run", "in classes", "in rankings", "temperature"], built.members)]
        n_val = 0 if built.val is None else len(built.val)
        scores = list(built.scores[-1]) if n_val and built.scores else []
        for start in range(0, len(scores), _SCORES_A_TABLE):
            keys = scores[start : start + _SCORES_A_TABLE]
            rows = [(name, *(row[key] for key in keys)) for name, row in zip([*built.names, self.run.name], built.scores)]
            tables.append(Table(f"On validation ({n_val} images), with 95% intervals", ["run", *keys], rows))
        if built.gains:
            rows = [(key, best, interval) for key, (best, interval) in built.gains.items()]
            tables.append(Table("What the ensemble adds to its best member, on validation", ["score", "best member", "difference"], rows))
        return tables

    def to_dict(self) -> dict[str, Any]:
        return {"run": self.run.name, "folder": str(self.run.folder), **self.run.manifest}


def ensemble(
    runs: Sequence[str],
    *,
    name: str | None = None,
    weights: str = "validation",
    data: Path | str | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> EnsembleResult:
    """Combine runs into one that predicts by the weighted mean of their calibrated probabilities and of their similarities.

    Args:
        runs: two or more runs of one dataset, split and fold; they are not changed.
        name: name of the new run.
        weights: `validation`, `equal`, or a number for each run, as in "0.5,0.3,0.2".
        data: the dataset folder.
        overwrite: replace a run of this name.
        device: where the models compute.

    Raises:
        UsageError: invalid weights.
        RunError: runs that cannot be combined; every fault is listed.
    """
    from entrep_cli.data.splits import read_catalog_and_split
    from entrep_cli.experiments.ensemble import build, check_members, finish, parse_weights

    wanted = parse_weights(weights, len(runs))
    if name in runs:
        raise UsageError(f"{name!r} is one of the runs, and cannot be the ensemble's name.", hint="choose another --name")
    catalog, split = read_catalog_and_split(data_dir(None if data is None else Path(data)))
    say_catalog(catalog)
    members = check_members(runs, catalog, split, wanted)
    run = new_run("ensemble", name, overwrite=overwrite)
    with left_in_order(run, "ensemble", "entrep ensemble"):
        built = build(members, catalog, split, wanted, device)
        finish(built, run, catalog, split)
    readers = [member for member, model in zip(built.names, built.model.members) if model.reads_text]
    if readers and not built.model.reads_text:
        console.warn(
            f"{', '.join(readers)} reads texts and has no weight in the rankings, so this ensemble cannot answer texts; "
            "--weights equal, or other numbers, change that"
        )
    return EnsembleResult(run, built, weights)
