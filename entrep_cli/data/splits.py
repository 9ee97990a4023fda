"""Dividing labelled images into train, val and test, or into folds: stratified, group-safe, seeded."""

from __future__ import annotations

import csv
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.duplicates import RULE
from entrep_cli.data.groups import RULES, GroupRule
from entrep_cli.errors import DataError, EntrepError, RunError, UsageError
from entrep_cli.workspace import SPLIT, complete_runs, file_sha256, fingerprint, runs_dir, trained_on, write_csv_atomic, write_json_atomic

SUBSETS = ("train", "val", "test")
SCHEMA = 2  # of split.json; it goes up when a split that was made before cannot be used


@dataclass(frozen=True)
class Split:
    """Which image stands in which subset.

    Attributes:
        assignment: subset name, or fold number as text, of each image.
        folds: number of folds; 0 where the subsets are train, val and test.
        seed, ratios, group_rule: how it was made.
        catalog: fingerprint of the data it was made from.
        near_duplicates: how many joined groups; None where they were not looked for.
        small_to_train: as for `make_split`.
    """

    assignment: dict[str, str]
    folds: int
    seed: int
    ratios: tuple[float, ...]
    catalog: str
    group_rule: GroupRule = "auto"
    near_duplicates: dict[str, int | str] | None = None
    small_to_train: bool = False

    @property
    def subsets(self) -> list[str]:
        """Names of the subsets: train, val and test, or the numbers of the folds."""
        return [str(i) for i in range(self.folds)] if self.folds else list(SUBSETS)

    @property
    def fingerprint(self) -> str:
        """Changes when an image stands in another subset."""
        return _fingerprint(self.assignment)

    def counts(self, catalog: Catalog) -> dict[str, dict[str, int]]:
        """Images of each class in each subset."""
        counts = Counter((label, self.assignment[image]) for image, label in zip(catalog.images, catalog.frame["label"]) if label)
        return {name: {subset: counts[name, subset] for subset in self.subsets} for name in catalog.taxonomy.names}

    def images(self, subset: str, fold: int | None = None) -> list[str]:
        """Image names of train, val or test.

        With folds, fold k is for testing, fold k + 1 (the first after the last) for validation, and
        the others are for training: nothing is chosen on the fold that is scored.

        Raises:
            UsageError: a fold of a split without folds, none of one with folds, or one that it does not have.
        """
        if not self.folds:
            if fold is not None:
                raise UsageError("--fold needs a split into folds.", hint="`entrep split --folds 5`")
            return [image for image, assigned in self.assignment.items() if assigned == subset]
        if fold is None:
            raise UsageError("The split has folds.", hint=f"choose one with --fold 0 ... --fold {self.folds - 1}")
        if not 0 <= fold < self.folds:
            raise UsageError(f"No fold {fold} in a split of {self.folds}.", hint=f"choose one of 0 to {self.folds - 1}")
        role = {str(fold): "test", str((fold + 1) % self.folds): "val"}
        return [image for image, assigned in self.assignment.items() if role.get(assigned, "train") == subset]


def make_split(
    catalog: Catalog,
    *,
    ratios: Sequence[float] = (80, 10, 10),
    folds: int = 0,
    seed: int = 0,
    small_to_train: bool = False,
) -> Split:
    """Divide the labelled images of a catalog.

    How many of a class each subset gets is worked out first (`allocate`); then groups, the largest
    first, go where their images are wanted most, so that without groups the counts are exact and
    with groups as near as the groups allow. A subset without any image of a class is the last resort.

    Args:
        ratios: train, val, test; scaled to their sum.
        folds: make this many equal folds instead.
        small_to_train: put classes with fewer groups than subsets wholly into train, and with them
            whatever else is in their groups; not with folds, each of which is tested on once.

    Raises:
        DataError: a class has fewer groups than the split has subsets; each is named.
        UsageError: ratios or folds that make no sense.
    """
    catalog = catalog.labelled
    if folds:
        if folds < 3:
            raise UsageError("At least three folds are needed: one to train, one to choose, one to test on.", hint="--folds 3 or more")
        ratios = (1.0,) * folds
    elif len(ratios) != 3 or not np.isfinite(ratios).all() or min(ratios) < 0 or ratios[0] <= 0 or ratios[1] <= 0:
        raise UsageError("Ratios are three numbers for train, val and test.", hint="for example --ratios 80/10/10")
    used = [i for i, ratio in enumerate(ratios) if ratio > 0]

    targets = catalog.targets
    small = _small_classes(catalog, len(used), folds, small_to_train)
    counts = np.bincount(targets, minlength=len(catalog.taxonomy))
    wanted = allocate(counts, [ratios[i] for i in used])
    wanted[1:, small] = 0
    wanted[0, small] = counts[small]
    rows = np.array(used)[_assign(targets, catalog.groups, wanted, np.isin(targets, small), seed)]

    joined = catalog.near_duplicates
    near = None if joined is None else {"rule": RULE, **joined.as_dict()}
    ratios = tuple(float(r) for r in ratios)
    split = Split({}, folds, seed, ratios, catalog.fingerprint, catalog.group_rule, near, small_to_train)
    return replace(split, assignment={image: split.subsets[row] for image, row in zip(catalog.images, rows)})


