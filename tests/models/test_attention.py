"""Explicit attention is the stock one: outputs, gradients and state dicts, in every kind of block."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from timm import create_model
from torch import nn

from entrep_cli.models.attention import ExplicitAttention, explicit_attention, stock_state_dict

VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16}
TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
NORMS = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
POOLER = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4}


def clip(vision: dict | None = None, text: dict | None = None) -> nn.Module:
    return open_clip.CLIP(24, VISION | (vision or {}), TEXT | (text or {}), quick_gelu=True)


def custom(vision: dict | None = None, text: dict | None = None) -> nn.Module:
    return open_clip.CustomTextCLIP(24, VISION | (vision or {}), TEXT | (text or {}))


def timm(name: str, size: int) -> dict:
    return {"timm_model_name": name, "timm_pool": "token", "timm_proj": "linear", "image_size": size}


# name -> model, and how many attentions of it are replaced
MODELS = {
    "clip": (clip, 5),
    "layer scale": (lambda: clip({"ls_init_value": 0.5}, {"ls_init_value": 0.5}), 5),
    "no causal mask": (lambda: custom(text={"no_causal_mask": True, "pool_type": "last"}), 5),
    "mask an example": (lambda: custom(text={"embed_cls": True}), 5),
    "custom blocks": (lambda: custom(NORMS, NORMS), 5),
    "pooler": (lambda: clip(POOLER), 5),
    "pooler of the tower's width": (lambda: clip(POOLER | {"width": 24, "head_width": 8}), 6),
    "timm": (lambda: custom(timm("test_vit", 160)), 8),
    "timm, other attention": (lambda: custom(timm("test_convnext", 160) | {"timm_pool": "avg"}), 2),
}


def stock_and_explicit(name: str) -> tuple[nn.Module, nn.Module]:
    build, n_replaced = MODELS[name]
    torch.manual_seed(0)
    stock = build()
    with torch.no_grad():  # stock biases start at zero and would hide a bias gone astray
        for parameter in stock.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    explicit = copy.deepcopy(stock)
    assert explicit_attention(explicit) == n_replaced
    return stock, explicit


def inputs(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 64, (3, model.context_length), generator=random)
    tokens[0, 7:] = 0  # padding
    return torch.rand(3, 3, *model.visual.image_size, generator=random), tokens


def features(model: nn.Module) -> torch.Tensor:
    pixels, tokens = inputs(model)
    return torch.cat([model.encode_image(pixels), model.encode_text(tokens)])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_the_stock_ones(name, training):
    stock, explicit = (model.train(training) for model in stock_and_explicit(name))
    wanted, found = features(stock), features(explicit)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(wanted)
    (wanted * weights).sum().backward()
    (found * weights).sum().backward()
    # The gradients, put in the weights' place, are renamed like them.
    for model in (stock, explicit):
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = stock_state_dict(explicit)
    for key, gradient in stock.state_dict().items():
        assert torch.allclose(gradients[key], gradient, rtol=1e-4, atol=1e-4), key


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_survive_the_round_trip(name):
    stock, explicit = stock_and_explicit(name)
    state = stock_state_dict(explicit)
    assert state.keys() == stock.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in stock.state_dict().items())
    stock.load_state_dict(state, strict=True)


def test_rotary_attention_of_timm():
    """Of the PE-Core towers."""
    torch.manual_seed(0)
    stock = create_model("vit_pe_core_tiny_patch16_384", img_size=48, depth=2, num_classes=0).eval()
    explicit = copy.deepcopy(stock)
    assert explicit_attention(explicit) == 2
    pixels = torch.rand(2, 3, 48, 48)
    assert torch.allclose(explicit(pixels), stock(pixels), atol=1e-5)


def test_inference_takes_no_fast_path_to_another_result():
    stock, explicit = (model.eval() for model in stock_and_explicit("clip"))
    with torch.inference_mode():
        assert torch.allclose(features(stock), features(explicit), rtol=1e-5, atol=1e-5)


def test_bfloat16_and_autocast_run():
    _, explicit = stock_and_explicit("clip")
    pixels, tokens = inputs(explicit)
    wanted = features(explicit.eval()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(features(explicit).float(), wanted, atol=0.1)
    explicit.bfloat16()
    found = torch.cat([explicit.encode_image(pixels.bfloat16()), explicit.encode_text(tokens)])
    assert torch.allclose(found.float(), wanted, atol=0.1)


def test_conversion_keeps_what_is_frozen_and_the_mode_and_happens_once():
    model = clip().eval()
    model.lock_image_tower()
    explicit_attention(model)
    for tower, trained in ((model.visual, False), (model, True)):
        attention = tower.transformer.resblocks[0].attn
        assert isinstance(attention, ExplicitAttention) and not attention.training
        assert all(parameter.requires_grad is trained for parameter in attention.parameters())
    assert explicit_attention(model) == 0


def test_conversion_draws_no_random_numbers():
    model = clip()
    before = torch.get_rng_state()
    explicit_attention(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["none", "bool", "float", "bool an example and head"])
def test_every_mask_and_layout_of_multihead_attention(kind, batch_first):
    torch.manual_seed(0)
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=batch_first)})
    query, key = torch.randn(3, 5, 8), torch.randn(3, 6, 8)
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    hidden = torch.rand(6, 5, 6) < 0.3
    hidden[..., 0] = False  # a row that sees nothing has no softmax
    mask = {"none": None, "bool": hidden[0], "float": torch.randn(5, 6)}.get(kind, hidden)
    wanted, _ = model["attn"](query, key, key, need_weights=False, attn_mask=mask)
    assert explicit_attention(model) == 1
    found, weights = model["attn"](query, key, key, need_weights=False, attn_mask=mask)
    assert weights is None and torch.allclose(found, wanted, atol=1e-6)
