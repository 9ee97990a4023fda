"""LoRA: which Linears are adapted, what is trained, the scaling by hand, save, load and merge."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import open_clip
import pytest
import torch
from pydantic import ValidationError
from timm import create_model
from torch import nn

from entrep_cli.errors import RunError, UsageError
from entrep_cli.models.lora import LoraSettings, add_lora, lora_parameters, merged

VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16}
TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
ALL_ROLES = ("q", "k", "v", "out", "mlp")


def clip() -> nn.Module:
    return open_clip.CLIP(24, VISION, TEXT, quick_gelu=True)


def custom() -> nn.Module:
    return open_clip.CustomTextCLIP(24, VISION, TEXT | {"no_causal_mask": True})


def timm(name: str, size: int, pool: str = "token") -> nn.Module:
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": "linear", "image_size": size}
    return open_clip.CustomTextCLIP(24, vision, TEXT)


def bert(folder: Path) -> nn.Module:
    """A text tower of Hugging Face, as BiomedCLIP's is, from a configuration in a folder."""
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    BertConfig(vocab_size=64, max_position_embeddings=16, **sizes).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_pooler_type": "cls_last_hidden_state_pooler"}
    return open_clip.CustomTextCLIP(24, VISION, text)


MODELS = {
    "clip": lambda folder: clip(),
    "custom": lambda folder: custom(),
    "timm": lambda folder: timm("test_vit", 160),
    "bert": bert,
}


def trained(model: nn.Module, settings: LoraSettings | None = None) -> nn.Module:
    """The model with adapters that change something."""
    add_lora(model, settings or LoraSettings())
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.normal_(std=0.3)
    return model.eval()


def features(model: nn.Module) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, 3, *model.visual.image_size, generator=random)
    tokens = torch.randint(1, 64, (3, 12), generator=random)
    with torch.no_grad():
        return torch.cat([model.encode_image(pixels), model.encode_text(tokens)])


def adapted(model: nn.Module) -> set[str]:
    return {name.rsplit(".lora_", 1)[0] for name, _ in model.named_parameters() if ".lora_" in name}


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_defaults_are_those_of_clip_lora():
    settings = LoraSettings()
    assert (settings.targets, settings.layers, settings.towers) == (("q", "k", "v"), "all", ("image", "text"))
    assert (settings.rank, settings.alpha, settings.rslora, settings.dropout) == (2, 1.0, True, 0.25)


