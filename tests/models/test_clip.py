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
    encode_texts,
    load_clip_weights,
    make_tokenizer,
    pixel_statistics,
    read_architecture,
    texts_cut,
)
from tests.tiny import CLIP, CONV_CLIP, cache_files


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
    assert pixel_statistics(build_clip(Architecture(CONV_CLIP), 32), plain)[0] != pixel_statistics(model, plain)[0]  # the trunk's own


@pytest.mark.parametrize("content, said", [("{", "not JSON"), ("[]", "not JSON"), ('{"embed_dim": 3}', "vision_cfg")])
def test_a_faulty_configuration_is_named(tmp_path, content, said):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UsageError, match=said):
        read_architecture(str(tmp_path / "c.json"))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError) as caught:
        read_architecture("ViT-B-16-quickgelo")
    assert "ViT-B-16-quickgelu" in caught.value.hint


def test_whole_weights_load_at_another_size(tmp_path):
    source = build_clip(Architecture(CLIP), 64)
    settings = weights(tmp_path, source.state_dict())
    model = build_clip(Architecture(CLIP), 32)
    origin, filled = load_clip_weights(model, settings)
    assert filled == "" and len(origin["sha256"]) == 64
    assert model.visual.positional_embedding.shape[0] == 1 + 2 * 2
    assert torch.equal(model.text_projection, source.text_projection)


