"""Towers: the layers that are explained, the depth of every parameter, and gradient checkpointing with the same gradients."""

from __future__ import annotations

import entrep_cli.torchvision_ops  # noqa: F401 - before timm and open_clip import torchvision

import open_clip
import pytest
import timm
import torch

from entrep_cli.errors import UsageError
from entrep_cli.models.attention import explicit_attention
from entrep_cli.models.attention_maps import record_outputs
from entrep_cli.models.backbones import Backbone, BackboneSettings
from entrep_cli.models.clip import Architecture, build_clip, encode_texts
from entrep_cli.models.fusion import level_embeddings
from entrep_cli.models.lora import LoraSettings, add_lora
from entrep_cli.models.towers import depths_from_top, set_checkpointing, tower_of
from tests.tiny import CLIP

# Names as the libraries have them, in their order; the number is how many stages lie above.
VIT = {  # timm
    "backbone.model.cls_token": 2,
    "backbone.model.pos_embed": 2,
    "backbone.model.patch_embed.proj.weight": 2,
    "backbone.model.blocks.0.norm1.weight": 2,
    "backbone.model.blocks.1.mlp.fc1.weight": 1,
    "backbone.model.blocks.2.attn.proj.weight": 0,
    "backbone.model.norm.weight": 0,
}
MOBILENET = {  # of timm, in open_clip
    "backbone.visual.trunk.conv_stem.weight": 2,
    "backbone.visual.trunk.bn1.weight": 2,
    "backbone.visual.trunk.blocks.0.0.conv_dw.weight": 2,
    "backbone.visual.trunk.blocks.1.0.conv_pw.weight": 1,
    "backbone.visual.trunk.blocks.2.1.bn3.bias": 0,
    "backbone.visual.trunk.conv_head.weight": 0,
}
CONVNEXT = {
    "model.stem.0.weight": 1,
    "model.stages.0.blocks.0.conv_dw.weight": 1,
    "model.stages.0.blocks.2.norm.weight": 1,
    "model.stages.1.blocks.0.conv_dw.weight": 0,
    "model.head.norm.weight": 0,
}
RESNET = {"model.conv1.weight": 3, "model.layer1.0.bn1.weight": 3, "model.layer2.1.conv1.weight": 2, "model.layer4.0.conv1.weight": 0}
OPEN_CLIP = {  # open_clip's own: some of the names that come first are used last
    "backbone.positional_embedding": 1,
    "backbone.text_projection": 0,
    "backbone.logit_scale": 0,
    "backbone.visual.class_embedding": 2,
    "backbone.visual.proj": 0,
    "backbone.visual.conv1.weight": 2,
    "backbone.visual.transformer.resblocks.0.attn.q.lora_A": 2,
    "backbone.visual.transformer.resblocks.2.mlp.c_fc.weight": 0,
    "backbone.visual.ln_post.weight": 0,
    "backbone.transformer.resblocks.0.ln_1.weight": 1,
    "backbone.transformer.resblocks.1.ln_1.weight": 0,
    "backbone.token_embedding.weight": 1,  # registered after the blocks, used before them
    "backbone.ln_final.weight": 0,
}
MICS = {
    f"{encoder}.model.{name}": depth
    for encoder in ("white", "narrow")
    for name, depth in {"cls_token": 1, "patch_embed.proj.weight": 1, "blocks.0.w": 1, "blocks.1.w": 0, "norm.weight": 0}.items()
} | {"fusion.layers.0.w": 0, "head.weight": 0}


@pytest.mark.parametrize("tower", [VIT, MOBILENET, CONVNEXT, RESNET, OPEN_CLIP, MICS, {"head.weight": 0}])
def test_depths_of_towers(tower):
    assert depths_from_top(tower) == tower


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_the_last_layer_gives_a_map(name):
    tower = timm.create_model(name, num_classes=0).eval()
    with record_outputs(tower_of(tower).last_layer()) as outputs, torch.no_grad():
        tower.forward_features(torch.zeros(2, 3, 160, 160))
    found = tower_of(tower).as_map(outputs[0])
    assert found.shape[0] == 2 and found.ndim == 4
    assert found.shape[2:] == (tower_of(tower).grid if tower_of(tower).is_vit else (5, 5))


def test_an_earlier_layer_is_taken_where_the_last_is_too_coarse():
    tower = timm.create_model("test_resnet", num_classes=0)
    first = tower.get_submodule(tower.feature_info[0]["module"])
    layers = [tower_of(tower).last_layer(size, 6) for size in (224, 96, 48, 8)]
    assert layers == [tower.layer4, tower.layer3, tower.layer2, first]


def test_what_pools_its_class_token():
    assert tower_of(open_clip.model.CLIP(**CLIP).visual).pools_class_token
    assert tower_of(timm.create_model("test_vit", global_pool="token")).pools_class_token
    assert not tower_of(timm.create_model("test_vit", global_pool="avg", class_token=False)).pools_class_token


def test_a_tower_without_a_known_layer_is_refused():
    with pytest.raises(UsageError, match="no layer is known"):
        tower_of(torch.nn.Linear(2, 2)).last_layer()


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
    with pytest.raises(UsageError, match="checkpointing saves nothing"):
        set_checkpointing(clip("plain"), "head")
    with pytest.raises(UsageError, match="cannot be checkpointed"):
        set_checkpointing(torch.nn.Linear(2, 2), "full")
