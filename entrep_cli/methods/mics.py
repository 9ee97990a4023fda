"""`mics`: two modalities fused, a classifier that also learns from shifted features, few labels (MICS, arXiv 2509.17492).

Both encoders start from a run of `entrep pretrain mics` (`--weights RUN`), or from other weights, or from
none, which is said aloud. `label_fraction` keeps the labels of a few training images; the others are
unlabelled, and what they give is the shift dictionary, made of the features of all training images. (Semi-
supervised therefore means: pre-training and dictionary see all, the loss the labelled ones. What the paper
does with unlabelled images beyond that is not told.) The validation part keeps its labels: it chooses the epoch.

The second modality is real NBI where a training image has it, else pseudo-NBI. **An image to be answered
comes as white light alone, and the model makes its pseudo-NBI itself.** Validation is scored just so.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from entrep_cli import console
from entrep_cli.data.augment import AugmentSettings
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.modalities import NarrowBand, pseudo_nbi
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import RunError
from entrep_cli.methods.base import FitContext, Fitted, Inference, Method, Subject, load_tensors, save_tensors
from entrep_cli.methods.mics_pretraining import IMAGES, MicsPretrainingRecipe, PretrainingSection, Second, augment_alike, second_modality
from entrep_cli.methods.runs import warn_of_leaks
from entrep_cli.models.backbones import Backbone, BackboneSettings, read_weights
from entrep_cli.models.device import autocast
from entrep_cli.models.inputs import ImageSettings
from entrep_cli.models.mics_encoders import MODALITIES, create_encoders, encoder_state, load_encoders, patch_tokens
from entrep_cli.models.mics_fusion import FusionEncoderSettings, MicsClassifier
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.training.loop import LoopResult, LoopSettings, epoch_generator, fit
from entrep_cli.training.sampling import balanced_order, batches, class_weights
from entrep_cli.training.shift import ShiftDictionary, ShiftSettings
from entrep_cli.training.validation import MONITOR, batched, classification_scores
from entrep_cli.workspace import MODEL, Run, find_run, write_json_atomic

LABELS = "labels.json"  # which training images kept their label
DICTIONARY = "dictionary.json"  # what the shift dictionary is made of
_IN_MEMORY = 4 << 30  # bytes of tokens that are kept; more are worked out anew in every epoch


class MicsRecipe(Recipe):
    """The settings of `mics`, of both of its trainings.

    Attributes:
        tune: `full` trains encoders, fusion and head; `head` freezes the encoders.
        fuse: whether the fusion encoder is used; without it z_f is the mean of the two encoders' features.
        narrow: second modality in training: `real` NBI images where available and pseudo-NBI elsewhere, or always `pseudo`.
        label_fraction: fraction of the training images of each class whose labels are used; the others are unlabelled.
        epoch_images: least number of labelled images in an epoch: all of them are repeated until it is reached (ours), since
            with 5% of the labels an epoch would be only a step or two. 0: no repetition.
        views: with `head`, augmented views of each labelled image whose tokens are cached.
        batch_size: images per batch outside of training (validation and inference).
        pretraining: of `entrep pretrain mics` and of the ablation; in the config.toml of a training it is the recipe's.
            `run.json` names the encoders' origin under `weights`.
    """

    method: Literal["mics"] = "mics"
    tune: Literal["full", "head"] = "full"
    fuse: bool = True
    narrow: Second = "real"
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    epoch_images: Annotated[int, Field(ge=0)] = 640
    views: Annotated[int, Field(ge=0)] = 4
    batch_size: Annotated[int, Field(ge=1)] = 32
    image: ImageSettings = ImageSettings(size=384)
    backbone: BackboneSettings = BackboneSettings(name="vit_base_patch16_384", weights="none")
    augment: AugmentSettings = AugmentSettings()
    fusion: FusionEncoderSettings = FusionEncoderSettings()
    shift: ShiftSettings = ShiftSettings()
    train: LoopSettings = LoopSettings(
        epochs=30,
        patience=10,
        batch_size=16,
        accumulate=2,
        learning_rate=1e-4,
        backbone_learning_rate=5e-5,
        weight_decay=0.02,
        balance="none",
    )
    pretraining: PretrainingSection = PretrainingSection()

    def for_pretraining(self) -> MicsPretrainingRecipe:
        """What `entrep pretrain mics` is made with."""
        return MicsPretrainingRecipe(**{name: getattr(self, name) for name in MicsPretrainingRecipe.model_fields if name != "method"})


class Mics(Method):
    """Encoders, fusion encoder and head; the trained model of the method. Pixels are white light, uint8."""

    Recipe = MicsRecipe

    def __init__(self, classifier: MicsClassifier, recipe: MicsRecipe, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.recipe = recipe
        self.taxonomy = taxonomy
        self.preprocess = Preprocess(**recipe.image.model_dump(), **classifier.white.statistics)
        self.classifier = classifier

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> Inference:
        """(N, D) unit z_f and (N, C) probabilities; the second modality is the pseudo-NBI of the pixels, without a shift."""
        fused, logits = self.classifier(pixels, pseudo_nbi(pixels))
        return Inference(F.normalize(fused.float(), dim=1), logits.float().softmax(dim=1))

    def subjects(self, pixels: torch.Tensor, classes: Sequence[int]) -> list[Subject]:
        """The encoder of white light, for that is the picture one sees; the other one's tokens are as they are."""
        classifier = self.classifier

        def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            white = patch_tokens(classifier.white, pixels)
            with torch.no_grad():
                return white, patch_tokens(classifier.narrow, pseudo_nbi(pixels))

        def answer(tokens: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return classifier.classify_tokens(*tokens)[1]

        return [Subject(classifier.white.model, encode, answer, classes, component="white-light encoder")]

    def save(self, run: Run) -> None:
        # Under the encoders' own names, so that other trainings can read them (`backbones`, `load_encoders`).
        save_tensors(run, self.classifier.state_dict())

    @classmethod
    def load(cls, run: Run, recipe: MicsRecipe, taxonomy: Taxonomy, device: torch.device) -> Mics:
        bare = recipe.backbone.model_copy(update={"weights": "none"})
        white, narrow, _ = create_encoders(bare, recipe.image.size)
        model = cls(_classifier(white, narrow, recipe, len(taxonomy)), recipe, taxonomy)
        model.classifier.load_state_dict(load_tensors(run))
        return model.to(device).eval()

    @classmethod
    def fit(cls, context: FitContext) -> Fitted:
        """Train on the labelled share of `train`, with the features of all of it as dictionary; choose on `val`.

        Raises:
            UsageError: no ViT of timm, or a fusion encoder that does not fit its width.
            WeightsError, RunError: weights that are not there, or of another ViT.
        """
        recipe, train, val, run, device = context.recipe, context.train, context.val, context.run, context.device
        labelled = labelled_rows(train.targets, train.groups, recipe.label_fraction, recipe.seed)
        _tell_labels(run, train, labelled, recipe)
        torch.manual_seed(recipe.seed)
        white, narrow, origin = start_encoders(recipe.backbone, recipe.image.size, say=True)
        _warn_of_leaks(origin, recipe, run, val)
        model = cls(_classifier(white, narrow, recipe, len(train.taxonomy)), recipe, train.taxonomy).to(device)
        if recipe.backbone.weights == "none" and recipe.tune == "head":
            console.warn("The frozen encoders have random weights; their features mean little. --tune full trains them.")
        pixels = load_pixels(train.paths, train.digests, model.preprocess, "training images")
        images = _Images(pixels, second_modality(train, model.preprocess, recipe.narrow))
        if images.second.real.any():
            console.warn("An image to be answered has no real NBI: from this run it gets pseudo-NBI. narrow=pseudo trains so too.")
        dictionaries = _dictionaries(model, images, train, val, run, device) if recipe.shift.scale else None
        learned = _train(model, images, torch.from_numpy(labelled), dictionaries, context)
        return Fitted(model.eval(), learned.scores, learned.epoch, origin, learned.parameters, learned.seconds)


def start_encoders(settings: BackboneSettings, size: int, *, say: bool = False) -> tuple[Backbone, Backbone, dict[str, Any]]:
    """Both encoders as a training begins with them, and where their weights come from.

    Of a run of mics, or of its pre-training, each takes its own; of all else both take the same.

    Raises:
        as `create_encoders`.
    """
    white, narrow, origin = create_encoders(settings, size)
    run = find_run(settings.weights) if "run" in origin else None
    state = read_weights(run.path(MODEL)) if run else {}
    if run and encoder_state(state, "narrow"):
        load_encoders(white, narrow, state, run.path(MODEL))
        origin |= {"encoders": list(MODALITIES)}
    if say:
        if settings.weights == "none":
            console.warn("From scratch: both encoders have random weights. --weights RUN takes those of `entrep pretrain mics`.")
        else:
            console.say(f"Encoders: {origin['weights']}" + ("." if "encoders" in origin else ", the same weights for both modalities."))
    return white, narrow, origin


def labelled_rows(targets: np.ndarray, groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which images keep their label: rising indices into (N,) targets and groups.

    Of every class `fraction` of its images, rounded, and one at least. Groups are drawn whole, in an order
    that the seed tells, and of a class all but the last one are kept whole; so a larger fraction holds
    all images of a smaller one (ours).
    """
    rng = np.random.default_rng(seed)
    keys, group_of = np.unique(groups.astype(str), return_inverse=True)
    rank = rng.permutation(len(keys))[group_of]
    within = rng.permutation(len(targets))
    chosen = []
    for label in np.unique(targets):
        own = np.flatnonzero(targets == label)
        wanted = max(1, int(np.floor(fraction * len(own) + 0.5)))
        chosen.append(own[np.lexsort((within[own], rank[own]))][:wanted])
    return np.sort(np.concatenate(chosen))


# ---------------------------------------------------------------- training


class _Images(NamedTuple):
    """The training images in both modalities, by their place in the training part."""

    pixels: np.ndarray
    second: NarrowBand

    def views(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 3, H, W) uint8 each."""
        white = torch.from_numpy(self.pixels[rows.numpy()])
        return white, self.second.batch(rows, white)


def _classifier(white: Backbone, narrow: Backbone, recipe: MicsRecipe, n_classes: int) -> MicsClassifier:
    return MicsClassifier(white, narrow, n_classes, recipe.fusion if recipe.fuse else None, frozen=recipe.tune == "head")


def _dictionaries(
    model: Mics, images: _Images, train: Catalog, val: Catalog, run: Run, device: torch.device
) -> tuple[ShiftDictionary, ShiftDictionary]:
    """One of each modality, of the features of all training images as the encoders begin; recorded in the run.

    Raises:
        RunError: a validation image is among the training images.
    """
    recipe = model.recipe
    features: tuple[list[torch.Tensor], ...] = ([], [])
    model.eval()
    with torch.no_grad(), console.progress("Features for the shifts", len(train)) as advance:
        for rows in torch.arange(len(train)).split(recipe.batch_size):
            tokens = model.classifier.tokens(*(view.to(device) for view in images.views(rows)))
            for own, of_modality in zip(features, tokens):
                own.append(of_modality.mean(dim=1).float().cpu())
            advance(len(rows))
    white, narrow = (ShiftDictionary(torch.cat(own), train.digests, recipe.shift, recipe.seed) for own in features)
    if known := white.holds(val.digests) | narrow.holds(val.digests):
        raise RunError(f"{len(known)} validation images are in the shift dictionary.", hint="split again: `entrep split`")
    told = {"white": {"sizes": white.sizes}, "narrow": {"sizes": narrow.sizes, "real NBI": int(images.second.real.sum())}}
    write_json_atomic(run.path(DICTIONARY), {**told, "images": sorted(white.digests)})
    return white, narrow


def _train(
    model: Mics,
    images: _Images,
    labelled: torch.Tensor,
    dictionaries: tuple[ShiftDictionary, ShiftDictionary] | None,
    context: FitContext,
) -> LoopResult:
    """Fit on the images at (n,) `labelled`; the loss is the mean of the cross-entropies of z_f, z_f + s_w and z_f + s_n (mean: ours)."""
    recipe, settings = model.recipe, model.recipe.train
    train, val, device, precision = context.train, context.val, context.device, context.precision
    classifier, taxonomy = model.classifier, model.taxonomy
    targets, val_targets = torch.from_numpy(train.targets)[labelled], torch.from_numpy(val.targets)
    val_pixels = load_pixels(val.paths, val.digests, model.preprocess, "validation images")
    weight = class_weights(targets, len(taxonomy)).to(device) if settings.balance == "weights" else None
    criterion = nn.CrossEntropyLoss(weight, label_smoothing=settings.label_smoothing)
    rounds = max(1, -(-recipe.epoch_images // len(labelled)))
    cached = _cache_tokens(model, images, labelled, targets, val_pixels, device) if recipe.tune == "head" else None

    def order(generator: torch.Generator) -> torch.Tensor:
        if settings.balance == "oversample":
            return torch.cat([balanced_order(targets, generator) for _ in range(rounds)])
        return torch.cat([torch.randperm(len(targets), generator=generator) for _ in range(rounds)])

    def loss(found: Callable, pick: torch.Tensor, wanted: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        # The cluster of an image is that of the image itself, whichever view of it is shown (ours).
        shifts = dictionaries and tuple(d.draw(d.clusters[labelled[pick]], generator).to(device) for d in dictionaries)
        with autocast(device, precision):
            logits = found(shifts)
        logits = logits.float().flatten(0, -2)  # (3n, C), or (n, C) without shifts
        return criterion(logits, wanted.to(device).repeat(len(logits) // len(wanted)))

    def from_pixels(epoch: int) -> Iterator[torch.Tensor]:
        generator = epoch_generator(recipe.seed, epoch)
        for pick in batches(order(generator), settings.batch_size):
            views = images.views(labelled[pick])
            *views, wanted = augment_alike(*views, targets[pick], taxonomy, recipe.augment, generator)
            yield loss(lambda shifts: classifier(*(view.to(device) for view in views), shifts)[1], pick, wanted, generator)

    def from_tokens(epoch: int) -> Iterator[torch.Tensor]:
        generator = epoch_generator(recipe.seed, epoch)
        for pick in batches(order(generator), settings.batch_size):
            view = torch.randint(len(cached.targets), (len(pick),), generator=generator)
            tokens = [of_modality[view, pick].to(device) for of_modality in cached.tokens]
            yield loss(lambda shifts: classifier.classify_tokens(*tokens, shifts)[1], pick, cached.targets[view, pick], generator)

    @torch.no_grad()
    def validate(_: nn.Module) -> dict[str, float]:
        with autocast(device, precision):
            if cached is not None:
                pairs = zip(*(tokens.split(recipe.batch_size) for tokens in cached.val))
                logits = [classifier.classify_tokens(*(tokens.to(device) for tokens in pair))[1].float().cpu() for pair in pairs]
            else:
                pixels = (batch.to(device) for batch in batched(val_pixels, recipe.batch_size))
                logits = [classifier(batch, pseudo_nbi(batch))[1].float().cpu() for batch in pixels]
        return classification_scores(torch.cat(logits), val_targets)

    steps = len(batches(order(torch.Generator().manual_seed(0)), settings.batch_size))
    started = recipe.backbone.weights != "none"
    slow = {name for name, _ in classifier.named_parameters() if started and name.startswith(tuple(f"{m}." for m in MODALITIES))}
    how = {"monitor": MONITOR, "seed": recipe.seed, "resume": context.resume, "pretrained": slow, "precision": precision}
    return fit(classifier, from_pixels if cached is None else from_tokens, steps, validate, settings, context.run, **how)


class _Tokens(NamedTuple):
    """What frozen encoders make of the labelled images and of the validation images.

    Attributes:
        tokens: of each modality (V + 1, n, L, D), of the images themselves and of V augmented views.
        targets: (V + 1, n), flips worked in.
        val: of each modality (M, L, D).
    """

    tokens: tuple[torch.Tensor, torch.Tensor]
    targets: torch.Tensor
    val: tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def _cache_tokens(
    model: Mics, images: _Images, labelled: torch.Tensor, targets: torch.Tensor, val_pixels: np.ndarray, device: torch.device
) -> _Tokens | None:
    """None where they would take more memory than is right; every epoch then runs the encoders, on new views."""
    recipe, white = model.recipe, model.classifier.white
    n_images = (recipe.views + 1) * len(labelled) + len(val_pixels)
    size = n_images * len(MODALITIES) * int(np.prod(white.model.patch_embed.grid_size)) * white.dim * 4
    if size > _IN_MEMORY:
        console.say(f"The tokens of {recipe.views} views would take {size / 2**30:.1f} GB: the frozen encoders run in every epoch instead.")
        return None
    model.eval()

    def encode(pairs: Iterator[tuple[torch.Tensor, torch.Tensor]], n: int, what: str) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[list[torch.Tensor], ...] = ([], [])
        with console.progress(what, n) as advance:
            for pair in pairs:
                for own, tokens in zip(found, model.classifier.tokens(*(view.to(device) for view in pair))):
                    own.append(tokens.float().cpu())
                advance(len(pair[0]))
        return torch.cat(found[0]), torch.cat(found[1])

    tokens, shown = [], []
    for view in range(recipe.views + 1):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + view)
        seen: list[torch.Tensor] = []

        def views() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for pick in torch.arange(len(labelled)).split(recipe.batch_size):
                pair, wanted = images.views(labelled[pick]), targets[pick]
                if view:
                    *pair, wanted = augment_alike(*pair, wanted, model.taxonomy, recipe.augment, generator)
                seen.append(wanted)
                yield tuple(pair)

        tokens.append(encode(views(), len(labelled), f"Tokens of view {view}" if view else "Tokens"))
        shown.append(torch.cat(seen))
    val = encode(((batch, pseudo_nbi(batch)) for batch in batched(val_pixels, recipe.batch_size)), len(val_pixels), "Validation tokens")
    stacked = tuple(torch.stack([pair[m] for pair in tokens]) for m in range(len(MODALITIES)))
    return _Tokens(stacked, torch.stack(shown), val)


# ---------------------------------------------------------------- what is told


def _tell_labels(run: Run, train: Catalog, labelled: np.ndarray, recipe: MicsRecipe) -> None:
    """Say, and keep in the run, which training images kept their label."""
    kept = train.subset(train.frame["image"].iloc[labelled])
    counts = kept.counts()
    if len(labelled) < len(train):
        console.say(
            f"Labels: {len(labelled)} of {len(train)} training images ({recipe.label_fraction:.0%}): "
            + ", ".join(f"{name} {n}" for name, n in counts.items())
            + ". The others are unlabelled. Validation keeps all of its labels."
        )
    if lacking := [name for name, n in counts.items() if not n]:
        console.warn(f"{len(lacking)} classes have no training images: {', '.join(lacking)}.")
    write_json_atomic(run.path(LABELS), {"fraction": recipe.label_fraction, "of": len(train), "images": kept.images, "counts": counts})


def _warn_of_leaks(origin: dict[str, Any], recipe: MicsRecipe, run: Run, val: Catalog) -> None:
    """A run that the encoders come from must not be trained on the images that are scored now."""
    warn_of_leaks(origin, run)
    seen = find_run(recipe.backbone.weights) if "run" in origin else None
    if seen and seen.path(IMAGES).is_file():
        with open(seen.path(IMAGES), encoding="utf-8", newline="") as file:
            known = {row["digest"] for row in csv.DictReader(file)} & set(val.digests)
        if known:
            console.warn(f"{origin['weights']} was trained on {len(known)} of the {len(val)} validation images: the scores are too good.")
