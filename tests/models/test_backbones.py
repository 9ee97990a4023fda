"""Backbones: pooling against a hand-written forward, strict loading, published file formats."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from entrep_cli.errors import RunError, UsageError, WeightsError
from entrep_cli.models.backbones import Backbone, BackboneSettings, create_backbone, read_weights
from entrep_cli.workspace import Run, file_sha256, runs_dir, write_json_atomic


def settings(name: str = "test_vit", weights: str = "none", **more) -> BackboneSettings:
    return BackboneSettings(name=name, weights=weights, **more)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(model, pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    return (pixels.float() / 255 - mean) / std


def test_vit_features_are_the_mean_of_the_patch_tokens(pixels):
    backbone, _ = create_backbone(settings(), 64)
    tokens = backbone.eval().model.forward_features(normalised(backbone.model, pixels))
    with torch.no_grad():
        assert torch.allclose(backbone(pixels), tokens[:, 1:].mean(dim=1), atol=1e-5)
        assert backbone.dim == tokens.shape[2]


def test_convolutional_features_are_the_models_own(pixels):
    backbone, _ = create_backbone(settings("test_resnet"), 64)
    with torch.no_grad():
        assert torch.allclose(backbone.eval()(pixels), backbone.model(normalised(backbone.model, pixels)), atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_generalised_mean_is_the_cube_root_of_the_mean_cube(name, pixels):
    backbone, _ = create_backbone(settings(name, pooling="gem"), 64)
    with torch.no_grad():
        features = backbone.eval().model.forward_features(normalised(backbone.model, pixels))
        maps = features[:, 1:] if features.ndim == 3 else features.flatten(2).transpose(1, 2)
        wanted = maps.clamp(min=1e-6).pow(3).mean(dim=1) ** (1 / 3)
        assert torch.allclose(backbone(pixels), wanted, atol=1e-4)


def test_weights_survive_both_file_formats(tmp_path, pixels):
    source = timm.create_model("test_vit", img_size=64)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    outputs = []
    for file in ("w.safetensors", "w.pth"):
        backbone, origin = create_backbone(settings(weights=str(tmp_path / file)), 64)
        assert origin["weights"] == file and len(origin["sha256"]) == 64
        with torch.no_grad():
            outputs.append(backbone.eval()(pixels))
    assert torch.equal(*outputs)


def test_dinov2_file_with_mask_token_and_another_size_loads(tmp_path):
    """The SurgeNet DINOv2 files: timm's keys, `mask_token` too much, positions of another grid."""
    source = timm.create_model("test_vit", img_size=96, num_classes=0)
    state = {**source.state_dict(), "mask_token": torch.zeros(1, 64)}
    torch.save({"teacher": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "surgenet.pth")
    backbone, _ = create_backbone(settings(weights=str(tmp_path / "surgenet.pth")), 64)
    loaded = backbone.model.state_dict()
    assert loaded["pos_embed"].shape[1] == 1 + 4 * 4 != source.pos_embed.shape[1]
    assert torch.equal(loaded["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])


def test_weights_of_another_model_are_refused_with_what_differs(tmp_path):
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError) as caught:
        create_backbone(settings(weights=str(tmp_path / "other.safetensors")), 64)
    assert [f.split(" (")[0] for f in caught.value.faults][:2] == ["missing", "not in the model"]


def test_a_wrong_shape_is_named(tmp_path):
    state = timm.create_model("test_vit", img_size=64, num_classes=0).state_dict()
    state["norm.weight"] = torch.ones(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="1 tensors differ") as caught:
        create_backbone(settings(weights=str(tmp_path / "w.safetensors")), 64)
    assert caught.value.faults == ("another shape (1): norm.weight, (3,) in the file and (64,) in the model",)


def test_a_pickle_is_not_executed(tmp_path):
    import pickle

    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"w": Bomb()}))
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "evil.pth")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_damaged_files_are_weights_errors(tmp_path, content):
    for name in ("w.safetensors", "w.pth"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError):
            read_weights(tmp_path / name)


def test_hub_weights_are_never_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(WeightsError) as caught:
        create_backbone(settings("vit_small_patch14_dinov2.lvd142m", "hub"), 56)
    assert "timm/vit_small_patch14_dinov2.lvd142m" in caught.value.where
    assert "hf download timm/vit_small_patch14_dinov2.lvd142m model.safetensors" in caught.value.hint
    assert "--weights" in caught.value.hint


def test_hub_weights_come_from_the_cache(monkeypatch, tmp_path):
    source = timm.create_model("test_vit", img_size=64)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: str(tmp_path / "model.safetensors"))
    backbone, _ = create_backbone(settings(weights="hub"), 64)
    assert torch.equal(backbone.model.norm.weight, source.norm.weight)
    assert torch.equal(backbone.model.patch_embed.proj.weight, source.patch_embed.proj.weight)


