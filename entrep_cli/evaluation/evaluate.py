"""All scores of a run on a split, or of a submission, as one value.

    scored = open_scored("clip-lora", root, "val")
    evaluation = evaluate_scored(scored)
    print(evaluation.frame())

`report` and `evaluate` show the same `Evaluation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.evaluation.calibration import Reliability, calibration_sample, reliability, with_temperature
from entrep_cli.evaluation.intervals import Interval
from entrep_cli.evaluation.subsets import SubsetScores, TextQueries, score_subset
from entrep_cli.results import Result, Table
from entrep_cli.workspace import Run, write_json_atomic

if TYPE_CHECKING:
    from entrep_cli.evaluation.scored import Scored
    from entrep_cli.evaluation.selection import Selection, Temperature
    from entrep_cli.retrieval.class_aware import ClassRule

_RETRIEVALS_A_TABLE = 2  # more do not fit beside each other into 80 columns


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of a split can be trusted, as they are and at the temperature that validation chooses.

    Attributes:
        plain: the metrics as they are, with intervals, and their `diagram`.
        tempered: the same at `temperature`, and their `tempered_diagram`; empty and None where nothing could be fitted.
    """

    plain: dict[str, Interval]
    diagram: Reliability
    temperature: Temperature | None = None
    tempered: dict[str, Interval] = field(default_factory=dict)
    tempered_diagram: Reliability | None = None

    @property
    def columns(self) -> dict[str, dict[str, Interval]]:
        """The metrics by what a table calls them."""
        return {"as it is": self.plain, **({f"at T = {self.temperature.value:.3f}": self.tempered} if self.temperature else {})}

    def as_dict(self) -> dict[str, Any]:
        kinds = {"as_it_is": (self.plain, self.diagram), "calibrated": (self.tempered, self.tempered_diagram)}
        return {
            "temperature": None if self.temperature is None else self.temperature.as_dict(),
            **{
                kind: {**{key: value.as_dict() for key, value in values.items()}, "bins": diagram.as_dict()["bins"]}
                for kind, (values, diagram) in kinds.items()
                if diagram is not None
            },
        }


