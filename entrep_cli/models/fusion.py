"""Embeddings from several levels of an image tower, fused into one on the unit sphere.

From *Multi-Level CLS Token Fusion* (arXiv 2509.00752): multi-level CLS token aggregation and spherical
feature interpolation. Its abstract names them; how they are done is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import nn

from entrep_cli.errors import UsageError
from entrep_cli.models.towers import tower_of
from entrep_cli.recipes.recipe import Section

# Where sin w is below this, float32 rows do not determine the plane of their arc near w = pi; near
# w = 0 slerp and normalised linear interpolation agree to float32.
_TINY = 1e-3


class FusionSettings(Section):
    """The `fusion` section of a recipe (the levels are those of a tower with 12 blocks).

    Attributes:
        levels: numbers, from 1, of the blocks (of the stages of a convolutional tower) whose embeddings are fused.
        kind: `weights` is a mean with learned softmax weights; `linear` is a linear map of the concatenated embeddings.
        slerp: interpolate on the sphere between the embedding of the last level and the fused one, with a learned weight.
    """

    levels: tuple[int, ...] = (3, 6, 9, 12)
    kind: Literal["weights", "linear"] = "weights"
    slerp: bool = True

    @field_validator("levels")
    @classmethod
    def _rising(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or levels[0] < 1 or list(levels) != sorted(set(levels)):
            raise ValueError("levels are block numbers from 1 on, each once, in rising order")
        return levels


class LevelFusion(nn.Module):
    """(N, L, D) level embeddings to (N, D) unit rows, in the dtype of the input.

    The levels are brought to unit length first, so that a weight is the fraction of a level whatever its
    norm. Both kinds start as the plain mean of the levels. With slerp the result is
    slerp(last level, fused; t), t = sigmoid of a parameter, from 0.5. All of it ours.
    """

    def __init__(self, dim: int, settings: FusionSettings) -> None:
        super().__init__()
        n = len(settings.levels)
        self.level_logits = nn.Parameter(torch.zeros(n)) if settings.kind == "weights" else None
        self.linear = nn.Linear(n * dim, dim, bias=False) if settings.kind == "linear" else None
        if self.linear is not None:
            with torch.no_grad():
                self.linear.weight.copy_(torch.eye(dim).repeat(1, n) / n)
        self.slerp_logit = nn.Parameter(torch.zeros(())) if settings.slerp else None

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(levels.float(), dim=-1)
        if self.linear is not None:
            with torch.autocast(unit.device.type, enabled=False):  # what follows the tower is in float32, in training as in answers
                fused = self.linear(unit.flatten(1).to(self.linear.weight.dtype)).float()
        else:
            fused = (self.level_logits.float().softmax(dim=0)[:, None] * unit).sum(dim=1)
        fused = F.normalize(fused, dim=-1)
        if self.slerp_logit is not None:
            fused = slerp(unit[:, -1], fused, self.slerp_logit.float().sigmoid())
        return fused.to(levels.dtype)


class StageProjections(nn.Module):
    """Levels of a tower without equal blocks, such as a convolutional one: its stages. Ours.

    The last stage goes through the tower's ending (pooling and projection). That ending does not fit the
    width of the earlier stages: each of them is averaged over its positions and gets a learned linear
    projection into D. For a tower of blocks this module has no parameters.

    Args:
        visual: the image tower of an open_clip model.
        levels: as in `FusionSettings`.
        dim: D, the width of the tower's output.

    Raises:
        UsageError: the tower is not as deep as that, or has neither blocks nor stages.
    """

    def __init__(self, visual: nn.Module, levels: Sequence[int], dim: int) -> None:
        super().__init__()
        check_levels(visual, levels)
        widths = tower_of(visual).level_widths
        early = {level: widths[level - 1] for level in levels if level < len(widths)}
        self.projections = nn.ModuleDict({str(level): nn.Linear(width, dim, bias=False) for level, width in early.items()})

    def forward(self, maps: Sequence[torch.Tensor], output: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
        """(N, C, H, W) maps of all stages and the tower's (N, D) output to (N, L, D)."""
        early = {int(level): project(maps[int(level) - 1].mean(dim=(2, 3))) for level, project in self.projections.items()}
        return torch.stack([early.get(level, output) for level in levels], dim=1)


