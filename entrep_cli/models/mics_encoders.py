"""The two encoders of MICS: plain ViTs of timm, one for white light and one for narrow band.

Used in pre-training (`models.mics`) and fine-tuning (`models.mics_fusion`): how they are made and loaded,
and the tokens of some or all of their patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import entrep_cli.torchvision_ops  # noqa: F401 - before timm imports torchvision

import torch
from pydantic import Field
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from entrep_cli.errors import UsageError, WeightsError, first_line
from entrep_cli.models.backbones import Backbone, BackboneSettings, create_backbone, load_weights

MODALITIES = ("white", "narrow")  # in the order of everything that comes in pairs

Count = Annotated[int, Field(ge=1)]
Pair = tuple[torch.Tensor, torch.Tensor]  # of white light and of narrow band


def create_encoders(settings: BackboneSettings, size: int) -> tuple[Backbone, Backbone, dict[str, Any]]:
    """An encoder for white light and one for narrow band, and where their weights come from (`create_backbone`).

    Both start from the same weights, or, without any, from different random ones. What a ViT has for other
    poolings than the mean of its patch tokens is frozen, because no gradient reaches it.

    Raises:
        UsageError: no ViT of timm, or another pooling than the mean; WeightsError and others as `create_backbone`.
    """
    if settings.pooling not in ("auto", "mean"):
        raise UsageError(f"mics pools the mean of the patch tokens, not {settings.pooling!r}.", hint="--set backbone.pooling=auto")
    try:
        (white, origin), (narrow, _) = create_backbone(settings, size), create_backbone(settings, size)
    except AssertionError as error:  # of timm, for a size that its patches do not fill
        raise UsageError(f"{settings.name!r} cannot take images of {size} pixels: {first_line(error)}", where="image.size") from error
    for encoder in (white, narrow):
        patch_size(encoder)
        for unused in (encoder.model.fc_norm, encoder.model.attn_pool, encoder.model.head):
            if unused is not None:
                unused.requires_grad_(False)
    return white, narrow, origin


def load_encoders(white: Backbone, narrow: Backbone, state: Mapping[str, torch.Tensor], where: Path) -> None:
    """Load both encoders from the state of a `MicsPretraining` or a `MicsClassifier`, strictly.

    Position embeddings are resized where the images have another size (`backbones.load_weights`).

    Raises:
        WeightsError: it has no such encoders, or others.
    """
    for name, encoder in zip(MODALITIES, (white, narrow), strict=True):
        tensors = encoder_state(state, name)
        if not tensors:
            hint = "name a run of `entrep pretrain mics`"
            raise WeightsError(f"The weights have no encoder {name!r} of mics.", where=where, hint=hint)
        load_weights(encoder.model, tensors, where)


def encoder_state(state: Mapping[str, torch.Tensor], modality: str = "white") -> dict[str, torch.Tensor]:
    """The tensors of one encoder of mics under timm's names; empty where it has none."""
    prefix = f"{modality}.model."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def patch_size(encoder: Backbone) -> int:
    """The side of a patch of a ViT that can be masked, in pixels.

    Raises:
        UsageError: another kind of model, patches that are no squares, or an image that they do not fill.
    """
    model = encoder.model
    # Other transformers of timm (EVA, BEiT, Swin) add positions inside their blocks, and could not leave patches out.
    if not isinstance(model, VisionTransformer) or not isinstance(model.patch_embed, PatchEmbed):
        hint = "one such is --backbone vit_base_patch16_384"
        raise UsageError(f"{encoder.settings.name!r} is no plain ViT whose patches can be masked.", hint=hint)
    (height, width), sides = model.patch_embed.patch_size, model.patch_embed.img_size
    if height != width or any(side % height for side in sides):
        raise UsageError(
            f"Images of {sides[0]} x {sides[1]} do not divide into patches of {height} x {width}.",
            where="image.size",
            hint=f"--set image.size={max(height, sides[0] // height * height)}",
        )
    return height


def patch_tokens(encoder: Backbone, pixels: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    """(N, V, D) tokens of the patches after the last norm: of those at the (N, V) indices `keep`, or of all.

    Positions are added before patches are left out, and the class token stays among them (MAE, section 3).
    """
    model = encoder.model
    if keep is None:
        return model.forward_features(encoder.normalise(pixels))[:, encoder.n_prefix_tokens :]
    tokens = model._pos_embed(model.patch_embed(encoder.normalise(pixels)))
    prefix, patches = tokens[:, : encoder.n_prefix_tokens], tokens[:, encoder.n_prefix_tokens :]
    visible = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))
    return model.norm(model.blocks(model.norm_pre(torch.cat([prefix, visible], dim=1))))[:, encoder.n_prefix_tokens :]


def check_alike(white: Backbone, narrow: Backbone) -> None:
    """Refuse encoders that one decoder or one fusion encoder cannot serve (UsageError)."""
    shapes = [(e.dim, patch_size(e), tuple(e.model.patch_embed.grid_size)) for e in (white, narrow)]
    if shapes[0] != shapes[1]:
        raise UsageError(f"The encoders differ in width, patch or grid: {shapes[0]} and {shapes[1]}.", hint="two of one kind")


def initialise(module: nn.Module) -> None:
    """Weights of all Linears from a normal with deviation 0.02, biases zero, as timm and the released code begin."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
