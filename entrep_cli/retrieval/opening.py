"""A run's model as it answers: beside what the run has embedded already, and so in the same precision."""

from __future__ import annotations

from entrep_cli import console
from entrep_cli.methods.base import COMPILED, Model
from entrep_cli.methods.runs import load_model
from entrep_cli.models.precision import lower, precision_beside
from entrep_cli.retrieval.embeddings import embedded_sets, embedding_engine
from entrep_cli.retrieval.pipeline import FP32
from entrep_cli.retrieval.sets import TRAIN
from entrep_cli.workspace import Run


def open_model(run: Run, device: str = "auto") -> Model:
    """The model of a complete run, or each of an ensemble's, in the precision in which its run's images are embedded.

    What is not fp32 is said, with its reason.

    Raises:
        RunError: as `load_model`.
    """
    model = load_model(run, device)
    _lower_as_kept(model, run)
    return model


def kept_precision(run: Run) -> str | None:
    """What computed the images that a run has embedded, the training images first; None where there are none."""
    sets = embedded_sets(run)
    return embedding_engine(run, TRAIN if TRAIN in sets else sets[0]).removesuffix(COMPILED) if sets else None


def _lower_as_kept(model: Model, run: Run) -> None:
    if model.members:
        for member, own in zip(model.members, model.member_runs):
            _lower_as_kept(member, own)
        engines = [member.engine for member in model.members]
        model.engine = FP32 if set(engines) == {FP32} else ", ".join(engines)
        return
    precision, reason = precision_beside(kept_precision(run), model.device, model)
    if precision != FP32:
        console.say(f"Precision of {run.name}: {precision} ({reason}).")
    lower(model, precision)
