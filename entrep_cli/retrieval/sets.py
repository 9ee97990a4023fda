"""The image sets a run can embed: the training images of a dataset, its test folder, any folder; and its model, to embed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from entrep_cli import console, processes
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.groups import name_group, read_groups
from entrep_cli.data.images import raise_image_faults
from entrep_cli.data.pixels import probe_images
from entrep_cli.data.splits import split_groups
from entrep_cli.data.testsets import TestSet, find_test_sets, read_test_folder
from entrep_cli.data.texts import Lookup
from entrep_cli.errors import DataError, UsageError, together
from entrep_cli.retrieval.embeddings import Embeddings, Items, embed_items, embedded_sets, embedding_engine, embeddings_of
from entrep_cli.retrieval.pipeline import FP32
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


def subset_embeddings(run: Run, model: Model, images: Catalog, catalog: Catalog, *, flip: bool = False) -> Embeddings:
    """Some images of a catalog as a run embeds them, in their order: out of all where these are embedded, else computed.

    What is computed is not stored: a new set would outdate the index of the run. Neither is what is computed with
    test-time augmentation (`flip`).
    """
    if TRAIN in embedded_sets(run) and not flip:
        return embeddings_of(run, TRAIN, catalog_items(catalog), model).named(images.images)
    return embed_items(model, catalog_items(images), flip=flip)


def set_name(test_set: TestSet, root: Path | None) -> str:
    """How the embeddings of a folder are called: `test` for the dataset's only test folder."""
    if root is not None and [t.folder.resolve() for t in find_test_sets(root)] == [test_set.folder.resolve()]:
        return TEST
    return f"{test_set.folder.resolve().name}-{fingerprint(str(test_set.folder.resolve()))[:8]}"


# ---------------------------------------------------------------- the model that embeds them


def dataset_sets(root: Path, folders: Sequence[Path] = ()) -> dict[str, Items]:
    """The training images and the test folders of a dataset and further folders, by the names of their sets.

    Raises:
        DataError: lists the faults of all.
    """
    sets, faulty = {}, []
    try:
        sets[TRAIN] = catalog_items(Catalog.read(root, groups=split_groups(root)))
    except DataError as error:
        faulty.append(error)
    for test_set in [*find_test_sets(root), *map(read_test_folder, folders)]:
        try:
            sets[set_name(test_set, root)] = folder_items(test_set, root)
        except DataError as error:
            faulty.append(error)
    if faulty:
        raise together(faulty)
    return sets


def open_model(run: Run, device: str = "auto") -> Model:
    """The model of a complete run, or each of an ensemble's, in the precision in which its run's images are embedded.

    A precision other than fp32 is printed, with its reason.

    Raises:
        RunError: as `load_model`.
    """
    from entrep_cli.methods.runs import load_model

    model = load_model(run, device)
    _lower_as_embedded(model, run)
    return model


def open_for_embedding(run: Run, device: str = "auto", precision: str = "auto", *, compiled: bool = False) -> Model:
    """The model of a complete run in the precision to embed in, which is printed with its reason.

    Args:
        precision: `auto` is that of the images embedded before, else the fastest for a ViT; of an ensemble each member's.
        compiled: have torch compile it.

    Raises:
        UsageError: an ensemble in several processes, or a precision that the device does not have. RunError: as `load_model`.
    """
    from entrep_cli.methods.runs import load_model
    from entrep_cli.models.precision import choose_inference_precision, lower, precision_beside

    together = precision == "auto" and run.manifest["method"] == "ensemble"  # then each member has its own
    model = open_model(run, device) if together else load_model(run, device)
    if processes.size() > 1 and model.members:
        raise UsageError("An ensemble is embedded in one process.", hint="embed each member first, then this without a launcher")
    place = model.device
    if together:
        chosen, reason = model.engine, "as the members' images were embedded"
    elif precision == "auto":
        chosen, reason = precision_beside(embedded_precision(run), place, model)
    else:
        chosen, reason = choose_inference_precision(precision, place, model)
    lower(model, chosen)
    console.say(f"Device: {place}. Precision: {chosen} ({reason}).")
    if compiled:
        model.compile_answers()
    return model


def embedded_precision(run: Run) -> str | None:
    """What computed the images that a run has embedded, the training images first; None where it has none."""
    from entrep_cli.methods.base import COMPILED

    sets = embedded_sets(run)
    return embedding_engine(run, TRAIN if TRAIN in sets else sets[0]).removesuffix(COMPILED) if sets else None


def _lower_as_embedded(model: Model, run: Run) -> None:
    from entrep_cli.models.precision import lower, precision_beside

    if model.members:
        for member, member_run in zip(model.members, model.member_runs):
            _lower_as_embedded(member, member_run)
        engines = [member.engine for member in model.members]
        model.engine = FP32 if set(engines) == {FP32} else ", ".join(engines)
        return
    precision, reason = precision_beside(embedded_precision(run), model.device, model)
    if precision != FP32:
        console.say(f"Precision of {run.name}: {precision} ({reason}).")
    lower(model, precision)
