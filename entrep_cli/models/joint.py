"""Several Linears that read the same input, as one: the q, k and v of an attention, with LoRA on any of them.

One product with all weights, and of the adapters one product with all A, one with all B and one dropout, in place of
three each: a training step reads and adds up its activations a third as often (benchmarks/training.py). Dropout is
LoRA's (arXiv 2106.09685), on the input of A; that q, k and v drop the same places is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


def joint(x: torch.Tensor, linears: Sequence[nn.Module]) -> tuple[torch.Tensor, ...]:
    """(..., D) to the outputs of the Linears, of which some may be peft's LoRA layers; not as one where these are not alike."""
    adapted = [linear for linear in linears if hasattr(linear, "lora_A")]
    dropouts = {getattr(_only(linear.lora_dropout), "p", 0.0) for linear in adapted}
    if not all(map(_is_active, adapted)) or len(dropouts) != 1:
        return tuple(linear(x) for linear in linears)
    bases = [getattr(linear, "base_layer", linear) for linear in linears]
    bias = None if bases[0].bias is None else torch.cat([base.bias for base in bases])
    rows = F.linear(x, torch.cat([base.weight for base in bases]), bias)
    down = torch.cat([_only(linear.lora_A).weight for linear in adapted])
    up = torch.block_diag(*(_up(linear, base) for linear, base in zip(linears, bases)))
    (p,) = dropouts
    reduced = F.linear(drop(x, p) if p and adapted[0].training else x, down)
    rows = torch.addmm(rows.flatten(0, -2), reduced.flatten(0, -2), up.T).view(rows.shape)
    return rows.split([len(base.weight) for base in bases], dim=-1)


def drop(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout. On a CPU, whose random numbers are slow, a byte decides in place of a float where p is a multiple of 1/256."""
    if x.device.type != "cpu" or not (p * 256).is_integer():
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.uint8)[: x.numel()].view(x.shape) >= int(p * 256)
    return x * kept.to(x.dtype).mul_(1 / (1 - p))


def _up(linear: nn.Module, base: nn.Linear) -> torch.Tensor:
    """(O, R) B of a Linear with its scaling; R is 0 where it has no adapter."""
    return base.weight.new_zeros(len(base.weight), 0) if linear is base else _only(linear.lora_B).weight * _only(linear.scaling)


def _is_active(layer: nn.Module) -> bool:
    return not (layer.merged or layer.disable_adapters)


def _only(by_adapter):
    (value,) = by_adapter.values()
    return value