@pytest.mark.parametrize(
    "wrong", [{"targets": ()}, {"targets": ("query",)}, {"layers": (-1,)}, {"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"towers": ()}]
)
def test_settings_that_do_not_hold_are_refused(wrong):
    with pytest.raises(ValidationError):
        LoraSettings(**wrong)


def test_trained_parameters_are_those_counted_by_hand():
    """r * (inputs + outputs) a Linear: q, k, v and out are square, the two of the mlp are D to 4 D and back."""
    r = 3
    square, mlp = {d: r * 2 * d for d in (48, 32)}, {d: 2 * r * (d + 4 * d) for d in (48, 32)}
    assert n_parameters(add_lora(clip(), LoraSettings(rank=r))) == 3 * 3 * square[48] + 2 * 3 * square[32]
    everything = add_lora(custom(), LoraSettings(rank=r, targets=ALL_ROLES))
    assert n_parameters(everything) == 3 * (4 * square[48] + mlp[48]) + 2 * (4 * square[32] + mlp[32])
    one = add_lora(clip(), LoraSettings(rank=r, targets=("v",), layers=(2,), towers=("image",)))
    assert n_parameters(one) == square[48] == sum(parameter.numel() for parameter in lora_parameters(one))
    # timm's test_vit: 6 blocks of width 64, with an mlp of width 192.
    of_timm = add_lora(timm("test_vit", 160), LoraSettings(rank=r, targets=ALL_ROLES, towers=("image",)))
    assert n_parameters(of_timm) == 6 * (4 * r * 128 + 2 * r * (64 + 192))


def test_trained_parameters_of_a_bert_tower(tmp_path):
    model = add_lora(bert(tmp_path), LoraSettings(rank=3, targets=ALL_ROLES, towers=("text",)))
    assert n_parameters(model) == 2 * (4 * 3 * 64 + 2 * 3 * (32 + 40))
    assert "text.transformer.encoder.layer.1.attention.self.query" in adapted(model)


def test_only_the_chosen_linears_are_adapted():
    """The text tower's names in the CLIP class are the ends of the image tower's."""
    text = add_lora(clip(), LoraSettings(targets=("q", "mlp"), layers=(1,), towers=("text",)))
    block = "transformer.resblocks.1"
    assert adapted(text) == {f"{block}.attn.q", f"{block}.mlp.c_fc", f"{block}.mlp.c_proj"}
    image = add_lora(timm("test_vit", 160), LoraSettings(targets=("v", "out"), layers=(0, 0), towers=("image",)))
    assert adapted(image) == {"visual.trunk.blocks.0.attn.qkv.v", "visual.trunk.blocks.0.attn.proj"}


def test_linears_of_eva_are_known():
    model = clip()
    model.visual = nn.Module()
    model.visual.trunk = create_model("eva02_base_patch16_clip_224", img_size=32, embed_dim=48, num_heads=4, depth=1)
    add_lora(model, LoraSettings(targets=ALL_ROLES, towers=("image",)))
    inner = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")
    assert adapted(model) == {f"visual.trunk.blocks.0.{name}" for name in inner}


def test_new_adapters_change_nothing_and_the_base_is_frozen():
    model = clip().eval()
    wanted = features(model)
    assert add_lora(model, LoraSettings(targets=ALL_ROLES)) is model
    assert torch.allclose(features(model), wanted, atol=1e-5)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == len(lora_parameters(model)) and all("lora_" in name for name in trainable)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(lora_parameters(model), lr=1.0)
    model.encode_image(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora_B" in name and name.startswith("visual.") for name in changed)


@pytest.mark.parametrize("rslora", [True, False])
def test_scaling_by_hand(rslora):
    """W x + b + s B A x with s = alpha / sqrt(r) (rsLoRA, arXiv 2312.03732) or alpha / r."""
    model = trained(clip(), LoraSettings(rank=4, alpha=3.0, rslora=rslora))
    name = "visual.transformer.resblocks.1.attn.k"
    layer, state, x = model.get_submodule(name), model.state_dict(), torch.randn(5, 48)
    delta = state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"]
    scale = 3 / math.sqrt(4) if rslora else 3 / 4
    wanted = x @ layer.base_layer.weight.T + layer.base_layer.bias + scale * x @ delta.T
    assert torch.allclose(layer(x), wanted, atol=1e-5)


def test_dropout_is_active_in_training_only():
    model = trained(clip())
    assert torch.equal(features(model), features(model))
    model.train()
    assert not torch.equal(features(model), features(model))
    without = trained(clip(), LoraSettings(dropout=0.0)).train()
    assert torch.equal(features(without), features(without))
    still = add_lora(clip().eval(), LoraSettings())
    assert not any(module.training for module in still.modules())


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_merged_equals_unmerged(build, tmp_path):
    model = trained(build(tmp_path), LoraSettings(targets=ALL_ROLES))
    base = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in lora_parameters(base):
            parameter.zero_()
    wanted = features(model)
    assert not torch.allclose(wanted, features(base), rtol=0.01), "the adapters are to matter"
    keys = {key for key in model.state_dict() if "lora_" not in key}
    assert merged(model) is model
    assert torch.allclose(features(model), wanted, rtol=1e-4, atol=1e-4)
    assert model.state_dict().keys() == {key.replace(".base_layer", "") for key in keys}
    assert not lora_parameters(model) and not hasattr(model, "peft_config")


def test_merging_in_bfloat16_is_refused():
    with pytest.raises(RunError, match="moved the (image|text) features"):
        merged(trained(clip()).bfloat16())


def test_adapters_that_are_no_numbers_are_not_merged():
    model = trained(clip())
    lora_parameters(model)[0].data.fill_(math.nan)
    with pytest.raises(RunError, match="image features by nan"):
        merged(model)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "test_convnext"])
def test_a_convolutional_tower_is_refused_and_full_is_named(name):
    model = timm(name, 160, pool="avg")
    with pytest.raises(UsageError, match="the image tower has no blocks of Linears") as caught:
        add_lora(model, LoraSettings())
    assert "--tune full" in caught.value.hint
    add_lora(model, LoraSettings(towers=("text",)))
    assert len(adapted(model)) == 6
    merged(model)


def test_layers_and_roles_that_do_not_exist_are_listed_with_those_that_do():
    with pytest.raises(UsageError) as caught:
        add_lora(clip(), LoraSettings(layers=(0, 2, 3)))
    assert caught.value.faults == (
        "the image tower has no layer 3; it has 0 to 2",
        "the text tower has no layer 2; it has 0 to 1",
        "the text tower has no layer 3; it has 0 to 1",
    )
    fused = timm("test_vit", 160)
    for block in fused.visual.trunk.blocks:
        block.attn = nn.Sequential()  # an attention that nobody knows
    with pytest.raises(UsageError) as caught:
        add_lora(fused, LoraSettings(targets=("q", "mlp")))
    assert caught.value.faults == ("the image tower has no 'q'; it has mlp",)
