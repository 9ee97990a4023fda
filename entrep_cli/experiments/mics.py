"""What a pre-training of MICS is worth: pictures, curves, a linear probe, and the ablation of both of its trainings.

The paper compares, with 5% of the labels, training from its pre-training with training from scratch; the
ablation here does so at several fractions, with each loss of the pre-training alone and together, and takes
fusion and shift away (which rows: ours).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.modalities import pseudo_nbi
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.splits import Split
from entrep_cli.evaluation.classification import ClassificationScores
from entrep_cli.evaluation.intervals import Interval, pooled
from entrep_cli.experiments.ablation_table import Before, Row
from entrep_cli.methods.mics import MicsRecipe, start_encoders
from entrep_cli.methods.mics_pretraining import LOSSES, MicsPretrainingRecipe, gather, initial_encoders, pretrain_run
from entrep_cli.models.backbones import Backbone
from entrep_cli.models.device import choose_device
from entrep_cli.models.mics import LossWeights
from entrep_cli.reporting.contact_sheets import picture_grid
from entrep_cli.reporting.drawing import curves
from entrep_cli.training.validation import batched
from entrep_cli.workspace import METRICS, Run

FRACTIONS = (0.05, 0.1, 1.0)
SHOWN = ("accuracy", "macro F1")
# Heading, part and column of every loss in metrics.csv.
_LINES = [
    (heading, part, f"{prefix}_{column}")
    for heading, column in (("weighted sum", "loss"), *((name, name) for name in LOSSES))
    for prefix, part in (("train", "train"), ("val", "held out"))
]
_C = 0.1  # of the probe's regression, the same for all features: nothing is chosen (ours)


# ---------------------------------------------------------------- pictures and curves


class RunPictures:
    """Draws a pre-training into its run: `reconstructions/epoch-010.png` and so on, and `losses.png`."""

    def __init__(self, run: Run, recipe: MicsPretrainingRecipe) -> None:
        self.run, self.section = run, recipe.pretraining

    def reconstructions(self, epoch: int, columns: list[np.ndarray], real: bool) -> None:
        masked, narrow = f"{self.section.mask_ratio:.0%} masked", "NBI" if real else "pseudo-NBI"
        caption = "Held-out images, never learned from; patches that are not masked are shown as they are."
        if self.section.normalised_patches:
            caption += " The mean and the deviation of every masked patch are those of the original: only its drawing is predicted."
        headings = ["white light", masked, "drawn", narrow, masked, "drawn"]
        path = self.run.path("reconstructions", f"epoch-{epoch:03}.png")
        picture_grid(list(zip(*columns)), headings, path, f"Reconstructions after epoch {epoch}", caption)

    def losses(self, kept: int) -> None:
        panels: dict[str, dict[str, list[float]]] = {}
        history = _history(self.run)
        for heading, part, column in _LINES:
            panels.setdefault(heading, {})[part] = [row[column] for row in history]
        curves(panels, f"Losses of {self.run.name}", best_epoch=kept).png(self.run.path("losses.png"))


def _history(run: Run) -> list[dict[str, float]]:
    with open(run.path(METRICS), encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def loss_rows(run: Run) -> list[tuple[str, float, float, float]]:
    """Every loss of a pre-training: name, in its first, its last and the kept epoch."""
    history = _history(run)
    kept = history[run.manifest["epoch"] - 1]
    return [(f"{heading}, {part}", *(row[column] for row in (history[0], history[-1], kept))) for heading, part, column in _LINES]


# ---------------------------------------------------------------- the linear probe


@dataclass(frozen=True)
class Probe:
    """Logistic regressions on frozen features of both encoders, before and after a pre-training, scored on validation.

    Attributes:
        before_name: what the encoders were before.
        before, after, difference: by `SHOWN`; the difference is paired.
    """

    before_name: str
    before: dict[str, Interval]
    after: dict[str, Interval]
    difference: dict[str, Interval]
    n_train: int
    n_val: int

    def as_dict(self) -> dict[str, Any]:
        parts = {"before": self.before, "after": self.after, "difference": self.difference}
        scores = {part: {name: value.as_dict() for name, value in own.items()} for part, own in parts.items()}
        return {"before is": self.before_name, "train images": self.n_train, "val images": self.n_val, **scores}


def linear_probe(run: Run, catalog: Catalog, split: Split, fold: int | None = None, *, device: str = "auto") -> Probe | None:
    """What the features of a pre-training tell of the classes, beside those it began with; None where all labels are one class.

    Learned from the labelled training part, scored on the validation part: both features of an image, of
    white light and of pseudo-NBI, one after the other and each dimension standardised, then a
    multinomial logistic regression with one fixed strength of regularisation (ours).
    """
    train, val = (catalog.subset(split.images(part, fold)) for part in ("train", "val"))
    if len(np.unique(train.targets)) < 2 or not len(val):
        return None
    before_name, features = probe_features(run, (train, val), device=device)
    predicted = [probe_answers(seen, train.targets, asked) for seen, asked in features]
    scores = [ClassificationScores(val.targets, own, val.taxonomy.names, val.groups) for own in predicted]
    before, after = (own.sample.intervals() for own in scores)
    difference = pooled([scores[1].sample], [scores[0].sample])
    of = [{shown: found[shown] for shown in SHOWN} for found in (before, after, difference)]
    return Probe(before_name, *of, len(train), len(val))


def probe_features(run: Run, parts: Sequence[Catalog], *, device: str = "auto") -> tuple[str, list[list[np.ndarray]]]:
    """What the encoders were before a pre-training, and (N, 2D) features of each part before it and after it."""
    import tomllib

    from entrep_cli.recipes.recipe import build_recipe
    from entrep_cli.workspace import CONFIG

    recipe = build_recipe(MicsPretrainingRecipe, tomllib.loads(run.path(CONFIG).read_text("utf-8")))
    place = choose_device(device)[0]
    pretrained = recipe.backbone.model_copy(update={"weights": str(run.folder)})
    both = (initial_encoders(recipe), start_encoders(pretrained, recipe.image.size)[:2])
    name = "random encoders" if recipe.backbone.weights == "none" else "before pre-training"
    return name, [[_features(encoders, part, recipe, place) for part in parts] for encoders in both]


def probe_answers(seen: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(M,) classes of (M, D) features, by the probe's regression on (N, D) others and their (N,) classes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(seen)
    return LogisticRegression(C=_C, max_iter=2000).fit(scaler.transform(seen), targets).predict(scaler.transform(asked))


@torch.inference_mode()
def _features(encoders: tuple[Backbone, Backbone], part: Catalog, recipe: MicsPretrainingRecipe, device: torch.device) -> np.ndarray:
    """(N, 2D) float64, as an answer is given: white light, and pseudo-NBI for all."""
    white, narrow = (encoder.to(device).eval() for encoder in encoders)
    preprocess = Preprocess(**recipe.image.model_dump(), **white.statistics)
    pixels = load_pixels(part.paths, part.digests, preprocess, "images")
    found = []
    with console.progress("Features for the probe", len(part)) as advance:
        for batch in batched(pixels, recipe.pretraining.train.batch_size):
            seen = batch.to(device)
            found.append(torch.cat([white(seen), narrow(pseudo_nbi(seen))], dim=1).cpu().double())
            advance(len(batch))
    return torch.cat(found).numpy()


# ---------------------------------------------------------------- the ablation


def rows(recipe: MicsRecipe) -> list[Row]:
    """At 5, 10 and 100% of the labels: not pre-trained, pre-trained with each loss alone and with all, then without fusion, without shift.

    All rows of a loss begin from one pre-training, made with the recipe's seed: seeds of a row draw other
    labels, other new weights and another order, and not another pre-training (ours, for its cost).
    """
    own = recipe.pretraining.weights
    scratch = "from scratch" if recipe.backbone.weights == "none" else "without pre-training"
    alone = {loss: LossWeights(**{name: getattr(own, name) or 1.0 if name == loss else 0.0 for name in LOSSES}) for loss in LOSSES}
    found = []
    for fraction in FRACTIONS:
        percent, few = f"{fraction:.0%}", {"label_fraction": fraction}
        key = percent.removesuffix("%")
        found.append(Row(f"scratch-{key}", f"{percent}: {scratch}", [few]))
        for loss, weights in alone.items():
            settings = [few, {"pretraining": {"weights": weights.model_dump()}}]
            found.append(Row(f"{loss}-{key}", f"{percent}: {loss} alone", settings, f"scratch-{key}", _before(loss)))
        found.append(Row(f"all-{key}", f"{percent}: all three losses", [few], f"scratch-{key}", _before("all")))
        for part, table in (("fusion", {"fuse": False}), ("shift", {"shift": {"scale": 0.0}})):
            found.append(Row(f"no-{part}-{key}", f"{percent}: all three, no {part}", [few, table], f"all-{key}", _before("all")))
    return found


def _before(key: str) -> Before:
    return Before(f"pretrain-{key}", MicsRecipe.for_pretraining, _pretrain)


def _pretrain(
    catalog: Catalog, split: Split, recipe: MicsPretrainingRecipe, run: Run, *, device: str, precision: str, fold: int | None
) -> None:
    images, about = gather(catalog, split, fold)
    pictures = RunPictures(run, recipe)
    pretrain_run(images, about, recipe, run, device=device, precision=precision, resume=True, pictures=pictures)
