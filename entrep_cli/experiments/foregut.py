"""*Fusion at the Foregut*, all of it, from one hybrid run: the paper's Tables 4 to 13 beside ours, and its figure 2.

The hybrid and its components, each complete in the run, are scored on one split of the data; nothing is trained
here. The paper's figures come from `reporting/published.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entrep_cli.data.catalog import Catalog
from entrep_cli.evaluation.classification import ClassificationScores, report_cells
from entrep_cli.evaluation.intervals import Interval, pooled
from entrep_cli.evaluation.scored import embedded_by, texts_for
from entrep_cli.evaluation.subsets import TEXTS, SubsetScores, score_subset
from entrep_cli.methods.base import Decisions, stage_table
from entrep_cli.methods.hybrid import NONE_ACCEPTED, Hybrid
from entrep_cli.methods.prototype import Prototype
from entrep_cli.methods.runs import load_model
from entrep_cli.reporting.drawing import embedding_map
from entrep_cli.reporting.embedding_map import tsne
from entrep_cli.results import Table
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.workspace import Run, write_json_atomic

Cells = Mapping[str, Mapping[str, float]]  # row -> column -> value


@dataclass(frozen=True)
class Foregut:
    """What one hybrid run came to.

    Attributes:
        classes, regions: scores by model, at the two levels.
        against_baseline: the hybrid less the baseline, paired.
        stages: of the hybrid: what decided, how many images, how many of them rightly.
        retrieval: of the prototypes' embeddings by region, unfiltered and filtered.
        tables: ours for the paper's tables, by their number.
        figure: the map; None where there are too few images for one.
    """

    classes: dict[str, ClassificationScores]
    regions: dict[str, ClassificationScores]
    against_baseline: dict[str, Interval]
    stages: list[dict[str, Any]]
    retrieval: SubsetScores
    tables: dict[int, Cells] = field(default_factory=dict)
    figure: Path | None = None

    def tables_of(self, split: str, n: int) -> list[Table]:
        """Ours for people, of the `n` images of a split."""
        levels = [
            Table(
                f"Ours, {level}, {split} ({n} images), with 95% intervals over groups",
                ["model", "accuracy", "macro F1", "weighted F1"],
                [(name, s.accuracy, s.macro_f1, s.weighted_f1) for name, s in scores.items()],
            )
            for level, scores in (("classes", self.classes), ("regions", self.regions))
        ]
        scored = {key: s for key, s in self.retrieval.retrieval.items() if s.scored.any()}
        names = dict.fromkeys(name for s in scored.values() for name in s.means)
        chance = self.retrieval.chance
        rows = [(key, *(s.means.get(name, "-") for name in names), chance.get(key.split(",")[0], "-")) for key, s in scored.items()]
        return [
            *levels,
            Table("Hybrid less baseline, classes, paired", ["score", "difference"], list(self.against_baseline.items())),
            stage_table("Stages of the hybrid", self.stages),
            Table("Prototype embeddings, retrieval; class means region, the query's group masked", ["", *names, "by chance"], rows),
        ]

    def as_dict(self) -> dict[str, Any]:
        return {
            "classes": {name: scores.as_dict() for name, scores in self.classes.items()},
            "regions": {name: scores.as_dict() for name, scores in self.regions.items()},
            "hybrid less baseline": {name: value.as_dict() for name, value in self.against_baseline.items()},
            "stages": self.stages,
            "retrieval by region": {name: scores.as_dict() for name, scores in self.retrieval.retrieval.items()},
            "tables": {str(number): cells for number, cells in self.tables.items()},
            "figure": self.figure and self.figure.name,  # beside this; no place of this machine is written down
        }


def score_foregut(run: Run, images: Catalog, catalog: Catalog, root: Path, split: str, *, device: str = "auto") -> Foregut:
    """Score a hybrid and its components on `images`, those of `split`, draw the map, and write both into the run's `paper/`.

    Table 10 says neither what is right nor what its gallery is: ours has every image as a query to
    the others, those of its group left out, and counts the region as right, by which the paper filters.
    """
    hybrid = load_model(run, device)
    prototype, baseline = (Run(run.path(name)) for name in ("prototype", "baseline"))
    nearest = load_model(prototype, device)
    of_hybrid, of_prototype, of_baseline = (
        embedded_by(own, model, images, catalog, root, split)
        for own, model in ((run, hybrid), (prototype, nearest), (baseline, load_model(baseline, device)))
    )
    decisions, later = hybrid.decide_images(images.paths, images.digests), _later_stages(hybrid, images)
    answers = {
        "prototypes": of_prototype.probabilities.argmax(axis=1),
        "baseline": of_baseline.probabilities.argmax(axis=1),
        "region and experts": later.classes.numpy(),
        "hybrid": of_hybrid.probabilities.argmax(axis=1),
    }
    names, groups = images.taxonomy.names, images.groups
    classes = {name: ClassificationScores(images.targets, given, names, groups) for name, given in answers.items()}
    in_region_classes = images.of_target("region")
    region_of = np.array([in_region_classes.taxonomy.index(c.region) for c in images.taxonomy.classes])
    by_region_prototypes = _region_probabilities(nearest, of_prototype)
    in_regions = {"region prototypes": by_region_prototypes.argmax(axis=1), **{name: region_of[given] for name, given in answers.items()}}
    regions = {
        name: ClassificationScores(in_region_classes.targets, given, in_region_classes.taxonomy.names, groups)
        for name, given in in_regions.items()
    }
    retrieval = score_subset(
        in_region_classes,
        replace(of_prototype, probabilities=by_region_prototypes),
        rule=ClassRule("hard"),
        texts=_with_regions(nearest, texts_for(nearest, images)),
    )
    found = Foregut(
        classes,
        regions,
        pooled([classes["hybrid"].sample], [classes["baseline"].sample]),
        hybrid.stage_counts(decisions, torch.from_numpy(images.targets)),
        retrieval,
        _tables(classes, regions, retrieval),
        _map(run, of_prototype, images, split),
    )
    write_json_atomic(run.path("paper", f"{split}.json"), {"run": run.name, "split": split, "images": len(images), **found.as_dict()})
    return found


def _later_stages(hybrid: Hybrid, images: Catalog) -> Decisions:
    """What the region model and the experts say to every image."""
    own, hybrid.threshold = hybrid.threshold, NONE_ACCEPTED
    try:
        return hybrid.decide_images(images.paths, images.digests)
    finally:
        hybrid.threshold = own


def _region_probabilities(nearest: Prototype, seen: Embeddings) -> np.ndarray:
    """(N, R) by the region prototypes, from embeddings that are there."""
    vectors = torch.from_numpy(np.array(seen.vectors)).to(nearest.region_of.device)
    return nearest.prototypes.region_probabilities(nearest.scores(vectors)[1]).cpu().numpy()


def _with_regions(nearest: Prototype, texts):
    """Text queries with the region that the nearest region prototype gives them, in the place of a class."""
    if texts is None:
        return None
    vectors = torch.from_numpy(texts.vectors).to(nearest.region_of.device)
    return replace(texts, probabilities=nearest.prototypes.region_probabilities(nearest.scores(vectors)[1]).cpu().numpy())


def _tables(
    classes: dict[str, ClassificationScores], regions: dict[str, ClassificationScores], retrieval: SubsetScores
) -> dict[int, Cells]:
    reports = {
        4: classes["prototypes"],
        5: regions["region prototypes"],
        6: classes["baseline"],
        7: regions["hybrid"],
        8: classes["hybrid"],
    }
    tables = {number: report_cells(scores) for number, scores in reports.items()}
    compared = {name: classes[name] for name in ("prototypes", "baseline", "hybrid")}
    tables[9] = {
        name: {"accuracy": s.accuracy.value, "macro F1": s.macro_f1.value, "weighted F1": s.weighted_f1.value}
        for name, s in compared.items()
    }
    kinds = {"image to image": "class, class-aware hard", "text to image": f"{TEXTS}, class-aware hard"}
    tables[10] = {
        row: {name: value.value for name, value in retrieval.retrieval[key].means.items()}
        for row, key in kinds.items()
        if key in retrieval.retrieval and retrieval.retrieval[key].scored.any()
    }
    return tables


def _map(run: Run, seen: Embeddings, images: Catalog, split: str) -> Path | None:
    if len(images) < 4:
        return None
    labels = images.frame["label"].tolist()
    region = {c.name: c.region for c in images.taxonomy.classes}
    return embedding_map(
        tsne(np.asarray(seen.vectors)),
        [("regions", [region[label] for label in labels]), ("classes", labels)],
        f"t-SNE of the prototypes' visual embeddings, run {run.name}, {split}: {len(images)} images",
        order=[*images.taxonomy.names, *images.taxonomy.regions],
    ).png(run.path("paper", f"{split}-map.png"))