def moved_by_near_duplicates(catalog: Catalog, split: Split, **settings: Any) -> dict[str, int]:
    """What a split of the same settings, blind to near-duplicates, would have done; {} where none can be made.

    Args:
        settings: as given to `make_split`.

    Returns:
        `straddling`: clusters of near-duplicates that would have stood in several subsets, and the images
        in them, `straddling_images`; `moved`: images that stand in another subset now.
    """
    if catalog.near_duplicates is None or not catalog.near_duplicates.joining:
        return {}
    given = catalog.near_duplicates.given
    frame = catalog.frame.assign(group=[given[image] for image in catalog.images])
    try:
        blind = make_split(replace(catalog, frame=frame, near_duplicates=None), **settings)
    except EntrepError:
        return {}
    clusters = catalog.near_duplicates.clusters
    subsets = [[blind.assignment[image] for image in cluster if image in blind.assignment] for cluster in clusters]
    apart = [of_cluster for of_cluster in subsets if len(set(of_cluster)) > 1]
    return {
        "straddling": len(apart),
        "straddling_images": sum(map(len, apart)),
        "moved": sum(subset != blind.assignment[image] for image, subset in split.assignment.items()),
    }


def allocate(counts: Sequence[int], ratios: Sequence[float]) -> np.ndarray:
    """How many images of each class every subset should get: (subsets, classes) int64.

    Subsets are cut off one after another. Each takes the floor of its fraction of what is left; within it
    every class gets the floor of its exact quota, and the images still missing go to the largest
    remainders, between equal ones to the rarer class. With 80/10/10 on the combined classes of
    *Fusion at the Foregut* (Table 1) this gives its Table 2 to the image. At the end a subset that got
    nothing of a class takes one from the subset that has most of it, where that leaves it one.
    """
    left = np.asarray(counts, dtype=np.int64)
    sizes = []
    for i, ratio in enumerate(ratios[:-1]):
        # The small addition keeps 0.8 * 10 = 8 from becoming 7 by rounding error.
        size = int(np.floor(left.sum() * ratio / sum(ratios[i:]) + 1e-9))
        exact = left * size / max(left.sum(), 1)
        whole = np.floor(exact + 1e-9).astype(np.int64)
        remainder = np.round(exact - whole, 9)
        order = np.lexsort((np.arange(len(left)), left, -remainder))
        whole[order[: size - whole.sum()]] += 1
        sizes.append(whole)
        left = left - whole
    wanted = np.stack([*sizes, left])
    for subset, label in np.argwhere(wanted == 0):
        most = wanted[:, label].argmax()
        if wanted[most, label] > 1:
            wanted[[most, subset], label] += (-1, 1)
    return wanted


