"""A run's model as it answers: beside what the run has embedded already, and so in the same precision."""

from __future__ import annotations

from entrep_cli.methods import Model
from entrep_cli.methods.runs import load_model
from entrep_cli.models.precision import lower, precision_beside
from entrep_cli.retrieval.embeddings import embedded_sets, embedding_engine
from entrep_cli.retrieval.pipeline import COMPILED, device_of
from entrep_cli.retrieval.sets import TRAIN
from entrep_cli.workspace import Run


def open_model(run: Run, device: str = "auto") -> Model:
    """The model of a complete run, or each of an ensemble's, in the precision in which its run's images are embedded.

    Raises:
        RunError: as `load_model`.
    """
    model = load_model(run, device)
    for own, answering in zip(getattr(model, "runs", [run]), getattr(model, "members", [model])):
        lower(answering, precision_beside(kept_precision(own), device_of(answering), answering)[0])
    return model


def kept_precision(run: Run) -> str | None:
    """What computed the images that a run has embedded, the training images first; None where there are none."""
    sets = embedded_sets(run)
    return embedding_engine(run, TRAIN if TRAIN in sets else sets[0]).removesuffix(COMPILED) if sets else None
