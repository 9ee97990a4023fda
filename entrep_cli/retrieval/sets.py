"""The image sets a run can embed: the training images of a dataset, its test folder, any folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.groups import name_group, read_groups
from entrep_cli.data.images import raise_image_faults
from entrep_cli.data.pixels import probe_images
from entrep_cli.data.splits import split_groups
from entrep_cli.data.testsets import TestSet, find_test_sets
from entrep_cli.data.texts import Lookup
from entrep_cli.retrieval.embeddings import Embeddings, Items, embed_items, embedded_sets, embeddings_of
from entrep_cli.workspace import Run, fingerprint

if TYPE_CHECKING:
    from entrep_cli.methods.base import Model

TRAIN, TEST = "train", "test"


def catalog_items(catalog: Catalog) -> Items:
    """The images of a catalog, labelled or not."""
    frame = catalog.frame
    return Items.of(**{c: frame[c].tolist() for c in ("image", "path", "label", "group", "digest")})


def image_groups(folder: Path, root: Path | None = None) -> Callable[[str], str]:
    """What gives the group of an image of a test folder by its name, "" where none is known.

    As for training images: by the folder's `groups.csv`, which in the dataset `root` may lie at its top; for what is
    not named there by the name, as the dataset was split by it.

    Raises:
        DataError: a `groups.csv` that cannot be used.
    """
    # The names of a folder elsewhere may be those of other images.
    inside = root is not None and folder.resolve().is_relative_to(root.resolve())
    given = read_groups(root if inside and not (folder / "groups.csv").is_file() else folder)
    lookup = Lookup(given.items())
    rule = split_groups(root) if root else "auto"

    @cache
    def group_of(name: str) -> str:
        return lookup.get(name) or name_group(name, rule)

    return group_of


def folder_items(test_set: TestSet, root: Path | None = None) -> Items:
    """The images of a test folder, which may lie in the dataset `root`. Labels are never read; groups are those of `image_groups`.

    Raises:
        DataError: names every image that cannot be read.
    """
    names, paths = list(test_set.images), list(test_set.images.values())
    probes, faults = probe_images(paths)
    raise_image_faults(faults, test_set.folder)
    return Items.of(
        image=names,
        path=[str(path.absolute()) for path in paths],
        group=list(map(image_groups(test_set.folder, root), names)),
        digest=[probe[0] for probe in probes],
    )


def subset_embeddings(run: Run, model: Model, part: Catalog, catalog: Catalog, *, flip: bool = False) -> Embeddings:
    """A part of a catalog as a run sees it, in the part's order: out of the whole where that is embedded, else for this alone.

    What is embedded for this alone is not kept: a new set would age the index of the run. Nor is what is seen
    with test-time augmentation (`flip`).
    """
    if TRAIN in embedded_sets(run) and not flip:
        return embeddings_of(run, TRAIN, catalog_items(catalog), model).named(part.images)
    return embed_items(model, catalog_items(part), what="images of the part", flip=flip)


def set_name(test_set: TestSet, root: Path | None) -> str:
    """How the embeddings of a folder are called: `test` for the dataset's only test folder."""
    if root is not None and [t.folder.resolve() for t in find_test_sets(root)] == [test_set.folder.resolve()]:
        return TEST
    return f"{test_set.folder.resolve().name}-{fingerprint(str(test_set.folder.resolve()))[:8]}"
