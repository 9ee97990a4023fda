"""The temperature of a run's probabilities that its validation images choose, kept in the run.

The validation part has chosen the epoch too, so the run is a little better and surer on it than on new
images, and the temperature a little too low for these. How little is measured by
`benchmarks/ensemble_gains.py`, beside the temperature that the scored part itself would choose.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.errors import RunError
from entrep_cli.evaluation.calibration import fit_temperature, reliability, with_temperature
from entrep_cli.retrieval.sets import subset_embeddings
from entrep_cli.retrieval.validation import kept_choice, validation_key, validation_subset
from entrep_cli.workspace import Run

if TYPE_CHECKING:
    from entrep_cli.methods import Model

FILE, FLIP_FILE = "calibration.json", "calibration-flip.json"  # of images as they are; of test-time augmentation


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

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Temperature:
        """From what `as_dict` gave; ValueError where it is no temperature."""
        if not table["value"] > 0:
            raise ValueError(f"a temperature of {table['value']}")
        return cls(**table)


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

    def choose() -> Temperature:
        catalog, split = read()
        val = validation_subset(run, model, catalog, split)
        if not len(val):
            raise RunError("the validation part is empty.")
        return temperature_on(np.asarray(subset_embeddings(run, model, val, catalog, flip=flip).probabilities), val.targets)

    return kept_choice(
        run,
        FLIP_FILE if flip else FILE,
        validation_key(run, model),
        choose,
        Temperature.from_dict,
        what=f"The probabilities of run {run.name!r} cannot be calibrated",
        hint="leave out --calibrate, or calibrate where the dataset and its split are: "
        f"`entrep evaluate --run {shlex.quote(run.reference)}`",
    )