def test_unknown_names_get_the_nearest():
    with pytest.raises(UsageError) as caught:
        Backbone(settings("resnet5o"), 64)
    assert "resnet50" in caught.value.hint


def test_freeze_norm_keeps_batch_statistics(pixels):
    backbone, _ = create_backbone(settings("test_resnet"), 64)
    backbone.train()
    backbone.freeze_norm()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(pixels)
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in before.items())


def make_run(state, config: str, name: str = "first", **files) -> Run:
    """A complete run that holds these tensors."""
    run = Run(runs_dir() / name)
    run.folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items()}, run.path("model.safetensors"))
    run.path("config.toml").write_text(config)
    for file, content in files.items():
        write_json_atomic(run.path(f"{file}.json"), content)
    run.mark_complete(
        {"method": "x", "weights": {"weights": "base.pth"}, "data": {"catalog": "c"}, "split": {"fingerprint": "s", "fold": 1}}
    )
    return run


def of_dinov2(name: str = "test_vit", size: int = 64) -> dict:
    model = Backbone(settings(name), size)
    return {f"backbone.{k}": v for k, v in model.state_dict().items()} | {"head.output.weight": torch.ones(2, 3)}


CONFIG = 'method = "dinov2"\n[backbone]\nname = "{}"\n'
CLIP_CONFIG = 'method = "clip-lora"\ntune = "{}"\n[backbone]\nname = "tiny-clip"\n'
CLIP_FILE = {"model_cfg": {"vision_cfg": {"timm_model_name": "test_resnet"}}}


@pytest.mark.parametrize("by", ["name", "folder"])
def test_a_run_of_dinov2_gives_its_backbone(by):
    state = of_dinov2()
    run = make_run(state, CONFIG.format("test_vit.some_tag"))
    backbone, origin = create_backbone(settings(weights="first" if by == "name" else str(run.folder)), 64)
    assert all(torch.equal(v, state[f"backbone.{k}"]) for k, v in backbone.state_dict().items())
    assert origin == {
        "name": "test_vit",
        "weights": "run first",
        "run": "first",
        "sha256": file_sha256(run.path("model.safetensors")),
        "trained_on": {"catalog": "c", "split": "s", "fold": 1},
    }
    assert create_backbone(settings(weights="first"), 96)[0].model.pos_embed.shape[1] == 1 + 36  # another grid


def test_a_run_of_clip_lora_gives_its_image_tower():
    trunk = timm.create_model("test_resnet", num_classes=0).state_dict()
    state = {f"backbone.visual.trunk.{k}": v for k, v in trunk.items()} | {"backbone.text.x": torch.ones(1), "head.weight": torch.ones(1)}
    make_run(state, CLIP_CONFIG.format("full"), clip=CLIP_FILE)
    backbone, _ = create_backbone(settings("test_resnet", "first"), 64)
    assert all(torch.equal(v, trunk[k]) for k, v in backbone.model.state_dict().items())
    with pytest.raises(WeightsError, match="has the backbone 'test_resnet', not 'test_vit'") as caught:
        create_backbone(settings("test_vit", "first"), 64)
    assert caught.value.hint == "--backbone test_resnet"


def test_runs_that_have_no_such_backbone_are_refused():
    make_run({"backbone.visual.trunk.bn.running_mean": torch.ones(1)}, CLIP_CONFIG.format("lora"), "adapters", clip=CLIP_FILE)
    with pytest.raises(WeightsError, match="beside its base weights") as caught:
        create_backbone(settings("test_resnet", "adapters"), 64)
    assert "base.pth" in caught.value.hint
    make_run({"backbone.visual.proj": torch.ones(1)}, CLIP_CONFIG.format("full"), "vit")
    with pytest.raises(WeightsError, match="no image backbone of timm"):
        create_backbone(settings("test_resnet", "vit"), 64)
    make_run({k: v for k, v in of_dinov2().items() if "blocks.0" not in k}, CONFIG.format("test_vit"), "part")
    with pytest.raises(WeightsError, match="tensors differ"):
        create_backbone(settings(weights="part"), 64)
    with pytest.raises(WeightsError, match="No such weights file"):
        create_backbone(settings(weights="nowhere"), 64)


def test_half_written_and_changed_runs_are_refused():
    run = make_run(of_dinov2(), CONFIG.format("test_vit"))
    run.path("model.safetensors").write_bytes(b"changed")
    with pytest.raises(RunError, match="damaged"):
        create_backbone(settings(weights="first"), 64)
    run.path("run.json").unlink()
    with pytest.raises(RunError, match="not complete"):
        create_backbone(settings(weights="first"), 64)