def _assign(targets: np.ndarray, groups: np.ndarray, wanted: np.ndarray, pinned: np.ndarray, seed: int) -> np.ndarray:
    """Row of `wanted` for each image (N,): groups whole, class counts as near to `wanted` as they allow.

    The groups of `pinned` images, (N,) bool, stand in the first subset.
    """
    rng = np.random.default_rng(seed)
    keys, group_of = np.unique(groups.astype(str), return_inverse=True)
    sizes = np.zeros((len(keys), wanted.shape[1]), dtype=np.int64)
    np.add.at(sizes, (group_of, targets), 1)
    row_of_group = np.zeros(len(keys), dtype=np.int64)
    free = np.setdiff1d(np.arange(len(keys)), group_of[pinned])
    got = np.zeros_like(wanted)
    got[0] = sizes.sum(axis=0) - sizes[free].sum(axis=0)

    order = rng.permutation(free)
    for g in order[np.argsort(-sizes[order].sum(axis=1), kind="stable")]:
        change = _cost(got + sizes[g], wanted) - _cost(got, wanted)
        row_of_group[g] = int(np.argmin(change))
        got[row_of_group[g]] += sizes[g]
    _improve(row_of_group, free, sizes, got, wanted, rng)
    return row_of_group[group_of]


def _improve(rows: np.ndarray, free: np.ndarray, sizes: np.ndarray, got: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> None:
    """Move single groups while that brings the counts nearer, in place; ends at a local optimum."""
    absent = float(sizes.sum())  # no deviation costs as much as a class that a subset lacks
    moved = True
    while moved and (got != wanted).any():
        moved = False
        for g in rng.permutation(free):
            here, size = rows[g], sizes[g]
            now = _cost(got, wanted, absent)
            change = _cost(got + size, wanted, absent) - now + (_cost(got - size, wanted, absent) - now)[here]
            change[here] = 0.0
            best = int(np.argmin(change))
            if change[best] < -1e-9:
                got[here] -= size
                got[best] += size
                rows[g] = best
                moved = True


def _cost(got: np.ndarray, wanted: np.ndarray, absent: float = 0.0) -> np.ndarray:
    """Squared distance of each subset, (S, C) to (S,), from its wanted counts; a rare class weighs more."""
    scale = np.maximum(wanted.sum(axis=0), 1)
    return ((got - wanted) ** 2 / scale + absent * ((got == 0) & (wanted > 0))).sum(axis=1)


def _small_classes(catalog: Catalog, n_subsets: int, folds: int, to_train: bool) -> list[int]:
    """Indices of the classes with fewer groups than subsets; DataError where they may not go to train."""
    n_groups = catalog.frame.groupby("label")["group"].nunique()
    small = [name for name in catalog.taxonomy.names if 0 < n_groups.get(name, 0) < n_subsets]
    if small and (folds or not to_train):
        counts = catalog.counts()
        hint = f"use fewer folds (the smallest class allows {n_groups.min()})" if folds else "keep it in train only with --small-to-train"
        raise DataError(
            f"{len(small)} class{'es are' if len(small) > 1 else ' is'} too small to stand in {n_subsets} {'folds' if folds else 'subsets'}.",
            faults=[
                f"{name}: {counts[name]} image{'s' * (counts[name] != 1)} in {n_groups[name]} group{'s' * bool(n_groups[name] != 1)}"
                for name in small
            ],
            hint=f"add images, take the class out of the labels, or {hint}",
        )
    return [catalog.taxonomy.index(name) for name in small]


# ---------------------------------------------------------------- on disk


def split_path() -> Path:
    return runs_dir() / "split.csv"


def write_split(split: Split, data: Path | None = None) -> Path:
    """Write `runs/split.csv` (image, part or fold), then `split.json` that says how it was made.

    With `data`, the dataset folder, the commands that follow find the dataset by themselves.
    """
    path = split_path()
    write_csv_atomic(path, ["image", "fold" if split.folds else "part"], sorted(split.assignment.items()))
    write_json_atomic(
        path.with_name(SPLIT),
        {
            "schema": SCHEMA,
            "seed": split.seed,
            "ratios": list(split.ratios),
            "folds": split.folds,
            "groups": split.group_rule,
            "small_to_train": split.small_to_train,
            "catalog": split.catalog,
            "sha256": file_sha256(path),
            **({"near_duplicates": split.near_duplicates} if split.near_duplicates else {}),
            **({"data": str(data.absolute())} if data else {}),
        },
    )
    return path


def split_command(made: Mapping[str, Any], data: str | Path | None = None) -> str:
    """The command that makes a split again.

    Args:
        made: how it was made, as in `split.json` or a run's manifest.
        data: the dataset folder, where it is to be named.
    """
    ratios = "/".join(str(ratio).removesuffix(".0") for ratio in made["ratios"])
    options = {
        **({"folds": made["folds"]} if made["folds"] else {"ratios": ratios}),
        "seed": made["seed"],
        "groups": None if made.get("groups", "auto") == "auto" else made["groups"],
        "data": data,
    }
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["entrep", "split", *words, *(["--small-to-train"] if made.get("small_to_train") else [])])


