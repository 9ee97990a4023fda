"""`hybrid`: prototypes first, DINOv2 where they are not sure (*Fusion at the Foregut*, 4.3.5 and 5.1.2).

Three stages answer an image. (1) The nearest class prototype, where its confidence reaches the threshold.
(2) Otherwise the coarse DINOv2 model decides the region. (3) Where the region has several classes, its
expert decides among them. Retrieval compares the prototype's visual embeddings, as the paper does (6.1).

A hybrid is a run made of runs, each trained by its own method and complete in a folder inside of it, so
that each can be used and scored alone, as `--run hybrid/baseline`:

    towers/           a clip-lora training, only where the recipe asks for one
    prototype/        the prototypes
    baseline/         DINOv2 on all classes (5.1.3): what the hybrid is compared with, and where the recipe
                      says so the backbone of those that follow
    region/           DINOv2 on the regions (4.3.4); not where there is but one
    expert-<region>/  DINOv2 on the classes of each region that has several (4.3.1)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.methods.base import Decisions, FitContext, Fitted, Inference, Method, Subject, load_tensors, save_tensors, show_stages
from entrep_cli.methods.dinov2 import Dinov2
from entrep_cli.methods.hybrid_components import (
    HybridRecipe,
    check_components,
    check_views,
    component_recipes,
    load_one,
    section_of,
    share_backbones,
    train_one,
)
from entrep_cli.methods.prototype import Prototype
from entrep_cli.models.inputs import resized
from entrep_cli.models.prototypes import fit_temperature
from entrep_cli.training.validation import batched, classification_scores
from entrep_cli.workspace import CONFIG, MODEL, Run, write_json_atomic

NONE_ACCEPTED = 1.01  # a threshold above every cosine and probability
_COMPONENTS = "components.json"  # hashes of the components: the run's own files must change when one of them does
_STAGES = "stages.json"
_LEAST = 1e-12  # a probability of 0 must not make a validation loss infinite, which JSON cannot hold
_EDGE = 1e-6  # more than two ways to round the same cosine differ


class _First(NamedTuple):
    """What stage 1 makes of images: embeddings (N, D), probabilities (N, C), and the confidence (N,) that the threshold is for."""

    embeddings: torch.Tensor
    probabilities: torch.Tensor
    confidences: torch.Tensor


class Hybrid(Method):
    """Prototypes, a coarse model and experts; the trained model of the method.

    Pixels come in the larger of the two sizes that prototypes and DINOv2 models want, and are scaled down
    for the other, bilinear with antialiasing: close to what the part was trained on, not the same. With
    equal sizes nothing is scaled.
    """

    Recipe = HybridRecipe

    def __init__(
        self,
        prototype: Prototype,
        region: Dinov2 | None,
        experts: Mapping[str, Dinov2],
        recipe: HybridRecipe,
        threshold: float = NONE_ACCEPTED,
        temperatures: Sequence[float] = (),
    ) -> None:
        """`experts` by region; `temperatures` are those of `region` and of the experts, 1 where none are given."""
        super().__init__()
        self.recipe = recipe
        self.taxonomy = prototype.taxonomy
        self.prototype = prototype
        self.region = region
        self.expert_regions = list(experts)
        self.experts = nn.ModuleList(experts.values())
        self.threshold = threshold
        self.temperatures = list(temperatures) or [1.0] * (1 + len(experts))
        self.components: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        fine = [model for model in (region, *experts.values()) if model is not None]
        share_backbones(fine)
        self.preprocess = _preprocess([prototype.preprocess, *(model.preprocess for model in fine)])
        regions = self.taxonomy.regions
        self.register_buffer("region_of", torch.tensor([regions.index(c.region) for c in self.taxonomy.classes]), persistent=False)
        self.requires_grad_(False).eval()

    # ------------------------------------------------------------ answers

    @property
    def reads_text(self) -> bool:
        return True

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> Inference:
        """(N, D) the prototype's visual embeddings, and (N, C) probabilities whose largest is the class decided on.

        By stage 1 they are the prototype's calibrated ones. By stages 2 and 3 they are P(region) P(class |
        region); where a class of another region would be the largest of these, as much of P(class | region
        decided on) is mixed in as makes the class decided on the largest (ours).
        """
        embeddings, probabilities, decisions = self._answer(pixels)
        return Inference(embeddings, probabilities, decisions.stages)

    @torch.inference_mode()
    def decide(self, pixels: torch.Tensor) -> Decisions:
        """The class of each image, and by which stage."""
        return self._answer(pixels)[2]

    def decide_images(self, paths: Sequence[Path], digests: Sequence[str]) -> Decisions:
        """The decisions on image files, batch by batch; `digests` are of their pixels. They come back on the CPU."""
        pixels, found = load_pixels(paths, digests, self.preprocess, "images to decide on"), []
        with console.progress("Deciding", len(pixels)) as advance:
            for batch in batched(pixels, self.recipe.batch_size):
                found.append(self.decide(batch.to(self.region_of.device)))
                advance(len(batch))
        return Decisions(*(torch.cat(columns).cpu() for columns in zip(*found)))

    def stage_counts(self, decisions: Decisions, targets: torch.Tensor | None = None) -> list[dict[str, Any]]:
        """What decided, one row each and one for all: images, their share, those marked as out of distribution, those right.

        Args:
            targets: (N,) class indices; without them nothing is told of right and wrong.
        """
        decided_region, regions = self.region_of.cpu()[decisions.classes], self.taxonomy.regions
        rows = {(1, "prototypes"): decisions.stages == 1, **({} if self.region is None else {(2, "region model"): decisions.stages == 2})}
        for region in self.expert_regions:
            rows[3, f"expert {region}"] = (decisions.stages == 3) & (decided_region == regions.index(region))
        rows["", "all"] = torch.ones_like(decisions.abstained)
        return [
            {"by": by, "stage": stage, "images": int(own.sum()), "share": float(own.float().mean())}
            | ({"marked": int(decisions.abstained[own].sum())} if self.recipe.abstain else {})
            | ({} if targets is None else _right(decisions, targets, own, bool(self.recipe.abstain)))
            for (stage, by), own in rows.items()
        ]

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, D) unit rows by the prototype's text tower."""
        return self.prototype.embed_texts(texts)

    def classify_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, C) probabilities by the prototypes: the other stages see images alone."""
        return self.prototype.classify_texts(texts)

    def subjects(self, pixels: torch.Tensor, classes: Sequence[int]) -> list[Subject]:
        """By image, what decided: the prototypes, the coarse model, or the expert of the region.

        Where another class than one of the region decided on is asked about, that is the coarse model's doing,
        and it is shown for the region of that class.
        """
        self.prototype.check_classes(classes)
        decisions, regions, region_of = self.decide(pixels), self.taxonomy.regions, self.region_of.tolist()
        experts = dict(zip(self.expert_regions, self.experts))
        asked: dict[str, tuple[Method, list[int], list[int]]] = {}  # component -> model, rows and columns
        for row, (label, stage, decided) in enumerate(zip(classes, decisions.stages.tolist(), decisions.classes.tolist())):
            region = regions[region_of[label]]
            if stage == 1:
                component, model, column = "prototypes", self.prototype, label
            elif region in experts and (region_of[label] == region_of[decided] or self.region is None):
                component, model = f"expert {region}", experts[region]
                column = model.taxonomy.index(self.taxonomy.names[label])
            else:
                component, model, column = "region model", self.region, self.region.taxonomy.index(region)
            _, rows, columns = asked.setdefault(component, (model, [], []))
            rows.append(row)
            columns.append(column)
        return [
            replace(_resizing(subject, model.preprocess.size), component=component, rows=rows)
            for component, (model, rows, columns) in asked.items()
            for subject in model.subjects(pixels, columns)
        ]

    def text_subject(self, vector: torch.Tensor, n: int) -> Subject:
        subject = self.prototype.text_subject(vector, n)
        return replace(_resizing(subject, self.prototype.preprocess.size), component="prototypes")

    def _answer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Decisions]:
        first = self._first(pixels)
        deferred = first.confidences < self.threshold
        later = self._refine(*self._fine(pixels[deferred])) if deferred.any() else None
        return first.embeddings, *self._join(first.probabilities, deferred, later)

    def _first(self, pixels: torch.Tensor) -> _First:
        embeddings, probabilities, _ = self.prototype.infer(resized(pixels, self.prototype.preprocess.size))
        by = self.prototype.scores(embeddings)[0] if self.recipe.confidence == "similarity" else probabilities
        return _First(embeddings, probabilities, by.amax(dim=1))

    def _fine(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of the coarse model (N, R), or of the one region there is, and of each expert; one pass of a backbone that is shared."""
        features: dict[int, torch.Tensor] = {}

        def logits(model: Dinov2) -> torch.Tensor:
            key = id(model.backbone)
            if key not in features:
                features[key] = model.backbone(resized(pixels, model.preprocess.size))
            return model.head(features[key]).float()

        coarse = pixels.new_zeros(len(pixels), 1, dtype=torch.float32) if self.region is None else logits(self.region)
        return coarse, *map(logits, self.experts)

    def _refine(self, coarse: torch.Tensor, *fine: torch.Tensor) -> tuple[torch.Tensor, Decisions]:
        """Stages 2 and 3 from their logits: (N, C) probabilities and decisions."""
        region_shares, *of_experts = ((logits / t).softmax(dim=1) for logits, t in zip((coarse, *fine), self.temperatures))
        within = torch.ones(len(coarse), len(self.taxonomy), device=coarse.device)  # P(class | its region)
        has_expert = torch.zeros(len(self.taxonomy.regions), dtype=torch.bool, device=coarse.device)
        for region, expert, shares in zip(self.expert_regions, self.experts, of_experts):
            within[:, self.taxonomy.indices(expert.taxonomy.names)] = shares
            has_expert[self.taxonomy.regions.index(region)] = True
        regions = region_shares.argmax(dim=1)
        joint = region_shares[:, self.region_of] * within
        decided = within.masked_fill(self.region_of != regions[:, None], 0.0)  # P(class | region decided on)
        classes = decided.argmax(dim=1)
        place = torch.arange(len(coarse), device=coarse.device), classes
        confidences = joint[place]
        # The smallest share w with which (1 - w) joint + w decided is largest at the class decided on.
        lead = joint.amax(dim=1) - confidences
        share = (lead / (lead + decided[place]))[:, None]
        probabilities = (1 - share) * joint + share * decided
        others = probabilities.clone()
        others[place] = 0.0
        most = others.amax(dim=1)
        own = probabilities[place]
        probabilities[place] = torch.where(own > most, own, torch.nextafter(most, torch.ones_like(most)))  # what rounding leaves equal
        return probabilities, Decisions(classes, 2 + has_expert[regions].long(), confidences, self._abstained(confidences))

    def _join(
        self, own: torch.Tensor, deferred: torch.Tensor, later: tuple[torch.Tensor, Decisions] | None
    ) -> tuple[torch.Tensor, Decisions]:
        """Stage 1's (N, C) probabilities with those of the deferred images, of which `later` tells, in their place."""
        confidences, classes = own.max(dim=1)
        probabilities = own.clone()
        decisions = Decisions(classes, torch.ones_like(classes), confidences, self._abstained(confidences))
        if later is not None:
            probabilities[deferred] = later[0]
            for column, values in zip(decisions, later[1]):
                column[deferred] = values
        return probabilities, decisions

    def _abstained(self, confidences: torch.Tensor) -> torch.Tensor:
        return confidences < self.recipe.abstain

    # ------------------------------------------------------------ on disk

    def save(self, run: Run) -> None:
        """Write threshold, temperatures, the hashes of the parts and the stage table; the parts stand there already."""
        own = {"threshold": self.threshold, "temperatures": self.temperatures}
        save_tensors(run, {name: torch.tensor(value, dtype=torch.float64) for name, value in own.items()})
        write_json_atomic(run.path(_COMPONENTS), self.components)
        write_json_atomic(run.path(_STAGES), self.summary)

    @classmethod
    def load(cls, run: Run, recipe: HybridRecipe, taxonomy: Taxonomy, device: torch.device) -> Hybrid:
        kept = load_tensors(run)
        components = json.loads(run.path(_COMPONENTS).read_text("utf-8"))
        models = {name: load_one(run, name, hashes, device) for name, hashes in components.items()}
        experts = {model.recipe.target: model for name, model in models.items() if name.startswith("expert-")}
        made = cls(models["prototype"], models.get("region"), experts, recipe, float(kept["threshold"]), kept["temperatures"].tolist())
        made.components, made.summary = components, json.loads(run.path(_STAGES).read_text("utf-8"))
        return made.to(device)

    # ------------------------------------------------------------ training

    @classmethod
    def fit(cls, context: FitContext) -> Fitted:
        """Train every part, then choose temperatures and threshold on `val`.

        With `resume`, parts that are complete are not trained again, and an incomplete one goes on.

        Raises:
            UsageError, DataError, RunError: a taxonomy or recipe that cannot be, before anything is trained;
            and whatever the training of a part raises.
        """
        started = time.monotonic()
        recipe, train, val, run, device = context.recipe, context.train, context.val, context.run, context.device
        recipes = component_recipes(recipe, train.taxonomy, run)
        check_components(recipes, train, val)
        models, manifests = {}, {}
        for name, own in recipes.items():
            section = section_of(name, recipe)
            models[name], manifests[name] = train_one(name, section, replace(context, recipe=own))
            check_views(*(model.preprocess for key, model in models.items() if key != "towers"))
        experts = {model.recipe.target: model for name, model in models.items() if name.startswith("expert-")}
        made = cls(models["prototype"], models.get("region"), experts, recipe).to(device)
        made.components = {name: {file: m["files"][file] for file in (CONFIG, MODEL)} for name, m in manifests.items()}
        scores = made._choose(val, _classify_alone(models["baseline"], val, device).argmax(dim=1))
        weights = {"name": "hybrid", "weights": "its components", "components": {name: m["weights"] for name, m in manifests.items()}}
        parameters, seconds = (sum(m[key] for m in manifests.values()) for key in ("parameters", "seconds"))
        # What was trained in an earlier sitting is counted by the parts.
        return Fitted(made, scores, 0, weights, parameters, max(seconds, time.monotonic() - started))

    @torch.inference_mode()
    def _choose(self, val: Catalog, by_baseline: torch.Tensor) -> dict[str, float]:
        """Temperatures and threshold from the validation part, in place; tells of the stages, and gives the scores."""
        targets = torch.from_numpy(val.targets)
        pixels = load_pixels(val.paths, val.digests, self.preprocess, "validation images")
        firsts, fines = [], []
        with console.progress("Validation", len(val)) as advance:
            for batch in batched(pixels, self.recipe.batch_size):
                batch = batch.to(self.region_of.device)
                firsts.append(self._first(batch))
                fines.append(self._fine(batch))
                advance(len(batch))
        first = _First(*(torch.cat(rows) for rows in zip(*firsts)))
        fine = [torch.cat(rows) for rows in zip(*fines)]
        self.temperatures = self._fit_temperatures(fine, targets)
        by_first, (shares, later) = first.probabilities.argmax(dim=1), self._refine(*fine)
        if self.recipe.threshold == "tune":
            right = [classes.cpu() == targets for classes in (by_first, later.classes)]
            self.threshold = tune_threshold(first.confidences.cpu(), *right)
        else:
            self.threshold = self.recipe.threshold
        deferred = first.confidences < self.threshold
        probabilities, decisions = self._join(
            first.probabilities, deferred, (shares[deferred], Decisions(*(column[deferred] for column in later)))
        )
        compared = {
            "prototype alone": by_first,
            "baseline alone": by_baseline,
            "region and experts alone": later.classes,
            "hybrid": decisions.classes,
        }
        self._tell(
            targets, first.confidences.cpu(), Decisions(*(column.cpu() for column in decisions)), {k: v.cpu() for k, v in compared.items()}
        )
        # In float64, for the logarithm must not make two probabilities equal.
        return classification_scores(probabilities.cpu().double().clamp_min(_LEAST).log(), targets)

    def _fit_temperatures(self, fine: Sequence[torch.Tensor], targets: torch.Tensor) -> list[float]:
        """Of the softmax of the coarse model and of each expert (Guo et al. 2017); 1 where there is nothing to fit one on."""
        region_of = self.region_of.cpu()
        found = [1.0 if self.region is None else fit_temperature(fine[0].cpu(), region_of[targets]) or 1.0]
        for expert, logits in zip(self.experts, fine[1:]):
            index = torch.full((len(self.taxonomy),), -1)
            index[self.taxonomy.indices(expert.taxonomy.names)] = torch.arange(len(expert.taxonomy))
            wanted = index[targets]
            found.append(fit_temperature(logits.cpu()[wanted >= 0], wanted[wanted >= 0]) or 1.0)
        return found

    def _tell(self, targets: torch.Tensor, confidences: torch.Tensor, decisions: Decisions, compared: dict[str, torch.Tensor]) -> None:
        """Print which stage decided how much, and how the hybrid compares with its parts; keep both for `stages.json`.

        Args:
            targets: (N,). confidences: (N,) of stage 1.
            compared: (N,) class indices by model.
        """
        from sklearn.metrics import f1_score

        n, region_of = len(targets), self.region_of.cpu()
        stages = self.stage_counts(decisions, targets)
        how = "tuned on validation" if self.recipe.threshold == "tune" else "as the recipe says"
        show_stages(f"Stages on validation: {self.recipe.confidence} of {self.threshold:.4f} or more ({how})", stages)
        models = [
            {
                "model": name,
                "accuracy": float((classes == targets).float().mean()),
                "macro_f1": float(f1_score(targets, classes, average="macro")),
                "weighted_f1": float(f1_score(targets, classes, average="weighted")),
                "region_accuracy": float((region_of[classes] == region_of[targets]).float().mean()),
            }
            for name, classes in compared.items()
        ]
        columns = ["model", "accuracy", "macro F1", "weighted F1", "region accuracy"]
        console.table(f"Hybrid and its components on validation ({n} images)", columns, [tuple(row.values()) for row in models])
        seen = {"least": float(confidences.min()), "median": float(confidences.median()), "largest": float(confidences.max())}
        if not (decisions.stages == 1).any() and self.recipe.threshold != "tune":
            why = "A query has no description, so it is far from the fused prototypes. " if self.recipe.confidence == "similarity" else ""
            console.say(
                f"No {self.recipe.confidence} of validation reaches {self.threshold:g}; the largest is {seen['largest']:.3f}. "
                f"{why}--set threshold=tune chooses another threshold."
            )
        abstained = int(decisions.abstained.sum())
        if self.recipe.abstain:
            console.say(f"Marked as out of distribution (probability below {self.recipe.abstain:g}): {abstained} of {n} validation images.")
        names = ["region", *self.expert_regions]
        self.summary = {
            "threshold": self.threshold,
            "confidence": self.recipe.confidence,
            "tuned": self.recipe.threshold == "tune",
            "confidences": seen,
            "temperatures": dict(zip([f"expert {name}" if i else name for i, name in enumerate(names)], self.temperatures)),
            "images": n,
            "stages": stages,
            "abstained": abstained,
            "models": models,
        }


