"""Where an image tower looks: attention rollout and Grad-CAM, and how their ingredients are recorded.

The maps are pure functions of tensors: `rollout` and `gradient_rollout` of attentions, `grad_cam` and its kin
of a feature map and the gradient of a score at it. `record_attentions` and `record_outputs` collect them from a
pass of a model, whichever library's attention it has, and leave the model as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from entrep_cli.models.attention import explicit
from entrep_cli.models.towers import attention_switches, fused_attentions

# ---------------------------------------------------------------- the maps


def rollout(attentions: Sequence[torch.Tensor], readout: torch.Tensor | None = None) -> torch.Tensor:
    """How much of every input token is in what is read out, by the attention alone.

        A_b = (mean over heads of attentions[b] + I) / 2
        r   = readout A_B ... A_2 A_1

    The half identity stands for the residual connection. It knows no class: two classes have one map.

    Args:
        attentions: of every block, the first one first: (N, h, T, T) each, rows summing to 1.
        readout: (T,) the weight of each token in what the model pools; by default the first token, the class token.

    Returns:
        (N, T) weights that sum to 1.

    Source: Abnar & Zuidema 2020, section 3.
    """
    row = _readout(attentions, readout)
    for attention in reversed(attentions):
        row = (row + (row[:, None] @ attention.mean(dim=1))[:, 0]) / 2
    return row


def gradient_rollout(
    attentions: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], readout: torch.Tensor | None = None
) -> torch.Tensor:
    """What of every input token speaks for a score, by attentions weighted with their gradients.

        A_b = mean over heads of max(0, gradients[b] * attentions[b])
        R   = I, then R + A_b R for every block
        r   = readout (R - I)

    Args:
        attentions, readout: as for `rollout`.
        gradients: of the score at each attention, (N, h, T, T).

    Returns:
        (N, T), zero or more.

    Source: Chefer, Gur & Wolf 2021 (*Generic attention-model explainability*), equations 5 and 6. That a token's
    direct weight in what is pooled (the I) is left out is ours: with a class token it never shows, and with a mean
    of patches it is the same everywhere.
    """
    start = row = _readout(attentions, readout)
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        weighted = (attention * gradient).clamp_min(0).mean(dim=1)
        row = row + (row[:, None] @ weighted)[:, 0]
    return row - start


def grad_cam(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """What of every place of a feature map speaks for a score.

        w_c = mean over places of gradients[c],  heat = max(0, sum over c of w_c features[c])

    Args:
        features, gradients: (N, C, H, W), of the last convolutional layer, and of the score at it.

    Returns:
        (N, H, W), zero or more.

    Source: Selvaraju et al. 2017, equations 1 and 2.
    """
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * features).sum(dim=1).clamp_min(0)


def hires_cam(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """What of every place of a feature map speaks for a score, by the gradient at that very place.

        heat = max(0, sum over c of gradients[c] features[c])

    The same as `grad_cam` where all places have one gradient, as before a mean over places. Of an earlier
    layer they have not, and the mean of gradients loses which place it was that counted.

    Args:
        features, gradients: as for `grad_cam`.

    Source: Draelos & Carin 2020 (*Use HiResCAM instead of Grad-CAM for faithful explanations*), equation 5.
    """
    return (gradients * features).sum(dim=1).clamp_min(0)


def layer_cam(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """What of every place of a feature map would raise a score if it were larger.

        heat = max(0, sum over c of max(0, gradients[c]) features[c])

    What speaks against is left out before the sum over channels, and not after as in `hires_cam`. It matters
    below a LayerNorm over pooled features, as in our heads: the score does not change with their scale, so
    gradients times features sum to about zero, and may be negative at the place that matters most.

    Args:
        features, gradients: as for `grad_cam`, of any layer.

    Source: Jiang et al. 2021 (*LayerCAM*), equations 4 to 6.
    """
    return (gradients.clamp_min(0) * features).sum(dim=1).clamp_min(0)


def agreement(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Where all maps of an image are hot: their product, each upsampled to the finest and its largest made 1.

    Args:
        maps: (N, h, w) each, zero or more.

    Returns:
        (N, H, W) of the finest map's size, in [0, 1]; zero where one of an image's maps is nothing.

    Source: ours; Selvaraju et al. 2017, section 3.2, multiply a coarse map by a fine one (Guided Grad-CAM), where
    the LayerCAM paper takes the largest of them at each place, so that the coarse one's spread stays.
    """
    finest = max((m.shape[-2:] for m in maps), key=lambda size: size[0] * size[1])
    product = torch.ones(())
    for m in maps:
        m = F.interpolate(m[:, None], finest, mode="bilinear", align_corners=False)[:, 0]
        product = product.to(m) * m / m.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(m.dtype).tiny)
    return product


def hottest_fraction(heat: torch.Tensor, fraction: float = 0.1) -> torch.Tensor:
    """(N,) float64 on the CPU: how much of the heat (N, H, W) lies on the hottest `fraction` of the pixels.

    It is `fraction` where all pixels are alike, 1 where the heat lies nowhere else, and 0 without heat.
    """
    flat = heat.flatten(1).cpu().double()  # an Apple GPU has no float64
    hottest = flat.topk(max(1, round(fraction * flat.shape[1])), dim=1).values.sum(dim=1)
    return hottest / flat.sum(dim=1).clamp_min(torch.finfo(flat.dtype).tiny)


def _readout(attentions: Sequence[torch.Tensor], readout: torch.Tensor | None) -> torch.Tensor:
    first = attentions[0]
    n, tokens = first.shape[0], first.shape[-1]
    if readout is None:
        readout = F.one_hot(torch.zeros((), dtype=torch.long), tokens)
    return readout.to(first).expand(n, tokens)


# ---------------------------------------------------------------- collecting


class _RecordAttentions(TorchFunctionMode):
    """Within it, this thread's scaled dot-product attentions are written out, and `weights` records them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        written_out = func is F.scaled_dot_product_attention and not kwargs.get("is_causal") and not kwargs.get("enable_gqa")
        return self._attend(*args, **kwargs) if written_out else func(*args, **kwargs)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        assert not dropout_p, "a model is looked into in its eval mode"
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        weights = scores.softmax(dim=-1)
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights.requires_grad_()  # of the first block of a frozen model: the graph starts here
        self.weights.append(weights)
        return weights @ value


@contextmanager
def record_attentions(tower: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list to which each pass inside the block adds its attentions, (N, h, T, T) each, in order and with their graph.

    Recorded are the calls of `scaled_dot_product_attention` of this thread. What would not call it does so
    meanwhile: open_clip's attentions are made explicit, and timm's are switched to it. Both are put back at the
    end, also after an exception.
    """
    stock = {}
    switches = [(module, module.fused_attn) for module in attention_switches(tower)]
    try:
        for name, module, kind in fused_attentions(tower):
            if kind != "qkv":
                stock[name] = module
                tower.set_submodule(name, explicit(module, kind))
        for module, _ in switches:
            module.fused_attn = True
        with _RecordAttentions() as mode:
            yield mode.weights
    finally:
        for name, module in stock.items():
            tower.set_submodule(name, module)
        for module, value in switches:
            module.fused_attn = value


@contextmanager
def record_outputs(*layers: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list to which each pass inside the block adds the outputs of layers; the graph begins at those of the first one.

    The others come after it, in their order. The hooks are removed at the end, also after an exception.
    """
    outputs: list[torch.Tensor] = []

    def record(layer: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        outputs.append(output.detach().requires_grad_() if layer is layers[0] else output)
        return outputs[-1].clone()  # what follows may write into it

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
