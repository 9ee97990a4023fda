"""`entrep export`, and embedding with what it wrote."""

from __future__ import annotations

import json

import numpy as np
import pytest

from entrep_cli.methods import exporting


def test_without_the_extra_it_says_how_to_get_it(trained, entrep, monkeypatch):
    monkeypatch.setattr(exporting, "_installed", lambda _: False)
    done = entrep("export", "--json")
    assert done.code == 2 and done.json["error"]["hint"] == "pip install '.[onnx]', in the checkout"
    assert not (trained / "dinov2" / "export").exists()


def test_embedding_with_onnx_runtime_is_that_of_torch(trained, entrep):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    kept = trained / "dinov2" / "embeddings" / "test" / "vectors.npy"
    wanted = np.load(kept)
    done = entrep("export", "--run", "dinov2")
    assert done.code == 0 and "image.onnx" in done.out and "Compared on 4 images of " in done.err
    found = entrep("embed", "--engine", "onnx", "--json").json
    assert found["engine"].startswith("onnx ") and found["sets"]["test"]["stages"]["images"] == len(wanted)
    assert np.allclose(np.load(kept), wanted, atol=1e-4)
    assert json.loads(kept.with_name("manifest.json").read_text())["engine"] == found["engine"]
