"""Which images belong together: groups by `groups.csv`, by file names, and by pictures that show the same."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from entrep_cli.data.files import Table, read_table
from entrep_cli.data.texts import finding_keys
from entrep_cli.errors import DataError, UsageError

# Public-release names: `<patient id>_<18 digits of the exam>_...` (challenge.md, Training data).
_PATIENT_EXAM = re.compile(r"^(?P<exam>(?P<patient>[^_/]+)_\d{18})_")

GroupRule = str  # "auto", "exam", "none", or a regular expression; see `Catalog.read`
RULES = ("auto", "exam", "none")
GROUPS_FILE = "groups.csv"
GROUPS_HINT = "write groups.csv (image,group), or split with --groups REGEX"


# ---------------------------------------------------------------- by file names


def name_group(name: str, rule: GroupRule) -> str:
    """The group in a file name: what a pattern captures, else the patient or exam key of the public release; "" where it has none."""
    if (pattern := group_pattern(rule)) and (captured := captured_group(pattern, name)):
        return captured
    match = _PATIENT_EXAM.match(Path(name).name)
    return "" if match is None or rule == "none" else match["exam" if rule == "exam" else "patient"]


@functools.cache
def group_pattern(rule: GroupRule) -> re.Pattern[str] | None:
    """The regular expression that a rule is; None of `auto`, `exam` and `none`.

    Raises:
        UsageError: it is none, or has not exactly one capture group.
    """
    if rule in RULES:
        return None
    hint = r"--groups auto, exam, none, or a regular expression with one capture group, as '^(P\d+)_' of names such as P12_a.png"
    try:
        pattern = re.compile(rule)
    except (re.error, OverflowError) as error:
        raise UsageError(f"No way to group images is called {rule!r}, and it is no regular expression: {error}.", hint=hint) from None
    if pattern.groups != 1:
        what = f"No way to group images is called {rule!r}; as a regular expression it has {pattern.groups} capture groups instead of one."
        raise UsageError(what, hint=hint)
    return pattern


def captured_group(pattern: re.Pattern[str], name: str) -> str:
    """What a pattern captures of the last component of a name, for one folder holds many exams; "" where it does not match."""
    match = pattern.search(Path(name).name)
    return match[1] or "" if match else ""


def single_group(image: str) -> str:
    """The group of an image without one; its name cannot be another's group key."""
    return f"image:{image}"


def unknown_groups(records: Iterable[Mapping[str, Any]]) -> str:
    """What it means that most labelled images are groups of one, for want of a better one; "" where they are not.

    Args:
        records: with `image`, `label` and `group`, before near-duplicates join groups.
    """
    labelled = [record for record in records if record["label"]]
    alone = sum(record["group"] == single_group(record["image"]) for record in labelled)
    if 2 * alone <= len(labelled):
        return ""
    what = f"no exam or patient is known of {alone:,} of {len(labelled):,} labelled images"
    return f"{what}: frames of one may stand in two subsets, and intervals are over images"


# ---------------------------------------------------------------- by groups.csv


def read_groups_table(folder: Path) -> Table:
    """The `groups.csv` of a folder (image, group, and texts where it has them); an empty table where it has none.

    Raises:
        DataError: not a table of images and groups.
    """
    path = folder / GROUPS_FILE
    if not path.is_file():
        return Table()
    table = read_table(path)
    if not {"image", "group"} <= set(table.columns):
        raise DataError("It needs a header with the columns image and group.", where=path)
    return table


def read_groups(folder: Path) -> dict[str, str]:
    """Group by image name from a folder's `groups.csv`; empty where it has none.

    Raises:
        DataError: as `read_groups_table`, or an image in two groups; all are listed.
    """
    table = read_groups_table(folder)
    groups: dict[str, str] = {}
    faults = list(table.faults)
    for line, row in table.rows:
        if row["image"] and row["group"] and groups.setdefault(row["image"], row["group"]) != row["group"]:
            faults.append(f"line {line}: {row['image']!r} stands twice, in different groups")
    if faults:
        raise DataError("The groups cannot be used.", where=folder / GROUPS_FILE, faults=faults, hint="write one line for each image")
    return groups


def read_findings(folder: Path) -> dict[str, set[str]]:
    """The findings of each image by name, from the texts in a folder's `groups.csv`; empty where it has none.

    Raises:
        DataError: as `read_groups_table`.
    """
    table = read_groups_table(folder)
    texts = [column for column in ("text", "text_en", "text_vi") if column in table.columns]
    return {row["image"]: {key for column in texts for key in finding_keys(row[column])} for _, row in table.rows} if texts else {}


# ---------------------------------------------------------------- by pictures that show the same


def clusters_of(names: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[tuple[str, ...]]:
    """Sets of two names and more that pairs of rows connect, each sorted, in order of their first names."""
    return sorted(tuple(sorted(names[row] for row in rows)) for rows in _components(len(names), list(pairs)))


def joined_names(pairs: Sequence[tuple[str, str]], order: Callable[[str], object] = str) -> dict[str, str]:
    """For each name that pairs connect with others, the least name of its set, by `order`."""
    names = list(dict.fromkeys(chain.from_iterable(pairs)))
    row = {name: i for i, name in enumerate(names)}
    joined: dict[str, str] = {}
    for rows in _components(len(names), [(row[a], row[b]) for a, b in pairs]):
        members = [names[i] for i in rows]
        joined |= dict.fromkeys(members, min(members, key=order))
    return joined


def _components(n: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The connected sets of two rows and more among `n`."""
    if not pairs:
        return []
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(pairs)), tuple(np.array(pairs, np.int64).T)), shape=(n, n))
    _, component = connected_components(edges, directed=False)
    order = np.argsort(component, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return [of_one.tolist() for of_one in rows if len(of_one) > 1]
