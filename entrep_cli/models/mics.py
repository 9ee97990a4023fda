"""Self-supervised pre-training on two modalities: reconstruct what is masked, agree with the other one.

The pre-training of MICS (arXiv 2509.17492), whose abstract names consistency, reconstructive and aligned
learning, with "one modality as an augmented sample of another". Its figures say: an encoder for each of
white light and narrow band, one decoder for both, a mask over 75% of the patches; its released code: the
temperature, the weights of the losses, the size of the decoder. The repository holds a ViT and a training
loop, but not the model that joins them; where nothing says more, a docstring says "ours".

What the released code has and this has not: it freezes the decoder's position embedding at zero, so that
all masked patches of an image get one prediction; here it is the fixed sin-cos one of MAE. And it trains a
discriminator on detached predictions, whose loss sends no gradient to the encoders: here adversarial
learning is left out, because it had no effect. In that code the weight 0.1 stands before the adversarial
term; here it is the alignment loss's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import entrep_cli.torchvision_ops  # noqa: F401 - before timm imports torchvision

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from timm.models.vision_transformer import Block
from torch import nn

from entrep_cli.errors import UsageError
from entrep_cli.models.backbones import Backbone
from entrep_cli.models.mics_encoders import MODALITIES, Count, Pair, check_alike, initialise, patch_size, patch_tokens
from entrep_cli.recipes.recipe import Section

_GREY = 128  # what hides a masked patch in a picture
_EPSILON = 1e-6  # of a patch's variance, as in MAE

Weight = Annotated[float, Field(ge=0)]


class DecoderSettings(Section):
    """The decoder, with the released code's (and MAE's) size as default.

    Attributes:
        width: width of the decoder's tokens.
        depth: number of the decoder's blocks.
        heads: attention heads of a block.
    """

    width: Annotated[int, Field(ge=4, multiple_of=4)] = 512
    depth: Count = 8
    heads: Count = 16

    @model_validator(mode="after")
    def _whole_heads(self) -> DecoderSettings:
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} heads")
        return self


class LossWeights(Section):
    """The weights of the losses in their sum (released code: 10, 1 and 0.1).

    Attributes:
        reconstruction: weight of the reconstruction loss; 0 leaves it out.
        consistency: weight of the consistency loss; 0 leaves it out.
        alignment: weight of the alignment loss; 0 leaves it out.
    """

    reconstruction: Weight = 10.0
    consistency: Weight = 1.0
    alignment: Weight = 0.1

    @model_validator(mode="after")
    def _some(self) -> LossWeights:
        if not any(self.model_dump().values()):
            raise ValueError("all three losses are left out")
        return self


class PretrainingSettings(Section):
    """What is masked, predicted and compared.

    Attributes:
        mask_ratio: fraction of the patches that are hidden from the encoders (paper: 0.75).
        normalised_patches: predict patches normalised to mean 0 and deviation 1, as MAE does (the released code does not).
        consistency_dim: width of the linear projection of the consistency loss: low in the paper, 128 is ours.
        alignment_dim: width of the projection of the alignment loss (paper: 512), and of its hidden layer (ours).
        temperature: temperature of both contrastive losses, fixed (released configuration: 0.07).
    """

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    normalised_patches: bool = True
    consistency_dim: Count = 128
    alignment_dim: Count = 512
    temperature: Annotated[float, Field(gt=0)] = 0.07
    decoder: DecoderSettings = DecoderSettings()
    weights: LossWeights = LossWeights()


@dataclass(frozen=True)
class MicsLosses:
    """What `MicsPretraining` gives for a batch.

    Attributes:
        total: weighted sum of the three below; all four are float32 scalars with a graph.
        predictions: of each modality (N, L, P), what the decoder draws of every patch.
        masked: of each modality (N, L) bool, the patches that its encoder did not see.
    """

    total: torch.Tensor
    reconstruction: torch.Tensor
    consistency: torch.Tensor
    alignment: torch.Tensor
    predictions: Pair
    masked: Pair

    def scores(self) -> dict[str, float]:
        """The four losses as plain numbers."""
        return {name: vars(self)[name].item() for name in ("total", "reconstruction", "consistency", "alignment")}


class MicsDecoder(nn.Module):
    """(N, V, D) tokens of visible patches to (N, L, P) predictions of all patches, for both modalities.

    Visible tokens and mask tokens stand at their places, each with the sin-cos embedding of the place
    and the learned embedding of the modality (ours: one decoder must know which one it draws).
    The encoders' class tokens are not handed on (ours).
    """

    def __init__(self, dim: int, grid: tuple[int, int], patch: int, settings: DecoderSettings) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, settings.width)
        self.mask_token = nn.Parameter(torch.zeros(settings.width))
        self.modality = nn.Parameter(torch.zeros(len(MODALITIES), settings.width))
        self.register_buffer("positions", sincos_positions(settings.width, *grid), persistent=False)
        self.blocks = nn.Sequential(*(Block(settings.width, settings.heads, qkv_bias=True) for _ in range(settings.depth)))
        self.norm = nn.LayerNorm(settings.width)
        self.output = nn.Linear(settings.width, 3 * patch**2)
        initialise(self)
        for embedding in (self.mask_token, self.modality):
            nn.init.normal_(embedding, std=0.02)

    def forward(self, visible: torch.Tensor, keep: torch.Tensor, modality: int) -> torch.Tensor:
        embedded = self.embed(visible)
        tokens = self.mask_token.to(embedded.dtype).expand(len(keep), len(self.positions), -1)
        tokens = tokens.scatter(1, keep[:, :, None].expand_as(embedded), embedded)
        return self.output(self.norm(self.blocks(tokens + self.positions + self.modality[modality])))


class MicsPretraining(nn.Module):
    """Two encoders that learn from images without labels.

    Args:
        white, narrow: ViTs of timm of one width and grid, as `create_encoders` makes them. They stand under
            these names in the state dict, so that `load_encoders` finds them.

    Raises:
        UsageError: encoders that cannot be masked; see `patch_size`.
    """

    def __init__(self, white: Backbone, narrow: Backbone, settings: PretrainingSettings) -> None:
        super().__init__()
        self.settings = settings
        self.white, self.narrow = white, narrow
        self.patch = patch_size(white)
        self.grid = tuple(white.model.patch_embed.grid_size)
        check_alike(white, narrow)
        if math.prod(self.grid) < 2:
            raise UsageError("Each image is one single patch, of which nothing can be masked.", hint="a larger image.size")
        self.decoder = MicsDecoder(white.dim, self.grid, self.patch, settings.decoder)
        self.consistency = nn.ModuleList(nn.Linear(white.dim, settings.consistency_dim, bias=False) for _ in MODALITIES)
        self.alignment = nn.ModuleList(_projection(white.dim, settings.alignment_dim) for _ in MODALITIES)

    @property
    def encoders(self) -> tuple[Backbone, Backbone]:
        return self.white, self.narrow

    def forward(self, white: torch.Tensor, narrow: torch.Tensor, generator: torch.Generator) -> MicsLosses:
        """The losses of a batch of (N, 3, H, W) pixels in two modalities, row by row of the same view.

        - reconstruction: mean over the masked patches of both modalities of the mean squared error of their
          pixels (paper: masked patches, MSE; MAE, section 3). Each encoder sees one modality alone.
        - consistency: InfoNCE between low-dimensional projections of the two global embeddings (paper), linear
          and one for each modality (ours).
        - alignment: InfoNCE between Linear-BN-ReLU-Linear-BN projections of them (paper), one for each
          modality (ours).

        The global embedding is the mean of the visible patch tokens after the encoder's last norm (ours;
        unmasked it is what `Backbone` gives). The masks of the two modalities are drawn apart (ours), white
        light's first. The negatives are the other images of the batch (ours; the released configuration
        names a queue and a momentum encoder), so gradients that are summed over several batches see no more
        of them. In training N must be 2 or more, for the sake of the batch norm.

        Args:
            generator: draws the masks, on the device of the generator; the same state gives the same masks.
        """
        images = (white, narrow)
        predictions, masked, visible = zip(*(self._predict(m, pixels, generator) for m, pixels in enumerate(images)), strict=True)
        errors = [
            (drawn.float() - self.targets(m, pixels)).square().mean(dim=2)[hidden].mean()
            for m, (pixels, drawn, hidden) in enumerate(zip(images, predictions, masked, strict=True))
        ]
        reconstruction = (errors[0] + errors[1]) / 2  # as many patches are masked in each
        pooled = [tokens.mean(dim=1) for tokens in visible]
        consistency, alignment = (
            info_nce(heads[0](pooled[0]), heads[1](pooled[1]), self.settings.temperature) for heads in (self.consistency, self.alignment)
        )
        weights = self.settings.weights
        total = weights.reconstruction * reconstruction + weights.consistency * consistency + weights.alignment * alignment
        return MicsLosses(total, reconstruction, consistency, alignment, predictions, masked)

    @torch.no_grad()
    def reconstruct(self, white: torch.Tensor, narrow: torch.Tensor, generator: torch.Generator) -> tuple[Pair, Pair]:
        """Pictures of what the encoders see and of what the decoder makes of it.

        A predicted patch that is normalised gets the mean and the deviation of the true one (ours): colour and
        contrast of a patch are then given, and only its drawing is predicted. Say so under such a picture.

        Returns:
            masked and drawn, each of both modalities, (N, 3, H, W) uint8: the image with its masked patches
            grey, and with the predictions in their places.
        """
        visible, drawn = [], []
        for m, pixels in enumerate((white, narrow)):
            patches, masked, _ = self._predict(m, pixels, generator)
            normalise = self.encoders[m].normalise
            if self.settings.normalised_patches:
                mean, deviation = _statistics(patchify(normalise(pixels), self.patch))
                patches = patches.float() * deviation + mean
            shown = unpatchify(patches.float(), self.patch, self.grid) / normalise.scale + normalise.shift
            hidden = masked.view(-1, 1, *self.grid).repeat_interleave(self.patch, dim=2).repeat_interleave(self.patch, dim=3)
            drawn.append(torch.where(hidden, shown.round().clamp(0, 255), pixels).to(torch.uint8))
            visible.append(torch.where(hidden, _GREY, pixels).to(torch.uint8))
        return tuple(visible), tuple(drawn)

    def targets(self, modality: int, pixels: torch.Tensor) -> torch.Tensor:
        """(N, L, P) what is to be predicted of (N, 3, H, W) pixels: normalised as the encoder sees them, then patch by patch."""
        patches = patchify(self.encoders[modality].normalise(pixels), self.patch)
        if not self.settings.normalised_patches:
            return patches
        mean, deviation = _statistics(patches)
        return (patches - mean) / deviation

    def _predict(self, modality: int, pixels: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, L, P) predictions, (N, L) masked, and the (N, V, D) tokens of the visible patches."""
        n_patches = math.prod(self.grid)
        keep = random_keep(len(pixels), n_patches, self.settings.mask_ratio, generator).to(pixels.device)
        masked = torch.ones(len(keep), n_patches, dtype=torch.bool, device=keep.device).scatter(1, keep, False)
        visible = patch_tokens(self.encoders[modality], pixels, keep)
        return self.decoder(visible, keep, modality), masked, visible


