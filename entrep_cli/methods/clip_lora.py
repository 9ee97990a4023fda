"""`clip-lora`: one CLIP model for the three tracks (Multi-Level CLS Token Fusion, arXiv 2509.00752).

The image embedding is fused from several levels of the image tower and interpolated on the sphere with
the last one; a linear head classifies it, and a contrastive loss pulls it to the prompts of its class
and to the texts of its own findings. Of the paper only the abstract is public: what it names is here,
how it is done is ours (methods.md, A). With pretrained weights only low-rank adapters, fusion and head
are learned (`tune = "lora"`); `full` learns everything, and is the only way from random weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn
from torch.nn import functional as F

from entrep_cli import processes
from entrep_cli.data.augment import AugmentSettings, MixSettings, batch_views
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.texts import clean_text
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.methods.base import FitContext, Fitted, Inference, Method, Subject, load_tensors, save_tensors
from entrep_cli.methods.clip_texts import TextSettings, TrainingTexts, class_prompts, text_features
from entrep_cli.methods.clip_towers import ARCHITECTURE, Towers, check_texts
from entrep_cli.models.clip import Architecture, ClipSettings, encode_texts, load_clip_weights, read_architecture
from entrep_cli.models.device import autocast
from entrep_cli.models.fusion import FusionSettings, LevelFusion, StageProjections, level_embeddings, mix_same_class
from entrep_cli.models.inputs import ImageSettings
from entrep_cli.models.lora import LoraSettings, add_lora, merged
from entrep_cli.models.towers import set_checkpointing
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.training.gathering import gathered
from entrep_cli.training.loop import LoopResult, LoopSettings, epoch_generator, fit
from entrep_cli.training.losses import MetricSettings, clamped_scale, metric_loss, multi_positive_contrast
from entrep_cli.training.objective import LossSettings, Objective
from entrep_cli.training.sampling import batches, class_batches
from entrep_cli.training.validation import MONITOR, batched, classification_scores
from entrep_cli.workspace import Run


class ClipLoraRecipe(Recipe):
    """The settings of `clip-lora`.

    Attributes:
        tune: what is trained: `lora` adapters, fusion and head; `full` all weights; `head` fusion and head only.
        freeze_norm: leave the statistics of batch normalisation at their pretrained values.
        mix: in training, interpolate on the sphere between embeddings of two images of a class (representation diversity).
        checkpointing: recompute the activations of the towers' blocks in the backward pass: less memory, a third more
            time, the same gradients. Not with `head`, which trains no block.
        batch_size: images per batch outside of training (validation and inference).
        images_per_class: images of each class in a training batch, unless `train.balance` is `none`; the number of classes
            in a batch follows from `train.batch_size`.
    """

    method: Literal["clip-lora"] = "clip-lora"
    tune: Literal["lora", "full", "head"] = "lora"
    freeze_norm: bool = True
    mix: bool = False
    checkpointing: bool = False
    batch_size: Annotated[int, Field(ge=1)] = 32
    image: ImageSettings = ImageSettings()
    backbone: ClipSettings = ClipSettings()
    lora: LoraSettings = LoraSettings()
    fusion: FusionSettings = FusionSettings()
    texts: TextSettings = TextSettings()
    augment: AugmentSettings = AugmentSettings()
    mixing: MixSettings = MixSettings()
    loss: LossSettings = LossSettings()
    metric: MetricSettings = MetricSettings()
    train: LoopSettings = LoopSettings(epochs=30, patience=8, batch_size=32, learning_rate=1e-3, backbone_learning_rate=2e-4, warmup=0.1)
    images_per_class: int = 4  # after `train`, with which it is checked

    @field_validator("train")
    @classmethod
    def _balanced_by_batch(cls, train: LoopSettings) -> LoopSettings:
        if train.balance == "weights":
            raise ValueError("train.balance is oversample, as many images of every class of a batch, or none, images as they come")
        return train

    @field_validator("images_per_class")
    @classmethod
    def _fits_a_batch(cls, n: int, others: ValidationInfo) -> int:
        if n < 2:
            raise ValueError("positives need 2 images of a class, or more")
        if "train" in others.data and others.data["train"].batch_size < n:
            size = others.data["train"].batch_size
            raise ValueError(f"a batch of {size} does not hold {n} images of a class; set train.batch_size={n} or more, or this to fewer")
        return n


class ClipLora(Towers, Method):
    """Two towers, the fusion of levels and a linear head; the trained model of the method."""

    Recipe = ClipLoraRecipe
    scales_out = True
    low_precision = ("backbone.visual", "stages")

    def __init__(self, architecture: Architecture, recipe: ClipLoraRecipe, taxonomy: Taxonomy) -> None:
        super().__init__(architecture, recipe.backbone, recipe.image)
        self.recipe = recipe
        self.taxonomy = taxonomy
        dim = architecture.config["embed_dim"]
        self.stages = StageProjections(self.backbone.visual, recipe.fusion.levels, dim)
        self.fusion = LevelFusion(dim, recipe.fusion)
        self.head = nn.Linear(dim, len(taxonomy))
        self.pretrained_text = False  # whether pretrained weights filled the text tower
        self.from_base: set[str] = set()  # what a run need not save, as the base weights have it

    @property
    def reads_text(self) -> bool:
        """Whether the text tower has learned from anything: in the pretrained weights, or from the contrast."""
        return self.recipe.texts.contrast > 0 or self.pretrained_text

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) uint8 pixels to (N, D) float32 unit embeddings; under autocast the tower alone is in a lower precision."""
        levels = level_embeddings(self.backbone.visual, self.normalise(pixels), self.recipe.fusion.levels, self.stages)
        return self.fusion(levels.float())

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N, C) class logits; unit rows are stretched to the length sqrt(D) that a linear layer expects."""
        return self.head(embeddings * embeddings.shape[1] ** 0.5)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """(M, context) token ids to (M, D) unit rows."""
        return F.normalize(encode_texts(self.backbone, tokens).float(), dim=1)

    @property
    def no_vietnamese(self) -> str:
        if self.pretrained_text and (reason := super().no_vietnamese):
            return reason
        languages = self.recipe.texts.languages
        return "" if "vi" in languages else f"the run has learned from texts in {', '.join(languages)} alone"

    def train(self, mode: bool = True) -> ClipLora:
        super().train(mode)
        if self.recipe.freeze_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> Inference:
        embeddings = self(pixels)
        return Inference(embeddings, self.logits(embeddings).softmax(dim=1))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, D) unit rows. Texts that are cut, or not of the tower's language, are counted aloud; empty ones are a DataError."""
        self._check_reads_texts()
        check_texts(texts)
        self.warn_of_texts(texts, "ask in English")
        return self._encode_all(texts)

    @torch.inference_mode()
    def classify_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, C) probabilities: the softmax over classes of logit scale times the cosine of text and class.

        A class is the mean on the sphere of its prompts in the recipe's languages, as in training (ours). Texts are
        cut as by `embed_texts`, which tells it. DataError: a text is empty, or a class has no prompt; each is named.
        """
        self._check_reads_texts()
        prompts = class_prompts(self.taxonomy, self.recipe.texts.languages)
        faults = [f"text {i} is empty" for i, text in enumerate(texts, 1) if not clean_text(text)] or ["no text is given"] * (not texts)
        faults += [f"class {c.name} has no prompt" for c, own in zip(self.taxonomy.classes, prompts) if not own]
        if faults:
            hint = "a text needs a word; write prompts of a class into taxonomy.toml"
            raise DataError("The classes of the texts are not known.", faults=faults, hint=hint)

        of_class = self._encode_all([p for own in prompts for p in own]).split([len(own) for own in prompts])
        classes = F.normalize(torch.stack([own.mean(dim=0) for own in of_class]), dim=1)
        return (clamped_scale(self.backbone.logit_scale) * (self._encode_all(texts) @ classes.T)).softmax(dim=1)

    def _encode_all(self, texts: Sequence[str]) -> torch.Tensor:
        size = self.batch_size
        return torch.cat([self.encode(self.tokens(texts[start : start + size])) for start in range(0, len(texts), size)])

    def _check_reads_texts(self) -> None:
        if not self.reads_text:
            raise UsageError(
                "The text tower of this run was never trained: it started from random weights, and texts.contrast = 0 left it as it was.",
                hint="train with --set texts.contrast=0.5, or start from the weights of a whole CLIP",
            )

    def subjects(self, pixels: torch.Tensor, classes: Sequence[int]) -> list[Subject]:
        return [self.subject(self.logits, classes)]

    def text_subject(self, vector: torch.Tensor, n: int) -> Subject:
        return self.subject(lambda embeddings: embeddings @ vector.T, [0] * n)

    def text_graph(self, texts: Sequence[str]) -> tuple[nn.Module, torch.Tensor]:
        return _TextGraph(self.backbone), self.tokens(texts)

    def save(self, run: Run) -> None:
        self.save_architecture(run)
        save_tensors(run, {name: value for name, value in self.state_dict().items() if name not in self.from_base})

    @classmethod
    def load(cls, run: Run, recipe: ClipLoraRecipe, taxonomy: Taxonomy, device: torch.device) -> ClipLora:
        model = cls(read_architecture(str(run.path(ARCHITECTURE))), recipe, taxonomy)
        if recipe.tune != "full":
            origin, filled = load_clip_weights(model.backbone, recipe.backbone)
            trained_on = run.manifest["weights"]
            if origin.get("sha256") != trained_on.get("sha256"):
                raise RunError(
                    "The base weights are not those the run was trained on.",
                    where=recipe.backbone.weights,
                    hint=f"bring back {trained_on.get('weights')}",
                )
            _choose_what_learns(model, filled)
        differing = model.load_state_dict(load_tensors(run), strict=False)
        lost = [name for name in differing.missing_keys if name not in model.from_base]
        if lost or differing.unexpected_keys:
            raise RuntimeError(f"its tensors are not those of the recipe: {', '.join([*lost, *differing.unexpected_keys][:4])}")
        model.pretrained_text = "text" in run.manifest["weights"].get("towers", ())
        if recipe.tune == "lora":
            merged(model.backbone)
        return model.requires_grad_(False).to(device).eval()

    @classmethod
    def fit(cls, context: FitContext) -> Fitted:
        recipe, train = context.recipe, context.train
        if recipe.backbone.weights == "none" and recipe.tune != "full":
            raise UsageError(
                f"tune = {recipe.tune!r} learns a few weights beside pretrained ones, and none are given.",
                hint="--weights FILE or hub, or --tune full to learn everything from random weights",
            )
        torch.manual_seed(recipe.seed)
        model = cls(read_architecture(recipe.backbone.name), recipe, train.taxonomy)
        origin, filled = load_clip_weights(model.backbone, recipe.backbone)
        _choose_what_learns(model, filled)
        if recipe.checkpointing:
            set_checkpointing(model.backbone, recipe.tune)
        model.pretrained_text = "text" in origin.get("towers", ())
        model.to(context.device)
        learned = _train(model, TrainingTexts(model, recipe.texts, train), filled, context)
        return Fitted(model.eval(), learned.scores, learned.epoch, origin, learned.parameters, learned.seconds)


# ---------------------------------------------------------------- training


def _choose_what_learns(model: ClipLora, filled: str | None) -> None:
    """Freeze what `tune` says, of the parameters that the base weights filled (`load_clip_weights`).

    What no weights file filled, such as a text tower that starts fresh, is learned whatever is tuned; without
    the contrast the text tower stays as it is.
    """
    recipe = model.recipe
    if recipe.tune == "lora":
        towers = recipe.lora.towers if filled == "" else tuple(t for t in recipe.lora.towers if t == "image")
        if not towers:
            hint = "--set 'lora.towers=[\"image\"]', or --tune full"
            raise UsageError("lora.towers names no tower that has pretrained weights.", hint=hint)
        add_lora(model.backbone, recipe.lora.model_copy(update={"towers": towers}))
    for name, parameter in model.backbone.named_parameters():
        from_base = filled is not None and name.startswith(filled) and "lora_" not in name
        unused = not recipe.texts.contrast and not name.startswith("visual.")  # without the contrast no text is ever read
        parameter.requires_grad_((recipe.tune == "full" or not from_base) and not unused)
        if from_base and recipe.tune != "full":
            model.from_base.add(f"backbone.{name}")
    # The temperature is learned with the contrast, and only then.
    model.backbone.logit_scale.requires_grad_(recipe.texts.contrast > 0)
    model.from_base.discard("backbone.logit_scale")


def _train(model: ClipLora, texts: TrainingTexts, filled: str | None, context: FitContext) -> LoopResult:
    recipe, settings = model.recipe, model.recipe.train
    train, val, device, precision = context.train, context.val, context.device, context.precision
    with processes.main_first():
        pixels = load_pixels(train.paths, train.digests, model.preprocess, "training images")
        val_pixels = load_pixels(val.paths, val.digests, model.preprocess, "validation images")
    targets, val_targets = torch.from_numpy(train.targets), torch.from_numpy(val.targets)
    features_of = text_features(model, texts, recipe.batch_size)
    objective = Objective(model.taxonomy, recipe.loss, settings.label_smoothing).to(device)

    def losses(epoch: int) -> Iterator[torch.Tensor]:
        generator = epoch_generator(recipe.seed, epoch)
        for pick in _batches(targets, recipe, generator):
            seen = torch.from_numpy(pixels[pick.numpy()])
            own = processes.portion(len(pick))
            seen, wanted, flipped = batch_views(seen, targets[pick], model.taxonomy, recipe.augment, recipe.mixing, generator, own)
            with autocast(device, precision):
                embeddings = model(seen.to(device))
            embeddings = gathered(embeddings, len(pick))
            if recipe.mix:
                embeddings = mix_same_class(embeddings, wanted.to(device), generator)
            loss = objective(model.logits(embeddings), wanted.to(device))
            if recipe.metric.kind != "none":
                loss = loss + metric_loss(embeddings, wanted.to(device), model.head.weight, recipe.metric)
            if recipe.texts.contrast:
                drawn, positives = texts.batch(pick, wanted, flipped, generator)
                with autocast(device, precision):
                    features = features_of(drawn)
                scale = clamped_scale(model.backbone.logit_scale)
                loss = loss + recipe.texts.contrast * multi_positive_contrast(embeddings, features, positives.to(device), scale)
            yield loss

    @torch.no_grad()
    def validate(model: nn.Module) -> dict[str, float]:
        logits = []
        for batch in batched(val_pixels, recipe.batch_size):
            with autocast(device, precision):
                embeddings = model(batch.to(device))
            logits.append(model.logits(embeddings).cpu())
        return classification_scores(torch.cat(logits), val_targets)

    steps = len(_batches(targets, recipe, torch.Generator().manual_seed(0)))
    slow = {
        name
        for name, _ in model.named_parameters()
        if "lora_" in name or filled is not None and name.startswith(f"backbone.{filled}") and not name.endswith("logit_scale")
    }
    how = {"monitor": MONITOR, "seed": recipe.seed, "resume": context.resume, "pretrained": slow, "precision": precision}
    return fit(model, losses, steps, validate, settings, context.run, **how)


def _batches(targets: torch.Tensor, recipe: ClipLoraRecipe, generator: torch.Generator) -> list[torch.Tensor]:
    """An epoch's batches: as many images of each of several classes, or all images once."""
    if recipe.train.balance == "none":
        return batches(torch.randperm(len(targets), generator=generator), recipe.train.batch_size)
    return class_batches(targets, max(1, recipe.train.batch_size // recipe.images_per_class), recipe.images_per_class, generator)


class _TextGraph(nn.Module):
    """(M, L) int64 token ids to (M, D) unit rows; texts are not cut to their length, for a graph has no such step."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.backbone.encode_text(tokens).float(), dim=1)
