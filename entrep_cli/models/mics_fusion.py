"""Fine-tuning on two modalities: their tokens fused, and a classifier that also learns from shifted features.

The fine-tuning of MICS (arXiv 2509.17492). Its abstract names different encoders for the original
modalities, a fusion encoder, and a distribution shift of the fused features; its figures say 6 blocks of
self-attention, cross-attention and feed-forward, and a classifier on z_f, z_f + s_w and z_f + s_n. The
repository holds no code of it: what a docstring calls ours is ours. The shifts come from `training.shift`.
"""

from __future__ import annotations

import contextlib
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from entrep_cli.errors import UsageError
from entrep_cli.models.backbones import Backbone
from entrep_cli.models.mics_encoders import MODALITIES, Count, Pair, check_alike, initialise, patch_tokens
from entrep_cli.recipes.recipe import Section


class FusionEncoderSettings(Section):
    """The fusion encoder.

    Attributes:
        depth: number of blocks (paper: 6, and 12 for comparison).
        heads: attention heads of a block; they must divide the width of the encoders.
        ratio: width of the hidden layer of the feed-forward network, as a multiple of the encoders' width.
        dropout: dropout probability of the attention, of the hidden layer, and after each of the three steps of a block.
    """

    depth: Count = 6
    heads: Count = 12
    ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Attention(nn.Module):
    """(N, L, D) tokens that attend to (N, S, D) others: (N, L, D), in plain Linears."""

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.q, self.v, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        # The same number added to all scores of a query changes nothing: a bias here would learn nothing.
        self.k = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for x in (self.q(tokens), self.k(others), self.v(others)))
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(x.transpose(1, 2).flatten(2))


class FusionBlock(nn.Module):
    """One block on the tokens w of white light and n of narrow band, pre-norm with residuals:

        w = w + self(norm1(w))                  n = n + self(norm1(n))
        w' = w + cross(norm2(w), norm2(n))      n' = n + cross(norm2(n), norm2(w))
        w' = w' + mlp(norm3(w'))                n' = n' + mlp(norm3(n'))

    `cross(x, y)` has its queries from x, its keys and values from y. Both crossings read what the
    self-attention gave, so neither modality comes first. The order of the three steps is the paper's;
    one set of weights for both streams, pre-norm and GELU are ours.
    """

    def __init__(self, dim: int, settings: FusionEncoderSettings) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = Attention(dim, settings.heads, settings.dropout)
        self.cross = Attention(dim, settings.heads, settings.dropout)
        hidden = round(dim * settings.ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(settings.dropout), nn.Linear(hidden, dim))
        self.drop = nn.Dropout(settings.dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(2N, L, D), first all of white light, then all of narrow band; the same out."""
        normed = self.norm1(tokens)
        tokens = tokens + self.drop(self.attention(normed, normed))
        normed = self.norm2(tokens)
        tokens = tokens + self.drop(self.cross(normed, normed.roll(len(normed) // 2, dims=0)))
        return tokens + self.drop(self.mlp(self.norm3(tokens)))


class FusionEncoder(nn.Module):
    """(N, L, D) patch tokens of white light and of narrow band to z_f, (N, D).

    A learned embedding distinguishes the modalities, because the blocks have one set of weights for both (ours).
    z_f is the mean of all tokens of both after a last LayerNorm (ours): pooled as the encoders' features are, so
    that it starts near their mean, and the shifts, drawn among those features, are of its scale.

    Raises:
        UsageError: the width does not divide into the heads.
    """

    def __init__(self, dim: int, settings: FusionEncoderSettings) -> None:
        super().__init__()
        if dim % settings.heads:
            fitting = [heads for heads in range(1, settings.heads + 1) if dim % heads == 0]
            raise UsageError(f"A width of {dim} does not divide into {settings.heads} heads.", hint=f"--set fusion.heads={fitting[-1]}")
        self.modality = nn.Parameter(torch.zeros(len(MODALITIES), dim))
        self.blocks = nn.Sequential(*(FusionBlock(dim, settings) for _ in range(settings.depth)))
        self.norm = nn.LayerNorm(dim)
        initialise(self)
        nn.init.normal_(self.modality, std=0.02)

    def forward(self, white: torch.Tensor, narrow: torch.Tensor) -> torch.Tensor:
        tokens = self.blocks(torch.cat([white + self.modality[0], narrow + self.modality[1]]))
        pooled = self.norm(tokens).mean(dim=1)
        return (pooled[: len(white)] + pooled[len(white) :]) / 2


class MicsClassifier(nn.Module):
    """Both encoders, unmasked, the fusion encoder and a linear head.

    Args:
        white, narrow: as `create_encoders` makes them, loaded or not.
        settings: of the fusion encoder; None fuses by the mean of the two encoders' features (the
            ablation without a fusion encoder, ours).
        frozen: keep the encoders as they are, also while training.
    """

    def __init__(
        self, white: Backbone, narrow: Backbone, n_classes: int, settings: FusionEncoderSettings | None, frozen: bool = False
    ) -> None:
        super().__init__()
        check_alike(white, narrow)
        self.white, self.narrow, self.frozen = white, narrow, frozen
        self.fusion = FusionEncoder(white.dim, settings) if settings else None
        self.head = nn.Linear(white.dim, n_classes)
        initialise(self.head)
        if frozen:
            for encoder in (white, narrow):
                encoder.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> MicsClassifier:
        super().train(mode)
        for encoder in (self.white, self.narrow) if self.frozen else ():
            encoder.eval()
        return self

    def forward(self, white: torch.Tensor, narrow: torch.Tensor, shifts: Pair | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """z_f (N, D) and logits of (N, 3, H, W) pixels in two modalities.

        Args:
            shifts: s_w and s_n, (N, D) each, in training alone (paper: at test z_f stands alone).

        Returns:
            z_f, and the logits of z_f (N, C), or with shifts of z_f, z_f + s_w and z_f + s_n (3, N, C);
            one head reads all three (ours), and no gradient goes into the shifts.
        """
        return self.classify_tokens(*self.tokens(white, narrow), shifts)

    def tokens(self, white: torch.Tensor, narrow: torch.Tensor) -> Pair:
        """(N, L, D) patch tokens of both modalities; frozen encoders give the same ones every time, so that they can be cached."""
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            return patch_tokens(self.white, white), patch_tokens(self.narrow, narrow)

    def classify_tokens(self, white: torch.Tensor, narrow: torch.Tensor, shifts: Pair | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """What `forward` gives, from (N, L, D) tokens."""
        assert shifts is None or self.training, "shifts are for training alone"
        z = self.fusion(white, narrow) if self.fusion else (white.mean(dim=1) + narrow.mean(dim=1)) / 2
        views = z if shifts is None else torch.stack([z, *(z + shift.detach().to(z) for shift in shifts)])
        with torch.autocast(views.device.type, enabled=False):
            return z, self.head(views.float())
