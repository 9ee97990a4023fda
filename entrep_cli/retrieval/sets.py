"""The image sets a run can embed: the training images of a dataset, its test folder, any folder."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from entrep_cli.data.catalog import Catalog, name_group
from entrep_cli.data.images import raise_image_faults
from entrep_cli.data.layouts import TestSet, find_test_sets, read_test_folder, read_text
from entrep_cli.data.pixels import probe_images
from entrep_cli.errors import DataError
from entrep_cli.retrieval.embeddings import Items
from entrep_cli.workspace import fingerprint

TRAIN, TEST = "train", "test"


def catalog_items(catalog: Catalog) -> Items:
    """The images of a catalog, labelled or not."""
    frame = catalog.frame
    return Items.of(**{c: frame[c].tolist() for c in ("image", "path", "label", "group", "digest")})


def folder_items(test_set: TestSet) -> Items:
    """The images of a test folder. Labels are never read; groups come from its `groups.csv` or the names.

    Raises:
        DataError: names every image that cannot be read.
    """
    names, paths = list(test_set.images), list(test_set.images.values())
    probes, faults = probe_images(paths)
    raise_image_faults(faults, test_set.folder)
    groups = read_groups(test_set.folder)
    return Items.of(
        image=names,
        path=[str(path.absolute()) for path in paths],
        group=[groups.get(name) or name_group(name, "auto") for name in names],
        digest=[probe[0] for probe in probes],
    )


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


def set_name(test_set: TestSet, root: Path | None) -> str:
    """How the embeddings of a folder are called: `test` for the dataset's only test folder."""
    if root is not None and [t.folder.resolve() for t in find_test_sets(root)] == [test_set.folder.resolve()]:
        return TEST
    return f"{test_set.folder.resolve().name}-{fingerprint(str(test_set.folder.resolve()))[:8]}"


def read_queries_place(place: Path) -> TestSet:
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
