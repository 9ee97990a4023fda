"""Linears as one: equal to one after the other, with and without adapters; dropout; attention written out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F

from entrep_cli.models import attention
from entrep_cli.models.attention import attend
from entrep_cli.models.joint import drop, joint

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