def _resizing(subject: Subject, size: int) -> Subject:
    """The same tower given pixels of another size."""
    return replace(subject, encode=lambda pixels: subject.encode(resized(pixels, size)))


def _right(decisions: Decisions, targets: torch.Tensor, own: torch.Tensor, abstains: bool) -> dict[str, Any]:
    right, n = (decisions.classes == targets) & own, int(own.sum())
    found = {"right": int(right.sum()), "accuracy": float(right.sum() / n) if n else None}
    kept = own & ~decisions.abstained
    return found | ({"accuracy of the unmarked": float(right[kept].float().mean()) if kept.any() else None} if abstains else {})


def tune_threshold(confidences: torch.Tensor, first_right: torch.Tensor, later_right: torch.Tensor) -> float:
    """The threshold with which most images are answered rightly; of equals the highest, which accepts fewest (ours).

    Tried are one above every confidence, the middle between any two neighbouring ones, and one just below
    the least: all that divide the images differently.

    Args:
        confidences: (N,) of stage 1.
        first_right, later_right: (N,) bool, whether stage 1, and whether the stages after it, know the class.
    """
    values, order = confidences.double().sort(descending=True)
    gained = torch.cat([torch.zeros(1), (first_right[order].int() - later_right[order].int()).cumsum(0)])  # by accepting the first k
    middles = torch.cat([torch.tensor([NONE_ACCEPTED], dtype=torch.float64), (values[:-1] + values[1:]) / 2, values[-1:] - _EDGE])
    apart = torch.cat([torch.tensor([True]), values[:-1] - values[1:] > 2 * _EDGE, torch.tensor([True])])  # equal ones cannot be parted
    gained = gained.masked_fill(~apart, -torch.inf)
    return float(middles[(gained == gained.max()).nonzero()[0, 0]])


def _preprocess(wanted: Sequence[Preprocess]) -> Preprocess:
    """That of the largest size; the models normalise pixels themselves, so mean and deviation are told and not used."""
    check_views(*wanted)
    return max(wanted, key=lambda preprocess: preprocess.size)  # the prototype's, where sizes are equal


def _classify_alone(model: Dinov2, part: Catalog, device: torch.device) -> torch.Tensor:
    """(N, C) probabilities of a part by one model alone, with its own preprocessing."""
    pixels = load_pixels(part.paths, part.digests, model.preprocess, "validation images")
    return torch.cat([model.classify(batch.to(device)).cpu() for batch in batched(pixels, model.recipe.batch_size)])
