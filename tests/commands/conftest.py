"""One phantom dataset, and small trained runs that the commands themselves make, for all command tests."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from entrep_cli.app import main
from entrep_cli.data.phantom import write_phantom
from tests.tiny import CONV_CLIP

SMALL = ["--backbone", "test_resnet", "--weights", "none", "--set", "tune=full", "--set", "freeze_norm=false"]
SMALL += ["--set", "image.size=64", "--set", "train.batch_size=16", "--epochs", "3"]


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Options of `entrep train dinov2` for a network that trains from scratch in seconds."""
    return SMALL


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory) -> list[str]:
    """Options of `entrep train clip-lora`, likewise."""
    path = tmp_path_factory.mktemp("clip") / "conv.json"
    path.write_text(json.dumps(CONV_CLIP))
    settings = ["image.size=64", "fusion.levels=[4,5]", "freeze_norm=false", "train.batch_size=28", "train.learning_rate=3e-3"]
    line = ["--backbone", str(path), "--weights", "none", "--tune", "full", "--epochs", "3"]
    return line + [part for setting in settings for part in ("--set", setting)]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def entrep(capfd):
    """Run a command line in this process: `entrep("split", "--json")`."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Result(ended.value.code or 0, out, err)

    return run


def quiet(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--quiet", *map(str, arguments)])
    assert not ended.value.code, arguments


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """A phantom dataset of 112 training and 42 test images, small ones; read only, as far as tests go."""
    folder = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom(folder, images=112, test_images=42, size=(320, 240), workers=1)
    return folder


def make_run(runs: Path, phantom: Path, method: str, settings: list[str]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTREP_RUNS", str(runs))
        quiet("split", "--data", phantom)
        quiet("train", method, "--data", phantom, *settings)
        quiet("embed", "--data", phantom)
        quiet("index")
    return runs


def copy_run(made: Path, runs: Path, phantom: Path, monkeypatch) -> Path:
    shutil.copytree(made, runs)
    monkeypatch.setenv("ENTREP_RUNS", str(runs))
    monkeypatch.setenv("ENTREP_DATA", str(phantom))
    return runs


@pytest.fixture(scope="session")
def _trained(phantom, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("trained") / "runs", phantom, "dinov2", SMALL)


@pytest.fixture
def trained(phantom, _trained, tmp_path, monkeypatch) -> Path:
    """A runs folder of the test's own, with a split and the complete run `dinov2`, embedded and indexed."""
    return copy_run(_trained, tmp_path / "runs", phantom, monkeypatch)


@pytest.fixture(scope="session")
def _trained_clip(phantom, small_clip, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("trained-clip") / "runs", phantom, "clip-lora", small_clip)


@pytest.fixture
def trained_clip(phantom, _trained_clip, tmp_path, monkeypatch) -> Path:
    """The same with the complete run `clip-lora`."""
    return copy_run(_trained_clip, tmp_path / "runs", phantom, monkeypatch)


@pytest.fixture
def fresh(phantom, tmp_path, monkeypatch) -> Path:
    """An empty runs folder, with the phantom dataset as the data."""
    runs = tmp_path / "fresh"
    monkeypatch.setenv("ENTREP_RUNS", str(runs))
    monkeypatch.setenv("ENTREP_DATA", str(phantom))
    return runs
