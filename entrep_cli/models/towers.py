"""Towers of open_clip, timm and Hugging Face behind one interface: all that differs between these libraries is known here.

    tower = tower_of(model.visual)
    tower.is_vit, tower.n_levels      # True, 12

An image tower is a timm model, or the `visual` of an open_clip model: a ViT, a ResNet, or a timm model in a shell.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from entrep_cli.errors import UsageError

# The Linears of a role in a block, in open_clip's blocks, timm's (EVA-02 names its q_proj), and Hugging Face's BERT and RoBERTa.
_LINEARS = {
    "q": ("attn.q", "attn.qkv.q", "attn.q_proj", "attention.self.query"),
    "k": ("attn.k", "attn.qkv.k", "attn.k_proj", "attention.self.key"),
    "v": ("attn.v", "attn.qkv.v", "attn.v_proj", "attention.self.value"),
    "out": ("attn.out", "attn.proj", "attention.output.dense"),
    "mlp": ("mlp.c_fc", "mlp.c_proj", "mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2", "intermediate.dense", "output.dense"),
}
ROLES = tuple(_LINEARS)
# The blocks of a text tower: those of older open_clip models, of its newer ones, and of Hugging Face's encoders.
_TEXT_BLOCKS = ("resblocks", "transformer.resblocks", "transformer.encoder.layer")

# The first number in the name of a parameter: blocks of a ViT, stages of a ConvNeXt or an EfficientNet, layers of a ResNet or a Swin.
_NUMBERED = re.compile(r"(?:^|\.)(?:blocks|stages|layers|resblocks|layer)\.?(\d+)\.")
# Registered before the blocks and used after them: the projections of open_clip's towers.
_ENDING = re.compile(r"(?:^|\.)(?:proj|text_projection|logit_scale|logit_bias)$")
# Used before the blocks, wherever it is registered: open_clip's text tower has it after them.
_STEM = re.compile(r"(?:^|\.)(?:token_embedding\.weight|positional_embedding|class_embedding|pos_embed|cls_token|patch_embed\..*)$")
_PREFIXES = ("visual.", "white.", "narrow.")  # in names of parameters; those with none of them are a tower too


class Stage(NamedTuple):
    """A layer whose output is a map of the image.

    Attributes:
        layer: None where the library names one that the model lacks.
        reduction: pixels a side of one place of the map; 0 in a ViT, whose blocks all have one grid.
        channels: of the map.
    """

    layer: nn.Module | None
    reduction: int
    channels: int


class Tower:
    """A tower as its library made it, `module`; `network` is the same without open_clip's shell round a timm model.

    The class itself stands for timm's convolutional models, and for all in which nothing is known.

    Attributes:
        is_vit: its blocks read the tokens of one grid of patches.
        levels_by_block: its levels are the tokens after each block, and not the maps of stages.
        pools_class_token: its ending reads a class token, and not the mean of the patches or a learned pooling.
    """

    is_vit = False
    levels_by_block = False
    pools_class_token = False

    def __init__(self, module: nn.Module, network: nn.Module) -> None:
        self.module, self.network = module, network

    @property
    def kind(self) -> str:
        """The library's name of the network, for messages."""
        return type(self.network).__name__

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, in the container that the network has; () without any."""
        return getattr(self.network, "blocks", ())

    @property
    def n_prefix_tokens(self) -> int:
        """Tokens before those of the patches, such as the class token."""
        return getattr(self.network, "num_prefix_tokens", 0)

    @property
    def grid(self) -> tuple[int, int]:
        """Of a ViT: rows and columns of patches."""
        raise NotImplementedError(self.kind)

    # ------------------------------------------------------------ levels: outputs of blocks or stages

    @property
    def stages(self) -> list[Stage]:
        """Of a convolutional tower; empty where they are not known."""
        info = getattr(self.network, "feature_info", None) or []
        layers = dict(self.network.named_modules())
        return [
            Stage(layers.get(s["module"]), s["reduction"], s["num_chs"]) for s in (info if isinstance(info, list) else info.get_dicts())
        ]

    @property
    def level_widths(self) -> list[int]:
        """Channels of the maps of `stage_maps`; empty where levels are blocks.

        Raises:
            UsageError: the tower has neither blocks nor stages.
        """
        if self.levels_by_block:
            return []
        if hasattr(self.network, "forward_intermediates"):
            return [stage.channels for stage in self.stages]
        raise UsageError(
            f"An image tower of the kind {type(self.module).__name__} has neither blocks nor stages to take levels from.",
            hint="choose a ViT, ResNet or timm tower",
        )

    @property
    def n_levels(self) -> int:
        """How many levels the tower has: its blocks, or else its stages.

        Raises:
            UsageError: it has neither.
        """
        return len(self.blocks if self.levels_by_block else self.level_widths)

    def stage_maps(self, pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(N, C, H, W) maps of all stages of a convolutional tower of open_clip, and its (N, D) output."""
        # All stages: open_clip's ModifiedResNet fails to reach its ending when the last one is not asked for.
        result = self.module.forward_intermediates(pixels)
        return result["image_intermediates"], result["image_features"]

    def pooled_levels(self, pixels: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
        """(N, L, D) outputs of blocks, numbered from 1, of a ViT of open_clip, each through the tower's ending."""
        raise NotImplementedError(self.kind)

    # ------------------------------------------------------------ layers to explain

    @property
    def explained(self) -> list[Stage]:
        """The stages of a convolutional tower, or what each block of a ViT reads.

        Not what a block gives: where a class token is pooled, the patches after the last block do not count.
        """
        return self.stages

    def last_layers(self, n: int) -> list[nn.Module]:
        """The last `n` layers that can be explained, the last one last; fewer where the tower has fewer.

        Raises:
            UsageError: no such layer is known.
        """
        return self._known(self.explained[-n:])

    def last_layer(self, size: int | None = None, places: int = 1) -> nn.Module:
        """The last of these layers.

        Args:
            size, places: of a convolutional tower the last stage whose map of images of `size` pixels has so many
                places a side, or the first stage where none has.

        Raises:
            UsageError: as `last_layers`.
        """
        stages = self.explained
        fine = [stage for stage in stages if size is None or size >= places * stage.reduction]
        return self._known(fine[-1:] or stages[:1])[0]

    def as_map(self, features: torch.Tensor) -> torch.Tensor:
        """What one of these layers gives as (N, C, h, w): tokens of patches on their grid, channels before places.

        Raises:
            UsageError: it is neither tokens nor a map.
        """
        if features.ndim == 3 and self.is_vit:
            return features[:, self.n_prefix_tokens :].transpose(1, 2).unflatten(2, self.grid)
        if features.ndim == 4:
            channels = [stage.channels for stage in self.stages] or [features.shape[1]]
            return features if features.shape[1] in channels else features.permute(0, 3, 1, 2)  # Swin and its kin are (N, H, W, C)
        raise UsageError(f"The last layer of a {self.kind} gives no map of places.", hint="use a ViT or a convolutional backbone")

    def _known(self, stages: Sequence[Stage]) -> list[nn.Module]:
        layers = [stage.layer for stage in stages if stage.layer is not None]
        if layers and len(layers) == len(stages):
            return layers
        raise UsageError(
            f"In a tower of the kind {self.kind} no layer is known to look into.",
            hint="a ViT can be shown, and a convolutional backbone such as resnet50 or mobilenetv2_100",
        )

    # ------------------------------------------------------------ training

    def linears(self, role: str) -> list[str]:
        """Names, inside a block, of the Linears of a role: `q`, `k`, `v`, `out` or `mlp`; attention must be explicit for open_clip and timm."""
        return [name for name in _LINEARS[role] if self.blocks and isinstance(_submodule(self.blocks[0], name), nn.Linear)]

    def checkpoint(self) -> None:
        """Gradient checkpointing of the blocks, in training.

        Raises:
            UsageError: they cannot be checkpointed. open_clip only warns where its timm tower cannot.
        """
        try:
            if hasattr(self.network, "set_grad_checkpointing"):
                self.network.set_grad_checkpointing(True)
            elif hasattr(self.network, "grad_checkpointing"):  # the bare Transformer that older open_clip models read text with
                self.network.grad_checkpointing = True
            else:
                raise AttributeError(self.kind)
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise UsageError(
                f"The blocks of {self.kind} cannot be checkpointed.", hint="--set checkpointing=false, and a smaller batch"
            ) from error


class _Vit(Tower):
    is_vit = True

    @property
    def explained(self) -> list[Stage]:
        return [Stage(getattr(block, "norm1", getattr(block, "ln_1", None)), 0, 0) for block in self.blocks]


class _TimmVit(_Vit):
    @property
    def levels_by_block(self) -> bool:
        # Those whose class token joins late, such as CaiT, cannot give it with the patches.
        forward = getattr(self.network, "forward_intermediates", None)
        return forward is not None and "return_prefix_tokens" in inspect.signature(forward).parameters

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.network.patch_embed.grid_size)

    @property
    def pools_class_token(self) -> bool:
        return self.network.global_pool == "token" and self.n_prefix_tokens > 0

    def pooled_levels(self, pixels: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
        prefixed = self.n_prefix_tokens > 0
        tokens = self.network.forward_intermediates(
            pixels,
            indices=[level - 1 for level in levels],
            norm=True,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            return_prefix_tokens=prefixed,
        )
        if prefixed:
            tokens = [torch.cat([prefix, patches], dim=1) for patches, prefix in tokens]
        return torch.stack([self.module.head(self.network.forward_head(x)) for x in tokens], dim=1)


class _OpenClipVit(_Vit):
    levels_by_block = True
    n_prefix_tokens = 1

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.network.transformer.resblocks

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.network.grid_size)

    @property
    def pools_class_token(self) -> bool:
        return self.network.attn_pool is None and self.network.pool_type == "tok"

    def pooled_levels(self, pixels: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
        visual, indices = self.network, [level - 1 for level in levels]
        tokens = visual.transformer.forward_intermediates(visual._embeds(pixels), indices=indices, stop_early=True)[1]
        pooled = torch.stack([visual._pool(x)[0] for x in tokens], dim=1)
        return pooled if visual.proj is None else pooled @ visual.proj


class _OpenClipResNet(Tower):
    @property
    def stages(self) -> list[Stage]:
        layers = [self.network.layer1, self.network.layer2, self.network.layer3, self.network.layer4]
        return [Stage(layer, 4 * 2**i, layer[-1].bn3.num_features) for i, layer in enumerate(layers)]

    @property
    def level_widths(self) -> list[int]:
        return [self.network.bn3.num_features, *(stage.channels for stage in self.stages)]  # the stem is a level too


class _Text(Tower):
    @property
    def blocks(self) -> Sequence[nn.Module]:
        return next((blocks for path in _TEXT_BLOCKS if (blocks := _submodule(self.network, path)) is not None), ())


def tower_of(module: nn.Module) -> Tower:
    """An image tower: a timm model, or the `visual` of an open_clip model."""
    network = getattr(module, "trunk", module)
    if hasattr(network, "attnpool"):
        return _OpenClipResNet(module, network)
    if hasattr(network, "transformer"):
        return _OpenClipVit(module, network)
    # Blocks alone are those of timm's EfficientNets too.
    if hasattr(network, "blocks") and hasattr(network, "num_prefix_tokens"):
        return _TimmVit(module, network)
    return Tower(module, network)


def towers_of(model: nn.Module) -> dict[Literal["image", "text"], Tower]:
    """The towers of an open_clip model, or the one image tower that a timm model is."""
    if not hasattr(model, "visual"):
        return {"image": tower_of(model)}
    text = model.text if hasattr(model, "text") else model.transformer
    return {"image": tower_of(model.visual), "text": _Text(text, text)}


def timm_trunk(model: nn.Module) -> nn.Module | None:
    """The timm model that is the image tower of an open_clip model; None where that is one of open_clip's."""
    return getattr(model.visual, "trunk", None)


def set_input_size(model: nn.Module, size: int) -> None:
    """Have the image tower of an open_clip model take images of `size` pixels, where it is a timm model built for one size."""
    if hasattr(timm_trunk(model), "set_input_size"):
        model.visual.set_input_size(size)


def replace_pooling(model: nn.Module, pooling: nn.Module) -> bool:
    """Put another pooling of maps into the image tower of an open_clip model; False where that is no convolutional timm model."""
    # These pool in a module of this kind; models of tokens have none, or another.
    pool = getattr(timm_trunk(model), "global_pool", None)
    if not isinstance(getattr(pool, "pool", None), nn.Module):
        return False
    model.visual.trunk.global_pool = pooling
    return True


def n_prefix_positions(model: nn.Module) -> int:
    """How many rows of a timm model's position embedding belong to no patch."""
    return 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens


def set_checkpointing(model: nn.Module, tune: str) -> None:
    """Gradient checkpointing: the towers of an open_clip model, or a timm model, keep no activations inside their blocks.

    They are computed again for the gradients, adapters and explicit attention included; dropout draws the same.

    Raises:
        UsageError: nothing in the blocks learns, or they cannot be checkpointed.

    Source: Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost* (arXiv 1604.06174).
    """
    if tune == "head":
        raise UsageError("With tune = 'head' no gradient goes through the towers: checkpointing saves nothing.", hint="leave it out")
    for tower in towers_of(model).values():
        tower.checkpoint()


# ---------------------------------------------------------------- attention


def fused_attentions(model: nn.Module) -> list[tuple[str, nn.Module, Literal["multihead", "custom", "qkv"]]]:
    """Name, module and kind of every attention whose projections are one weight and can be taken apart.

    `nn.MultiheadAttention` with one width for queries, keys and values; open_clip's `Attention` (`custom`); the fused
    `qkv` of timm's `Attention` and `AttentionRope`. Not listed: attentional poolers over another width, timm's other
    kinds (EVA, BEiT and Swin read the fused weight themselves), and Hugging Face towers, which have Linears.
    """
    from open_clip.transformer import Attention as CustomAttention
    from timm.layers import Attention, AttentionRope

    fused: list[tuple[str, nn.Module, Literal["multihead", "custom", "qkv"]]] = []
    for name, module in model.named_modules():
        if type(module) is nn.MultiheadAttention:
            if module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn:
                fused.append((name, module, "multihead"))
        elif type(module) is CustomAttention and module.logit_scale is None:  # scaled cosine fails in open_clip 3.3 itself
            fused.append((name, module, "custom"))
        elif type(module) in (Attention, AttentionRope) and isinstance(module.qkv, nn.Linear):
            fused.append((f"{name}.qkv", module.qkv, "qkv"))
    return fused


def attention_switches(model: nn.Module) -> list[nn.Module]:
    """timm's attentions, which call `scaled_dot_product_attention` where their `fused_attn` is True."""
    return [module for module in model.modules() if hasattr(module, "fused_attn")]


# ---------------------------------------------------------------- layer-wise learning rates


def depths_from_top(names: Iterable[str]) -> dict[str, int]:
    """For each parameter of a network how many stages lie above its stage: 0 in the last block and in what follows it.

    Read from the names, so that it holds for timm's models, open_clip's and adapters. Stages are counted for each tower
    apart: the image tower (names with `visual.`), the two encoders of mics (`white.`, `narrow.`), and the rest. What comes
    before the first block, a stem or an embedding of tokens, patches or positions, belongs to the stage of that block (ours).
    """
    towers: dict[str, list[str]] = {}
    for name in names:
        towers.setdefault(next((prefix for prefix in _PREFIXES if prefix in name), ""), []).append(name)
    depths = {}
    for in_tower in towers.values():
        numbers = [int(match[1]) if (match := _NUMBERED.search(name)) else None for name in in_tower]
        first, last = (pick((n for n in numbers if n is not None), default=0) for pick in (min, max))
        started = False
        for name, number in zip(in_tower, numbers):
            started |= number is not None
            if number is None:
                number = last if _ENDING.search(name) or started and not _STEM.search(name) else first
            depths[name] = last - number
    return depths


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
