"""Maps against naive loops, hand-worked cases and finite differences; what is collected, and that nothing stays behind."""

from __future__ import annotations

import entrep_cli.torchvision_ops  # noqa: F401 - before timm and open_clip import torchvision

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from entrep_cli.models.attention import explicit_attention
from entrep_cli.models.attention_maps import (
    agreement,
    grad_cam,
    gradient_rollout,
    hires_cam,
    hottest_fraction,
    layer_cam,
    record_attentions,
    record_outputs,
    rollout,
)
from entrep_cli.models.towers import tower_of
from tests.tiny import CLIP


def random_attentions(n: int, heads: int, tokens: int, blocks: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, heads, tokens, tokens, generator=generator, dtype=torch.float64).softmax(dim=-1) for _ in range(blocks)]


@pytest.mark.parametrize("n, heads, tokens, blocks", [(1, 1, 1, 1), (3, 2, 5, 1), (2, 3, 11, 4), (5, 1, 7, 3)])
def test_rollouts_are_those_of_naive_loops(n, heads, tokens, blocks):
    attentions = random_attentions(n, heads, tokens, blocks)
    gradients = [torch.randn_like(a) for a in attentions]
    readout = torch.rand(tokens, dtype=torch.float64)
    plain, weighted = rollout(attentions, readout), gradient_rollout(attentions, gradients, readout)
    for image in range(n):
        product, relevance = torch.eye(tokens, dtype=torch.float64), torch.eye(tokens, dtype=torch.float64)
        for attention, gradient in zip(attentions, gradients):
            mean, positive = torch.zeros_like(product), torch.zeros_like(product)
            for head in range(heads):
                mean += attention[image, head] / heads
                positive += (attention[image, head] * gradient[image, head]).clamp_min(0) / heads
            product = (0.5 * mean + 0.5 * torch.eye(tokens)) @ product
            relevance = relevance + positive @ relevance
        torch.testing.assert_close(plain[image], readout @ product)
        torch.testing.assert_close(weighted[image], readout @ (relevance - torch.eye(tokens)))


def test_a_rollout_shares_out_one_and_reads_the_class_token_by_default():
    attentions = random_attentions(4, 2, 6, 3)
    torch.testing.assert_close(rollout(attentions).sum(dim=1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(rollout(attentions), rollout(attentions, torch.eye(6)[0]))


def test_grad_cam_by_hand():
    features = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]], [[3.0, 0.0], [1.0, 1.0]]]])
    gradients = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[-4.0, 0.0], [0.0, 0.0]]]])  # means 1 and -1
    assert grad_cam(features, gradients)[0].tolist() == [[0.0, 2.0], [0.0, 3.0]]
    assert hires_cam(features, gradients)[0].tolist() == [[0.0, 2.0], [0.0, 4.0]]
    alike = gradients.mean(dim=(2, 3), keepdim=True).expand_as(gradients)
    assert torch.equal(hires_cam(features, alike), grad_cam(features, gradients))
    assert layer_cam(features, gradients)[0].tolist() == [[1.0, 2.0], [0.0, 4.0]]  # what speaks against at the first place is left out
    assert not layer_cam(-features, gradients).any()


def test_below_a_layer_norm_what_a_score_rests_on_is_seen_by_layer_cam_alone():
    # One place alone is active, in what the score reads and in what speaks against it: it is all that the score rests on.
    features = torch.zeros(1, 4, 2, 2, dtype=torch.float64)
    features[0, :2, 0, 0] = torch.tensor([8.0, 4.0], dtype=torch.float64)
    features.requires_grad_()
    (gradients,) = torch.autograd.grad(F.layer_norm(features.mean(dim=(2, 3)), (4,))[0, 0], features)
    found, other = (way(features.detach(), gradients)[0] for way in (layer_cam, hires_cam))
    assert found[0, 0] > 0.1 and found[0, 0] == found.sum()
    assert other.max() < 1e-3 * found.max()  # the score does not change with the scale of features


@pytest.mark.parametrize("shapes", [[(3, 3)], [(4, 6), (2, 3)], [(2, 2), (7, 5), (1, 1)]])
def test_agreement_is_a_product_of_scaled_maps(shapes):
    maps = [torch.rand(3, *shape) for shape in shapes]
    maps[0][2] = 0
    found = agreement(maps)
    height, width = max(shapes)
    assert found.shape == (3, height, width) and not found[2].any() and found.max() <= 1
    for image in range(2):
        wanted = torch.ones(height, width)
        for m in maps:
            big = F.interpolate(m[image][None, None], (height, width), mode="bilinear")[0, 0]
            wanted *= big / big.max()
        torch.testing.assert_close(found[image], wanted)


