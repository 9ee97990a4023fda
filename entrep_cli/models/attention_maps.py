"""Where an image tower looks: attention rollout and Grad-CAM, and how their ingredients are collected.

The maps are pure functions of tensors: `rollout` and `gradient_rollout` of attentions, `grad_cam` and its kin
of a feature map and the gradient of a score at it. `attentions_kept` and `output_kept` collect them from a
pass of a model, whoever's attention it has (ours, timm's, open_clip's), and leave the model as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import entrep_cli.torchvision_ops  # noqa: F401 - before open_clip imports torchvision

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from entrep_cli.errors import UsageError
from entrep_cli.models.attention import ExplicitAttention, ExplicitCustomAttention

# ---------------------------------------------------------------- the maps


def rollout(attentions: Sequence[torch.Tensor], readout: torch.Tensor | None = None) -> torch.Tensor:
    """How much of every input token is in what is read out, by the attention alone.

        A_b = (mean over heads of attentions[b] + I) / 2
        r   = readout A_B ... A_2 A_1

    The half identity stands for the residual connection. It knows no class: two classes have one map.

    Args:
        attentions: of every block, the first one first: (N, h, T, T) each, rows summing to 1.
        readout: (T,) the share of each token in what the model pools; by default the first token, the class token.

    Returns:
        (N, T) shares that sum to 1.

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
    own share in what is pooled (the I) is left out is ours: with a class token it never shows, and with a mean
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
    """What is there, at every place of a feature map, that would speak for a score if there were more of it.

        heat = max(0, sum over c of max(0, gradients[c]) features[c])

    What speaks against is left out before the sum over channels, and not after as in `hires_cam`. It matters
    below a LayerNorm over pooled features, as in our heads: the score does not change with their scale, so
    gradients times features sum to about nothing, and the place that has most to do with the score may be below it.

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


def brightest_share(heat: torch.Tensor, part: float = 0.1) -> torch.Tensor:
    """(N,) float64 on the CPU, share of the heat (N, H, W) that lies on the hottest `part` of the pixels.

    It is `part` where all pixels are alike, 1 where the heat lies nowhere else, and 0 without heat.
    """
    flat = heat.flatten(1).cpu().double()  # an Apple GPU has no float64
    hottest = flat.topk(max(1, round(part * flat.shape[1])), dim=1).values.sum(dim=1)
    return hottest / flat.sum(dim=1).clamp_min(torch.finfo(flat.dtype).tiny)


def _readout(attentions: Sequence[torch.Tensor], readout: torch.Tensor | None) -> torch.Tensor:
    first = attentions[0]
    n, tokens = first.shape[0], first.shape[-1]
    if readout is None:
        readout = F.one_hot(torch.zeros((), dtype=torch.long), tokens)
    return readout.to(first).expand(n, tokens)


# ---------------------------------------------------------------- collecting


class _KeepAttentions(TorchFunctionMode):
    """Within it, this thread's scaled dot-product attentions are written out, and their weights kept in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.Tensor] = []

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
            weights.requires_grad_()  # of the first block of a frozen model: the graph begins here
        self.found.append(weights)
        return weights @ value


