"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft, on Linears chosen by role, layer and tower of a CLIP model.

The defaults are CLIP-LoRA's (arXiv 2405.18541): q, k and v in all layers of both towers, rank 2,
alpha 1, scaled by alpha / sqrt(rank), dropout 0.25.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from entrep_cli.errors import RunError, UsageError
from entrep_cli.models.attention import explicit_attention
from entrep_cli.models.towers import ROLES, towers_of
from entrep_cli.recipes.recipe import Section

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_ADAPTER = "default"
# Of the length of a feature vector. Merging in float32 moves features by about 1e-6 of it; a wrong
# merge, or one in bfloat16, which rounds small deltas to zero, by 1e-2 and more.
_MERGE_TOLERANCE = 1e-4


class LoraSettings(Section):
    """The adapters of a recipe.

    Attributes:
        targets: linear layers with an adapter: projections of the attention, or `mlp`, the layers of the feed-forward network.
        layers: numbers of the blocks with adapters, from 0, the same in each tower, or `all`.
        towers: towers with adapters.
        rank: rank r of an adapter, which has r * (inputs + outputs) parameters.
        alpha: scale of an adapter: alpha / sqrt(rank), or alpha / rank without `rslora`.
        rslora: rank-stabilised scaling, by the square root of the rank.
        dropout: dropout probability at the input of an adapter, in training.
    """

    targets: Annotated[tuple[Literal["q", "k", "v", "out", "mlp"], ...], Field(min_length=1)] = ("q", "k", "v")
    layers: Literal["all"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = "all"
    towers: Annotated[tuple[Literal["image", "text"], ...], Field(min_length=1)] = ("image", "text")
    rank: PositiveInt = 2
    alpha: PositiveFloat = 1.0
    rslora: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25


def add_lora(model: nn.Module, settings: LoraSettings) -> nn.Module:
    """Give an open_clip model adapters, in place, and freeze everything else (the logit scale too); returns the model.

    Attention is made explicit first (`explicit_attention`). New adapters change nothing until they are trained.

    Raises:
        UsageError: a tower lacks a role or a layer; all that is lacking is listed, with what it has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    explicit_attention(model)
    names = _linear_names(model, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.rslora,
        lora_dropout=settings.dropout,
        # A pattern has to match a whole name. A list would also match every name that ends alike:
        # transformer.resblocks.0.attn.q (text) is the end of visual.transformer.resblocks.0.attn.q.
        target_modules="|".join(map(re.escape, names)),
    )
    inject_adapter_in_model(config, model, _ADAPTER)
    layers = _lora_layers(model)
    assert sorted(layers) == sorted(names), "peft adapted other Linears than those named"
    for layer in layers.values():
        layer.train(model.training)  # peft makes them in training mode, with dropout on
    return model


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The adapters' parameters, for the optimizer."""
    return [parameter for name, parameter in model.named_parameters() if "lora_" in name]


def merged(model: nn.Module) -> nn.Module:
    """Fold the adapters into their Linears, in place, for inference; returns the model, in eval mode.

    The features of two random images and texts, before and after, are compared.

    Raises:
        RunError: they differ by more than float error; the model is of no use then.
    """
    model.eval()
    before = _probe(model)
    for name, layer in _lora_layers(model).items():
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config  # peft's mark of a model with adapters
    for tower, features in _probe(model).items():
        difference = float((features - before[tower]).norm() / before[tower].norm())
        if not difference <= _MERGE_TOLERANCE:  # so that what is not a number fails as well
            raise RunError(
                f"Merging the adapters moved the {tower} features by {difference:.1e} of their length (allowed: {_MERGE_TOLERANCE:.0e}).",
                hint="merge in float32 and change the precision afterwards; if it is nan, the training diverged: train with a lower rate",
            )
    return model


def _linear_names(model: nn.Module, settings: LoraSettings) -> list[str]:
    towers = towers_of(model)
    names: list[str] = []
    faults: list[str] = []
    no_linears = False
    for name in settings.towers:
        blocks = towers[name].blocks
        roles = {role: towers[name].linears(role) for role in ROLES}
        known = [role for role, places in roles.items() if places]
        if not known:
            no_linears = True
            faults.append(f"the {name} tower has no blocks of Linears that LoRA knows, as a convolutional tower has none")
            continue
        path = next(path for path, module in model.named_modules() if module is blocks)
        faults += [f"the {name} tower has no {role!r}; it has {', '.join(known)}" for role in settings.targets if role not in known]
        layers = range(len(blocks)) if settings.layers == "all" else settings.layers
        faults += [f"the {name} tower has no layer {n}; it has 0 to {len(blocks) - 1}" for n in layers if n >= len(blocks)]
        names += [f"{path}.{n}.{inner}" for n in layers for role in settings.targets for inner in roles[role]]
    if faults:
        raise UsageError(
            "LoRA cannot be added where the recipe wants it.",
            faults=faults,
            hint="--tune full trains whole towers; or leave the tower out with --set 'lora.towers=[\"text\"]'"
            if no_linears
            else "change lora.targets, lora.layers or lora.towers with --set",
        )
    return list(dict.fromkeys(names))


def _lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def _probe(model: nn.Module) -> dict[str, torch.Tensor]:
    from open_clip.hf_model import HFTextEncoder
    from open_clip.utils import to_2tuple

    weight = next(model.visual.parameters())
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, *to_2tuple(model.visual.image_size), generator=random)
    # open_clip's towers want the full context; RoBERTa's `context_length` counts two positions that no token may take.
    length = 8 if isinstance(towers_of(model)["text"].module, HFTextEncoder) else model.context_length
    tokens = torch.randint(model.vocab_size, (2, length), generator=random)
    return {
        "image": model.encode_image(pixels.to(weight.device, weight.dtype)).float(),
        "text": model.encode_text(tokens.to(weight.device)).float(),
    }
