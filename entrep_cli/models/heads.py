"""Classification heads on pooled features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from entrep_cli.recipes.recipe import Section


class HeadSettings(Section):
    """The head of a recipe.

    `mlp` is the Foregut paper's (section 4.3.3): LayerNorm, dropout, then fully connected layers with
    GELU to 256 and 128 dimensions and to the classes. `linear` is one layer on the normalised features.
    """

    kind: Literal["mlp", "linear"] = "mlp"
    hidden: tuple[int, ...] = (256, 128)
    dropout: float = 0.3


class Head(nn.Module):
    """(N, D) pooled features to (N, C) logits, by way of the (N, E) features of the last hidden layer."""

    def __init__(self, dim: int, n_classes: int, settings: HeadSettings) -> None:
        super().__init__()
        hidden = settings.hidden if settings.kind == "mlp" else ()
        layers: list[nn.Module] = [nn.LayerNorm(dim)]
        if hidden:
            layers.append(nn.Dropout(settings.dropout))
        for width_in, width_out in zip((dim, *hidden), hidden):
            layers += [nn.Linear(width_in, width_out), nn.GELU()]
        self.body = nn.Sequential(*layers)
        self.output = nn.Linear((dim, *hidden)[-1], n_classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.output(self.body(features))
