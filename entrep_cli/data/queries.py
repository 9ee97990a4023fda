"""Which test folder is asked: the dataset's own, or the one that `--queries` names; and its groups."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from entrep_cli.data.files import read_text
from entrep_cli.data.layouts import TestSet, find_test_sets, read_test_folder
from entrep_cli.errors import DataError


def only_test_set(root: Path) -> TestSet:
    """The test folder of a dataset; DataError where there is none or where there are several."""
    found = find_test_sets(root)
    if len(found) != 1:
        raise DataError(
            "The dataset has no test folder." if not found else f"The dataset has {len(found)} test folders.",
            where=root,
            faults=[str(t.folder) for t in found],
            mend="name one with --queries FOLDER (images, or imgs/ beside cls.csv, i2i.csv or t2i.csv)",
        )
    return found[0]


def named_test_set(place: Path) -> TestSet:
    """What `--queries` names: a folder of images, or one query file beside its images."""
    if place.is_dir():
        return read_test_folder(place)
    if place.is_file():
        return read_test_folder(place.parent)
    raise DataError("There is no such folder or query file.", where=place, mend="--queries FOLDER or --queries FILE.csv")


def read_groups(folder: Path) -> dict[str, str]:
    """Group by image name from a folder's `groups.csv`; empty where it has none."""
    path = folder / "groups.csv"
    if not path.is_file():
        return {}
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if not {"image", "group"} <= set(rows.fieldnames or ()):
        raise DataError("groups.csv needs a header with the columns image and group.", where=path)
    return {row["image"]: row["group"] for row in rows if row["image"] and row["group"]}