@dataclass(frozen=True)
class Evaluation(Result):
    """Scores of a run on a split, or of a submission.

    Attributes:
        title: what was scored.
        stem: path of the written files, without a suffix.
        taxonomy: the classes.
        scores: classification and retrieval.
        notes: what a reader of the numbers must know.
        mask_groups: whether images of the query's group were left out of the answers; None for a submission.
        selection: what validation chose for the rankings; None for a submission.
        calibration: calibration of the probabilities; None for a submission.
        stages: for a cascade, by stage: how many images it decided, and how many of them correctly.
        figure: the file of the confusion matrix, if it was drawn.
        run: the run that was scored; for a submission the run in whose folder it lies, if any.
    """

    title: str
    stem: Path
    taxonomy: Taxonomy
    scores: SubsetScores
    notes: tuple[str, ...] = ()
    mask_groups: bool | None = None
    selection: Selection | None = None
    calibration: Calibration | None = None
    stages: Sequence[Mapping[str, Any]] = ()
    figure: Path | None = None
    run: Run | None = None

    @property
    def files(self) -> list[Path]:
        """What `write` writes, and the figure."""
        return [self.stem.with_name(f"{self.stem.name}.json"), *([self.figure] if self.figure else [])]

    def rows(self) -> list[tuple[str, str, Interval, int]]:
        """Metric, relevance ("" but for retrieval), value with interval, and the images or queries it is the mean over."""
        classes, rows = self.scores.classification, []
        if classes is not None:
            rows += [(key, "", value, len(classes.truth)) for key, value in classes.intervals.items()]
        if self.calibration is not None:
            n = int(self.calibration.diagram.counts.sum())
            rows += [(key, "", value, n) for key, value in self.calibration.plain.items()]
            rows += [(f"{key}, calibrated", "", value, n) for key, value in self.calibration.tempered.items()]
        for relevance, scored in self.scores.retrieval.items():
            rows += [(key, relevance, value, int(scored.scored.sum())) for key, value in scored.means.items()]
        return rows

    def frame(self):
        """One row a metric: metric, relevance, value, low, high, n."""
        import pandas as pd

        rows = [(metric, relevance, i.value, i.low, i.high, n) for metric, relevance, i, n in self.rows()]
        return pd.DataFrame(rows, columns=["metric", "relevance", "value", "low", "high", "n"])

    def to_latex(self) -> str:
        return Table(self.title, ["metric", "relevance", "value", "n"], self.rows(), ("relevance",)).to_latex()

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"title": self.title, "notes": list(self.notes)}
        if self.scores.chance:
            document["chance"] = self.scores.chance
        if self.mask_groups is not None:
            document["mask_groups"] = self.mask_groups
        if self.selection is not None:
            document["class_aware"] = {**self.selection.class_aware, "fell_back": self.scores.fell_back}
            if self.selection.refinement is not None:
                document["refined"] = self.selection.refinement.as_dict()
        if self.stages:
            document["stages"] = list(self.stages)
        if self.calibration is not None:
            document["calibration"] = self.calibration.as_dict()
        if self.scores.classification is not None:
            document["classification"] = self.scores.classification.as_dict()
        if self.figure is not None:
            document["figure"] = str(self.figure)
        return document | {"retrieval": {name: scores.as_dict() for name, scores in self.scores.retrieval.items()}}

    def tables(self) -> list[Table]:
        tables = []
        if self.stages:
            from entrep_cli.methods.base import stage_table

            tables.append(stage_table(f"What decided: {self.title}", self.stages))
        if self.scores.classification is not None:
            tables += self._classification_tables()
        if self.calibration is not None:
            columns = self.calibration.columns
            rows = [(key, *(column[key] for column in columns.values())) for key in self.calibration.plain]
            tables.append(Table(f"Calibration (less is better): {self.title}", ["measure", *columns], rows))
        names = list(self.scores.retrieval)
        return tables + [self._retrieval_table(names[i : i + _RETRIEVALS_A_TABLE]) for i in range(0, len(names), _RETRIEVALS_A_TABLE)]

    def write(self) -> Path:
        """Write the document, `<stem>.json`."""
        write_json_atomic(self.files[0], self.to_dict())
        return self.files[0]

    def _classification_tables(self) -> list[Table]:
        scores = self.scores.classification
        columns = zip(scores.class_names, scores.precision.tolist(), scores.recall.tolist(), scores.f1.tolist(), scores.support.tolist())
        # Ids for the columns: names would not fit beside each other.
        ids = [*(str(c.id) for c in self.taxonomy.classes), "none"][: scores.n_classes]
        confusion = [(f"{name} ({id_})", *row) for name, id_, row in zip(scores.class_names, ids, scores.confusion.tolist())]
        title = f"Classification: {self.title} ({len(scores.truth)} images)"
        return [
            Table(title, ["class", "precision", "recall", "F1", "images"], list(columns)),
            Table("Confusion matrix (rows are the truth, columns the answered class ids)", ["", *ids], confusion),
            Table("Overall, with 95% intervals", ["score", "value"], list(scores.intervals.items())),
        ]

    def _retrieval_table(self, names: Sequence[str]) -> Table:
        masked = "" if self.mask_groups is None else f" (group of the query {'masked' if self.mask_groups else 'not masked'})"
        shown, chance = [self.scores.retrieval[name] for name in names], self.scores.chance
        keys = dict.fromkeys(key for scores in shown for key, value in scores.means.items() if value.value == value.value)
        rows: list[tuple[object, ...]] = [(key, *(scores.means.get(key, "-") for scores in shown)) for key in keys]
        if chance:
            rows.append(("recall@1 by chance", *(chance.get(name, "-") for name in names)))
        rows.append(("queries", *(int(scores.scored.sum()) for scores in shown)))
        rows.append(("left out, nothing relevant", *(scores.n_without_relevant for scores in shown)))
        return Table(f"Retrieval{masked}: {self.title}", ["relevance by", *names], rows)