@contextmanager
def attentions_kept(tower: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list that the attentions of the passes within fill, (N, h, T, T) each, in their order; part of the graph.

    Collected are the calls of `scaled_dot_product_attention` of this thread. What would not call it does so
    meanwhile: open_clip's own attentions are made explicit, and timm's are switched to it (`fused_attn`). Both
    are put back after, also after an exception.
    """
    from open_clip.transformer import Attention as CustomAttention

    stock: dict[str, nn.Module] = {}
    fused = {module: module.fused_attn for module in tower.modules() if hasattr(module, "fused_attn")}
    try:
        for name, module in list(tower.named_modules()):
            if type(module) is nn.MultiheadAttention:
                explicit: nn.Module = ExplicitAttention(module)
            elif type(module) is CustomAttention and module.logit_scale is None:
                explicit = ExplicitCustomAttention(module)
            else:
                continue
            stock[name] = module
            tower.set_submodule(name, explicit.train(module.training))
        for module in fused:
            module.fused_attn = True
        with _KeepAttentions() as keep:
            yield keep.found
    finally:
        for name, module in stock.items():
            tower.set_submodule(name, module)
        for module, was in fused.items():
            module.fused_attn = was


@contextmanager
def output_kept(*layers: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list that the outputs of layers in the passes within fill; the graph begins at those of the first one.

    The others come after it, in their order. The hooks are taken away after, also after an exception.
    """
    kept: list[torch.Tensor] = []

    def keep(layer: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_() if layer is layers[0] else output)
        return kept[-1].clone()  # what follows may write into it

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------- what a tower has


def has_tokens(tower: nn.Module) -> bool:
    """Whether an image tower, of timm or open_clip, is a ViT: blocks over the tokens of one grid of patches."""
    trunk = _trunk(tower)
    return hasattr(trunk, "blocks") and hasattr(trunk, "num_prefix_tokens") or hasattr(trunk, "transformer")


def token_grid(tower: nn.Module) -> tuple[int, tuple[int, int]]:
    """Of a ViT: how many tokens stand before those of the patches, and the rows and columns of these."""
    trunk = _trunk(tower)
    if hasattr(trunk, "transformer"):
        return 1, tuple(trunk.grid_size)
    return trunk.num_prefix_tokens, tuple(trunk.patch_embed.grid_size)


def n_blocks(tower: nn.Module) -> int:
    """Of a ViT."""
    trunk = _trunk(tower)
    return len(trunk.transformer.resblocks if hasattr(trunk, "transformer") else trunk.blocks)


def pools_class_token(tower: nn.Module) -> bool:
    """Whether a ViT's own ending reads its class token, and not the mean of its patches or a pooling that learns."""
    trunk = _trunk(tower)
    if hasattr(trunk, "transformer"):
        return trunk.attn_pool is None and trunk.pool_type == "tok"
    return trunk.global_pool == "token" and trunk.num_prefix_tokens > 0


def last_layer(tower: nn.Module, size: int | None = None, places: int = 1) -> nn.Module:
    """The layer whose output is looked at: of a convolutional tower a stage, of a ViT what its last block reads.

    Not what that block gives: where a class token is pooled, the patches after it no longer count.

    Args:
        size, places: of a convolutional tower the last stage whose map of images of `size` pixels has so many
            places a side, or the first stage where none has; without them the last stage.

    Raises:
        UsageError: a tower in which it is not known.
    """
    layers = _layers(tower)
    fine = [layer for layer, reduction in layers if size is None or size >= places * reduction]
    return _known(tower, fine[-1:] or [layer for layer, _ in layers[:1]])[0]


def last_layers(tower: nn.Module, n: int) -> list[nn.Module]:
    """The last `n` layers that can be looked at, the last one last; fewer where there are no more.

    Raises:
        UsageError: as `last_layer`.
    """
    return _known(tower, [layer for layer, _ in _layers(tower)[-n:]])


def _layers(tower: nn.Module) -> list[tuple[Any, int]]:
    """The stages of a convolutional tower with their pixels a place, or what each block of a ViT reads, with 0: it has one grid."""
    trunk = _trunk(tower)
    if has_tokens(tower):
        blocks = trunk.transformer.resblocks if hasattr(trunk, "transformer") else trunk.blocks
        return [(getattr(block, "norm1", getattr(block, "ln_1", None)), 0) for block in blocks]
    there = dict(trunk.named_modules())  # some name a part that only a wrapper of timm's has
    return [(there.get(name), reduction) for name, reduction, _ in _stages(tower)]


def _known(tower: nn.Module, layers: Sequence[Any]) -> list[nn.Module]:
    if layers and all(isinstance(layer, nn.Module) for layer in layers):
        return list(layers)
    raise UsageError(
        f"In a tower of the kind {type(_trunk(tower)).__name__} no layer is known to look into.",
        hint="a ViT can be shown, and a convolutional backbone such as resnet50 or mobilenetv2_100",
    )


def _stages(tower: nn.Module) -> list[tuple[str, int, int]]:
    """Name, pixels a place, and channels of every stage of a convolutional tower; none where they are not known."""
    trunk = _trunk(tower)
    if hasattr(trunk, "attnpool"):  # open_clip's ModifiedResNet
        layers = [f"layer{i}" for i in (1, 2, 3, 4)]
        return [(name, 4 * 2**i, getattr(trunk, name)[-1].bn3.num_features) for i, name in enumerate(layers)]
    info = getattr(trunk, "feature_info", None) or []
    return [(s["module"], s["reduction"], s["num_chs"]) for s in (info if isinstance(info, list) else info.get_dicts())]


def as_map(features: torch.Tensor, tower: nn.Module) -> torch.Tensor:
    """What `last_layer` gives as (N, C, h, w): tokens of patches on their grid, channels before places.

    Raises:
        UsageError: it is neither tokens nor a map.
    """
    if features.ndim == 3 and has_tokens(tower):
        n_prefix, grid = token_grid(tower)
        return features[:, n_prefix:].transpose(1, 2).unflatten(2, grid)
    if features.ndim == 4:
        channels = [n for *_, n in _stages(tower)] or [features.shape[1]]
        return features if features.shape[1] in channels else features.permute(0, 3, 1, 2)  # Swin and its kin are (N, H, W, C)
    kind = type(_trunk(tower)).__name__
    raise UsageError(f"The last layer of a {kind} gives no map of places.", hint="use a ViT or a convolutional backbone")


def _trunk(tower: nn.Module) -> nn.Module:
    return getattr(tower, "trunk", tower)  # open_clip puts timm's models into a shell