def runs_left_behind(new: Split) -> tuple[list[str], str]:
    """The complete runs made on the split on disk, which `new` is to replace, and the command that makes it again.

    None where the new one puts every image into the same subset.
    """
    try:
        made, old = _read_manifest(), _fingerprint(_read_assignment())
        command = split_command(made, made.get("data"))
    except (RunError, OSError, ValueError, TypeError):  # missing or damaged
        return [], ""
    runs = [] if old == new.fingerprint else complete_runs()
    return sorted(run.name for run in runs if trained_on(run.manifest)["split"] == old), command


def split_groups(root: Path) -> GroupRule:
    """The rule of groups for a dataset folder: the pattern that it was split with, else `auto`."""
    try:
        made = _read_manifest()
        of_this = Path(made["data"]).resolve() == root.resolve()
    except (RunError, KeyError, TypeError):  # none, or it does not say of what
        return "auto"
    return made["groups"] if of_this and made["groups"] not in RULES else "auto"


def read_catalog_and_split(root: Path) -> tuple[Catalog, Split]:
    """The catalog of a dataset folder, grouped as when it was split, and its split; RunError as `read_split`."""
    made = _read_manifest()
    catalog = Catalog.read(root, groups=made["groups"], near_duplicates="near_duplicates" in made)
    return catalog, read_split(catalog)


def read_split(catalog: Catalog) -> Split:
    """The split of this catalog.

    Raises:
        RunError: no split was made, it was changed by hand, or it was made by an older entrep or from other data.
    """
    path, made = split_path(), _read_manifest()
    if file_sha256(path) != made["sha256"]:
        raise RunError("The split was changed after it was made.", where=path, hint="make it again: `entrep split`")
    assignment = _read_assignment()
    if made["catalog"] != catalog.fingerprint:
        labelled = set(catalog.labelled.images)
        gone, new = len(set(assignment) - labelled), len(labelled - set(assignment))
        raise RunError(
            f"The split belongs to other data: {gone} of its images are gone, {new} are new"
            + ("." if gone or new else "; labels, groups or pixels changed."),
            where=path,
            hint="make it again: `entrep split` (with the same --data and --groups as now)",
        )
    near, small = made.get("near_duplicates"), made.get("small_to_train", False)
    return Split(assignment, made["folds"], made["seed"], tuple(made["ratios"]), made["catalog"], made["groups"], near, small)


def _fingerprint(assignment: Mapping[str, str]) -> str:
    return fingerprint(sorted(assignment.items()))


def _read_assignment() -> dict[str, str]:
    with open(split_path(), encoding="utf-8", newline="") as file:
        return dict(list(csv.reader(file))[1:])


def _read_manifest() -> dict:
    path = split_path()
    if not path.is_file() or not path.with_name(SPLIT).is_file():
        raise RunError("No split was made yet.", where=path, hint="make one: `entrep split`")
    place = path.with_name(SPLIT)
    try:
        made = json.loads(place.read_text("utf-8"))
        if not {"seed", "ratios", "folds", "groups", "catalog", "sha256"} <= set(made):
            raise ValueError
        again = split_command(made, made.get("data"))
    except (ValueError, TypeError):
        raise RunError("The split's description is damaged.", where=place, hint="make it again: `entrep split`") from None
    if made.get("schema") != SCHEMA:
        raise RunError("The split was made by an older entrep.", where=place, hint=f"make it again: `{again}`")
    return made


def read_assignment(images: Iterable[str]) -> tuple[dict[str, str], dict] | None:
    """The subset or fold of those of these images that stand in the split, and its description.

    However it was made and whatever has changed since; None without a split, or where it is of other images.
    """
    try:
        made, assignment = _read_manifest(), _read_assignment()
    except (RunError, OSError, ValueError):
        return None
    known = set(images)
    of_these = {image: subset for image, subset in assignment.items() if image in known}
    return (of_these, made) if 2 * len(of_these) > len(assignment) else None
