"""Slerp against float64 at both ends of its domain, levels against hooks, the fusion by hand."""

from __future__ import annotations

import math

import entrep_cli.torchvision_ops  # noqa: F401 - before open_clip imports torchvision

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from entrep_cli.errors import UsageError
from entrep_cli.models.fusion import (
    FusionSettings,
    LevelFusion,
    StageProjections,
    check_levels,
    level_embeddings,
    mix_same_class,
    slerp,
)
from entrep_cli.models.towers import tower_of

# Angles over the whole domain, dense at both ends.
angles = st.one_of(
    st.floats(0, math.pi),
    st.floats(-8, 0).map(lambda k: 10**k),
    st.floats(-8, 0).map(lambda k: math.pi - 10**k),
    st.sampled_from([0.0, math.pi]),
)


def rows_at(angle: float, seed: int, dim: int = 5, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two unit rows with that angle between them, as nearly as `dtype` can say."""
    rng = np.random.default_rng(seed)
    plane, _ = np.linalg.qr(rng.normal(size=(dim, 2)))
    u = plane[:, 0]
    v = math.cos(angle) * u + math.sin(angle) * plane[:, 1]
    return torch.tensor(u).to(dtype), torch.tensor(v).to(dtype)


def slerp_in_float64(u: torch.Tensor, v: torch.Tensor, t: float) -> np.ndarray:
    """The formula as methods.md has it, in Python's floats; refuses the seams between its cases."""
    u, v = (x.double().numpy() / np.linalg.norm(x.double().numpy()) for x in (u, v))
    w = math.acos(min(1.0, max(-1.0, float(u @ v))))
    assume(abs(math.sin(w) - 1e-3) > 1e-4)
    if math.sin(w) > 1e-3:
        return (math.sin((1 - t) * w) * u + math.sin(t * w) * v) / math.sin(w)
    mixed = (1 - t) * u + t * v
    length = np.linalg.norm(mixed)
    assume(abs(length - 1e-3) > 1e-4)
    return u if length < 1e-3 else mixed / length


@settings(deadline=None, max_examples=50)
@given(angles, st.floats(0, 1), st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16]))
def test_slerp_is_the_naive_formula(angle, t, seed, dtype):
    u, v = rows_at(angle, seed, dtype=dtype)
    wanted = slerp_in_float64(u, v, t)
    found = slerp(u, v, t)
    assert found.dtype == dtype
    # Towards w = pi the rounding of the rows themselves is magnified by 1 / sin w; bfloat16 rounds the result.
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-6 + 1e-6 / max(math.sin(angle), 1e-3)
    assert np.abs(found.double().numpy() - wanted).max() < tolerance


@settings(deadline=None, max_examples=50)
@given(angles, st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), st.sampled_from([torch.float32, torch.bfloat16]))
def test_slerp_stays_finite_and_unit_with_finite_gradients(angle, t, dtype):
    u, v = (x.requires_grad_() for x in rows_at(angle, 1, dtype=dtype))
    at = torch.tensor(t, requires_grad=True)
    found = slerp(u, v, at)
    assert abs(found.float().norm().item() - 1) < (2**-7 if dtype == torch.bfloat16 else 1e-5)
    (found.float() * torch.arange(5)).sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (u, v, at))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slerp_at_the_exact_ends(dtype):
    u = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert torch.equal(slerp(u, u, t), u)
        assert torch.equal(slerp(u, -u, t), u if t <= 0.5 else -u)
        slerp(u, -u, t).sum().backward()
        slerp(u, u, t).sum().backward()
    assert torch.isfinite(u.grad).all()


