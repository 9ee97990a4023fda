"""CLIP architectures by name, strict weights in three forms, texts that do not fit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from entrep_cli.errors import UsageError, WeightsError
from entrep_cli.models.clip import (
    Architecture,
    ClipSettings,
    build_clip,
    load_clip_weights,
    make_tokenizer,
    pixel_statistics,
    read_architecture,
    texts_cut,
)

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CONV = {
    **CLIP,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
}


def weights(tmp_path, state: dict, name: str = "w.safetensors") -> ClipSettings:
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
    return ClipSettings(name="x", weights=str(tmp_path / name))


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "tiny-clip", "mobilenetv2-clip"])
def test_known_names(name):
    assert read_architecture(name).config["embed_dim"] > 0


def test_a_json_file_in_both_forms(tmp_path):
    (tmp_path / "plain.json").write_text(json.dumps(CLIP))
    (tmp_path / "hub.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}))
    plain, hub = (read_architecture(str(tmp_path / f"{n}.json")) for n in ("plain", "hub"))
    assert plain.config == hub.config == CLIP
    model = build_clip(plain, 32)
    assert pixel_statistics(model, hub) == ((0.1,) * 3, (0.2,) * 3)
    assert pixel_statistics(model, plain)[0] == pytest.approx((0.48145466, 0.4578275, 0.40821073))  # OpenAI's
    assert pixel_statistics(build_clip(Architecture(CONV), 32), plain)[0] != pixel_statistics(model, plain)[0]  # the trunk's own


@pytest.mark.parametrize("content, said", [("{", "not JSON"), ("[]", "not JSON"), ('{"embed_dim": 3}', "vision_cfg")])
def test_a_faulty_configuration_is_named(tmp_path, content, said):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UsageError, match=said):
        read_architecture(str(tmp_path / "c.json"))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError) as caught:
        read_architecture("ViT-B-16-quickgelo")
    assert "ViT-B-16-quickgelu" in caught.value.mend


def test_whole_weights_load_at_another_size(tmp_path):
    source = build_clip(Architecture(CLIP), 64)
    settings = weights(tmp_path, source.state_dict())
    model = build_clip(Architecture(CLIP), 32)
    origin, filled = load_clip_weights(model, settings)
    assert filled == "" and len(origin["sha256"]) == 64
    assert model.visual.positional_embedding.shape[0] == 1 + 2 * 2
    assert torch.equal(model.text_projection, source.text_projection)


def test_an_image_towers_file_fills_the_trunk_alone(tmp_path):
    source, model = (build_clip(Architecture(CONV), 32) for _ in range(2))
    before = model.text.token_embedding.weight.clone()
    _, filled = load_clip_weights(model, weights(tmp_path, source.visual.trunk.state_dict()))
    assert filled == "visual.trunk."
    assert all(torch.equal(v, model.visual.trunk.state_dict()[k]) for k, v in source.visual.trunk.state_dict().items())
    assert torch.equal(before, model.text.token_embedding.weight)


def test_weights_of_another_model_are_listed(tmp_path):
    source = build_clip(Architecture(CLIP), 32)
    state = {k: v for k, v in source.state_dict().items() if k != "ln_final.weight"} | {"extra": torch.ones(1)}
    with pytest.raises(WeightsError) as caught:
        load_clip_weights(build_clip(Architecture(CLIP), 32), weights(tmp_path, state))
    assert set(caught.value.faults) == {"missing: ln_final.weight", "not in the model: extra"}
    with pytest.raises(WeightsError, match="not one of timm"):
        load_clip_weights(build_clip(Architecture(CLIP), 32), weights(tmp_path, {"stem.weight": torch.ones(1)}, "b.safetensors"))


@pytest.mark.parametrize(
    "settings, file",
    [
        (ClipSettings(), "timm/vit_base_patch16_clip_224.openai, file open_clip_model.safetensors"),
        (ClipSettings(name="hf-hub:owner/model"), "owner/model, file open_clip_model.safetensors"),
    ],
)
def test_nothing_is_downloaded_and_the_exact_file_is_named(monkeypatch, settings, file):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(WeightsError) as caught:
        load_clip_weights(build_clip(Architecture(CLIP), 32), settings)
    assert caught.value.where == file
    assert "hf download" in caught.value.mend and "--weights" in caught.value.mend


def test_an_unknown_tag_lists_the_known_ones():
    with pytest.raises(WeightsError) as caught:
        load_clip_weights(build_clip(Architecture(CLIP), 32), ClipSettings(tag="openei"))
    assert "openai" in caught.value.faults[0]


def test_texts_that_are_cut_are_counted_exactly():
    tokenizer = make_tokenizer(ClipSettings(), Architecture(CLIP))
    fits, long = " ".join(["a"] * 14), " ".join(["a"] * 15)  # 14 words, start and end fill 16 places
    assert texts_cut(tokenizer, [fits, long, "x"], 16) == 1
    assert torch.equal(tokenizer([fits])[0, -2:], torch.tensor([320, 49407]))
