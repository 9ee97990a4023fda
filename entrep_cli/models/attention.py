"""Attention out of plain Linears, in place of the fused projections of open_clip and timm.

LoRA belongs on `nn.Linear` only: peft (to 0.21.2) on `nn.MultiheadAttention` applies the delta of
`out_proj` twice, ignores dropout and cannot choose q or v. So `explicit_attention` first gives each
attention separate Linears `q`, `k`, `v` and `out`, over `scaled_dot_product_attention`. On a CPU it
is about as fast as the stock one, and many times faster where that one is slow in bfloat16: under
autocast, and with a mask (benchmarks/attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import entrep_cli.torchvision_ops  # noqa: F401 - before timm and open_clip import torchvision

import torch
from torch import nn
from torch.nn import functional as F

from entrep_cli.models.towers import fused_attentions

_PROJECTIONS = ("q", "k", "v")
_MOST_PAIRS = 2**24  # 32 MB a layer: 32 images of 197 tokens in 12 heads


class ExplicitAttention(nn.Module):
    """Equal to the `nn.MultiheadAttention` it is made from, called as open_clip calls that one.

    `forward` takes (N, L, D) queries and (N, S, D) keys and values, or (L, N, D) where the stock one
    is not `batch_first`, and a mask of (L, S) or (N * heads, L, S): floats are added to the scores,
    True hides. It returns (attended values, None), for weights are never asked for.
    """

    # stock name -> the names whose rows, one below the other, it holds
    STOCK = {
        "in_proj_weight": ("q.weight", "k.weight", "v.weight"),
        "in_proj_bias": ("q.bias", "k.bias", "v.bias"),
        "out_proj.weight": ("out.weight",),
        "out_proj.bias": ("out.bias",),
    }

    def __init__(self, stock: nn.MultiheadAttention) -> None:
        super().__init__()
        self.n_heads, self.dropout, self.batch_first = stock.num_heads, stock.dropout, stock.batch_first
        self.q, self.k, self.v = _split(stock.in_proj_weight, stock.in_proj_bias)
        self.out = stock.out_proj

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        assert not need_weights, "scaled_dot_product_attention returns no weights"
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if query is key is value:
            made = joint(query, (self.q, self.k, self.v))
        else:
            made = self.q(query), self.k(key), self.v(value)
        q, k, v = (_heads(x, self.n_heads) for x in made)
        mask = _additive(attn_mask, self.n_heads, q.dtype)
        x = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        x = self.out(x.transpose(1, 2).flatten(2))
        return (x if self.batch_first else x.transpose(0, 1)), None


class ExplicitCustomAttention(nn.Module):
    """Equal to open_clip's `Attention` (block type `custom`), with its norms and head scales.

    `forward` takes (N, L, D) tokens and a mask as above, and returns (N, L, D).
    """

    STOCK = ExplicitAttention.STOCK

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.n_heads = stock.num_heads
        self.q, self.k, self.v = _split(stock.in_proj_weight, stock.in_proj_bias)
        self.ln_q, self.ln_k, self.ln_inner = stock.ln_q, stock.ln_k, stock.ln_inner
        self.head_scale = stock.head_scale
        self.attn_drop, self.out, self.out_drop = stock.attn_drop, stock.out_proj, stock.out_drop

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (_heads(made, self.n_heads) for made in joint(x, (self.q, self.k, self.v)))
        mask = _additive(attn_mask, self.n_heads, q.dtype)
        x = attend(self.ln_q(q), self.ln_k(k), v, mask, self.attn_drop.p if self.training else 0.0)
        if self.head_scale is not None:
            x = x * self.head_scale
        return self.out_drop(self.out(self.ln_inner(x.transpose(1, 2).flatten(2))))


class ExplicitProjection(nn.Module):
    """Three Linears in place of timm's fused `qkv`: (..., D) to (..., 3 * D), q then k then v.

    timm's forward stays, with all its variants (norms, gates, rotary positions).
    """

    STOCK = {"weight": ("q.weight", "k.weight", "v.weight"), "bias": ("q.bias", "k.bias", "v.bias")}

    def __init__(self, stock: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = _split(stock.weight, stock.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(joint(x, (self.q, self.k, self.v)), dim=-1)


def joint(x: torch.Tensor, linears: Sequence[nn.Module]) -> tuple[torch.Tensor, ...]:
    """(..., D) to the outputs of Linears that read the same input, of which some may be peft's LoRA layers.

    One product with all weights, and of the adapters one product with all A, one with all B and one dropout, in place
    of three each: a training step reads and adds up its activations a third as often (benchmarks/training.py). Adapters
    that differ in their state are applied one by one. Dropout is LoRA's (arXiv 2106.09685), on the input of A; that q, k
    and v drop the same places is ours.
    """
    adapted = [linear for linear in linears if not isinstance(linear, nn.Linear)]
    dropouts = {_dropout(linear) for linear in adapted}
    if len(dropouts) != 1 or any(layer.merged or layer.disable_adapters for layer in adapted):
        return tuple(linear(x) for linear in linears)
    bases = [linear if isinstance(linear, nn.Linear) else linear.base_layer for linear in linears]
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
    remain = bits.view(torch.uint8)[: x.numel()].view(x.shape) >= int(p * 256)
    return x * remain.to(x.dtype).mul_(1 / (1 - p))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """(N, H, L, D) queries over (N, H, S, D) keys and values: scaled dot-product attention.

    Written out for gradients in bfloat16 on a CPU, where torch's function takes twice to four times as long, unless what
    is stored for them, a number a pair of tokens, is large. Masks of True and False are left to torch's function, which
    handles rows in which all is hidden.
    """
    pairs = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    slow = q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad
    if not slow or pairs > _MOST_PAIRS or dropout or (mask is not None and mask.dtype == torch.bool):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.add_(mask)
    return scores.softmax(dim=-1) @ v


_EXPLICIT = {"multihead": ExplicitAttention, "custom": ExplicitCustomAttention, "qkv": ExplicitProjection}


def explicit(stock: nn.Module, kind: str) -> nn.Module:
    """The explicit form of one of `fused_attentions`, in the same mode."""
    return _EXPLICIT[kind](stock).train(stock.training)


def explicit_attention(model: nn.Module) -> int:
    """Give every one of `fused_attentions` of the model q, k, v and out Linears, in place; returns how many were replaced.

    Weights, devices, types, training mode and which parameters are frozen stay; no random number is drawn.
    """
    fused = fused_attentions(model)
    for name, module, kind in fused:
        model.set_submodule(name, explicit(module, kind))
    return len(fused)


def stock_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of an explicit model with the stock names and values.

    Adapters have no stock names: merge them first.
    """
    state = model.state_dict()
    stock_names = {pieces[0]: (stock, pieces) for stock, pieces in _stock_names(model).items()}
    joined = {name for _, pieces in stock_names.values() for name in pieces}
    stock_state = {}
    for name, value in state.items():
        if name in stock_names:
            stock, pieces = stock_names[name]
            stock_state[stock] = torch.cat([state[piece] for piece in pieces])
        elif name not in joined:
            stock_state[name] = value
    return stock_state


