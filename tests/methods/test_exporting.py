"""Exported towers: the same answers from ONNX Runtime, bound to the run by hashes. Skipped where the extra is not installed."""

from __future__ import annotations

import json

import pytest
import torch

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import RunError, UsageError
from entrep_cli.methods import exporting
from entrep_cli.methods.clip_lora import ClipLora, ClipLoraRecipe
from entrep_cli.methods.exporting import export_onnx, open_exported
from entrep_cli.models.clip import Architecture
from entrep_cli.recipes.recipe import build_recipe, recipe_toml
from entrep_cli.workspace import CONFIG, MODEL, Run
from tests.tiny import CLIP

PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def made(tmp_path) -> tuple[Run, ClipLora]:
    recipe = build_recipe(ClipLoraRecipe, {"image": {"size": 32}, "fusion": {"levels": [1, 2]}, "tune": "full"})
    torch.manual_seed(0)
    model = ClipLora(Architecture(CLIP), recipe, Taxonomy.entrep()).eval()
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.path(CONFIG).write_text(recipe_toml(recipe))
    run.path(MODEL).write_bytes(b"weights")
    run.mark_complete({"method": "clip-lora", "taxonomy": model.taxonomy.as_dict(), "preprocess": model.preprocess.as_dict()})
    return run, model


def test_exported_towers_answer_as_the_model_does(made):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    run, model = made
    manifest = export_onnx(run, model, PIXELS[:2])
    assert manifest["towers"].keys() == {"image.onnx", "text.onnx"} == manifest["sha256"].keys()
    assert all(p["difference"] < 1e-4 and p["cosine"] > 0.9999 for p in manifest["parity"].values())
    opened = open_exported(run)
    for n in (1, 3):  # another number of images than it was exported with
        for found, wanted in zip(opened.infer(PIXELS[:n])[:2], model.infer(PIXELS[:n])[:2]):
            assert torch.allclose(found, wanted, atol=1e-5)
    assert opened.engine.startswith("onnx ") and opened.preprocess == model.preprocess

    image = run.path("export", "image.onnx")
    whole = image.read_bytes()
    image.write_bytes(whole[:-1] + b"\0")
    with pytest.raises(RunError, match="damaged"):
        open_exported(run)
    image.write_bytes(whole)
    run.path(MODEL).write_bytes(b"trained again")
    run.mark_complete({key: value for key, value in run.manifest.items() if key != "files"})
    with pytest.raises(RunError, match="not of the model"):
        open_exported(run)


def test_what_is_missing_is_told(made, monkeypatch):
    run, model = made
    monkeypatch.setattr(exporting, "_installed", lambda _: True)
    with pytest.raises(RunError, match="was not exported"):
        open_exported(run)
    monkeypatch.setattr(exporting, "_installed", lambda name: name == "onnx")
    with pytest.raises(UsageError, match="onnxscript is not installed") as told:
        export_onnx(run, model, PIXELS)
    assert "'.[onnx]'" in told.value.hint
    with pytest.raises(UsageError, match="onnxruntime is not installed"):
        open_exported(run)


def test_an_export_that_is_far_off_is_none(made, monkeypatch):
    """The manifest, which makes it an export, is not written."""
    run, model = made
    program = type("Program", (), {"save": lambda self, path, **_: open(path, "wb").close()})()
    monkeypatch.setattr(exporting, "_installed", lambda _: True)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)

    class Wrong:
        def run(self, _, given):
            n = len(given["pixels"])
            return [torch.zeros(n, 32).numpy(), torch.ones(n, 7).numpy()]

    monkeypatch.setattr(exporting, "_session", lambda _: Wrong())
    run.path("export").mkdir()
    run.path("export", "manifest.json").write_text(json.dumps({"sha256": {}}))
    with pytest.raises(RunError, match="from torch"):
        export_onnx(run, model, PIXELS)
    assert not run.path("export", "manifest.json").exists()