# ---------------------------------------------------------------- functions


def random_keep(n: int, n_patches: int, ratio: float, generator: torch.Generator) -> torch.Tensor:
    """(n, V) indices of the patches that stay visible, rising; V = (1 - ratio) * n_patches, rounded, at least 1.

    Every image is shuffled by itself (MAE, section 3).
    """
    n_visible = min(max(round((1 - ratio) * n_patches), 1), n_patches - 1)
    shuffled = torch.rand(n, n_patches, generator=generator, device=generator.device).argsort(dim=1)
    return shuffled[:, :n_visible].sort(dim=1).values


def info_nce(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Symmetric InfoNCE of (N, D) rows, each the positive of the row of its number and of no other.

    With s_ij the cosine of a_i and b_j:

        L = -1/2N sum over i of [log(exp(s_ii / t) / sum_j exp(s_ij / t)) + log(exp(s_ii / t) / sum_j exp(s_ji / t))]

    Computed in float32, also under autocast; 0 for N = 1. Source: CLIP (Radford et al. 2021, figure 3).
    """
    with torch.autocast(a.device.type, enabled=False):
        logits = F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T / temperature
        rows = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2


def sincos_positions(width: int, rows: int, columns: int) -> torch.Tensor:
    """(rows * columns, width) fixed embeddings of the places of a grid, row by row.

    The first half encodes the row y, the second the column x; with w_i = 10000^(-4i / width), i < width / 4,
    each half is [sin(y w_0), sin(y w_1), ..., cos(y w_0), cos(y w_1), ...].

    Source: MAE (He et al. 2022, appendix A.1), after Vaswani et al. 2017, section 3.5.
    """
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    angles = places[:, :, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1).float()


def patchify(images: torch.Tensor, patch: int) -> torch.Tensor:
    """(N, 3, H, W) to (N, L, 3 * patch^2), patches row by row, channels first in each."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def unpatchify(patches: torch.Tensor, patch: int, grid: tuple[int, int]) -> torch.Tensor:
    """The inverse of `patchify`."""
    return F.fold(patches.transpose(1, 2), (grid[0] * patch, grid[1] * patch), patch, stride=patch)


def _projection(dim: int, width: int) -> nn.Sequential:
    # A bias before a batch norm would be subtracted again, and learn nothing.
    return nn.Sequential(
        nn.Linear(dim, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Linear(width, width, bias=False),
        nn.BatchNorm1d(width),
    )


def _statistics(patches: torch.Tensor) -> Pair:
    """(N, L, 1) mean and deviation of every patch, over its pixels and channels together (MAE, section 3)."""
    return patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + _EPSILON).sqrt()
