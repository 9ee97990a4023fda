"""`compare`: runs side by side, and which of their differences are more than chance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli.errors import UsageError
from entrep_cli.workspace import data_dir

if TYPE_CHECKING:
    from entrep_cli.experiments.comparison import Comparison


def compare(
    runs: Sequence[str],
    *,
    data: str | Path | None = None,
    split: str = "test",
    fold: int | None = None,
    mask_groups: bool = True,
    baseline: str | None = None,
    level: float = 0.05,
    name: str | None = None,
    device: str = "auto",
) -> Comparison:
    """Score runs on the same images, test their differences, and write `runs/comparisons/NAME.json` and `.csv`.

    Args:
        runs: by name or folder, or patterns of names: `dinov2*`.
        data: the dataset folder.
        split: `test`, `val` or `queries`. fold: another fold than that of the runs.
        mask_groups: whether frames of the query's group are left out of the answers.
        baseline: the run that all others are compared with; None compares each with each.
        level: of significance. name: of the files; None for the split's. device: where the models compute.

    Raises:
        UsageError: fewer than two runs, no such split, or no name of a file. RunError: lists why runs cannot be compared.
    """
    if name is not None and not re.fullmatch(r"\w[\w.+-]*", name):
        raise UsageError(f"{name!r} cannot be the name of a file.", hint="use letters, digits, - and _")
    from entrep_cli.experiments.comparison import compare_runs

    how: dict[str, Any] = {"split": split, "fold": fold, "mask_groups": mask_groups, "level": level, "baseline": baseline, "device": device}
    return compare_runs(runs, data_dir(data), **how).write(name or split)