def evaluate_scored(scored: Scored, selection: Selection | None = None, *, mask_groups: bool = True) -> Evaluation:
    """All scores of a run on a split.

    Args:
        selection: how images are ranked beside the cosine, as `select` gives it; retrieval is then scored without and with it.
        mask_groups: whether images of the query's own group are left out of the answers.
    """
    from entrep_cli.evaluation.selection import Selection

    selection, notes = selection or Selection(), list(scored.notes)
    for chosen, name in ((selection.class_weight, "class weight"), (selection.refinement, "refinement")):
        if chosen is not None and scored.split == "val":
            notes.append(f"the {name} was chosen on the validation split itself: these scores with it are too good")
    texts = _text_queries(scored, selection.rule, notes)
    refinement = None if selection.refinement is None else selection.refinement.value
    scores = score_subset(
        scored.images, scored.embeddings, mask_groups=mask_groups, rule=selection.rule, texts=texts, refinement=refinement
    )
    for queries, n in scores.fell_back.items():
        if n:
            notes.append(
                f"{selection.rule}: {n} queries ({queries}) have no candidate of their predicted class; for them all images were ranked"
            )
    stem = scored.stem if mask_groups else scored.stem.with_name(f"{scored.stem.name}-unmasked")
    calibration = calibration_of(scored, notes)
    taxonomy = scored.images.taxonomy
    stages = stages_of(scored)
    return Evaluation(scored.title, stem, taxonomy, scores, tuple(notes), mask_groups, selection, calibration, stages, run=scored.run)


def calibration_of(scored: Scored, notes: list[str]) -> Calibration:
    """ECE, NLL and Brier score as they are and, where the run has a validation split, at the temperature that it chooses.

    Args:
        notes: gets what a reader must know.
    """
    from entrep_cli.evaluation.selection import select

    probabilities, targets, groups = np.asarray(scored.embeddings.probabilities), scored.images.targets, scored.images.groups

    def measured(rows: np.ndarray) -> tuple[dict[str, Interval], Reliability]:
        return calibration_sample(rows, targets, groups).intervals(), reliability(rows, targets)

    plain = Calibration(*measured(probabilities))
    try:
        chosen = select(scored.run, scored.model, (scored.catalog, scored.division), temperature=True, flip=scored.flip).temperature
    except RunError as error:
        notes.append(error.what)
        return plain
    if scored.split == "val":
        notes.append("the temperature was fitted on the validation split itself: the scores with it are too good")
    values, diagram = measured(with_temperature(probabilities, chosen.value))
    return replace(plain, temperature=chosen, tempered=values, tempered_diagram=diagram)


def stages_of(scored: Scored) -> list[dict[str, Any]]:
    """Of a cascade which stage decided how many images, and how many of them rightly; else none."""
    import torch

    decisions = scored.model.decide_images(scored.images.paths, scored.images.digests)
    return [] if decisions is None else scored.model.stage_counts(decisions, torch.from_numpy(scored.images.targets))


def _text_queries(scored: Scored, rule: ClassRule, notes: list[str]) -> TextQueries | None:
    """The finding texts as queries; without their classes, and with a note, where the model cannot give them."""
    from entrep_cli.evaluation.scored import texts_for
    from entrep_cli.retrieval.embeddings import texts_beside
    from entrep_cli.retrieval.pipeline import text_probabilities

    texts, classes = texts_for(scored.model, scored.images), None
    if texts is None:
        return None
    if rule.mode != "off":
        try:
            classes = text_probabilities(scored.model, texts.texts)
        except (DataError, UsageError) as error:
            notes.append(f"texts are not scored {rule}: {' '.join([error.what, *error.faults])}")
    return replace(texts, vectors=texts_beside(texts.vectors, scored.embeddings.vectors), probabilities=classes)
