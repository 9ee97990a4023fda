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

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Which image stands in which part.

    Attributes:
        assignment: part name, or fold number as text, of each image.
        folds: number of folds; 0 where the parts are train, val and test.
        seed, ratios, group_rule: how it was made.
        catalog: fingerprint of the data it was made from.
        near_duplicates: how many were found and joined to groups; None where they were not looked for.
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
    def parts(self) -> list[str]:
        return [str(i) for i in range(self.folds)] if self.folds else list(PARTS)

    @property
    def fingerprint(self) -> str:
        """Changes when an image stands in another part."""
        return _fingerprint(self.assignment)

    def counts(self, catalog: Catalog) -> dict[str, dict[str, int]]:
        """Images of each class in each part."""
        found = Counter((label, self.assignment[image]) for image, label in zip(catalog.images, catalog.frame["label"]) if label)
        return {name: {part: found[name, part] for part in self.parts} for name in catalog.taxonomy.names}

    def images(self, part: str, fold: int | None = None) -> list[str]:
        """Image names of train, val or test.

        With folds, fold k is the test part, fold k + 1 (the first after the last) the validation
        part, and the others train: nothing is chosen on the fold that is scored.
        """
        if not self.folds:
            if fold is not None:
                raise UsageError("--fold needs a split into folds.", hint="`entrep split --folds 5`")
            return [image for image, p in self.assignment.items() if p == part]
        if fold is None:
            raise UsageError("The split is one of folds.", hint=f"choose one with --fold 0 ... --fold {self.folds - 1}")
        if not 0 <= fold < self.folds:
            raise UsageError(f"There is no fold {fold}.", hint=f"choose one of 0 to {self.folds - 1}")
        role = {str(fold): "test", str((fold + 1) % self.folds): "val"}
        return [image for image, p in self.assignment.items() if role.get(p, "train") == part]


