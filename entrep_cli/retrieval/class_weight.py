"""The weight of class-aware retrieval that a run's validation images choose, kept in the run."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.retrieval.class_aware import FLOOR, WEIGHTS, TunedWeight, tune_weight
from entrep_cli.retrieval.sets import subset_embeddings
from entrep_cli.retrieval.validation import kept_choice, validation_key, validation_subset
from entrep_cli.workspace import Run

if TYPE_CHECKING:
    from entrep_cli.methods import Model

FILE = "class_aware.json"


def tuned_weight(run: Run, model: Model, read: Callable[[], tuple[Catalog, Split]]) -> TunedWeight:
    """The weight that the validation part of a run's own split chooses: from the run's folder, else tuned and kept there.

    What is kept holds for one model, one split and one list of weights, and is tuned again where one of them
    is another. The dataset is read only for that.

    Args:
        read: gives the catalog and the split the run was trained with.

    Raises:
        RunError: these are not at hand or not the run's, or nothing can be learned from them; the hint names
            `--class-weight`.
    """

    def choose() -> TunedWeight:
        catalog, split = read()
        return _tune(run, model, validation_subset(run, model, catalog, split), catalog)

    return kept_choice(
        run,
        FILE,
        [*validation_key(run, model), WEIGHTS, FLOOR],
        choose,
        TunedWeight.from_dict,
        what=f"The class weight of run {run.name!r} cannot be tuned",
        hint="--class-weight W, or tune it where the dataset and its split are: "
        f"`entrep evaluate --run {shlex.quote(run.reference)} --class-aware soft`",
    )


def _tune(run: Run, model: Model, val: Catalog, catalog: Catalog) -> TunedWeight:
    seen = subset_embeddings(run, model, val, catalog)
    exclude = [(keys, keys) for keys in (seen.items.image, seen.items.digest, val.groups)]
    return tune_weight(np.asarray(seen.vectors), np.asarray(seen.probabilities), val.frame["label"], exclude)
