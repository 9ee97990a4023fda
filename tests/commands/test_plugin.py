"""A method in a package of its own: `tests/plugin`, installed for the test, does the whole job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from entrep_cli import methods
from entrep_cli.errors import UsageError

PLUGIN = Path(__file__).parents[1] / "plugin"


def install(folder: Path, points: dict[str, str] | None = None) -> Path:
    """What `pip install --target` leaves of the package, without a network; `points` instead of its entry points."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    shutil.copytree(PLUGIN / "entrep_toy", folder / "entrep_toy", ignore=shutil.ignore_patterns("__pycache__"))
    about = folder / f"entrep_toy-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}" for name, value in (points or project["entry-points"]["entrep.methods"]).items()]
    (about / "entry_points.txt").write_text("\n".join(["[entrep.methods]", *lines, ""]))
    return folder


@pytest.fixture
def visible(monkeypatch):
    """Make a folder of packages visible to this process."""

    def show(folder: Path) -> None:
        monkeypatch.syspath_prepend(folder)
        methods._plugins.cache_clear()

    yield show
    methods._plugins.cache_clear()
    sys.modules.pop("entrep_toy", None)


def test_the_help_lists_it(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(install(tmp_path)), *filter(None, sys.path)]), "COLUMNS": "200"}
    told = subprocess.run([sys.executable, "-m", "entrep_cli", "train", "--help"], capture_output=True, text=True, env=env, timeout=120)
    assert told.returncode == 0 and "prototype, toy (default: clip-lora)" in told.stdout


def test_it_does_the_whole_job(fresh, phantom, entrep, visible, tmp_path):
    visible(install(tmp_path / "site"))
    assert entrep("split").code == 0
    trained = entrep("train", "toy", "--set", "size=48", "--json")
    assert trained.code == 0 and trained.json["method"] == "toy" and trained.json["validation"]["val_accuracy"] > 0.5
    assert (trained.json["reads_text"], trained.json["target"]) == (False, "class")
    assert entrep("embed").code == 0 and entrep("index").code == 0
    for track in (1, 2):
        sent = entrep("predict", "--track", track, "--json")
        assert sent.code == 0 and sent.json["validated"] and sent.json["queries"] > 30
    refused = entrep("predict", "--track", 3)
    assert refused.code == 2 and "toy has no text tower" in refused.err
    scored = entrep("evaluate", "--split", "test", "--json")
    assert scored.code == 0, scored.err
    scored = scored.json
    assert scored["classification"]["accuracy"]["value"] > 0.5 and "recall@1" in scored["retrieval"]["class"]
    image = next((phantom / "test" / "imgs").glob("*.png"))
    found = entrep("search", image, "--json")
    assert found.code == 0 and len(found.json["answers"]) == 10
    explained = entrep("explain", image, "--save", tmp_path / "look.png", "--json")
    assert explained.code == 0 and explained.json["images"][0]["by"] == "LayerCAM" and (tmp_path / "look.png").is_file()
    together = entrep("explain", image, "--by", "rollout")
    assert together.code == 2 and "no attention over patches" in together.err


@pytest.mark.skipif(not (find_spec("onnx") and find_spec("onnxscript")), reason="onnx is not installed")
def test_it_is_exported(fresh, entrep, visible, tmp_path):
    visible(install(tmp_path / "site"))
    assert entrep("split").code == 0 and entrep("train", "toy").code == 0
    assert entrep("export").code == 0 and (fresh / "toy" / "export" / "image.onnx").is_file()


@pytest.mark.parametrize(
    ("value", "why"),
    [("no_such_module:Toy", "No module named"), ("entrep_toy:Nothing", "no attribute 'Nothing'"), ("entrep_toy:ToyRecipe", "no subclass")],
)
def test_a_broken_one_is_named_when_it_is_used(entrep, visible, tmp_path, value, why):
    visible(install(tmp_path / "site", {"toy": value, "clip-lora": "no_such_module:Mine"}))
    assert "toy" in methods.trainable() and methods.trainable().count("clip-lora") == 1
    assert methods.method_class("dinov2").__name__ == "Dinov2" and methods.method_class("clip-lora").__name__ == "ClipLora"
    with pytest.raises(UsageError, match=why) as error:
        methods.method_class("toy")
    assert "entrep-toy" in error.value.what and error.value.where == value
    refused = entrep("train", "toy")
    assert refused.code == 2 and "entrep-toy" in refused.err
