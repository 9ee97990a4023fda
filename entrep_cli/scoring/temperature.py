"""The temperature of a run's probabilities that its validation images choose, kept in the run.

The validation part has chosen the epoch too, so the run is a little better and surer on it than on new
images, and the temperature a little too low for these. How little is measured by
`benchmarks/ensemble_gains.py`, beside the temperature that the scored part itself would choose.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.retrieval.sets import part_embeddings
from entrep_cli.retrieval.validation import validation_key, validation_part
from entrep_cli.scoring.calibration import fit_temperature, reliability, with_temperature
from entrep_cli.workspace import Run, fingerprint, write_json_atomic

if TYPE_CHECKING:
    from entrep_cli.methods import Model

FILE = "calibration.json"


@dataclass(frozen=True)
class Temperature:
    """A temperature, the number of validation images it was fitted on, and their NLL and ECE without it and with it."""

    value: float
    images: int
    nll: float
    nll_calibrated: float
    ece: float
    ece_calibrated: float

    def __str__(self) -> str:
        return f"temperature {self.value:.3f} (fitted on {self.images} validation images: NLL {self.nll:.3f} -> {self.nll_calibrated:.3f})"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def temperature_on(probabilities: np.ndarray, targets: np.ndarray) -> Temperature:
    """The temperature that (N, C) probabilities of validation images choose, and what it does to them."""
    value = fit_temperature(probabilities, targets)
    before, after = reliability(probabilities, targets), reliability(with_temperature(probabilities, value), targets)
    return Temperature(value, len(targets), before.nll, after.nll, before.ece, after.ece)


def run_temperature(run: Run, model: Model, read: Callable[[], tuple[Catalog, Split]], *, flip: bool = False) -> Temperature:
    """The temperature that the validation part of a run's own split chooses: from the run's folder, else fitted and kept there.

    It holds for one model and one split, and is fitted again where one of them is another; with `flip`, for
    test-time augmentation, it is another number. The dataset is read only to fit it.

    Args:
        read: gives the catalog and the split the run was trained with.

    Raises:
        RunError: these are not at hand or not the run's, or it has no validation part.
    """
    path, key = run.path(FILE), fingerprint(validation_key(run, model))
    place = "flip" if flip else "plain"
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(path.read_text("utf-8"))
        if told["key"] == key:
            kept = {name: Temperature(**told[name]).as_dict() for name in ("plain", "flip") if name in told}
            if kept[place]["value"] > 0:
                return Temperature(**kept[place])
    try:
        catalog, split = read()
        val = validation_part(run, model, catalog, split)
        if not len(val):
            raise RunError("the validation part is empty.")
        found = temperature_on(np.asarray(part_embeddings(run, model, val, catalog, flip=flip).probabilities), val.targets)
    except (DataError, RunError, UsageError) as error:
        raise RunError(
            f"The probabilities of run {run.name!r} cannot be calibrated: {error.what}",
            where=error.where or run.folder,
            faults=error.faults,
            mend="leave out --calibrate, or calibrate where the dataset and its split are: "
            f"`entrep evaluate --run {shlex.quote(run.reference)}`",
        ) from error
    with contextlib.suppress(OSError):  # a run of somebody else: then it is fitted again each time
        write_json_atomic(path, {"key": key, **kept, place: found.as_dict()})
    return found