def level_embeddings(
    visual: nn.Module, pixels: torch.Tensor, levels: Sequence[int], projections: StageProjections | None = None
) -> torch.Tensor:
    """Embeddings after several blocks of an image tower, from one forward pass: (N, L, D), not normalised.

    Each level goes through the tower's ending: final norm, pooling (the CLS token, in a tower that
    pools so) and projection. With the last block among the levels, the last row is the tower's output.

    Args:
        visual: open_clip's `VisionTransformer`, `TimmModel` or `ModifiedResNet`.
        pixels: (N, 3, H, W), preprocessed.
        levels: as in `FusionSettings`.
        projections: for a tower without blocks.

    Raises:
        UsageError: the tower is not as deep as that.
    """
    check_levels(visual, levels)
    tower = tower_of(visual)
    if tower.levels_by_block:
        return tower.pooled_levels(pixels, levels)
    assert projections is not None, "a tower without blocks needs its StageProjections"
    return projections(*tower.stage_maps(pixels), levels)


def check_levels(visual: nn.Module, levels: Sequence[int]) -> None:
    """Refuse levels that the tower does not have.

    Raises:
        UsageError: names the depth of the tower, and four levels that it has.
    """
    tower = tower_of(visual)
    depth = tower.n_levels
    if missing := [level for level in levels if not 1 <= level <= depth]:
        spread = sorted({math.ceil(depth * quarter / 4) for quarter in (1, 2, 3, 4)})
        raise UsageError(
            f"The image tower has {depth} {'blocks' if tower.levels_by_block else 'stages'}, and not level {', '.join(map(str, missing))}.",
            where="fusion.levels",
            hint=f"--set 'fusion.levels={spread}'",
        )


def slerp(u: torch.Tensor, v: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """Spherical linear interpolation: [sin((1-t)w) u + sin(tw) v] / sin w, w the angle between u and v.

    Where sin w < 0.001 it is the normalised linear interpolation (1-t) u + t v instead: near w = 0 the
    two agree, near w = pi the plane of the arc is lost to rounding. Where that vanishes as well (t near
    0.5 between opposite rows), no direction is better than another and the result is u (ours). It is
    always finite and of unit length, and its gradients are finite.

    Args:
        u, v: (..., D) unit rows; slight departures from unit length, as in bfloat16, are corrected.
        t: a number, or one a row: (...,) or (..., 1).

    Returns:
        (..., D) unit rows in the dtype of `u`, computed in float32.

    Example:
        >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
        tensor([0.7071, 0.7071])
    """
    dtype = u.dtype
    u, v = F.normalize(u.float(), dim=-1), F.normalize(v.float(), dim=-1)
    t = torch.as_tensor(t, dtype=torch.float32, device=u.device)
    if t.ndim < u.ndim:
        t = t.unsqueeze(-1)
    # arccos of the clamped dot product, without its loss of digits and its infinite gradient at both ends.
    w = 2 * torch.atan2(_length(u - v), _length(u + v))
    flat = w.sin() < _TINY
    # A harmless angle where the formula is not used: its gradient would be nan even so.
    w = torch.where(flat, math.pi / 2, w)
    first = torch.where(flat, 1 - t, ((1 - t) * w).sin() / w.sin())
    second = torch.where(flat, t, (t * w).sin() / w.sin())
    mixed = first * u + second * v
    length = _length(mixed)
    vanishes = length < _TINY
    return torch.where(vanishes, u, mixed / torch.where(vanishes, 1.0, length)).to(dtype)


def mix_same_class(embeddings: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved towards another one of its class: representation diversity, for training (ours).

    slerp(z_i, z_j; t) with j drawn from the other images of the class in the batch and t uniform in
    [0, 0.5), so that the image dominates and its findings stay true of it; one that is alone in its
    class stays as it is.

    Args:
        embeddings: (N, D) unit rows.
        targets: (N,) classes.
        generator: draws j and t.

    Returns:
        (N, D) unit rows, of the same classes.
    """
    n = len(targets)
    if n < 2:
        return embeddings
    draws = torch.rand(n, n + 1, generator=generator, device=generator.device).to(embeddings.device)
    partners = (targets[:, None] == targets).fill_diagonal_(False)
    chosen = draws[:, :n].masked_fill(~partners, -1).argmax(dim=1)
    mixed = slerp(embeddings, embeddings[chosen], draws[:, n] / 2)
    return torch.where(partners.any(dim=1, keepdim=True), mixed, embeddings)


def _length(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
