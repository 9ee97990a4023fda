"""Explicit attention is the stock one: outputs, gradients and state dicts, in every kind of block; so are joint Linears, with adapters."""

from __future__ import annotations

import copy
import math

import entrep_cli.torchvision_ops  # noqa: F401 - before timm and open_clip import torchvision

import open_clip
import pytest
import torch
import torch.utils.checkpoint
from timm import create_model
from torch import nn
from torch.nn import functional as F

from entrep_cli.models import attention
from entrep_cli.models.attention import ExplicitAttention, attend, drop, explicit_attention, joint, stock_state_dict

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


# ---------------------------------------------------------------- Linears as one

X = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Three(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8, bias), nn.Linear(8, 8, bias), nn.Linear(8, 4, bias)

    @property
    def linears(self) -> list[nn.Module]:
        return [self.q, self.k, self.v]


def three(adapted: tuple[str, ...], dropout: float = 0.0, bias: bool = True) -> Three:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(1)
    made = Three(bias)
    if adapted:
        config = LoraConfig(r=2, lora_alpha=3, use_rslora=True, lora_dropout=dropout, target_modules=list(adapted))
        inject_adapter_in_model(config, made, "a")
    made.double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora" in name:
                parameter.normal_()
    return made.train()


def outputs_and_gradients(made: Three, outputs: list[torch.Tensor], x: torch.Tensor):
    sum((out.sin().sum() for out in outputs), torch.zeros(())).backward()
    return [*outputs, x.grad, *(p.grad for p in made.parameters() if p.requires_grad)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("adapted", [("q", "k", "v"), ("q", "v"), ("k",), ()])
def test_they_give_and_learn_what_each_alone_does(adapted, bias):
    made, x = three(adapted, bias=bias), X.clone().requires_grad_()
    other, y = copy.deepcopy(made), X.clone().requires_grad_()
    found = outputs_and_gradients(made, list(joint(x, made.linears)), x)
    wanted = outputs_and_gradients(other, [linear(y) for linear in other.linears], y)
    assert len(found) == len(wanted) and all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, wanted))


@pytest.mark.parametrize("off", ["merge", "disable"])
def test_adapters_that_are_merged_or_off_are_left_so(off):
    made = three(("q", "v"))
    for linear in (made.q, made.v):
        linear.merge() if off == "merge" else linear.enable_adapters(False)
    wanted = [linear(X) for linear in made.linears]
    assert all(torch.equal(a, b) for a, b in zip(joint(X, made.linears), wanted))


def test_dropout_is_on_what_goes_down_and_is_one_for_all():
    made = three(("q", "k", "v"), dropout=0.25)
    torch.manual_seed(3)
    found = joint(X, made.linears)
    torch.manual_seed(3)
    dropped = drop(X, 0.25)
    for linear, out in zip(made.linears, found):
        low = dropped @ linear.lora_A["a"].weight.T @ linear.lora_B["a"].weight.T
        assert torch.allclose(out, linear.base_layer(X) + 3 / math.sqrt(2) * low, atol=1e-12)
    made.eval()
    assert all(torch.allclose(a, linear(X), atol=1e-12) for a, linear in zip(joint(X, made.linears), made.linears))


def test_adapters_that_are_not_alike_are_not_taken_together():
    made = three(("q", "v"))
    made.v.merge()
    wanted = [linear(X) for linear in made.linears]
    assert all(torch.equal(a, b) for a, b in zip(joint(X, made.linears), wanted))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_under_autocast_and_checkpointing(checkpointed):
    """In bfloat16 near to float64, and with the same dropout where the pass is made again for the gradients."""
    made, x = three(("q", "k", "v"), dropout=0.25).float(), X.float().requires_grad_()

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return torch.cat(joint(x, made.linears), dim=-1)

    torch.manual_seed(3)
    found = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False) if checkpointed else run(x)
    found.float().sum().backward()
    exact, y = copy.deepcopy(made).double(), X.clone().requires_grad_()
    torch.manual_seed(3)
    wanted = torch.cat(joint(y, exact.linears), dim=-1)
    wanted.sum().backward()
    assert found.dtype == torch.bfloat16 and torch.allclose(found.double(), wanted, atol=0.1, rtol=0.05)
    assert torch.allclose(x.grad.double(), y.grad, atol=0.1, rtol=0.05)
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad.double(), exact.get_parameter(name).grad, atol=0.15, rtol=0.05), name


@pytest.mark.parametrize("p", [0.25, 0.5, 1 / 256, 0.0, 0.3])
def test_dropout_keeps_as_many_as_it_should_and_their_sum(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 999, requires_grad=True)
    found = drop(x, p)
    n, kept = x.numel(), int((found != 0).sum())
    assert abs(kept - (1 - p) * n) <= 5 * math.sqrt(n * p * (1 - p))
    assert torch.allclose(found[found != 0], torch.tensor(1 / (1 - p)))
    found.sum().backward()
    assert torch.equal(x.grad, found.detach())
    torch.manual_seed(0)
    assert torch.equal(found, drop(x, p)) and (p == 0 or not torch.equal(found, drop(x, p)))


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_attention_written_out_is_attention(mask, monkeypatch):
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, 7, 16) for _ in range(3)]
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    masks = {"none": None, "causal": torch.zeros(7, 7).masked_fill_(hidden, -torch.inf)}
    taken = [x.clone().requires_grad_() for x in exact]
    wanted = F.scaled_dot_product_attention(*taken, masks[mask])
    wanted.sin().sum().backward()
    low = [x.bfloat16().requires_grad_() for x in exact]
    own = None if masks[mask] is None else masks[mask].bfloat16()
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # written out, or this fails
    found = attend(*low, own, 0.0)
    found.float().sin().sum().backward()
    assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), wanted, atol=0.03)
    assert all(torch.allclose(a.grad.float(), b.grad, atol=0.05) for a, b in zip(low, taken))


def test_attention_of_many_pairs_or_without_gradients_is_left_to_torch(monkeypatch):
    torch.manual_seed(0)
    low = [torch.randn(1, 2, 5, 8).bfloat16() for _ in range(3)]
    wanted = F.scaled_dot_product_attention(*low)
    assert torch.equal(attend(*low, None, 0.0), wanted)
    learning = [x.requires_grad_() for x in low]
    assert not torch.equal(attend(*learning, None, 0.0), wanted)
    all_hidden = torch.zeros(5, 5, dtype=torch.bool)
    assert torch.equal(attend(*learning, all_hidden, 0.0), F.scaled_dot_product_attention(*low, all_hidden))
    monkeypatch.setattr(attention, "_MOST_PAIRS", 49)
    assert torch.equal(attend(*learning, None, 0.0), wanted)
