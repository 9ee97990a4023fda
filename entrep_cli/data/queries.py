"""What a dataset tells without an image being opened: its test folder, its groups, its labels."""

from __future__ import annotations

from pathlib import Path

from entrep_cli.data.files import read_table
from entrep_cli.data.images import SUFFIXES
from entrep_cli.data.layouts import read_sources, taxonomy_folder, taxonomy_of
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.testsets import IMAGE_FOLDERS, TestSet, find_test_sets, read_test_folder
from entrep_cli.data.texts import finding_keys
from entrep_cli.errors import DataError


def only_test_set(root: Path) -> TestSet:
    """The test folder of a dataset; DataError where there is none or where there are several."""
    found = find_test_sets(root)
    if len(found) != 1:
        raise DataError(
            "The dataset has no test folder." if not found else f"The dataset has {len(found)} test folders.",
            where=root,
            faults=[str(t.folder) for t in found],
            hint="name one with --queries FOLDER (images, or imgs/ beside cls.csv, i2i.csv or t2i.csv)",
        )
    return found[0]


def named_test_set(place: Path, root: Path | None = None) -> TestSet:
    """What `--queries` names: a folder of images, or one query file beside its images.

    A query file that lies alone asks of the images of the test folder of the dataset `root`.
    """
    if place.is_dir():
        return read_test_folder(place)
    if place.suffix.lower() in SUFFIXES:
        raise DataError("An image is no query file.", where=place, hint="name the folder it lies in, or a file that lists queries")
    if place.is_file():
        return only_test_set(root) if root is not None and lies_alone(place) else read_test_folder(place.parent)
    raise DataError("There is no such folder or query file.", where=place, hint="--queries FOLDER or --queries FILE.csv")


def lies_alone(file: Path) -> bool:
    """Whether a query file has no image beside it, nor in the image folder beside it."""
    folders = [file.parent, *(file.parent / name for name in IMAGE_FOLDERS)]
    return not any(path.suffix.lower() in SUFFIXES for folder in folders if folder.is_dir() for path in folder.iterdir())


def read_groups(folder: Path) -> dict[str, str]:
    """Group by image name from a folder's `groups.csv`; empty where it has none.

    Raises:
        DataError: not a table of images and groups, or an image in two groups; all are listed.
    """
    path = folder / "groups.csv"
    if not path.is_file():
        return {}
    table = read_table(path)
    if not {"image", "group"} <= set(table.columns):
        raise DataError("groups.csv needs a header with the columns image and group.", where=path)
    groups: dict[str, str] = {}
    faults = list(table.faults)
    for line, row in table.rows:
        if row["image"] and row["group"] and groups.setdefault(row["image"], row["group"]) != row["group"]:
            faults.append(f"line {line}: {row['image']!r} stands twice, in different groups")
    if faults:
        raise DataError("The groups cannot be used.", where=path, faults=faults, hint="write one line for each image")
    return groups


def read_findings(folder: Path) -> dict[str, set[str]]:
    """The findings of each image by name, from the texts in a folder's `groups.csv`; empty where it has none."""
    path = folder / "groups.csv"
    if not path.is_file():
        return {}
    table = read_table(path)
    texts = [column for column in ("text", "text_en", "text_vi") if column in table.columns]
    if not texts or "image" not in table.columns:
        return {}
    return {row["image"]: {key for column in texts for key in finding_keys(row[column])} for _, row in table.rows}


def known_images(root: Path) -> tuple[dict[str, str], Taxonomy | None]:
    """The label ("" where there is none) of each image of the label files by its name, and the classes.

    Without labels the classes are those of a `taxonomy.toml`, or None.

    Raises:
        DataError: a `taxonomy.toml` that does not hold.
    """
    try:
        sources = read_sources(root)
    except DataError:
        sources = []  # nothing but test images
    images = {row.image: row.label for source in sources for row in source.rows}
    known = any(images.values()) or taxonomy_folder(root, sources)
    return images, taxonomy_of(root, sources) if known else None
