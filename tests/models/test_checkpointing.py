"""Checkpointed blocks: the same gradients, adapters and dropout included, from less memory."""

from __future__ import annotations

import pytest
import torch

from entrep_cli.errors import UsageError
from entrep_cli.models.attention import explicit_attention
from entrep_cli.models.backbones import Backbone, BackboneSettings
from entrep_cli.models.checkpointing import set_checkpointing
from entrep_cli.models.clip import Architecture, build_clip, encode_texts
from entrep_cli.models.fusion import level_embeddings
from entrep_cli.models.lora import LoraSettings, add_lora
from tests.tiny import CLIP


def clip(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_clip(Architecture({**CLIP, "custom_text": kind == "custom"}), 32)
    if kind == "lora":
        add_lora(model, LoraSettings())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    else:
        explicit_attention(model)
    return model.train()


def gradients(model, loss) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients, and how many bytes the graph kept."""
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(1)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(model)
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, kept


def same_with_less(model, loss, switch) -> None:
    wanted, before = gradients(model, loss)
    model.zero_grad(set_to_none=True)
    switch()
    found, after = gradients(model, loss)
    assert found.keys() == wanted.keys() and len(wanted) > 2
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6) for name in wanted)
    assert after < before / 2


@pytest.mark.parametrize("kind", ["plain", "custom", "lora"])
def test_both_towers_of_open_clip(kind):
    model = clip(kind)
    pixels = torch.rand(2, 3, 32, 32)
    tokens = torch.randint(1, 40000, (3, 16), generator=torch.Generator().manual_seed(0))
    tokens[:, 9], tokens[:, 10:] = 49407, 0

    def loss(model):
        return level_embeddings(model.visual, pixels, (1, 2)).square().sum() + encode_texts(model, tokens).square().sum()

    same_with_less(model, loss, lambda: set_checkpointing(model, "full"))


def test_a_backbone_of_timm():
    torch.manual_seed(0)
    backbone = Backbone(BackboneSettings(name="test_vit", weights="none"), 32).train()
    explicit_attention(backbone.model)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    same_with_less(backbone, lambda model: model(pixels).square().sum(), lambda: set_checkpointing(backbone.model, "full"))


def test_where_there_is_nothing_to_checkpoint():
    with pytest.raises(UsageError, match="nothing to checkpoint"):
        set_checkpointing(clip("plain"), "head")
    with pytest.raises(UsageError, match="cannot be checkpointed"):
        set_checkpointing(torch.nn.Linear(2, 2), "full")
