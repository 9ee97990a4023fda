"""The validation part of a run: what may choose a number of it, and when what was chosen holds no longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.errors import RunError
from entrep_cli.workspace import METRICS, Run

if TYPE_CHECKING:
    from entrep_cli.methods import Model


def validation_part(run: Run, model: Model, catalog: Catalog, split: Split) -> Catalog:
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
