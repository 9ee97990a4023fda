"""Where a trained model looks, for a class or for a text: one map of heat for every image.

    explained = explain_images(load_model(run), pixels)
    explained.heat      # (N, H, W) in [0, 1], over what the model saw

A score is followed back into the image: the logit of a class, a cosine to a prototype, or the cosine of
an image and a text. A pass of its own is made, with gradients, in the model's eval mode; what the model
answers, its weights and its mode are the same afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from entrep_cli.data.modalities import pseudo_nbi
from entrep_cli.errors import UsageError
from entrep_cli.methods.clip_lora import ClipLora
from entrep_cli.methods.dinov2 import Dinov2
from entrep_cli.methods.hybrid import Hybrid
from entrep_cli.methods.mics import Mics
from entrep_cli.methods.prototype import Prototype
from entrep_cli.models.attention_maps import (
    agreement,
    grad_cam,
    gradient_rollout,
    hires_cam,
    hottest_fraction,
    layer_cam,
    record_attentions,
    record_outputs,
    rollout,
)
from entrep_cli.models.backbones import Backbone
from entrep_cli.models.inputs import resized
from entrep_cli.models.mics_encoders import patch_tokens
from entrep_cli.models.towers import Tower, tower_of

if TYPE_CHECKING:
    from entrep_cli.methods.base import Model

# What `by` can ask for, and what it is called.
WAYS = {
    "rollout": "attention rollout",
    "gradient-rollout": "gradient-weighted attention rollout",
    "layer-cam": "LayerCAM",
    "hires-cam": "HiResCAM",
    "grad-cam": "Grad-CAM",
}
_ATTENTION = ("rollout", "gradient-rollout")
_CUT = (*_ATTENTION, "layer-cam")  # to what stands out; what is shown of the others is as published
_DEVIATIONS = 2.0
_LAYERS = 4  # that LayerCAM looks at, a ResNet's four: the early ones make the map fine, the late ones sure (benchmarks/pointing_game.py)
_PLACES = 6  # a side, of the map that HiResCAM looks at: on the 3 x 3 of a small image nothing is found (benchmarks/pointing_game.py)
_ATTENTIONS_AT_ONCE = 2**26  # numbers of one pass: 256 MB, and as much again for their gradients


@dataclass(frozen=True)
class Explained:
    """Where a model looks in N images.

    Attributes:
        heat: (N, H, W) float32 in [0, 1], on the CPU. The largest of an image is 1; it is 0 everywhere where
            nothing speaks for the class. By attention and by LayerCAM, what stands out: above the
            image's mean by two standard deviations, or by half of the way to its largest.
        by: how, as in "Grad-CAM"; where parts of a hybrid are looked into in different ways, all of them.
        ways: (N,) how, of each image.
        classes: (N,) the class that was asked about, as an index; -1 for a text.
        parts: (N,) which part of the model is shown, as in "prototypes"; "" where it has one part alone.
        brightest_tenth: (N,) share of all heat, also of what does not stand out, that lies on the hottest tenth of
            the pixels (`hottest_fraction`); 0 where there is none.
    """

    heat: torch.Tensor
    by: str
    ways: tuple[str, ...]
    classes: tuple[int, ...]
    parts: tuple[str, ...]
    brightest_tenth: tuple[float, ...]


@dataclass(frozen=True)
class _Subject:
    """One image tower on the way from pixels to scores.

    Attributes:
        encode: (n, 3, H, W) pixels to what `answer` reads; runs the tower.
        answer: to (n, K) scores.
        class_token: whether what is read out of a ViT is its class token, and not the mean of its patches.
    """

    tower: Tower
    encode: Callable[[torch.Tensor], torch.Tensor]
    answer: Callable[[torch.Tensor], torch.Tensor]
    class_token: bool
    part: str = ""


@torch.inference_mode(False)  # whatever mode the caller is in: what is made in it takes no gradient
@torch.no_grad()
def explain_images(
    model: Model, pixels: torch.Tensor, *, classes: Sequence[int] | None = None, text: str | None = None, by: str = "auto"
) -> Explained:
    """Where a model looks in images.

    Args:
        pixels: (N, 3, H, W) uint8, as the model's `preprocess` makes them.
        classes: (N,) the classes to ask about, as indices into `model.taxonomy`; those predicted where none are given.
        text: ask about a text instead: the cosine of image and text.
        by: one of `WAYS`; `auto` is `gradient-rollout` for a ViT, else `layer-cam`: where the maps of the last four
            layers agree (ours). `grad-cam` looks at the last layer, as published; `hires-cam` at the last one that
            has a map of 6 x 6 places or more (ours).

    Raises:
        UsageError: a model, or a tower, that cannot be shown in this way; a text for a model that reads none, a
            class that it cannot answer. DataError: an empty text.
    """
    if by not in ("auto", *WAYS):
        raise UsageError(f"There is no way {by!r} to explain.", hint=f"choose one of: auto, {', '.join(WAYS)}")
    if text is not None and (classes is not None or by == "rollout"):
        what = "a class" if classes is not None else "attention rollout, which knows no text"
        raise UsageError(f"A text cannot be shown together with {what}.", hint="leave one of the two out")
    device = next(model.parameters()).device
    pixels = pixels.to(device).clone()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if text is not None:
            vector = model.embed_texts([text]).clone()
            groups = [(_of_text(model, vector), list(range(len(pixels))), [0] * len(pixels))]
            asked = [-1] * len(pixels)
        else:
            asked = model.classify(pixels).argmax(dim=1).tolist() if classes is None else [int(c) for c in classes]
            _check_classes(model, asked, len(pixels))
            groups = _of_classes(model, pixels, asked)
        heat = torch.zeros(len(pixels), *pixels.shape[2:])
        parts, ways = [""] * len(pixels), [""] * len(pixels)
        shares = torch.zeros(len(pixels), dtype=torch.float64)
        for subject, rows, columns in groups:
            way = _way(subject.tower, by)
            size = _batch_size(subject.tower)
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                found = _look(subject, way, pixels[some], torch.tensor(columns[start : start + size], device=device))
                found = _upsampled(found, tuple(pixels.shape[2:]))
                shares[some] = hottest_fraction(found)
                heat[some] = _up_to_one(_standing_out(found) if way in _CUT else found).cpu()
            for row in rows:
                parts[row], ways[row] = subject.part, WAYS[way]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Explained(heat, ", ".join(dict.fromkeys(ways)), tuple(ways), tuple(asked), tuple(parts), tuple(shares.tolist()))


def _check_classes(model: Model, asked: Sequence[int], n: int) -> None:
    assert len(asked) == n, f"{len(asked)} classes for {n} images"
    prototypes = model.prototypes if isinstance(model, Prototype) else model.prototype.prototypes if isinstance(model, Hybrid) else None
    if prototypes is None:
        return
    without = sorted({c for c in asked if not prototypes.classes[c].any()})
    if without:
        raise UsageError(
            "There is no prototype to look for.",
            faults=[f"{model.taxonomy.names[c]}: it had no training image" for c in without],
            hint="ask about another class",
        )


# ---------------------------------------------------------------- what of a model is looked into


def _of_text(model: Model, vector: torch.Tensor) -> _Subject:
    """The cosines (n, 1) of images to a text."""
    part = ""
    if isinstance(model, Hybrid):
        model, part = model.prototype, "prototypes"
    towers = model.towers if isinstance(model, Prototype) else model
    if not hasattr(towers, "backbone") or not hasattr(towers.backbone, "visual"):
        raise _unknown(model)
    return _clip(towers, lambda embeddings: embeddings @ vector.T, part)


def _of_classes(model: Model, pixels: torch.Tensor, asked: Sequence[int]) -> list[tuple[_Subject, list[int], list[int]]]:
    """What is looked into, for which images, and the column of each one's score."""
    if isinstance(model, Hybrid):
        return _of_hybrid(model, pixels, asked)
    if isinstance(model, ClipLora):
        subject = _clip(model, model.logits)
    elif isinstance(model, Dinov2):
        subject = _dinov2(model)
    elif isinstance(model, Prototype):
        subject = _prototype(model)
    elif isinstance(model, Mics):
        subject = _mics(model)
    else:
        raise _unknown(model)
    return [(subject, list(range(len(asked))), list(asked))]