def make_split(
    catalog: Catalog,
    *,
    ratios: Sequence[float] = (80, 10, 10),
    folds: int = 0,
    seed: int = 0,
    small_to_train: bool = False,
) -> Split:
    """Divide the labelled images of a catalog.

    How many of a class each part gets is worked out first (`allocate`); then groups, the largest
    first, go where their images are wanted most, so that without groups the counts are exact and
    with groups as near as the groups allow. A part without any image of a class is the last resort.

    Args:
        ratios: train, val, test; scaled to their sum.
        folds: make this many equal folds instead.
        small_to_train: put classes with fewer groups than parts wholly into train, and with them
            whatever else is in their groups; not with folds, each of which is a test part once.

    Raises:
        DataError: a class has fewer groups than there are parts; each is named.
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
    component_of = np.array(used)[_assign(targets, catalog.groups, wanted, np.isin(targets, small), seed)]

    names = [str(i) for i in range(folds)] if folds else list(PARTS)
    assignment = {image: names[p] for image, p in zip(catalog.images, component_of)}
    joined = catalog.near_duplicates
    near = None if joined is None else {"rule": RULE, **joined.as_dict()}
    shares = tuple(float(r) for r in ratios)
    return Split(assignment, folds, seed, shares, catalog.fingerprint, catalog.group_rule, near, small_to_train)


def moved_by_near_duplicates(catalog: Catalog, split: Split, **settings: Any) -> dict[str, int]:
    """What a split of the same settings, blind to near-duplicates, would have done; {} where there is none.

    Args:
        settings: as given to `make_split`.

    Returns:
        `straddling`: clusters of near-duplicates that would have stood in several parts, and the images
        in them, `straddling_images`; `moved`: images that stand in another part now.
    """
    if catalog.near_duplicates is None or not catalog.near_duplicates.joining:
        return {}
    given = catalog.near_duplicates.given
    frame = catalog.frame.assign(group=[given[image] for image in catalog.images])
    try:
        blind = make_split(replace(catalog, frame=frame, near_duplicates=None), **settings)
    except EntrepError:
        return {}
    parts = [[blind.assignment[image] for image in cluster if image in blind.assignment] for cluster in catalog.near_duplicates.clusters]
    apart = [of_cluster for of_cluster in parts if len(set(of_cluster)) > 1]
    return {
        "straddling": len(apart),
        "straddling_images": sum(map(len, apart)),
        "moved": sum(part != blind.assignment[image] for image, part in split.assignment.items()),
    }


def allocate(counts: Sequence[int], ratios: Sequence[float]) -> np.ndarray:
    """How many images of each class every part should get: (parts, classes) int64.

    Parts are cut off one after another. Each takes the floor of its share of what is left; within it
    every class gets the floor of its exact quota, and the images still missing go to the largest
    remainders, between equal ones to the rarer class. With 80/10/10 on the combined classes of
    *Fusion at the Foregut* (Table 1) this gives its Table 2 to the image. At the end a part that got
    nothing of a class takes one from the part that has most of it, where that leaves it one.
    """
    left = np.asarray(counts, dtype=np.int64).copy()
    parts = []
    for i, ratio in enumerate(ratios):
        if i == len(ratios) - 1:
            parts.append(left)
            break
        # The small addition keeps 0.8 * 10 = 8 from becoming 7 by rounding error.
        size = int(np.floor(left.sum() * ratio / sum(ratios[i:]) + 1e-9))
        exact = left * size / max(left.sum(), 1)
        part = np.floor(exact + 1e-9).astype(np.int64)
        remainder = np.round(exact - part, 9)
        order = np.lexsort((np.arange(len(left)), left, -remainder))
        part[order[: size - part.sum()]] += 1
        parts.append(part)
        left = left - part
    wanted = np.stack(parts)
    for part, label in np.argwhere(wanted == 0):
        most = wanted[:, label].argmax()
        if wanted[most, label] > 1:
            wanted[[most, part], label] += (-1, 1)
    return wanted


def _assign(targets: np.ndarray, groups: np.ndarray, wanted: np.ndarray, pinned: np.ndarray, seed: int) -> np.ndarray:
    """Part index of each image (N,): groups whole, class counts as near to `wanted` as they allow.

    The groups of `pinned` images, (N,) bool, stand in the first part.
    """
    rng = np.random.default_rng(seed)
    keys, group_of = np.unique(groups.astype(str), return_inverse=True)
    sizes = np.zeros((len(keys), wanted.shape[1]), dtype=np.int64)
    np.add.at(sizes, (group_of, targets), 1)
    part_of_group = np.zeros(len(keys), dtype=np.int64)
    free = np.setdiff1d(np.arange(len(keys)), group_of[pinned])
    got = np.zeros_like(wanted)
    got[0] = sizes.sum(axis=0) - sizes[free].sum(axis=0)

    order = rng.permutation(free)
    for g in order[np.argsort(-sizes[order].sum(axis=1), kind="stable")]:
        change = _cost(got + sizes[g], wanted) - _cost(got, wanted)
        part_of_group[g] = int(np.argmin(change))
        got[part_of_group[g]] += sizes[g]
    _improve(part_of_group, free, sizes, got, wanted, rng)
    return part_of_group[group_of]


def _improve(
    component_of: np.ndarray, free: np.ndarray, sizes: np.ndarray, got: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
) -> None:
    """Move single groups while that brings the counts nearer, in place; ends at a local optimum."""
    absent = float(sizes.sum())  # no deviation costs as much as a class that a part lacks
    moved = True
    while moved and (got != wanted).any():
        moved = False
        for g in rng.permutation(free):
            here, size = component_of[g], sizes[g]
            now = _cost(got, wanted, absent)
            change = _cost(got + size, wanted, absent) - now + (_cost(got - size, wanted, absent) - now)[here]
            change[here] = 0.0
            best = int(np.argmin(change))
            if change[best] < -1e-9:
                got[here] -= size
                got[best] += size
                component_of[g] = best
                moved = True


def _cost(got: np.ndarray, wanted: np.ndarray, absent: float = 0.0) -> np.ndarray:
    """Squared distance of each part, (P, C) to (P,), from its wanted counts; a rare class weighs more."""
    scale = np.maximum(wanted.sum(axis=0), 1)
    return ((got - wanted) ** 2 / scale + absent * ((got == 0) & (wanted > 0))).sum(axis=1)


def _small_classes(catalog: Catalog, n_parts: int, folds: int, to_train: bool) -> list[int]:
    """Indices of the classes with fewer groups than parts; DataError where they may not go to train."""
    n_groups = catalog.frame.groupby("label")["group"].nunique()
    small = [name for name in catalog.taxonomy.names if 0 < n_groups.get(name, 0) < n_parts]
    if small and (folds or not to_train):
        counts = catalog.counts()
        hint = f"use fewer folds (the smallest class allows {n_groups.min()})" if folds else "keep it in train only with --small-to-train"
        raise DataError(
            f"{len(small)} class{'es are' if len(small) > 1 else ' is'} too small to stand in {n_parts} {'folds' if folds else 'parts'}.",
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

    With `data`, the dataset folder, the commands that follow find the dataset without being told.
    """
    path = split_path()
    write_csv_atomic(path, ["image", "fold" if split.folds else "part"], sorted(split.assignment.items()))
    write_json_atomic(
        path.with_name(SPLIT),
        {
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
        made: how it was made, as `split.json` or a run's manifest tells of its split.
        data: the dataset folder, where it is to be named.
    """
    shares = "/".join(str(share).removesuffix(".0") for share in made["ratios"])
    options = {
        **({"folds": made["folds"]} if made["folds"] else {"ratios": shares}),
        "seed": made["seed"],
        "groups": None if made.get("groups", "auto") == "auto" else made["groups"],
        "data": data,
    }
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["entrep", "split", *words, *(["--small-to-train"] if made.get("small_to_train") else [])])


def runs_left_behind(new: Split) -> tuple[list[str], str]:
    """The complete runs made on the split on disk, which `new` is to replace, and the command that makes it again.

    None where the new one puts every image into the same part.
    """
    try:
        made, old = _read_manifest(), _fingerprint(_read_assignment())
        command = split_command(made, made.get("data"))
    except (RunError, OSError, ValueError, TypeError):  # there is none, or it is damaged
        return [], ""
    runs = [] if old == new.fingerprint else complete_runs()
    return sorted(run.name for run in runs if trained_on(run.manifest)["split"] == old), command


def split_groups(root: Path) -> GroupRule:
    """How names tell groups in a dataset folder: by the pattern that it was split with, else `auto`."""
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
        RunError: there is none, it was changed by hand, or it was made from other data.
    """
    path, made = split_path(), _read_manifest()
    if file_sha256(path) != made["sha256"]:
        raise RunError("The split was changed after it was made.", where=path, hint="make it again: `entrep split`")
    assignment = _read_assignment()
    if made["catalog"] != catalog.fingerprint:
        there = set(catalog.labelled.images)
        gone, new = len(set(assignment) - there), len(there - set(assignment))
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
        raise RunError("There is no split yet.", where=path, hint="make one: `entrep split`")
    try:
        made = json.loads(path.with_name(SPLIT).read_text("utf-8"))
        if {"seed", "ratios", "folds", "groups", "catalog", "sha256"} <= set(made):
            return made
    except (ValueError, TypeError):
        pass
    raise RunError("The split's description is damaged.", where=path.with_name(SPLIT), hint="make it again: `entrep split`")


def read_assignment(images: Iterable[str]) -> tuple[dict[str, str], dict] | None:
    """The part or fold of those of these images that stand in the split, and its description.

    However it was made and whatever has changed since; None where there is none, or it is of other images.
    """
    try:
        made, assignment = _read_manifest(), _read_assignment()
    except (RunError, OSError, ValueError):
        return None
    known = set(images)
    found = {image: part for image, part in assignment.items() if image in known}
    return (found, made) if 2 * len(found) > len(assignment) else None
