"""The refinement of rankings that a run's own validation images choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.retrieval.refinement import Tuned, check_steps, tune_refinement
from entrep_cli.retrieval.sets import subset_embeddings
from entrep_cli.retrieval.validation import choosing, validation_subset
from entrep_cli.workspace import Run

if TYPE_CHECKING:
    from entrep_cli.methods import Model


def parse_steps(text: str) -> tuple[str, ...]:
    """Steps as they are typed, "whiten,qe"; UsageError as `check_steps`."""
    steps = tuple(part.strip() for part in text.split(",") if part.strip())
    check_steps(steps)
    return steps


def tuned_refinement(run: Run, model: Model, catalog: Catalog, split: Split, steps: tuple[str, ...], *, flip: bool = False) -> Tuned:
    """The steps, set on the validation part of the run's own split; a whitening is learned from its training part.

    Args:
        flip: for test-time augmentation, whose vectors are others.

    Raises:
        RunError: as `validation_subset`, or validation holds nothing to find.
    """
    from entrep_cli.methods.runs import in_classes_of

    what, hint = f"The refinement of run {run.name!r} cannot be chosen", "bring its dataset and its split back, or leave out --refine"
    with choosing(run, what, hint):
        val = validation_subset(run, model, catalog, split)
    train = in_classes_of(model, catalog.subset(split.images("train", run.manifest["split"].get("fold"))))
    seen = subset_embeddings(run, model, val, catalog, flip=flip)
    vectors = np.asarray(seen.vectors)
    learned_from = np.asarray(subset_embeddings(run, model, train, catalog, flip=flip).vectors) if "whiten" in steps else vectors[:0]
    exclude = [(keys, keys) for keys in (seen.items.image, seen.items.digest, val.groups)]
    return tune_refinement(steps, learned_from, vectors, val.frame["label"], exclude)
