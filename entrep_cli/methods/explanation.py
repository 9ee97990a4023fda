"""Where a trained model looks, for a class or for a text: one map of heat for every image.

    explained = explain_images(load_model(run), pixels)
    explained.heat      # (N, H, W) in [0, 1], over what the model saw

A score is followed back into the image: the logit of a class, a cosine to a prototype, or the cosine of
an image and a text. A pass of its own is made, with gradients, in the model's eval mode; what the model
answers, its weights and its mode are the same afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from entrep_cli.errors import UsageError
from entrep_cli.methods.base import Model, Subject
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
from entrep_cli.models.towers import Tower, tower_of

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
        by: how, as in "Grad-CAM"; where components of a hybrid are looked into in different ways, all of them.
        ways: (N,) how, of each image.
        classes: (N,) the class that was asked about, as an index; -1 for a text.
        components: (N,) which component of the model is shown, as in "prototypes"; "" where it has one alone.
        brightest_tenth: (N,) fraction of all heat, also of what does not stand out, that lies on the hottest tenth of
            the pixels (`hottest_fraction`); 0 where there is none.
    """

    heat: torch.Tensor
    by: str
    ways: tuple[str, ...]
    classes: tuple[int, ...]
    components: tuple[str, ...]
    brightest_tenth: tuple[float, ...]


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
        raise UsageError(f"No way {by!r} to explain.", hint=f"choose one of: auto, {', '.join(WAYS)}")
    if text is not None and (classes is not None or by == "rollout"):
        what = "a class" if classes is not None else "attention rollout, which knows no text"
        raise UsageError(f"A text cannot be shown together with {what}.", hint="leave one of the two out")
    pixels = pixels.to(model.device).clone()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if text is not None:
            asked = [-1] * len(pixels)
            subjects = [model.text_subject(model.embed_texts([text]).clone(), len(pixels))]
        else:
            asked = model.classify(pixels).argmax(dim=1).tolist() if classes is None else [int(c) for c in classes]
            assert len(asked) == len(pixels), f"{len(asked)} classes for {len(pixels)} images"
            subjects = model.subjects(pixels, asked)
        heat = torch.zeros(len(pixels), *pixels.shape[2:])
        components, ways = [""] * len(pixels), [""] * len(pixels)
        brightest = torch.zeros(len(pixels), dtype=torch.float64)
        for subject in subjects:
            tower = tower_of(subject.tower)
            way, size = _way(tower, by), _batch_size(tower)
            rows = list(range(len(pixels)) if subject.rows is None else subject.rows)
            columns = torch.tensor(subject.columns, device=pixels.device)
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                raw = _look(subject, tower, way, pixels[some], columns[start : start + size])
                raw = _upsampled(raw, tuple(pixels.shape[2:]))
                brightest[some] = hottest_fraction(raw)
                heat[some] = _up_to_one(_standing_out(raw) if way in _CUT else raw).cpu()
            for row in rows:
                components[row], ways[row] = subject.component, WAYS[way]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Explained(heat, ", ".join(dict.fromkeys(ways)), tuple(ways), tuple(asked), tuple(components), tuple(brightest.tolist()))


# ---------------------------------------------------------------- looking


def _way(tower: Tower, by: str) -> str:
    """How a tower is looked into; UsageError where it has no attention to be followed."""
    if by == "auto":
        return "gradient-rollout" if tower.is_vit else "layer-cam"
    if by in _ATTENTION and not tower.is_vit:
        raise UsageError(f"A {tower.kind} has no attention over patches, which {WAYS[by]} needs.", hint="--by layer-cam")
    return by


def _look(subject: Subject, tower: Tower, way: str, pixels: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(n, h, w) heat of zero or more, on the tower's own grid."""
    if way == "rollout":
        return _by_attention(subject, tower, pixels, None)
    if way == "gradient-rollout":
        return _by_attention(subject, tower, pixels, columns)
    if way == "layer-cam":
        layers = subject.layers[-_LAYERS:] or tower.last_layers(_LAYERS)
    else:
        layers = subject.layers[-1:] or [tower.last_layer(pixels.shape[-1], _PLACES) if way == "hires-cam" else tower.last_layer()]
    with torch.enable_grad():
        with record_outputs(*layers) as outputs:
            encoded = subject.encode(pixels)
        outputs = outputs[: len(layers)]
        features = [tower.as_map(output.detach()) for output in outputs]
        if all(f.shape[2:] == (1, 1) for f in features):
            raise UsageError(
                f"The last map of this model has one place alone at {pixels.shape[-1]} pixels, which tells nothing of where.",
                hint="--by layer-cam looks at earlier ones too; or train with larger images: --set image.size=224",
            )
        score = subject.answer(encoded).gather(1, columns[:, None]).sum()
        gradients = [tower.as_map(g) for g in torch.autograd.grad(score, outputs)]
    if way == "layer-cam":
        return agreement([layer_cam(f, g) for f, g in zip(features, gradients)])
    return (hires_cam if way == "hires-cam" else grad_cam)(features[0], gradients[0])


def _by_attention(subject: Subject, tower: Tower, pixels: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
    """`columns` of the scores, for the gradient-weighted rollout; None for the plain one."""
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
