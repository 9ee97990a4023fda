"""`ensemble`: runs that answer together; made by `entrep ensemble` and `entrep train --folds`, not trained itself.

With the members' weights w, which sum to 1 (two sets, one for the classes and one for the rankings):

    probabilities   sum_m w_m p_m^(1/T_m), each normalised: a mixture of the members, calibrated one by one
    embedding       sqrt(w_m) e_m, one member after the other: a unit row, whose cosine to another is
                    sum_m w_m cos_m, the weighted mean of the members' cosines

So the fused ranking is the ranking of one embedding, and whatever takes a run takes an ensemble. A text is
embedded by the members that read texts; the others' place in its vector is zero, and its ranking is by
the weighted mean of the reading members' cosines.

The members stay where they are: `members.json` names them, with the hash of each one's `run.json`. Those
named `./...` lie in the ensemble's own folder. They may be ensembles themselves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import RunError, UsageError
from entrep_cli.methods.base import FitContext, Fitted, Inference, Method, Model, load_tensors, save_tensors
from entrep_cli.methods.runs import load_model
from entrep_cli.models.inputs import resized
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.workspace import MANIFEST, Run, file_sha256, find_run, write_json_atomic

MEMBERS = "members.json"
INSIDE = "./"
_LEAST = torch.finfo(torch.float32).tiny  # the logarithm of a probability of 0 must not be infinite


class EnsembleRecipe(Recipe):
    """The settings of `ensemble`.

    Attributes:
        target: what the members classify; see `target` of `dinov2`.
        weights: how the members are weighted: `validation` (chosen on the validation subset), `equal`, or a number for each
            member, as in "0.5,0.3,0.2".
        batch_size: images per batch.
    """

    method: Literal["ensemble"] = "ensemble"
    target: str = "class"
    weights: str = "equal"
    batch_size: Annotated[int, Field(ge=1)] = 32


@dataclass(frozen=True)
class Weights:
    """What each of M members counts.

    Args:
        classes, ranking: (M,) of 0 or more; they are scaled to sum to 1.
        temperatures: (M,) of the members' probabilities, above 0.
        dimensions: (M,) of the members' embeddings.
    """

    classes: tuple[float, ...]
    ranking: tuple[float, ...]
    temperatures: tuple[float, ...]
    dimensions: tuple[int, ...]

    def __post_init__(self) -> None:
        if len({len(column) for column in (self.classes, self.ranking, self.temperatures, self.dimensions)}) != 1:
            raise ValueError("one number a member")
        for name in ("classes", "ranking"):
            column = getattr(self, name)
            if not all(0 <= w < float("inf") for w in column) or sum(column) <= 0:
                raise ValueError(f"weights are numbers of 0 or more and not all 0: {column}")
            object.__setattr__(self, name, tuple(float(w) / sum(column) for w in column))


class Ensemble(Method):
    """Models that answer together."""

    Recipe = EnsembleRecipe

    def __init__(self, members: Sequence[Model], runs: Sequence[Run], recipe: EnsembleRecipe, weights: Weights) -> None:
        """`runs` are those of the members, where they have embeddings already."""
        super().__init__()
        self.recipe = recipe
        self.taxonomy: Taxonomy = members[0].taxonomy
        self.models = nn.ModuleList(members)
        self._runs = tuple(runs)
        self.weights = weights
        self.preprocess = max((member.preprocess for member in members), key=lambda preprocess: preprocess.size)
        self.requires_grad_(False).eval()

    @property
    def members(self) -> Sequence[Model]:
        return tuple(self.models)

    @property
    def member_runs(self) -> Sequence[Run]:
        return self._runs

    @property
    def target(self) -> str:
        return self.recipe.target

    @property
    def reads_text(self) -> bool:
        """Whether one of the members reads texts and counts in the rankings."""
        return any(self._readers())

    # ------------------------------------------------------------ answers

    def combine(self, answers: Sequence[tuple[torch.Tensor, ...]]) -> Inference:
        """(N, D) unit embeddings and (N, C) probabilities of the whole from those of each member."""
        vectors = [member[0].float() for member in answers]
        classes = sum(w * _calibrated(p, t) for (_, p, *_), w, t in zip(answers, self.weights.classes, self.weights.temperatures))
        return Inference(self._side_by_side(vectors, self.weights.ranking), classes.float().to(vectors[0].device))

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> Inference:
        """Of pixels in the largest size that a member wants, scaled down for the others.

        Image files are better given to `embed_items`: each member then reads them with its own preprocessing.

        Raises:
            UsageError: members that see images cut in different ways.
        """
        views = {(member.preprocess.fit, member.preprocess.field_of_view) for member in self.members}
        if len(views) > 1:
            raise UsageError("The members of the ensemble see images cut in different ways.", hint="name one of the members")
        return self.combine([member.infer(resized(pixels, member.preprocess.size)) for member in self.members])

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, D) unit rows, zero in the place of the members that read no texts."""
        reads = self._check_reads_texts()
        rows = {i: self.members[i].embed_texts(texts).float() for i, reader in enumerate(reads) if reader}
        like = next(iter(rows.values()))
        vectors = [rows[i] if i in rows else like.new_zeros(len(texts), d) for i, d in enumerate(self.weights.dimensions)]
        return F.normalize(self._side_by_side(vectors, self.weights.ranking), dim=1)

    def classify_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, C) probabilities: the weighted mean of the members that read texts."""
        reads = self._check_reads_texts()
        counts = [w * reader for w, reader in zip(self.weights.classes, reads)]
        if not any(counts):  # validation gave all say on the classes of images to the others
            counts = [float(reader) for reader in reads]
        return sum(w * member.classify_texts(texts).float() for w, member in zip(counts, self.members) if w) / sum(counts)

    def _side_by_side(self, vectors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        return torch.cat([w**0.5 * F.normalize(rows, dim=1) for rows, w in zip(vectors, weights) if w > 0], dim=1)

    def _readers(self) -> list[bool]:
        """Of each member whether it reads texts and its cosines count."""
        return [member.reads_text and w > 0 for member, w in zip(self.members, self.weights.ranking)]

    def _check_reads_texts(self) -> list[bool]:
        reads = self._readers()
        if not any(reads):
            there = any(member.reads_text for member in self.members)
            raise UsageError(
                "The members of this ensemble that read texts have no weight in its rankings, so it cannot answer texts (track 3)."
                if there
                else "No member of this ensemble has a text tower, so it cannot answer texts (track 3).",
                hint="make it anew with --weights equal" if there else "name a run of a method that has one",
            )
        return reads

    # ------------------------------------------------------------ on disk

    def save(self, run: Run) -> None:
        """Write the weights, and which runs the members are: by name, or by `./` where they lie in this one's folder."""
        own = {name: torch.tensor(getattr(self.weights, name), dtype=torch.float64) for name in ("classes", "ranking", "temperatures")}
        own["dimensions"] = torch.tensor(self.weights.dimensions)
        save_tensors(run, own)
        write_json_atomic(run.path(MEMBERS), [_reference(member, run) for member in self.member_runs])

    @classmethod
    def load(cls, run: Run, recipe: EnsembleRecipe, taxonomy: Taxonomy, device: torch.device) -> Ensemble:
        """Read weights and members.

        Raises:
            RunError: members that are gone, or are not those the ensemble was made of; each is named.
        """
        kept = load_tensors(run)
        runs = members_of(run)
        weights = Weights(*(tuple(kept[name].tolist()) for name in ("classes", "ranking", "temperatures", "dimensions")))
        return cls([load_model(member, str(device)) for member in runs], runs, recipe, weights).to(device)

    @classmethod
    def fit(cls, context: FitContext) -> Fitted:
        raise UsageError("An ensemble is made of runs, and not trained.", hint="entrep ensemble RUN RUN")


