"""The fusion encoder against its formula, and the classifier with and without shifts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from entrep_cli.errors import UsageError
from entrep_cli.models.backbones import BackboneSettings
from entrep_cli.models.mics_encoders import create_encoders, load_encoders
from entrep_cli.models.mics_fusion import Attention, FusionEncoder, FusionEncoderSettings, MicsClassifier

SIZE = 32
ENCODER = BackboneSettings(name="test_vit", weights="none", options={"patch_size": 8, "depth": 2})
FUSION = FusionEncoderSettings(depth=2, heads=4)


def make(frozen: bool = False, settings: FusionEncoderSettings | None = FUSION) -> MicsClassifier:
    torch.manual_seed(0)
    white, narrow, _ = create_encoders(ENCODER, SIZE)
    return MicsClassifier(white, narrow, 3, settings, frozen)


def images(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int, n: int = 2, length: int = 5, dim: int = 8) -> torch.Tensor:
    return torch.randn(n, length, dim, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the fusion encoder


def attention_by_loops(module: Attention, queries: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(L, D) and (S, D): every head and every query for itself."""
    width = queries.shape[1] // module.n_heads
    parts = []
    for query in queries:
        heads = []
        for h in range(module.n_heads):
            own = slice(h * width, (h + 1) * width)
            q = module.q(query)[own]
            scores = torch.stack([q @ module.k(other)[own] / width**0.5 for other in others]).softmax(dim=0)
            heads.append(sum(score * module.v(other)[own] for score, other in zip(scores, others)))
        parts.append(module.out(torch.cat(heads)))
    return torch.stack(parts)


@torch.no_grad()
def test_fusion_is_its_formula():
    torch.manual_seed(0)
    encoder = FusionEncoder(8, FusionEncoderSettings(depth=2, heads=2)).eval()
    for parameter in encoder.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    white, narrow = tokens(0), tokens(1)
    fused = encoder(white, narrow)
    assert fused.shape == (2, 8)
    for i in range(2):
        w, n = white[i] + encoder.modality[0], narrow[i] + encoder.modality[1]
        for block in encoder.blocks:
            w, n = (x + attention_by_loops(block.attention, block.norm1(x), block.norm1(x)) for x in (w, n))
            crossed_w = w + attention_by_loops(block.cross, block.norm2(w), block.norm2(n))
            crossed_n = n + attention_by_loops(block.cross, block.norm2(n), block.norm2(w))
            w, n = (x + block.mlp(block.norm3(x)) for x in (crossed_w, crossed_n))
        wanted = torch.cat([encoder.norm(w), encoder.norm(n)]).mean(dim=0)
        assert torch.allclose(fused[i], wanted, atol=1e-4)


@torch.no_grad()
def test_fusion_tells_the_modalities_apart_and_each_sees_the_other():
    torch.manual_seed(0)
    encoder = FusionEncoder(8, FusionEncoderSettings(depth=1, heads=2)).eval()
    white, narrow = tokens(0), tokens(1)
    fused = encoder(white, narrow)
    assert not torch.allclose(fused, encoder(narrow, white), atol=1e-5)
    # White light's half of the mean depends on narrow band.
    whole = encoder.blocks(torch.cat([white, narrow]))[:2]
    assert not torch.allclose(whole, encoder.blocks(torch.cat([white, tokens(2)]))[:2], atol=1e-6)
    # Images of a batch do not see each other.
    assert torch.allclose(fused[:1], encoder(white[:1], narrow[:1]), atol=1e-6)


@torch.no_grad()
def test_fusion_starts_near_the_mean_of_the_encoders_features():
    model = make().eval()
    white, narrow = model.tokens(images(), images(seed=1))
    z, _ = model.classify_tokens(white, narrow)
    mean = (white.mean(dim=1) + narrow.mean(dim=1)) / 2
    assert F.cosine_similarity(z, mean).min() > 0.9


def test_depth_and_heads_are_options():
    assert len(FusionEncoder(24, FusionEncoderSettings(depth=12, heads=12)).blocks) == 12 and FusionEncoderSettings().depth == 6
    with pytest.raises(UsageError) as error:
        FusionEncoder(64, FusionEncoderSettings())
    assert error.value.hint == "--set fusion.heads=8"


# ---------------------------------------------------------------- the classifier


def test_shifted_features_get_logits_of_their_own():
    model = make()
    shifts = (torch.ones(4, 64), torch.full((4, 64), -2.0))
    z, logits = model(images(), images(seed=1), shifts)
    plain, alone = model(images(), images(seed=1))
    assert z.shape == (4, 64) and logits.shape == (3, 4, 3) and alone.shape == (4, 3)
    assert torch.allclose(z, plain) and torch.allclose(logits[0], alone, atol=1e-6)
    for k, shift in enumerate(shifts, 1):
        assert torch.allclose(logits[k], model.head(z + shift), atol=1e-6)


def test_at_test_there_is_no_shift():
    model = make().eval()
    with pytest.raises(AssertionError):
        model(images(), images(seed=1), (torch.ones(4, 64),) * 2)
    with torch.no_grad():
        assert torch.equal(model(images(), images(seed=1))[1], model(images(), images(seed=1))[1])


def test_no_gradient_goes_into_the_shifts():
    shifts = tuple(torch.zeros(4, 64, requires_grad=True) for _ in range(2))
    make()(images(), images(seed=1), shifts)[1].sum().backward()
    assert all(shift.grad is None for shift in shifts)


@pytest.mark.parametrize("settings", [FUSION, None])
@pytest.mark.parametrize("frozen", [False, True])
def test_every_parameter_that_learns_gets_a_gradient(frozen, settings):
    model = make(frozen, settings)
    _, logits = model(images(), images(seed=1), (torch.zeros(4, 64),) * 2)
    F.cross_entropy(logits.flatten(0, 1), torch.tensor([0, 1, 2, 0]).repeat(3)).backward()
    named = dict(model.named_parameters())
    learning = {name for name, p in named.items() if p.requires_grad}
    parts = {"head"} | ({"fusion"} if settings else set()) | (set() if frozen else {"white", "narrow"})
    assert {name.split(".")[0] for name in learning} == parts
    assert not [name for name in learning if named[name].grad is None or not named[name].grad.abs().max() > 1e-9]
    assert all(named[name].grad is None for name in named.keys() - learning)


def test_frozen_encoders_stay_in_the_mode_of_test():
    model = make(frozen=True)
    assert not model.white.training and model.fusion.training and not model.train().narrow.training
    assert make().white.training


def test_kept_tokens_give_the_same_as_pixels():
    model = make(frozen=True)
    kept = model.tokens(images(), images(seed=1))
    assert kept[0].shape == (4, 16, 64) and not kept[0].requires_grad
    assert torch.equal(model.classify_tokens(*kept)[1], model(images(), images(seed=1))[1])


def test_its_encoders_load_again(tmp_path):
    model = make()
    white, narrow, _ = create_encoders(ENCODER, SIZE)
    load_encoders(white, narrow, model.state_dict(), tmp_path)
    assert torch.equal(narrow.eval()(images()), model.narrow.eval()(images()))


def test_encoders_that_differ_are_refused():
    white, _, _ = create_encoders(ENCODER, SIZE)
    _, narrow, _ = create_encoders(ENCODER, SIZE * 2)
    with pytest.raises(UsageError, match="differ"):
        MicsClassifier(white, narrow, 3, FUSION)
