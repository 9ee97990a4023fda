"""Attention out of plain Linears, in place of the fused projections of open_clip and timm.

LoRA belongs on `nn.Linear` only: peft (to 0.21.2) on `nn.MultiheadAttention` applies the delta of
`out_proj` twice, ignores dropout and cannot choose q or v. So `explicit_attention` gives each
attention its own `q`, `k`, `v` and `out` first, over `scaled_dot_product_attention`. On a CPU it
is about as fast as the stock one, and many times faster where that one is slow in bfloat16: under
autocast, and with a mask (benchmarks/attention.py).
"""

from __future__ import annotations

import entrep_cli.torchvision_ops  # noqa: F401 - before timm and open_clip import torchvision

import torch
from torch import nn
from torch.nn import functional as F

from entrep_cli.models.joint import joint

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
        assert not need_weights, "scaled_dot_product_attention keeps no weights"
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if query is key is value:
            made = joint(query, (self.q, self.k, self.v))
        else:
            made = self.q(query), self.k(key), self.v(value)
        q, k, v = (_heads(x, self.n_heads) for x in made)
        mask = _additive_or_kept(attn_mask, self.n_heads, q.dtype)
        x = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        x = self.out(x.transpose(1, 2).flatten(2))
        return (x if self.batch_first else x.transpose(0, 1)), None


class ExplicitCustomAttention(nn.Module):
    """Equal to open_clip's own `Attention` (block type `custom`), with its norms and head scales.

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
        mask = _additive_or_kept(attn_mask, self.n_heads, q.dtype)
        x = attend(self.ln_q(q), self.ln_k(k), v, mask, self.attn_drop.p if self.training else 0.0)
        if self.head_scale is not None:
            x = x * self.head_scale
        return self.out_drop(self.out(self.ln_inner(x.transpose(1, 2).flatten(2))))


class ExplicitProjection(nn.Module):
    """Three Linears in place of timm's fused `qkv`: (..., D) to (..., 3 * D), q then k then v.

    timm's own forward stays, with all its variants (norms, gates, rotary positions).
    """

    STOCK = {"weight": ("q.weight", "k.weight", "v.weight"), "bias": ("q.bias", "k.bias", "v.bias")}

    def __init__(self, stock: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = _split(stock.weight, stock.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(joint(x, (self.q, self.k, self.v)), dim=-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """(N, H, L, D) queries over (N, H, S, D) keys and values: scaled dot-product attention.

    Written out for gradients in bfloat16 on a CPU, where torch's own takes twice to four times as long, unless what it
    has to keep for them, a number a pair of tokens, is large. Masks of True and False are left to torch's own, which
    knows what to do where all is hidden.
    """
    pairs = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    slow = q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad
    if not slow or pairs > _MOST_PAIRS or dropout or (mask is not None and mask.dtype == torch.bool):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.add_(mask)
    return scores.softmax(dim=-1) @ v


def explicit_attention(model: nn.Module) -> int:
    """Give every attention inside the model q, k, v and out Linears, in place; returns how many were given them.

    Replaced are `nn.MultiheadAttention` with one width for queries, keys and values, open_clip's own
    `Attention`, and the fused `qkv` of timm's `Attention` and `AttentionRope` (whose output is called
    `proj`, and is a Linear already). Left as they are: attentional poolers over another width, timm's
    other kinds (EVA, BEiT and Swin read the fused weight itself), Hugging Face towers (Linears
    already), and all that was replaced before. Weights, devices, types, training mode and which
    parameters are frozen are kept; no random number is drawn.
    """
    from open_clip.transformer import Attention as CustomAttention
    from timm.layers import Attention, AttentionRope

    n_replaced = 0
    for name, module in list(model.named_modules()):
        if type(module) is nn.MultiheadAttention and _is_plain(module):
            explicit: nn.Module = ExplicitAttention(module)
        elif type(module) is CustomAttention and module.logit_scale is None:  # scaled cosine fails in open_clip 3.3 itself
            explicit = ExplicitCustomAttention(module)
        elif type(module) in (Attention, AttentionRope) and isinstance(module.qkv, nn.Linear):
            name, explicit = f"{name}.qkv", ExplicitProjection(module.qkv)
        else:
            continue
        model.set_submodule(name, explicit.train(module.training))
        n_replaced += 1
    return n_replaced


def stock_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of an explicit model with the stock names and values.

    Adapters have no stock names: merge them first.
    """
    state = model.state_dict()
    stock_names = {parts[0]: (stock, parts) for stock, parts in _stock_names(model).items()}
    joined = {name for _, parts in stock_names.values() for name in parts}
    stock_state = {}
    for name, value in state.items():
        if name in stock_names:
            stock, parts = stock_names[name]
            stock_state[stock] = torch.cat([state[part] for part in parts])
        elif name not in joined:
            stock_state[name] = value
    return stock_state


def _stock_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return {
        f"{prefix}.{stock}": tuple(f"{prefix}.{part}" for part in parts)
        for prefix, module in model.named_modules()
        if isinstance(module, (ExplicitAttention, ExplicitCustomAttention, ExplicitProjection))
        for stock, parts in module.STOCK.items()
    }


def _is_plain(module: nn.MultiheadAttention) -> bool:
    return module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn


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


def _additive_or_kept(mask: torch.Tensor | None, n_heads: int, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask as scaled_dot_product_attention wants it, where True keeps and heads have an axis of their own."""
    if mask is None:
        return None
    mask = ~mask if mask.dtype == torch.bool else mask.to(dtype)
    return mask.unflatten(0, (-1, n_heads)) if mask.ndim == 3 else mask
