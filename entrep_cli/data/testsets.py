"""Folders of test images to answer for: with the contest's query files, or images alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from entrep_cli.data.files import Names, Tree, odd_names, scan
from entrep_cli.data.images import SUFFIXES
from entrep_cli.data.tracks import TRACKS
from entrep_cli.errors import DataError

IMAGE_FOLDERS = ("imgs", "images")
QUERY_FILES = {number: track.query_file for number, track in TRACKS.items()}


@dataclass(frozen=True)
class TestSet:
    """A folder of test images with the query files of some tracks.

    Attributes:
        images: path of each image by its name, verbatim.
        queries: the query file of each track that has one.
    """

    __test__ = False  # no test for pytest to collect

    folder: Path
    images: dict[str, Path]
    queries: dict[int, Path]


def find_test_sets(root: Path) -> list[TestSet]:
    """Every folder below `root` that holds query files of the contest beside its images."""
    tree = scan(root)
    return [read_test_folder(folder, tree) for folder in tree if is_test_folder(tree, folder)]


def read_test_folder(folder: Path, tree: Tree | None = None) -> TestSet:
    """A folder of images to answer for: with query files, or just images (each is a query then).

    Raises:
        DataError: no image in it, or names that differ only in case.
    """
    tree = tree or scan(folder)
    names = image_folder(tree, folder)
    if not names.files:
        raise DataError("No images in the folder.", where=folder, hint="name a folder of images, or of imgs/ and its query files")
    if faults := names.clashes() + odd_names(names.files):
        raise DataError("Image names clash.", where=folder, faults=faults, hint="rename one of each")
    files = tree[folder][1]
    queries = {track: folder / name for track, name in QUERY_FILES.items() if name in files}
    return TestSet(folder, {name: names.folder / name for name in names.files}, queries)


def image_folder(tree: Tree, folder: Path, prefer: Iterable[str] = IMAGE_FOLDERS) -> Names:
    """The images that belong to the label or query files of `folder`: its imgs/ or images/, or itself."""
    if folder not in tree:
        raise DataError("No such folder.", where=folder)
    below = {name.lower(): name for name in tree[folder][0]}
    place = next((folder / below[name] for name in prefer if name in below), folder)
    return Names(place, tree[place][1])


def is_test_folder(tree: Tree, folder: Path) -> bool:
    return any(name in tree[folder][1] for name in QUERY_FILES.values()) and bool(image_folder(tree, folder).files)


def only_test_set(root: Path) -> TestSet:
    """The test folder of a dataset; DataError where it has none or several."""
    test_sets = find_test_sets(root)
    if len(test_sets) != 1:
        raise DataError(
            f"The dataset has {len(test_sets) or 'no'} test folder{'s' * (len(test_sets) > 1)}.",
            where=root,
            faults=[str(t.folder) for t in test_sets],
            hint="name one with --queries FOLDER (images, or imgs/ beside cls.csv, i2i.csv or t2i.csv)",
        )
    return test_sets[0]


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
    raise DataError("No such folder or query file.", where=place, hint="--queries FOLDER or --queries FILE.csv")


def lies_alone(file: Path) -> bool:
    """Whether a query file has no image beside it, nor in the image folder beside it."""
    folders = [file.parent, *(file.parent / name for name in IMAGE_FOLDERS)]
    return not any(path.suffix.lower() in SUFFIXES for folder in folders if folder.is_dir() for path in folder.iterdir())
