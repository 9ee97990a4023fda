"""An ensemble from runs: which may stand together, what each counts, and what it comes to on validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split
from entrep_cli.errors import EntrepError, RunError, UsageError
from entrep_cli.evaluation.calibration import calibration_sample, with_temperature
from entrep_cli.evaluation.intervals import Interval, Sample, pooled
from entrep_cli.evaluation.metrics import CALIBRATION, CLASSIFICATION, METRICS, headline_columns
from entrep_cli.evaluation.selection import learned_from_all_folds, temperature_on, validation_subset
from entrep_cli.evaluation.subsets import score_subset
from entrep_cli.experiments.ensemble_weights import mixture_weights, ranking_weights
from entrep_cli.methods import is_method
from entrep_cli.methods.base import Fitted, Model
from entrep_cli.methods.ensemble import Ensemble, EnsembleRecipe, Weights
from entrep_cli.methods.runs import about_data, complete_run
from entrep_cli.recipes.recipe import recipe_toml
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.retrieval.ranking import match_codes
from entrep_cli.retrieval.sets import open_model, subset_embeddings
from entrep_cli.workspace import CONFIG, Run, find_run, write_text_atomic

WAYS = ("validation", "equal")
TASKS = (CLASSIFICATION, CALIBRATION, "class")  # what the members are compared by, of the metrics
_AS_TRAINED = {"accuracy": "val_accuracy", "macro F1": "val_macro_f1", "NLL": "val_loss"}  # as a training calls these scores


@dataclass(frozen=True)
class Built:
    """An ensemble and what it and its members come to on validation.

    Attributes:
        names: of the members.
        scores: of each member, then of the ensemble, the headline metrics of `TASKS` with intervals.
        gains: what the ensemble adds to the best member by each score, from the same resamples; (member, interval).
        val: the validation images; None, and `scores` and `gains` empty, where none are left.
    """

    model: Ensemble
    names: list[str]
    scores: list[dict[str, Interval]]
    gains: dict[str, tuple[str, Interval]]
    val: Catalog | None = None

    @property
    def members(self) -> list[tuple[str, float, float, float]]:
        """Name, weight in the classes, weight in the rankings, and temperature of each member."""
        weights = self.model.weights
        return list(zip(self.names, weights.classes, weights.ranking, weights.temperatures))

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON and `run.json`."""
        return {
            "members": [{"run": name, "classes": c, "ranking": r, "temperature": t} for name, c, r, t in self.members],
            "validation": {
                name: {key: interval.as_dict() for key, interval in row.items()}
                for name, row in zip([*self.names, "ensemble"], self.scores)
            },
            "gains": {key: {"over": name, **interval.as_dict()} for key, (name, interval) in self.gains.items()},
        }


def parse_weights(text: str, n_members: int) -> tuple[float, ...] | str:
    """`validation`, `equal`, or one number a member, as in 0.5,0.3,0.2; they are scaled to sum to 1."""
    if text in WAYS:
        return text
    try:
        given = tuple(float(number) for number in text.split(","))
    except ValueError:
        given = ()
    if len(given) != n_members or not all(math.isfinite(w) and w >= 0 for w in given) or not sum(given) > 0:
        raise UsageError(
            f"--weights {text!r} does not weigh {n_members} members.",
            hint=f"--weights validation, equal, or {n_members} numbers of 0 or more that are not all 0, as in "
            + ",".join(["1"] * max(n_members, 2)),
        )
    return given