def test_slerp_by_hand():
    """A quarter circle: t is the share of the right angle."""
    u, v = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    third = slerp(u, v, 1 / 3)
    assert torch.allclose(third, torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_slerp_takes_one_t_a_row(shape):
    u, v = F.normalize(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    t = torch.tensor([0.0, 0.3, 1.0])
    rows = torch.stack([slerp(u[i], v[i], t[i].item()) for i in range(3)])
    assert torch.allclose(slerp(u, v, t.view(shape)), rows, atol=1e-6)
    assert torch.allclose(slerp(u, v, torch.tensor(0.3))[1], rows[1], atol=1e-6)


def test_gradient_of_slerp_is_that_of_differences():
    u, v = (F.normalize(torch.randn(4, generator=torch.Generator().manual_seed(s)), dim=0) for s in (0, 1))
    t = torch.tensor(0.3, requires_grad=True)
    slerp(u, v, t)[0].backward()
    step = 1e-2
    difference = (slerp(u, v, 0.3 + step) - slerp(u, v, 0.3 - step))[0] / (2 * step)
    assert t.grad.item() == pytest.approx(difference.item(), abs=1e-3)


def levels_tensor(n: int = 3, count: int = 4, dim: int = 6) -> torch.Tensor:
    return torch.randn(n, count, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["weights", "linear"])
def test_fusion_starts_as_the_mean_of_the_levels(kind):
    levels = levels_tensor()
    fusion = LevelFusion(6, FusionSettings(kind=kind, slerp=False))
    mean = F.normalize(F.normalize(levels, dim=-1).mean(dim=1), dim=-1)
    assert torch.allclose(fusion(levels), mean, atol=1e-6)
    half = LevelFusion(6, FusionSettings(kind=kind))(levels)
    # Half way between two unit rows is their sum, normalised.
    assert torch.allclose(half, F.normalize(mean + F.normalize(levels[:, -1], dim=-1), dim=-1), atol=1e-6)


def test_fusion_weights_by_hand():
    """Weights 1/4 and 3/4 of two orthogonal levels, whatever their norms."""
    fusion = LevelFusion(2, FusionSettings(levels=(1, 2), slerp=False))
    with torch.no_grad():
        fusion.level_logits.copy_(torch.tensor([0.0, math.log(3)]))
    found = fusion(torch.tensor([[[5.0, 0.0], [0.0, 0.1]]]))
    assert torch.allclose(found, torch.tensor([[1.0, 3.0]]) / math.sqrt(10), atol=1e-6)


@pytest.mark.parametrize("kind, n_parameters", [("weights", 4 + 1), ("linear", 4 * 6 * 6 + 1)])
def test_fusion_is_learned(kind, n_parameters):
    fusion = LevelFusion(6, FusionSettings(kind=kind))
    assert sum(p.numel() for p in fusion.parameters()) == n_parameters
    (fusion(levels_tensor()) * torch.arange(6.0)).sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in fusion.parameters())


@pytest.mark.parametrize("kind", ["weights", "linear"])
def test_fusion_in_bfloat16(kind):
    levels = levels_tensor()
    fusion = LevelFusion(6, FusionSettings(kind=kind))
    wanted = fusion(levels)
    found = fusion.bfloat16()(levels.bfloat16())
    assert found.dtype == torch.bfloat16 and (found.float() - wanted).abs().max() < 0.02


def test_equal_levels_stay():
    """Every level the same, or one level alone: slerp at w = 0, inside the model."""
    one = F.normalize(torch.randn(3, 1, 6), dim=-1).requires_grad_()
    found = LevelFusion(6, FusionSettings())(one.expand(3, 4, 6))
    assert torch.allclose(found, one[:, 0], atol=1e-6)
    found.sum().backward()
    assert torch.isfinite(one.grad).all()


@pytest.mark.parametrize("levels", [(), (0, 3), (3, 3), (6, 3)])
def test_levels_that_are_none(levels):
    with pytest.raises(ValidationError):
        FusionSettings(levels=levels)


def clip_vit(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    size = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 4, "heads": 2, "mlp_ratio": 2.0, "output_dim": 16}
    return open_clip.transformer.VisionTransformer(**size, **options).eval()


def timm_tower(name: str, pool: str = "avg", proj: str = "linear", dim: int = 16) -> torch.nn.Module:
    torch.manual_seed(0)
    return open_clip.timm_model.TimmModel(name, dim, pool=pool, proj=proj).eval()


def pixels(size: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def after_each_block(blocks: torch.nn.Module, run) -> list[torch.Tensor]:
    """What each block gives out in one run; a block that runs twice would be there twice."""
    seen: list[torch.Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, output: seen.append(output)) for block in blocks]
    run()
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def test_levels_of_open_clips_vit():
    tower, x = clip_vit(), pixels(32)
    tokens = after_each_block(tower.transformer.resblocks, lambda: tower(x))
    wanted = torch.stack([tower.ln_post(tokens[i][:, 0]) @ tower.proj for i in (0, 2, 3)], dim=1)
    assert torch.allclose(level_embeddings(tower, x, (1, 3, 4)), wanted, atol=1e-6)
    assert torch.allclose(level_embeddings(tower, x, (1, 3, 4))[:, -1], tower(x), atol=1e-6)
    assert len(after_each_block(tower.transformer.resblocks, lambda: level_embeddings(tower, x, (1, 3, 4)))) == 4
    assert len(after_each_block(tower.transformer.resblocks, lambda: level_embeddings(tower, x, (1, 2)))) == 2


@torch.no_grad()
@pytest.mark.parametrize("options", [{"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}, {"attentional_pool": True}])
def test_the_last_level_is_the_tower_whatever_its_pooling(options):
    tower, x = clip_vit(**options), pixels(32)
    assert torch.allclose(level_embeddings(tower, x, (2, 4))[:, -1], tower(x), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name, pool, proj", [("test_vit", "token", "linear"), ("test_vit", "avg", "mlp"), ("test_vit4", "map", "none")])
def test_levels_of_timms_vit(name, pool, proj):
    tower, x = timm_tower(name, pool, proj), pixels(160)
    depth = tower_of(tower).n_levels
    assert depth == len(tower.trunk.blocks)
    found = level_embeddings(tower, x, tuple(range(1, depth + 1)))
    assert torch.allclose(found[:, -1], tower(x), atol=1e-5)
    if pool == "token":
        tokens = after_each_block(tower.trunk.blocks, lambda: tower(x))
        wanted = torch.stack([tower.head(tower.trunk.norm(token[:, 0])) for token in tokens], dim=1)
        assert torch.allclose(found, wanted, atol=1e-5)
    assert len(after_each_block(tower.trunk.blocks, lambda: level_embeddings(tower, x, (1, depth)))) == depth


@torch.no_grad()
@pytest.mark.parametrize("name", ["mobilenetv2_100", "test_resnet", "test_convnext"])
def test_levels_of_a_convolutional_tower_are_its_stages(name):
    tower, x = timm_tower(name), pixels(64)
    depth = tower_of(tower).n_levels
    levels = (2, depth - 1, depth)
    projections = StageProjections(tower, levels, 16)
    found = level_embeddings(tower, x, levels, projections)
    maps = tower.forward_intermediates(x)["image_intermediates"]
    assert [p.in_features for p in projections.projections.values()] == [maps[i - 1].shape[1] for i in levels[:-1]]
    for i, level in enumerate(levels[:-1]):
        wanted = maps[level - 1].mean(dim=(2, 3)) @ projections.projections[str(level)].weight.T
        assert torch.allclose(found[:, i], wanted, atol=1e-6)
    assert torch.allclose(found[:, -1], tower(x), atol=1e-6)
    assert level_embeddings(tower, x, (1, 2), StageProjections(tower, (1, 2), 16)).shape == (2, 2, 16)


@torch.no_grad()
def test_levels_of_open_clips_resnet():
    torch.manual_seed(0)
    tower = open_clip.modified_resnet.ModifiedResNet(layers=[1, 1, 1, 1], output_dim=16, heads=2, image_size=64, width=8).eval()
    x = pixels(64)
    for levels in ((1, 3, 5), (2, 4)):
        found = level_embeddings(tower, x, levels, StageProjections(tower, levels, 16))
        assert found.shape == (2, len(levels), 16)
        assert levels[-1] < 5 or torch.allclose(found[:, -1], tower(x), atol=1e-6)


def test_stage_projections_are_trained_and_a_vit_has_none():
    tower = timm_tower("test_resnet")
    projections = StageProjections(tower, (1, 5), 16)
    level_embeddings(tower, pixels(64), (1, 5), projections).sum().backward()
    assert [p.grad.abs().sum() > 0 for p in projections.parameters()] == [True]
    assert not list(StageProjections(clip_vit(), (1, 4), 16).parameters())


@pytest.mark.parametrize(
    "tower, what, spread", [(clip_vit, "4 blocks", "[1, 2, 3, 4]"), (lambda: timm_tower("test_resnet"), "5 stages", "[2, 3, 4, 5]")]
)
def test_levels_beyond_the_tower_are_refused_with_its_depth(tower, what, spread):
    visual = tower()
    with pytest.raises(UsageError, match=f"has {what}, and not level 6, 9, 12") as caught:
        check_levels(visual, FusionSettings(levels=(3, 6, 9, 12)).levels)
    assert caught.value.hint == f"--set 'fusion.levels={spread}'"
    with pytest.raises(UsageError):
        level_embeddings(visual, pixels(32), (6,))
    with pytest.raises(UsageError):
        StageProjections(visual, (6,), 16)


def test_a_tower_without_levels_is_refused():
    with pytest.raises(UsageError, match="Linear"):
        _ = tower_of(torch.nn.Linear(1, 1)).n_levels


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), max_size=9), st.integers(0, 9))
def test_mixed_images_lie_between_two_of_their_class(labels, seed):
    targets = torch.tensor(labels, dtype=torch.long)
    # Each image an axis of its own: what is mixed into it can be read off.
    z = torch.eye(9)[: len(labels)]
    found = mix_same_class(z, targets, torch.Generator().manual_seed(seed))
    assert found.shape == z.shape and torch.allclose(found.norm(dim=1), torch.ones(len(labels)), atol=1e-6)
    for i, label in enumerate(labels):
        used = found[i].nonzero().flatten().tolist()
        assert len(used) <= 2 and all(labels[j] == label for j in used)
        assert found[i, i] >= found[i].max()  # its own findings stay true of it
        if labels.count(label) == 1:
            assert torch.equal(found[i], z[i])
    assert torch.equal(found, mix_same_class(z, targets, torch.Generator().manual_seed(seed)))


def test_every_partner_is_drawn_but_never_the_image_itself():
    z, targets = torch.eye(4), torch.tensor([0, 0, 0, 1])
    generator = torch.Generator().manual_seed(0)
    partners = {tuple(row.nonzero().flatten().tolist()) for _ in range(50) for row in mix_same_class(z, targets, generator)[:1]}
    assert partners == {(0, 1), (0, 2)}