def members_of(run: Run) -> list[Run]:
    """The runs that an ensemble is made of, as they were then; RunError that names each one which is gone or is another."""
    found, faults = [], []
    for told in json.loads(run.path(MEMBERS).read_text("utf-8")):
        name = told["run"]
        member = Run(run.path(name)) if name.startswith(INSIDE) else find_run(name)
        if member is None or not member.complete:
            faults.append(f"{name} is missing" if member is None or not member.folder.is_dir() else f"{name} is not complete")
        elif file_sha256(member.path(MANIFEST)) != told["sha256"]:
            faults.append(f"{name} is another run now: it was trained anew")
        else:
            found.append(member)
    if faults:
        raise RunError(
            f"{len(faults)} members of ensemble {run.name!r} are not what they were."
            if len(faults) > 1
            else f"A member of ensemble {run.name!r} is not what it was.",
            where=run.path(MEMBERS),
            faults=faults,
            hint="bring them back, or make the ensemble anew: `entrep ensemble RUN RUN`",
        )
    return found


def _reference(member: Run, run: Run) -> dict[str, str]:
    inside = member.folder.resolve().is_relative_to(run.folder.resolve())
    name = INSIDE + member.folder.resolve().relative_to(run.folder.resolve()).as_posix() if inside else member.reference
    return {"run": name, "sha256": file_sha256(member.path(MANIFEST))}


def _calibrated(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities at a temperature, in float64 on the CPU (an Apple GPU has none), as `scoring.calibration.with_temperature`."""
    return (probabilities.cpu().double().clamp_min(_LEAST).log() / temperature).softmax(dim=1)