def check_members(names: Sequence[str], catalog: Catalog, split: Split, weights: tuple[float, ...] | str) -> list[Run]:
    """The runs of these names, where they can answer together.

    Raises:
        RunError: they cannot, or some are no complete runs of this dataset and split; all faults are listed.
    """
    faults, runs = [], []
    for name in dict.fromkeys(names):
        try:
            run = find_run(name)
            if run is None:
                faults.append(f"{name}: no such run")
            elif not is_method(method := run.manifest.get("method")):
                faults.append(f"{name}: {method} classifies nothing")
            else:
                runs.append(run)
                faults += [f"{name}: {fault}" for fault in _strange(run.manifest, catalog, split)]
        except EntrepError as error:
            faults.append(f"{name}: {error.what}")
    faults += [f"{name}: named {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1]
    folders = [run.folder.resolve() for run in runs]
    faults += [f"{run.reference}: named twice, by two ways to its folder" for i, run in enumerate(runs) if folders[i] in folders[:i]]
    if len(set(names)) < 2:
        faults.append("an ensemble needs two runs or more")
    faults += _differing(runs)
    if weights == "validation":
        faults += [
            f"{run.reference}: has learned from every fold, so no validation images are left to choose weights on; --weights equal needs none"
            for run in runs
            if learned_from_all_folds(run)
        ]
    if faults:
        raise RunError("These runs make no ensemble.", faults=faults, hint="name two or more runs of one dataset, split and fold")
    return runs


def build(runs: Sequence[Run], catalog: Catalog, split: Split, weights: tuple[float, ...] | str, device: str = "auto") -> Built:
    """The ensemble of checked runs: temperatures from validation, and weights from there, equal ones, or those given."""
    models = [open_model(run, device) for run in runs]
    names = [run.reference for run in runs]
    equal = (1 / len(runs),) * len(runs)
    given = (equal, equal) if isinstance(weights, str) else (weights, weights)
    recipe = EnsembleRecipe(target=models[0].target, weights=weights if isinstance(weights, str) else ",".join(map(str, weights)))
    if any(map(learned_from_all_folds, runs)):
        ones = (1.0,) * len(runs)
        return Built(Ensemble(models, runs, recipe, Weights(*given, ones, tuple(map(_dimensions, models)))), names, [], {})
    val = validation_subset(runs[0], models[0], catalog, split)
    seen = [subset_embeddings(run, model, val, catalog) for run, model in zip(runs, models)]
    temperatures = [temperature_on(np.asarray(own.probabilities), val.targets).value for own in seen]
    if weights == "validation":
        given = _found(seen, temperatures, val)
    counts = Weights(*(tuple(map(float, column)) for column in given), tuple(temperatures), tuple(own.vectors.shape[1] for own in seen))
    model = Ensemble(models, runs, recipe, counts)
    combined = combined_embeddings(model, seen)
    return Built(model, names, *_compared([*seen, combined], [*temperatures, 1.0], names, val), val)


def finish(built: Built, run: Run, catalog: Catalog, split: Split, **more: Any) -> None:
    """Write the folder of an ensemble of one split and, of a split into folds, one fold; it is complete when this returns."""
    scores = built.scores[-1] if built.scores else {}
    validation = {name: scores[key].value for key, name in _AS_TRAINED.items() if key in scores}
    about = about_data(catalog, split, built.model.member_runs[0].manifest["split"]["fold"])
    write_ensemble(built.model, run, about, validation, 0 if built.val is None else len(built.val), ensemble=built.as_dict(), **more)


def write_ensemble(model: Ensemble, run: Run, about: dict[str, Any], validation: dict[str, float], n_val: int, **more: Any) -> None:
    """Weights, references to the members, and a manifest that adds up what these cost; `more` is told in it.

    Args:
        about: see `about_data`; validation: scores, as a training has them; n_val: images they are of.
    """
    made = {member.reference: member.manifest for member in model.member_runs}
    write_text_atomic(run.path(CONFIG), recipe_toml(model.recipe))
    model.save(run)
    weights = {"name": "ensemble", "weights": "its members", "members": {name: own["weights"] for name, own in made.items()}}
    parameters, seconds = (sum(own[key] for own in made.values()) for key in ("parameters", "seconds"))
    fitted = Fitted(model, validation, 0, weights, parameters, seconds)
    images = {"train": max(own["data"]["images"]["train"] for own in made.values()), "val": n_val}
    first = next(iter(made.values()))
    complete_run(run, fitted, about, images, device=first["device"], precision=first["precision"], **more)


def combined_embeddings(model: Ensemble, seen: Sequence[Embeddings]) -> Embeddings:
    """What an ensemble makes of images from what each member made of them."""
    parts = [(torch.from_numpy(np.array(own.vectors)), torch.from_numpy(np.array(own.probabilities))) for own in seen]
    vectors, probabilities, _ = model.combine(parts)
    return Embeddings(seen[0].items, vectors.numpy(), probabilities.numpy())


def _strange(manifest: dict[str, Any], catalog: Catalog, split: Split) -> list[str]:
    """What a run has that the dataset and its split have not."""
    faults = []
    if manifest.get("data", {}).get("catalog") != catalog.fingerprint:
        faults.append("was trained on other data")
    elif manifest.get("split", {}).get("fingerprint") != split.fingerprint:
        faults.append("was trained on another split")
    return faults


def _differing(runs: Sequence[Run]) -> list[str]:
    """In what the runs differ from the first of them."""
    faults = []
    for run in runs[1:]:
        first, own = runs[0].manifest, run.manifest
        if own["taxonomy"] != first["taxonomy"]:
            faults.append(f"{run.reference}: has other classes than {runs[0].reference}")
        if (theirs := first["split"].get("fold")) != (fold := own["split"].get("fold")):
            faults.append(f"{run.reference}: is of {_fold(fold)}, and {runs[0].reference} of {_fold(theirs)}")
    return faults


def _fold(fold: int | None) -> str:
    return "all folds" if fold is None else f"fold {fold}"


def _dimensions(model: Model) -> int:
    return sum(d for d, w in zip(model.weights.dimensions, model.weights.ranking) if w > 0)


def _found(seen: Sequence[Embeddings], temperatures: Sequence[float], val: Catalog) -> tuple[np.ndarray, np.ndarray]:
    place = np.arange(len(val)), val.targets
    classes = mixture_weights(np.stack([with_temperature(own.probabilities, t)[place] for own, t in zip(seen, temperatures)]))
    candidates = np.ones((len(val), len(val)), bool)
    for keys in (seen[0].items.image, seen[0].items.digest, val.groups):
        asked, given = match_codes(keys, keys)
        candidates &= asked[:, None] != given
    relevant = val.targets[:, None] == val.targets
    try:
        ranking, _ = ranking_weights([own.vectors for own in seen], relevant, candidates)
    except RunError as error:
        console.warn(f"{error.what} In the rankings all members count alike.")
        ranking = np.full(len(seen), 1 / len(seen))
    return classes, ranking


def _compared(
    embeddings: Sequence[Embeddings], temperatures: Sequence[float], names: Sequence[str], val: Catalog
) -> tuple[list[dict[str, Interval]], dict[str, tuple[str, Interval]]]:
    """Scores of the members and, last, of the ensemble; and what it adds to the best member by each."""
    rows: list[list[Sample]] = []
    for member, t in zip(embeddings, temperatures):
        scores = score_subset(val, member)
        likelihood = calibration_sample(with_temperature(member.probabilities, t), val.targets, val.groups)
        retrieval = scores.retrieval["class"]
        rows.append([scores.classification.sample, likelihood, *([retrieval.sample] if retrieval.scored.any() else [])])
    keys = [metric.key for _, metric in headline_columns(TASKS).values()]
    scored = [{key: value for sample in row for key, value in sample.intervals().items() if key in keys} for row in rows]
    gains = {}
    for key in scored[-1]:
        sign = 1 if METRICS[key].higher_is_better else -1
        best = max(range(len(names)), key=lambda i: sign * scored[i][key].value)
        at = next(i for i, sample in enumerate(rows[-1]) if key in sample.names)
        gains[key] = (names[best], pooled([rows[-1][at]], [rows[best][at]])[key])
    return scored, gains
