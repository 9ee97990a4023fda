"""What the validation images of a run choose: the temperature of its probabilities, its class weight, its refinement.

    selection = select(run, model, data, class_aware="soft", refine=("whiten", "qe"))
    print(*selection.sentences, sep="\n")
    rank(queries, gallery, 10, bonus=selection.rule.bonus(query_probabilities, gallery_probabilities))

`<run>/selection.json` holds what was chosen for one model, one dataset with its split, and one list of candidates;
for another it is chosen again. The dataset is read only where something must be chosen.

The validation images have chosen the epoch too, so the run is a little better and surer on them than on new images,
and the temperature a little too low for these. How little is measured by `benchmarks/ensemble_gains.py`, beside the
temperature that the scored images themselves would choose.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split, read_catalog_and_split
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.evaluation.calibration import fit_temperature, reliability, with_temperature
from entrep_cli.methods.base import Model, in_classes_of
from entrep_cli.retrieval.class_aware import FLOOR, ClassRule
from entrep_cli.retrieval.embeddings import Embeddings, model_key
from entrep_cli.retrieval.ranking import Exclusions, Keys, Ranking, ranked_blocks, relevance
from entrep_cli.retrieval.refinement import SHORTLIST, STEPS, Expansion, Refinement, Reranking, Whitening, check_steps
from entrep_cli.retrieval.sets import subset_embeddings
from entrep_cli.workspace import Run, data_dir, fingerprint, trained_on, write_json_atomic

FILE = "selection.json"
FEW_QUERIES = 30  # of which one changes Recall@1 by more than 3 points
# What validation chooses from.
WEIGHTS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
DIMENSIONS = (8, 16, 32, 64, 128, 256)
EXPANSIONS = tuple((n, power) for n in (1, 2, 3, 5, 10) for power in (0.0, 1.0, 3.0))
RERANKINGS = tuple((k1, k2, weight) for k1, k2 in ((5, 2), (10, 3), (20, 6)) for weight in (0.3, 0.5, 0.8))

Scores = tuple[float, float]  # Recall@1 and MRR, by class
Dataset = tuple[Catalog, Split] | Path | None  # opened already; else the option that names its folder


# ---------------------------------------------------------------- what is chosen


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


@dataclass(frozen=True)
class ClassWeight:
    """The weight of the soft rule of class-aware retrieval.

    Attributes:
        value: w.
        queries: how many validation images have another of their class to retrieve.
        tried: (w, Recall@1, MRR), by class, of every weight tried, from 0 upward.
    """

    value: float
    queries: int
    tried: tuple[tuple[float, float, float], ...]

    @property
    def before(self) -> Scores:
        """By the cosine alone."""
        return self.tried[0][1:]

    @property
    def after(self) -> Scores:
        """With the weight."""
        return next(row[1:] for row in self.tried if row[0] == self.value)

    def __str__(self) -> str:
        return f"Class-aware: weight {self.value:g} ({_reason(self, '' if self.value else 'weight')})."

    def as_dict(self) -> dict[str, Any]:
        tried = [{"weight": w, "recall@1": recall, "mrr": mrr} for w, recall, mrr in self.tried]
        return {"weight": self.value, "queries": self.queries, "tried": tried}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> ClassWeight:
        """From what `as_dict` gave; KeyError, TypeError or ValueError where it is no such table."""
        tried = tuple((float(row["weight"]), float(row["recall@1"]), float(row["mrr"])) for row in table["tried"])
        if not tried or tried[0][0] != 0 or table["weight"] not in [row[0] for row in tried]:
            raise ValueError("the weight is none of those tried")
        return cls(float(table["weight"]), int(table["queries"]), tried)


@dataclass(frozen=True)
class ChosenRefinement:
    """A refinement, Recall@1 and MRR by class without it and with it, over so many validation images."""

    value: Refinement
    before: Scores
    after: Scores
    queries: int

    def __str__(self) -> str:
        steps = [f"{step} {setting}" for step, setting in self.value.as_dict().items() if setting is not None and step != "shortlist"]
        return f"Refined by {', '.join(steps) or 'nothing'} ({_reason(self, '' if steps else 'setting')})."

    def as_dict(self) -> dict[str, Any]:
        """A whitening is the number of its dimensions; `from_dict` learns it again."""
        names = ("recall@1", "mrr")
        scores = {"before": dict(zip(names, self.before)), "after": dict(zip(names, self.after))}
        return {**self.value.as_dict(), "validation": {**scores, "queries": self.queries}}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], training: np.ndarray | None = None) -> ChosenRefinement:
        """From what `as_dict` gave; `training` are the (M, D) vectors that a whitening is learned from."""
        whiten = None if table["whiten"] is None else Whitening.learn(training, int(table["whiten"]))
        database, expand = (None if table[step] is None else Expansion(**table[step]) for step in ("dba", "qe"))
        rerank = None if table["rerank"] is None else Reranking(**table["rerank"])
        before, after = ((float(scores["recall@1"]), float(scores["mrr"])) for scores in map(table["validation"].get, ("before", "after")))
        refinement = Refinement(whiten, database, expand, rerank, int(table["shortlist"]))
        return cls(refinement, before, after, int(table["validation"]["queries"]))


@dataclass(frozen=True)
class Selection:
    """What holds for a run: what its validation images chose, None where nothing was asked for.

    Attributes:
        rule: of class-aware retrieval, at the weight that was given or chosen.
    """

    rule: ClassRule = field(default_factory=ClassRule)
    temperature: Temperature | None = None
    class_weight: ClassWeight | None = None
    refinement: ChosenRefinement | None = None

    @property
    def class_aware(self) -> dict[str, Any]:
        """The rule, for JSON."""
        validation = None if self.class_weight is None else self.class_weight.as_dict()
        return {**self.rule.as_dict(), "validation": validation}

    @property
    def sentences(self) -> list[str]:
        """How images are ranked and why, for people."""
        given = self.rule.mode == "soft" and self.class_weight is None
        rule = f"Class-aware: weight {self.rule.weight:g} (as given)." if given else self.class_weight
        return [str(sentence) for sentence in (rule, self.refinement) if sentence is not None]

    @property
    def warnings(self) -> list[str]:
        """Whether so few images chose that another few might choose otherwise."""
        weight = self.class_weight
        if weight is None or not weight.value or weight.queries >= FEW_QUERIES:
            return []
        return [f"the class weight was chosen on {weight.queries} validation images alone; --class-weight W gives another"]


def _reason(choice: ClassWeight | ChosenRefinement, useless: str) -> str:
    """On how many images something was chosen and what it gains; `useless` names what gains nothing."""
    (recall, mrr), (new_recall, new_mrr) = choice.before, choice.after
    better = f" -> {new_recall:.3f}, MRR {mrr:.3f} -> {new_mrr:.3f}"
    unchanged = f", and no {useless} does better: the cosine decides alone"
    return f"chosen on {choice.queries} validation images: Recall@1 by class {recall:.3f}{unchanged if useless else better}"


# ---------------------------------------------------------------- choosing for a run


def select(
    run: Run,
    model: Model,
    dataset: Dataset = None,
    *,
    temperature: bool = False,
    class_aware: str = "off",
    class_weight: float | None = None,
    refine: Sequence[str] = (),
    flip: bool = False,
) -> Selection:
    """What the validation images of a run choose: from the folder of the run, else chosen and written there.

    Args:
        dataset: catalog and split of the run, or `--data`, from where they are read if something must be chosen.
        temperature: whether to choose the temperature.
        class_aware, class_weight: the rule of class-aware retrieval; `soft` without a weight is at the chosen one.
        refine: steps of the refinement, of `STEPS`; whitening is learned from the training images.
        flip: for test-time augmentation, which has another temperature and another refinement.

    Raises:
        UsageError: no such rule, weight or step.
        RunError: catalog or split are not available or not those of the run, or its validation images cannot choose;
            the hint names the option that does without.
    """
    selection = Selection(ClassRule(class_aware, class_weight or 0.0))
    validation, name, reference = _Validation(run, model, dataset), f"run {run.name!r}", shlex.quote(run.reference)
    suffix = "-flip" if flip else ""
    if temperature:
        chosen = validation.choice(
            f"temperature{suffix}",
            Temperature.from_dict,
            lambda: temperature_on(validation.queries(flip)[1], validation.images("val").targets),
            f"The probabilities of {name} cannot be calibrated",
            f"leave out --calibrate, or calibrate where the dataset and its split are: `entrep evaluate --run {reference}`",
        )
        selection = replace(selection, temperature=chosen)
    if class_aware == "soft" and class_weight is None:
        chosen = validation.choice(
            "class_weight",
            ClassWeight.from_dict,
            lambda: tune_weight(*validation.queries(False)),
            f"The class weight of {name} cannot be tuned",
            f"--class-weight W, or tune it where the dataset and its split are: `entrep evaluate --run {reference} --class-aware soft`",
        )
        selection = replace(selection, rule=ClassRule("soft", chosen.value), class_weight=chosen)
    if refine:
        check_steps(refine)
        chosen = validation.choice(
            f"refinement{suffix} {','.join(step for step in STEPS if step in refine)}",
            lambda table: ChosenRefinement.from_dict(
                table, np.asarray(validation.embeddings("train", flip).vectors) if table["whiten"] else None
            ),
            lambda: _refinement(validation, refine, flip),
            f"The refinement of {name} cannot be chosen",
            "bring its dataset and its split back, or leave out --refine",
        )
        selection = replace(selection, refinement=chosen)
    return selection


class _Validation:
    """The images of a run's split as the run embeds them, opened when the first number must be chosen, and what is chosen already."""

    def __init__(self, run: Run, model: Model, dataset: Dataset) -> None:
        self.run, self.model, self.dataset = run, model, dataset
        self.embedded: dict[tuple[str, bool], Embeddings] = {}

    @cached_property
    def key(self) -> str:
        """Changes with the model, its preprocessing, the data and split it was trained on, and what is chosen from."""
        candidates = [WEIGHTS, FLOOR, DIMENSIONS, EXPANSIONS, RERANKINGS, SHORTLIST]
        return fingerprint([*model_key(self.run, self.model), trained_on(self.run.manifest), candidates])

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """The choices in the file of the run, by name; none where they hang on something else or cannot be read."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            stored = json.loads(self.run.path(FILE).read_text("utf-8"))
            if stored.pop("key") == self.key:
                return stored
        return {}

    def choice(self, name: str, read: Callable[[Any], Any], choose: Callable[[], Any], what: str, hint: str) -> Any:
        """A choice by its name, from the file of the run, else chosen and written there.

        Raises:
            RunError: nothing can be chosen; `what` and `hint` are of its message.
        """
        try:
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, UsageError):
                return read(self.chosen[name])
            chosen = choose()
        except (DataError, RunError, UsageError) as error:
            raise RunError(f"{what}: {error.what}", where=error.where or self.run.folder, faults=error.faults, hint=hint) from error
        self.chosen[name] = chosen.as_dict()
        with contextlib.suppress(OSError):  # the folder of a run may be read-only: then it is chosen again each time
            write_json_atomic(self.run.path(FILE), {"key": self.key, **self.chosen})
        return chosen

    @cached_property
    def opened(self) -> tuple[Catalog, Split]:
        return self.dataset if isinstance(self.dataset, tuple) else read_catalog_and_split(data_dir(self.dataset))

    def images(self, subset: str) -> Catalog:
        return validation_subset(self.run, self.model, *self.opened, subset)

    def embeddings(self, subset: str, flip: bool) -> Embeddings:
        """Of `train` or `val`."""
        if (subset, flip) not in self.embedded:
            images = self.images(subset)
            if not len(images):
                raise RunError(f"the {subset} split is empty.")
            self.embedded[subset, flip] = subset_embeddings(self.run, self.model, images, self.opened[0], flip=flip)
        return self.embedded[subset, flip]

    def queries(self, flip: bool) -> tuple[np.ndarray, np.ndarray, Keys, Exclusions]:
        """Vectors, probabilities and labels of the validation images, and what may not answer them."""
        embeddings, images = self.embeddings("val", flip), self.images("val")
        exclude = [(keys, keys) for keys in (embeddings.items.image, embeddings.items.digest, images.groups)]
        return np.asarray(embeddings.vectors), np.asarray(embeddings.probabilities), images.frame["label"], exclude


def _refinement(validation: _Validation, steps: Sequence[str], flip: bool) -> ChosenRefinement:
    vectors, _, labels, exclude = validation.queries(flip)
    training = np.asarray(validation.embeddings("train", flip).vectors) if "whiten" in steps else vectors[:0]
    return tune_refinement(steps, training, vectors, labels, exclude)


def validation_subset(run: Run, model: Model, catalog: Catalog, split: Split, subset: str = "val") -> Catalog:
    """The validation images of the split a run was trained with, or another subset, labelled in the classes of the model.

    Raises:
        RunError: catalog or split are not those of the run, or it has learned from every fold.
    """
    trained = trained_on(run.manifest)
    if (trained["catalog"], trained["split"]) != (catalog.fingerprint, split.fingerprint):
        raise RunError("the dataset or its split is not the one the run was trained with.", where=run.folder)
    if learned_from_all_folds(run):
        raise RunError("its members have, among them, learned from every fold, so none is left to choose on.", where=run.folder)
    return in_classes_of(model, catalog.subset(split.images(subset, trained["fold"])))


def learned_from_all_folds(run: Run) -> bool:
    """Whether a run is made of the runs of `train --folds`: then no subset of its split is unknown to all of its members."""
    split = run.manifest.get("split", {})
    return bool(split.get("folds")) and split.get("fold") is None


# ---------------------------------------------------------------- choosing by scores


def temperature_on(probabilities: np.ndarray, targets: np.ndarray) -> Temperature:
    """The temperature that (N, C) probabilities of validation images choose, and what it does to them."""
    value = fit_temperature(probabilities, targets)
    before, after = reliability(probabilities, targets), reliability(with_temperature(probabilities, value), targets)
    return Temperature(value, len(targets), before.nll, after.nll, before.ece, after.ece)


def tune_weight(
    vectors: np.ndarray, probabilities: np.ndarray, labels: Keys, exclude: Exclusions = (), weights: Sequence[float] | None = None
) -> ClassWeight:
    """The weight of the soft rule with the best Recall@1 by class; of equals the best MRR, then the smallest.

    Every validation image is a query to all others.

    Args:
        vectors: (N, D) unit rows.
        probabilities: (N, C).
        labels: (N,) true classes.
        exclude: as in `rank`; the images themselves at least.
        weights: to try, by default `WEIGHTS`; 0 always is.

    Raises:
        RunError: no image has another of its class to retrieve.
    """
    tried = []
    for weight in sorted({0.0, *map(float, WEIGHTS if weights is None else weights)}):
        bonus = ClassRule("soft", weight).bonus(probabilities, probabilities)
        scores, n_queries = _scores(ranked_blocks(vectors, vectors, None, exclude, bonus=bonus), labels)
        tried.append((weight, *scores))
    best = max(tried, key=lambda row: (row[1], row[2], -row[0]))
    return ClassWeight(best[0], n_queries, tuple(tried))


def tune_refinement(
    steps: Sequence[str], training: np.ndarray, vectors: np.ndarray, labels: Keys, exclude: Exclusions = ()
) -> ChosenRefinement:
    """Set the steps one after the other to what retrieves the class of validation images best among the others.

    Every step may stay out: one is taken only where it does better by Recall@1 or, of equals, by MRR than all before it.

    Args:
        steps: of `STEPS`.
        training: (M, D) unit rows of training images, for the whitening.
        vectors: (N, D) unit rows of validation images; `labels` their classes.
        exclude: as in `rank`; the images themselves at least.

    Raises:
        UsageError: no such step; RunError: no image has another of its class to retrieve.
    """
    check_steps(steps)
    chosen = Refinement()
    before, n_queries = _scores(chosen.ranked_blocks(vectors, vectors, None, exclude), labels)
    best = before
    for step in (s for s in STEPS if s in steps):
        for variant in _variants(chosen, step, training):
            scores, _ = _scores(variant.ranked_blocks(vectors, vectors, None, exclude), labels)
            if scores > best:
                chosen, best = variant, scores
    return ChosenRefinement(chosen, before, best, n_queries)


def _variants(base: Refinement, step: str, training: np.ndarray) -> list[Refinement]:
    if step == "whiten":
        dimensions = sorted({min(d, training.shape[1]) for d in DIMENSIONS})
        return [replace(base, whiten=Whitening.learn(training, d)) for d in dimensions]
    if step == "rerank":
        return [replace(base, rerank=Reranking(*setting)) for setting in RERANKINGS]
    field_name = {"dba": "database", "qe": "expand"}[step]
    return [replace(base, **{field_name: Expansion(*setting)}) for setting in EXPANSIONS]


def _scores(blocks: Iterable[tuple[slice, Ranking]], labels: Keys) -> tuple[Scores, int]:
    """Recall@1 and MRR by class of full rankings of images among themselves, and how many have another of their class.

    Raises:
        RunError: none has.
    """
    labels = np.asarray(labels, dtype=object)
    ranks: list[int] = []
    for rows, ranking in blocks:
        hits = relevance(ranking, labels[rows], labels)
        ranks += (hits.argmax(axis=1) + 1)[hits.any(axis=1)].tolist()
    if not ranks:
        raise RunError("No validation image has another of its class, outside its group, to retrieve.")
    # fsum does not depend on the order of the queries: what is equal must tie.
    return (ranks.count(1) / len(ranks), math.fsum(1 / r for r in ranks) / len(ranks)), len(ranks)
