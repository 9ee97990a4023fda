"""`split`: train, val and test, or folds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.api.common import say_catalog
from entrep_cli.errors import UsageError
from entrep_cli.results import Result, Table
from entrep_cli.workspace import data_dir

if TYPE_CHECKING:
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import Split

RATIOS = "80/10/10"


@dataclass(frozen=True)
class SplitResult(Result):
    """A split that was written.

    Attributes:
        split: the subset of each image.
        catalog: the dataset as it was read.
        path: the CSV file.
        counts: images of each class by subset.
        near_duplicates: clusters of near-duplicates, and what they changed; empty if they were not searched for.
    """

    split: Split
    catalog: Catalog
    path: Path
    counts: dict[str, dict[str, int]]
    near_duplicates: dict[str, Any]

    @property
    def n_groups(self) -> int:
        return int(self.catalog.labelled.frame["group"].nunique())

    def tables(self) -> list[Table]:
        rows = [(name, *row.values(), sum(row.values())) for name, row in self.counts.items()]
        totals = [sum(column) for column in zip(*(row[1:] for row in rows))]
        subsets = [f"fold {name}" if self.split.folds else name for name in self.split.subsets]
        title = f"{len(self.catalog.labelled)} images in {self.n_groups} groups, divided into {self.path}"
        return [Table(title, ["class", *subsets, "total"], [*rows, ("total", *totals)])]

    def to_dict(self) -> dict[str, Any]:
        return {
            "split": str(self.path),
            "layouts": self.catalog.layouts,
            "taxonomy": self.catalog.taxonomy.name,
            "images": len(self.catalog.labelled),
            "groups": self.n_groups,
            "seed": self.split.seed,
            "counts": self.counts,
            "catalog": self.catalog.fingerprint,
            **({"near_duplicates": self.near_duplicates} if self.near_duplicates else {}),
        }


def split(
    *,
    data: Path | str | None = None,
    ratios: str | None = None,
    folds: int = 0,
    seed: int = 0,
    groups: str = "auto",
    small_to_train: bool = False,
) -> SplitResult:
    """Divide the labelled images of a dataset, stratified by class, and write `runs/split.csv`.

    Frames of one group are always in the same subset. The same arguments give the same bytes.

    Args:
        data: the dataset folder; by default ENTREP_DATA or `data`.
        ratios: of train, val and test, as in "80/10/10"; test may be 0.
        folds: number of folds of equal size, instead of ratios; 3 or more.
        seed: seed of the random division.
        groups: `auto`, `exam`, `none`, or a pattern; see `Catalog.read`.
        small_to_train: put classes that are too small to divide into the training subset.

    Raises:
        UsageError: invalid ratios, or ratios and folds together.
        DataError: nothing to divide.
    """
    if folds and ratios is not None:
        raise UsageError("Folds are all of one size: --ratios are of train, val and test.", hint="give --folds or --ratios")
    try:
        weights = [float(weight) for weight in (RATIOS if ratios is None else ratios).replace(",", "/").split("/")]
    except ValueError:
        raise UsageError(f"--ratios {ratios!r} are not numbers.", hint=f"--ratios {RATIOS}") from None
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import make_split, moved_by_near_duplicates, runs_left_behind, write_split

    root = data_dir(None if data is None else Path(data), of_split=False)
    catalog = Catalog.read(root, groups=groups)
    say_catalog(catalog)
    settings: dict[str, Any] = {"ratios": weights, "folds": folds, "seed": seed, "small_to_train": small_to_train}
    made = make_split(catalog, **settings)
    stranded, repeat = runs_left_behind(made)
    path = write_split(made, root)
    near = {**(made.near_duplicates or {}), **moved_by_near_duplicates(catalog, made, **settings)}
    _say_near_duplicates(near)
    if stranded:
        names = ", ".join(stranded[:5]) + (f" and {len(stranded) - 5} more" if len(stranded) > 5 else "")
        were = f"{len(stranded)} run{'s were' if len(stranded) > 1 else ' was'}"
        console.warn(f"{were} trained on the previous split ({names}), and can be scored on that one alone. To restore it: `{repeat}`")
    return SplitResult(made, catalog, path, made.counts(catalog), near)


def _say_near_duplicates(near: dict[str, Any]) -> None:
    """How near-duplicates changed the groups and the subsets."""
    if not near or not near["clusters"]:
        return
    clusters = f"Near-duplicates: {near['clusters']} clusters of {near['images']} images"
    if not near["joining_clusters"]:
        console.say(f"{clusters}, each within one group already.")
        return
    console.say(f"{clusters}; {near['joining_clusters']} of them ({near['joined_images']} images) joined separate groups.")
    if near.get("straddling"):
        console.say(
            f"Without that, {near['straddling']} clusters ({near['straddling_images']} images) would straddle several subsets; "
            f"{near['moved']} images moved to another subset."
        )