def test_gradients_of_two_layers_in_one_pass_are_those_of_two_passes():
    torch.manual_seed(0)
    tower = timm.create_model("test_resnet", num_classes=2).eval()
    first, second = tower_of(tower).last_layers(2)
    assert (first, second) == (tower.layer3, tower.layer4) and len(tower_of(tower).last_layers(99)) == 5
    pixels = torch.randn(2, 3, 64, 64)
    with record_outputs(first, second) as kept:
        found = torch.autograd.grad(tower(pixels)[:, 1].sum(), kept)
    for layer, output, gradient in zip((first, second), kept, found, strict=True):
        with record_outputs(layer) as alone:
            (wanted,) = torch.autograd.grad(tower(pixels)[:, 1].sum(), alone)
        torch.testing.assert_close(output, alone[0])
        torch.testing.assert_close(gradient, wanted)
    assert not first._forward_hooks and not second._forward_hooks


def test_grad_cam_of_a_net_agrees_with_finite_differences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 2)).double().requires_grad_(False)
    pixels = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    with record_outputs(net[0]) as kept:
        (gradient,) = torch.autograd.grad(net(pixels)[:, 1].sum(), kept)
    features = net[0](pixels)
    weights = torch.zeros(2, 4, dtype=torch.float64)
    step = 1e-6
    for channel in range(4):  # moving a whole channel by the step sums its gradients; their mean is a ninth of that
        moved = features.clone()
        moved[:, channel] += step
        weights[:, channel] = (net[1:](moved)[:, 1] - net[1:](features)[:, 1]) / step / 9
    wanted = (weights[:, :, None, None] * features).sum(dim=1).clamp_min(0)
    torch.testing.assert_close(grad_cam(kept[0].detach(), gradient), wanted, atol=1e-6, rtol=1e-4)


def test_hottest_fraction():
    heat = torch.zeros(3, 10, 10)
    heat[0, 0] = 1
    heat[1] = 0.5
    torch.testing.assert_close(hottest_fraction(heat), torch.tensor([1.0, 0.1, 0.0], dtype=torch.float64))


def flags(model: nn.Module) -> list:
    return [(type(m), m.training, len(m._forward_hooks), getattr(m, "fused_attn", None)) for m in model.modules()]


def test_attentions_are_those_that_a_stock_module_tells():
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    shell = nn.ModuleDict({"a": stock})
    x = torch.randn(3, 7, 8)
    out, wanted = stock(x, x, x, need_weights=True, average_attn_weights=False)
    with record_attentions(shell) as kept:
        found = shell["a"](x, x, x, need_weights=False)[0]
    assert shell["a"] is stock and len(kept) == 1
    torch.testing.assert_close(kept[0], wanted)
    torch.testing.assert_close(found, out)


@pytest.mark.parametrize("mask", ["bool", "float"])
def test_masks_are_kept_to(mask):
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind(0)
    hidden = torch.rand(5, 5) < 0.7
    hidden.fill_diagonal_(True)
    given = hidden if mask == "bool" else torch.zeros(5, 5).masked_fill(~hidden, -torch.inf)
    wanted = F.scaled_dot_product_attention(q, k, v, given, scale=0.3)
    with record_attentions(nn.Identity()) as kept:
        found = F.scaled_dot_product_attention(q, k, v, given, scale=0.3)
    torch.testing.assert_close(found, wanted)
    assert (kept[0][..., ~hidden] == 0).all()


@pytest.mark.parametrize("kind", ["timm", "timm unfused", "timm explicit", "open_clip", "open_clip explicit"])
def test_towers_answer_the_same_while_their_attentions_are_kept(kind):
    torch.manual_seed(0)
    if kind.startswith("timm"):
        tower = timm.create_model("test_vit", img_size=32, patch_size=8, num_classes=3).eval()
        for module in tower.modules():
            if kind == "timm unfused" and hasattr(module, "fused_attn"):
                module.fused_attn = False
        depth, tokens = len(tower.blocks), 17
    else:
        tower = open_clip.model.CLIP(**CLIP).visual.eval()
        depth, tokens = 2, 5
    if kind.endswith("explicit"):
        explicit_attention(tower)
    tower.requires_grad_(False)
    pixels = torch.randn(2, 3, 32, 32)
    before, wanted = flags(tower), tower(pixels)
    with pytest.raises(ZeroDivisionError), record_attentions(tower):
        raise ZeroDivisionError
    assert flags(tower) == before
    with record_attentions(tower) as kept:
        found = tower(pixels)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert len(kept) == depth and all(a.shape[-2:] == (tokens, tokens) for a in kept)
    gradients = torch.autograd.grad(found[:, 0].sum(), kept)  # a frozen model's too
    assert all(g.abs().sum() > 0 for g in gradients)
    assert flags(tower) == before
    tower(pixels)
    assert len(kept) == depth, "nothing is kept after the block"


def test_a_hook_is_taken_away_after_an_exception():
    layer = nn.Linear(2, 2)
    with pytest.raises(ZeroDivisionError), record_outputs(layer):
        raise ZeroDivisionError
    assert not layer._forward_hooks
