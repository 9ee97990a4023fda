"""Towers in a lower precision: near to float32, and float32 all round."""

from __future__ import annotations

import pytest
import torch

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import UsageError
from entrep_cli.methods.clip_lora import ClipLora, ClipLoraRecipe
from entrep_cli.methods.dinov2 import Dinov2, Dinov2Recipe
from entrep_cli.models import device as devices
from entrep_cli.models.backbones import Backbone
from entrep_cli.models.clip import Architecture
from entrep_cli.models.precision import choose_inference_precision, lower, precision_beside
from entrep_cli.recipes.recipe import build_recipe
from tests.tiny import CLIP, CONV_CLIP

CPU = torch.device("cpu")


def model(kind: str):
    torch.manual_seed(0)
    if kind == "dinov2":
        backbone = {"name": "test_vit", "weights": "none"}
        recipe = build_recipe(Dinov2Recipe, {"image": {"size": 32}, "backbone": backbone, "embedding": "both"})
        return Dinov2(Backbone(recipe.backbone, 32), recipe, Taxonomy.entrep()).eval()
    levels = {"vit": [1, 2], "conv": [4, 5]}[kind]
    recipe = build_recipe(ClipLoraRecipe, {"image": {"size": 32}, "fusion": {"levels": levels}})
    return ClipLora(Architecture({"vit": CLIP, "conv": CONV_CLIP}[kind]), recipe, Taxonomy.entrep()).eval()


@pytest.mark.parametrize("kind", ["vit", "conv", "dinov2"])
def test_bf16_is_near_and_what_comes_out_is_float32(kind):
    made = model(kind)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted, wanted_classes, _ = made.infer(pixels)
    lower(made, "bf16")
    found, classes, _ = made.infer(pixels)
    tower = made.get_submodule(made.low_precision[0])
    assert made.engine == "bf16" and next(tower.parameters()).dtype == torch.bfloat16
    assert found.dtype == classes.dtype == torch.float32
    assert (found * wanted).sum(dim=1).min() > 0.995 and not torch.equal(found, wanted)
    assert torch.allclose(classes, wanted_classes, atol=0.03)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)


def test_fp32_changes_nothing():
    made = model("vit")
    before = {name: value.clone() for name, value in made.state_dict().items()}
    lower(made, "fp32")
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_the_choice_and_its_reason(monkeypatch):
    made = model("vit")
    monkeypatch.setattr(devices, "_bf16_units", lambda: ["avx512_bf16"])
    assert choose_inference_precision("auto", CPU, made) == ("bf16", "the CPU computes in it: avx512_bf16")
    chosen, reason = choose_inference_precision("auto", CPU, model("conv"))
    assert chosen == "fp32" and "convolutions" in reason
    assert choose_inference_precision("auto", CPU, model("dinov2"))[0] == "bf16"
    assert choose_inference_precision("bf16", CPU, model("conv")) == ("bf16", "asked for")
    monkeypatch.setattr(devices, "_bf16_units", list)
    assert choose_inference_precision("auto", CPU, made)[0] == "fp32"
    with pytest.raises(UsageError, match="not faster in fp16"):
        choose_inference_precision("fp16", CPU, made)


def test_a_method_without_such_towers(monkeypatch):
    monkeypatch.setattr(devices, "_bf16_units", lambda: ["amx_bf16"])
    other = type("Other", (), {"recipe": type("R", (), {"method": "mics"})(), "low_precision": ()})()
    assert choose_inference_precision("auto", CPU, other) == ("fp32", "mics answers in it alone")
    with pytest.raises(UsageError, match="mics answers in fp32 alone"):
        choose_inference_precision("bf16", CPU, other)


@pytest.mark.parametrize(
    ("kept", "units", "chosen"),
    [
        (None, True, "bf16"),
        (None, False, "fp32"),
        ("fp32", True, "fp32"),  # as what is kept, though the CPU computes in bf16
        ("onnx 0123456789abcdef", True, "fp32"),
        ("bf16", True, "bf16"),
        ("bf16", False, "fp32"),  # slow here
        ("fp16", True, "fp32"),
    ],
)
def test_what_is_embedded_later_is_embedded_alike(monkeypatch, kept, units, chosen):
    monkeypatch.setattr(devices, "_bf16_units", lambda: ["amx_bf16"] * units)
    assert precision_beside(kept, CPU, model("vit"))[0] == chosen