def _unknown(model: object) -> UsageError:
    return UsageError(
        f"A model of the kind {type(model).__name__} cannot be explained: it has no image tower that is known here.",
        hint="explain a run that it is made of: `entrep explain IMAGE --run RUN`",
    )


def _clip(towers: nn.Module, answer: Callable[[torch.Tensor], torch.Tensor], part: str = "") -> _Subject:
    """`ClipLora`, or the `Towers` of prototypes: calling either gives unit rows."""
    tower = tower_of(towers.backbone.visual)
    return _Subject(tower, towers, answer, tower.pools_class_token, part)


def _dinov2(model: Dinov2, part: str = "") -> _Subject:
    backbone: Backbone = model.backbone
    return _Subject(
        tower_of(backbone.model),
        backbone.features,
        lambda features: model.head(backbone.pool(features)),
        class_token=backbone.settings.pooling == "token",
        part=part,
    )


def _prototype(model: Prototype, part: str = "") -> _Subject:
    rows = model.prototypes.classes.float()
    return _clip(model.towers, lambda embeddings: embeddings @ rows.T, part)


def _mics(model: Mics) -> _Subject:
    """The encoder of white light, for that is the picture one sees; the other one's tokens are as they are."""
    classifier = model.classifier

    def answer(white: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return classifier.classify_tokens(*white)[1]

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return patch_tokens(classifier.white, pixels), narrow(pixels)

    def narrow(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return patch_tokens(classifier.narrow, pseudo_nbi(pixels))

    return _Subject(tower_of(classifier.white.model), encode, answer, class_token=False, part="white-light encoder")


def _of_hybrid(model: Hybrid, pixels: torch.Tensor, asked: Sequence[int]) -> list[tuple[_Subject, list[int], list[int]]]:
    """By image, what decided: the prototypes, the coarse model, or the expert of the region.

    Where another class than one of the region decided on is asked about, that is the coarse model's doing,
    and it is shown for the region of that class.
    """
    decisions = model.decide(pixels)
    region_of = model.region_of.tolist()
    regions = model.taxonomy.regions
    experts = dict(zip(model.expert_regions, model.experts))
    rows: dict[str, list[int]] = {}
    columns: dict[str, list[int]] = {}
    for i, (own, stage, decided) in enumerate(zip(asked, decisions.stages.tolist(), decisions.classes.tolist())):
        region = regions[region_of[own]]
        if stage == 1:
            part, column = "prototypes", own
        elif region in experts and (region_of[own] == region_of[decided] or model.region is None):
            part, column = f"expert {region}", experts[region].taxonomy.names.index(model.taxonomy.names[own])
        else:
            part, column = "region model", model.region.taxonomy.names.index(region)
        rows.setdefault(part, []).append(i)
        columns.setdefault(part, []).append(column)

    def subject(part: str) -> _Subject:
        if part == "prototypes":
            own, found = model.prototype, _prototype(model.prototype, part)
        else:
            own = model.region if part == "region model" else experts[part.removeprefix("expert ")]
            found = _dinov2(own, part)
        size = own.preprocess.size
        return _Subject(found.tower, lambda x: found.encode(resized(x, size)), found.answer, found.class_token, part)

    return [(subject(part), rows[part], columns[part]) for part in rows]


# ---------------------------------------------------------------- looking


def _way(tower: Tower, by: str) -> str:
    """How a tower is looked into; UsageError where it has no attention to be followed."""
    if by == "auto":
        return "gradient-rollout" if tower.is_vit else "layer-cam"
    if by in _ATTENTION and not tower.is_vit:
        raise UsageError(f"A {tower.kind} has no attention over patches, so there is no {WAYS[by]}.", hint="--by layer-cam")
    return by


def _look(subject: _Subject, way: str, pixels: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(n, h, w) heat of zero or more, on the tower's own grid."""
    if way == "rollout":
        return _by_attention(subject, pixels, None)
    if way == "gradient-rollout":
        return _by_attention(subject, pixels, columns)
    if way == "layer-cam":
        layers = subject.tower.last_layers(_LAYERS)
    else:
        layers = [subject.tower.last_layer(pixels.shape[-1], _PLACES) if way == "hires-cam" else subject.tower.last_layer()]
    with torch.enable_grad():
        with record_outputs(*layers) as outputs:
            encoded = subject.encode(pixels)
        outputs = outputs[: len(layers)]
        features = [subject.tower.as_map(output.detach()) for output in outputs]
        if all(f.shape[2:] == (1, 1) for f in features):
            raise UsageError(
                f"The last map of this model has one place alone at {pixels.shape[-1]} pixels, which tells nothing of where.",
                hint="--by layer-cam looks at earlier ones too; or train with larger images: --set image.size=224",
            )
        score = subject.answer(encoded).gather(1, columns[:, None]).sum()
        gradients = [subject.tower.as_map(g) for g in torch.autograd.grad(score, outputs)]
    if way == "layer-cam":
        return agreement([layer_cam(f, g) for f, g in zip(features, gradients)])
    return (hires_cam if way == "hires-cam" else grad_cam)(features[0], gradients[0])


def _by_attention(subject: _Subject, pixels: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
    """`columns` of the scores, for the gradient-weighted rollout; None for the plain one."""
    tower = subject.tower
    n_prefix, grid = tower.n_prefix_tokens, tower.grid
    n_tokens = n_prefix + grid[0] * grid[1]
    with torch.set_grad_enabled(columns is not None):
        with record_attentions(tower.module) as recorded:
            encoded = subject.encode(pixels)
        # Of mics the other encoder comes after.
        attentions = [a for a in recorded if a.shape[-2:] == (n_tokens, n_tokens)][: len(tower.blocks)]
        if len(attentions) < len(tower.blocks):
            raise UsageError(f"The attention of a {tower.kind} cannot be recorded.", hint="--by grad-cam")
        readout = torch.zeros(n_tokens)
        readout[slice(0, 1) if subject.class_token else slice(n_prefix, None)] = 1
        readout /= readout.sum()
        if columns is None:
            row = rollout(attentions, readout)
        else:
            score = subject.answer(encoded).gather(1, columns[:, None]).sum()
            gradients = torch.autograd.grad(score, attentions, allow_unused=True, materialize_grads=True)
            row = gradient_rollout([a.detach() for a in attentions], gradients, readout)
    return row[:, n_prefix:].unflatten(1, grid)


def _batch_size(tower: Tower) -> int:
    if not tower.is_vit:
        return 32
    height, width = tower.grid
    heads = 12
    return min(32, max(1, _ATTENTIONS_AT_ONCE // (len(tower.blocks) * heads * (tower.n_prefix_tokens + height * width) ** 2)))


def _upsampled(heat: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(n, h, w) heat to (n, H, W), bilinear."""
    return F.interpolate(heat.float()[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _standing_out(heat: torch.Tensor) -> torch.Tensor:
    """What of (n, H, W) heat is above its image's mean by two standard deviations, or by half of the way to the largest if that is less.

    Every token has a share in what a softmax hands on, and every place a little of what would speak for a
    class: what has about as much as the others is not looked at (ours; benchmarks/pointing_game.py). The
    second bound keeps a map of which half is hot from vanishing.
    """
    mean, deviation = heat.mean(dim=(1, 2), keepdim=True), heat.std(dim=(1, 2), keepdim=True)
    rise = heat.amax(dim=(1, 2), keepdim=True) - mean
    return (heat - mean - torch.minimum(_DEVIATIONS * deviation, rise / 2)).clamp_min(0)


def _up_to_one(heat: torch.Tensor) -> torch.Tensor:
    """(n, H, W) heat of zero or more, each image's largest made 1."""
    most = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(most > 0, heat / most.clamp_min(torch.finfo(heat.dtype).tiny), 0.0).clamp(0, 1)
