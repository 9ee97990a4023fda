"""Cross-validation: a run for every fold, what each makes of the fold it has not seen, and all of them as one ensemble.

Fold k keeps fold k for testing and the next one for validation (`Split.images`), so every labelled image is
predicted once, by a run that has neither learned from it nor chosen anything on it. What comes out:

    fold-0/ ... fold-<K-1>/   complete runs, each of its fold; `--run NAME/fold-0` names one
    out-of-fold.csv           image, fold, label, prediction, and the probability of every class
    cross-validation.json     scores fold by fold, their mean and spread, and pooled over all images

The whole is a run of `ensemble`: the folds' runs count alike, for each has another validation fold, so no
images are left on which they could be weighed against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation.calibration import calibration_sample, with_temperature
from entrep_cli.evaluation.intervals import Interval
from entrep_cli.evaluation.metrics import METRICS
from entrep_cli.evaluation.selection import select
from entrep_cli.evaluation.subsets import SubsetScores, joined_subsets, score_subset
from entrep_cli.experiments.ensemble import write_ensemble
from entrep_cli.methods.base import Model, in_classes_of
from entrep_cli.methods.ensemble import Ensemble, EnsembleRecipe, Weights
from entrep_cli.methods.runs import about_data, component_of, train_run
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.retrieval.sets import subset_embeddings
from entrep_cli.workspace import Run, write_csv_atomic, write_json_atomic

FILE = "cross-validation.json"
PREDICTIONS = "out-of-fold.csv"


@dataclass(frozen=True)
class Held:
    """A fold as the run that has not seen it sees it.

    Attributes:
        images: the fold, labelled in the classes of the model.
        probabilities: (N, C) as they are; `temperature` is the one that the run's own validation fold chose.
        scores: classification, and retrieval within the fold.
    """

    images: Catalog
    probabilities: np.ndarray
    temperature: float
    scores: SubsetScores
    dimensions: int


@dataclass(frozen=True)
class CrossValidation:
    """Scores of K folds.

    Attributes:
        folds: each score's (K,) values.
        pooled: each score over all images, each predicted by the run that has not seen it, with its interval
            over groups. Retrieval is within each fold.
    """

    folds: dict[str, list[float]]
    pooled: dict[str, Interval]
    images: int

    def rows(self) -> list[tuple[str, float, float, Interval]]:
        """Score, mean over folds, standard deviation over folds, pooled."""
        return [(key, float(np.mean(values)), float(np.std(values, ddof=1)), self.pooled[key]) for key, values in self.folds.items()]

    def as_dict(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "scores": {
                key: {"folds": self.folds[key], "mean": mean, "deviation": deviation, "pooled": pooled.as_dict()}
                for key, mean, deviation, pooled in self.rows()
            },
        }


def fold_run(run: Run, fold: int) -> Run:
    """The run of one fold, in the folder of the whole."""
    return Run(run.path(f"fold-{fold}"))


def check_folds(split: Split, folds: int | None = None) -> None:
    """UsageError where a split has no folds, or not as many."""
    if not split.folds:
        raise UsageError("--folds needs a split into folds.", hint=f"`entrep split --folds {folds or 5}`")
    if folds not in (None, split.folds):
        raise UsageError(
            f"The split has {split.folds} folds, not {folds}.", hint=f"--folds {split.folds}, or `entrep split --folds {folds}`"
        )


def train_folds(
    catalog: Catalog, split: Split, recipe: Recipe, run: Run, *, device: str = "auto", precision: str = "auto", resume: bool = False
) -> tuple[Ensemble, CrossValidation]:
    """Train `recipe` once for each fold, inside `run`, and leave an ensemble of them with their cross-validation.

    With `resume` complete folds are not trained again, and an incomplete one goes on.

    Raises:
        UsageError: the split has no folds; and what the training of a fold raises.
    """
    check_folds(split)
    held, models, members = [], [], []
    for fold in range(split.folds):
        member = fold_run(run, fold)
        console.say("", f"Fold {fold} of 0 to {split.folds - 1}{': it is complete.' if resume and member.complete else ''}")
        member.folder.mkdir(exist_ok=True)
        with component_of(run, member):
            model, _ = train_run(catalog, split, recipe, member, device=device, precision=precision, fold=fold, resume=resume)
        held.append(_held(member, model, catalog, split, fold))
        models.append(model)
        members.append(member)
    found = cross_validated(held)
    ones = (1.0,) * split.folds
    weights = Weights(ones, ones, tuple(own.temperature for own in held), tuple(own.dimensions for own in held))
    model = Ensemble(models, members, EnsembleRecipe(target=models[0].target, weights="equal", seed=recipe.seed), weights)
    names = held[0].images.taxonomy.names
    write_csv_atomic(run.path(PREDICTIONS), ["image", "fold", "label", "predicted", *names], _predictions(held, names))
    write_json_atomic(run.path(FILE), {"method": recipe.method, "folds": split.folds, "seed": split.seed, **found.as_dict()})
    validations = [member.manifest["validation"] for member in members]
    validation = {key: float(np.mean([own[key] for own in validations])) for key in validations[0]}
    n_val = max(member.manifest["data"]["images"]["val"] for member in members)
    write_ensemble(model, run, about_data(catalog, split, None), validation, n_val, cross_validation=found.as_dict())
    return model, found


def cross_validated(held: Sequence[Held]) -> CrossValidation:
    """Scores fold by fold, and pooled over the images of all folds."""
    whole = joined_subsets([own.scores for own in held])
    targets, groups = (np.concatenate([getattr(own.images, key) for own in held]) for key in ("targets", "groups"))
    probabilities = [own.probabilities for own in held]
    calibrated = [with_temperature(own.probabilities, own.temperature) for own in held]
    pooled: dict[str, Interval] = {key: i for key, i in whole.classification.sample.intervals().items() if METRICS[key].headline}
    folds = {key: [own.scores.classification.sample.intervals(resamples=0)[key].value for own in held] for key in pooled}
    for kind, rows in (("", probabilities), (", calibrated", calibrated)):
        pooled |= {f"{key}{kind}": i for key, i in calibration_sample(np.concatenate(rows), targets, groups).intervals().items()}
        each = [calibration_sample(p, own.images.targets).intervals(resamples=0) for p, own in zip(rows, held)]
        folds |= {f"{key}{kind}": [own[key].value for own in each] for key in each[0]}
    by_class = [own.scores.retrieval["class"] for own in held]
    if all(scores.scored.any() for scores in by_class):
        pooled |= whole.retrieval["class"].means
        each = [scores.sample.intervals(resamples=0) for scores in by_class]
        folds |= {key: [own[key].value for own in each] for key in each[0]}
    return CrossValidation(folds, pooled, len(targets))


def _held(member: Run, model: Model, catalog: Catalog, split: Split, fold: int) -> Held:
    images = in_classes_of(model, catalog.subset(split.images("test", fold)))
    if not len(images):
        raise RunError(f"Fold {fold} has no image of the classes that the run tells apart.", hint="split again: `entrep split --folds 5`")
    seen: Embeddings = subset_embeddings(member, model, images, catalog)
    temperature = select(member, model, (catalog, split), temperature=True).temperature.value
    return Held(images, np.asarray(seen.probabilities), temperature, score_subset(images, seen), seen.vectors.shape[1])


def _predictions(held: Sequence[Held], names: Sequence[str]) -> Iterator[list]:
    for fold, own in enumerate(held):
        for image, label, row in zip(own.images.images, own.images.frame["label"], own.probabilities):
            yield [image, fold, label, names[int(row.argmax())], *(f"{p:.6g}" for p in row)]
