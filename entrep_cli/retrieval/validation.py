"""The validation part of a run: what may choose a number of it, and when what was chosen holds no longer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.workspace import METRICS, Run, fingerprint, write_json_atomic

if TYPE_CHECKING:
    from entrep_cli.methods import Model


class Choice(Protocol):
    """A number, or several, that validation images have chosen."""

    def as_dict(self) -> dict[str, Any]: ...


C = TypeVar("C", bound=Choice)


def kept_choice(
    run: Run, file: str, key: list[Any], choose: Callable[[], C], read_back: Callable[[Mapping[str, Any]], C], *, what: str, hint: str
) -> C:
    """What the validation part of a run chooses: from a file in the run's folder, else chosen and kept there.

    Args:
        key: what the choice hangs on; what was kept under another one is chosen again, and so is what cannot be read.
        read_back: makes a choice of what its `as_dict` gave.
        what, hint: of the error where nothing can be chosen.

    Raises:
        RunError: nothing can be chosen.
    """
    path, wanted = run.path(file), fingerprint(key)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = json.loads(path.read_text("utf-8"))
        if kept.pop("key") == wanted:
            return read_back(kept)
    with choosing(run, what, hint):
        found = choose()
    with contextlib.suppress(OSError):  # a run of somebody else: then it is chosen again each time
        write_json_atomic(path, {"key": wanted, **found.as_dict()})
    return found


@contextlib.contextmanager
def choosing(run: Run, what: str, hint: str) -> Iterator[None]:
    """What keeps the block from choosing, as a RunError that begins with `what`."""
    try:
        yield
    except (DataError, RunError, UsageError) as error:
        raise RunError(f"{what}: {error.what}", where=error.where or run.folder, faults=error.faults, hint=hint) from error


def validation_subset(run: Run, model: Model, catalog: Catalog, split: Split) -> Catalog:
    """The validation images of the split a run was trained with, labelled in its classes.

    Raises:
        RunError: catalog or split are not those of the run, or it has learned from every fold.
    """
    from entrep_cli.methods.runs import in_classes_of

    made = run.manifest
    trained_on = made.get("data", {}).get("catalog"), made.get("split", {}).get("fingerprint")
    if trained_on != (catalog.fingerprint, split.fingerprint):
        raise RunError("the dataset or its split is not the one the run was trained with.", where=run.folder)
    if learned_from_all_folds(run):
        raise RunError("its members have, among them, learned from every fold, so none is left to choose on.", where=run.folder)
    return in_classes_of(model, catalog.subset(split.images("val", made["split"].get("fold"))))


def learned_from_all_folds(run: Run) -> bool:
    """Whether a run is made of the runs of `train --folds`: then no part of its split is unknown to all of its members."""
    split = run.manifest.get("split", {})
    return bool(split.get("folds")) and split.get("fold") is None


def validation_key(run: Run, model: Model) -> list[Any]:
    """Changes with the model, its preprocessing, and the data and split it was trained on."""
    made = run.manifest
    hashes = {name: sha256 for name, sha256 in made["files"].items() if name != METRICS}
    preprocess = [model.preprocess.fingerprint, model.preprocess.as_dict()]
    data = [made.get("data", {}).get("catalog"), made.get("split", {}).get("fingerprint"), made.get("split", {}).get("fold")]
    return [hashes, made.get("taxonomy"), preprocess, data]