def test_an_image_towers_file_fills_the_trunk_alone(tmp_path):
    source, model = (build_clip(Architecture(CONV_CLIP), 32) for _ in range(2))
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
    assert set(caught.value.faults) == {"missing (1): ln_final.weight", "not in the model (1): extra"}
    with pytest.raises(WeightsError, match="not one of timm"):
        load_clip_weights(build_clip(Architecture(CLIP), 32), weights(tmp_path, {"stem.weight": torch.ones(1)}, "b.safetensors"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, in which `hub(repository, {name: content})` puts files; a network is not there."""

    def refused(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", refused)
    return lambda repository, files: cache_files(tmp_path / "hub", repository, files)


@pytest.mark.parametrize(
    "settings, repository, file",
    [
        (ClipSettings(), "timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors"),
        (ClipSettings(name="hf-hub:owner/model"), "owner/model", "open_clip_model.safetensors"),
        (ClipSettings(name="ViTamin-S", tag="datacomp1b"), "jienengchen/ViTamin-S", "pytorch_model.bin"),
    ],
)
def test_nothing_is_downloaded_and_the_exact_file_is_named(hub, settings, repository, file):
    with pytest.raises(WeightsError) as caught:
        load_clip_weights(build_clip(Architecture(CLIP), 32), settings)
    assert caught.value.where.startswith(f"{repository}, file {file}")
    assert f"`hf download {repository} {file}`" in caught.value.hint and "--weights FILE" in caught.value.hint


def test_a_model_cached_in_part_says_what_is_there(hub):
    with pytest.raises(WeightsError) as caught:
        read_architecture("hf-hub:owner/model")
    assert caught.value.where == "owner/model, file open_clip_config.json" and not caught.value.faults
    assert "`hf download owner/model open_clip_config.json open_clip_model.safetensors`" in caught.value.hint
    hub("owner/model", {"open_clip_config.json": json.dumps(CLIP)})
    model = build_clip(read_architecture("hf-hub:owner/model"), 32)
    with pytest.raises(WeightsError) as caught:
        load_clip_weights(model, ClipSettings(name="hf-hub:owner/model"))
    assert caught.value.where == "owner/model, file open_clip_model.safetensors (or open_clip_pytorch_model.bin)"
    assert caught.value.faults == ("cached of it: open_clip_config.json",)


def test_weights_of_another_revision_and_broken_downloads_are_told(hub):
    snapshot = hub("owner/model", {"open_clip_pytorch_model.bin": "x"})
    repository = snapshot.parents[1]
    (repository / "refs" / "main").write_text("another")
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1234.incomplete").touch()
    with pytest.raises(WeightsError) as caught:
        load_clip_weights(build_clip(Architecture(CLIP), 32), ClipSettings(name="hf-hub:owner/model"))
    found = f"of another revision: {snapshot / 'open_clip_pytorch_model.bin'}"
    assert caught.value.faults == (found, "a download of it was not completed")


def of_hub(tokenizer: str = "owner/words", **text) -> Architecture:
    return Architecture({**CLIP, "text_cfg": {**CLIP["text_cfg"], "hf_tokenizer_name": tokenizer, **text}})


def test_a_tokenizer_cached_in_part(hub):
    """Each file that is wanting is named, and transformers is not let near the network for it."""
    vocabulary = {"[UNK]": 0, "a": 1, "spur": 2, "[PAD]": 3}
    model = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}}
    model |= {"added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    for name, content in (("tokenizer.json", model), ("tokenizer_config.json", settings)):
        with pytest.raises(WeightsError) as caught:
            make_tokenizer(ClipSettings(), of_hub())
        assert caught.value.where.startswith(f"owner/words, file {name}")
        assert f"`hf download owner/words {name}" in caught.value.hint and "--weights" in caught.value.hint
        folder = hub("owner/words", {name: json.dumps(content)})
    for named in ("owner/words", str(folder)):
        assert make_tokenizer(ClipSettings(), of_hub(named))(["a spur"]).tolist() == [[1, 2] + 14 * [3]]
    hub("owner/words", {"tokenizer.json": "{"})
    with pytest.raises(WeightsError, match="tokenizer cannot be read"):
        make_tokenizer(ClipSettings(), of_hub())


def test_a_text_tower_of_the_hub_needs_its_configuration(hub):
    with pytest.raises(WeightsError) as caught:
        build_clip(of_hub(hf_model_name="owner/bert"), 32)
    assert caught.value.where == "owner/bert, file config.json"
    tiny = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    hub("owner/bert", {"config.json": json.dumps({**tiny, "vocab_size": 64})})
    built = build_clip(of_hub(hf_model_name="owner/bert", hf_pooler_type="mean_pooler", hf_proj_type="linear"), 32)
    assert built.encode_text(torch.ones(2, 16, dtype=torch.long)).shape == (2, 32)


def test_a_name_that_is_no_repository(hub):
    with pytest.raises(UsageError, match="no repository"):
        read_architecture("hf-hub:owner/model/file")


@pytest.mark.parametrize(
    "name, multilingual",
    [
        ("ViT-B-16-quickgelu", False),
        ("roberta-ViT-B-32", False),
        ("ViT-B-16-SigLIP", False),
        ("xlm-roberta-base-ViT-B-32", True),
        ("nllb-clip-base", True),
        ("ViT-B-16-SigLIP-i18n-256", True),
        ("ViT-L-14-worldwide", True),
    ],
)
def test_tokenizers_of_many_languages_are_known_by_name(name, multilingual):
    assert read_architecture(name).multilingual == multilingual


def test_an_unknown_tag_lists_the_known_ones():
    with pytest.raises(WeightsError) as caught:
        load_clip_weights(build_clip(Architecture(CLIP), 32), ClipSettings(tag="openei"))
    assert "openai" in caught.value.faults[0]


def test_texts_that_are_cut_are_counted_exactly():
    tokenizer = make_tokenizer(ClipSettings(), Architecture(CLIP))
    fits, long = " ".join(["a"] * 14), " ".join(["a"] * 15)  # 14 words, start and end fill 16 places
    assert texts_cut(tokenizer, [fits, long, "x"], 16) == 1
    assert torch.equal(tokenizer([fits])[0, -2:], torch.tensor([320, 49407]))


@pytest.mark.parametrize("custom", [False, True])
def test_a_text_without_its_padding_embeds_the_same(custom):
    torch.manual_seed(0)
    model = build_clip(Architecture({**CLIP, "custom_text": custom}), 32).eval()
    tokens = torch.zeros(3, 16, dtype=torch.long)
    for row, length in enumerate((3, 7, 16)):
        tokens[row, :length] = torch.randint(1, 40000, (length,), generator=torch.Generator().manual_seed(row))
        tokens[row, length - 1] = 49407
    seen = []
    tower = model.text if custom else model
    tower.token_embedding.register_forward_hook(lambda _module, given, _result: seen.append(given[0].shape[1]))
    with torch.no_grad():
        for rows in (tokens, tokens[:2], tokens[:1]):
            assert torch.allclose(encode_texts(model, rows), model.encode_text(rows), atol=1e-5)
    assert seen[::2] == [16, 7, 3]