def _stock_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return {
        f"{prefix}.{stock}": tuple(f"{prefix}.{piece}" for piece in pieces)
        for prefix, module in model.named_modules()
        if isinstance(module, tuple(_EXPLICIT.values()))
        for stock, pieces in module.STOCK.items()
    }


def _split(weight: torch.Tensor, bias: torch.Tensor | None) -> list[nn.Linear]:
    biases = (None,) * len(_PROJECTIONS) if bias is None else bias.chunk(len(_PROJECTIONS))
    return [_linear(*rows) for rows in zip(weight.chunk(len(_PROJECTIONS)), biases, strict=True)]


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return linear


def _heads(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def _additive(mask: torch.Tensor | None, n_heads: int, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask as scaled_dot_product_attention wants it, where True means visible and heads have a separate axis."""
    if mask is None:
        return None
    mask = ~mask if mask.dtype == torch.bool else mask.to(dtype)
    return mask.unflatten(0, (-1, n_heads)) if mask.ndim == 3 else mask


def _up(linear: nn.Module, base: nn.Linear) -> torch.Tensor:
    """(O, R) B of a Linear with its scaling; R is 0 where it has no adapter."""
    return base.weight.new_zeros(len(base.weight), 0) if linear is base else _only(linear.lora_B).weight * _only(linear.scaling)


def _dropout(adapted: nn.Module) -> float:
    dropout = _only(adapted.lora_dropout)  # an Identity where it is 0
    return dropout.p if isinstance(dropout, nn.Dropout) else 0.0


def _only(by_adapter):
    (value,) = by_adapter.values()
    return value
