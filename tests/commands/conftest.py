"""One phantom dataset and one small trained run, made by the commands themselves, for all command tests."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from entrep_cli.app import main

SMALL = ["--backbone", "test_resnet", "--weights", "none", "--set", "tune=full", "--set", "freeze_norm=false"]
SMALL += ["--set", "image.size=64", "--set", "train.batch_size=16", "--epochs", "3"]


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Options of `entrep train dinov2` for a network that trains from scratch in seconds."""
    return SMALL


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
    """A phantom dataset of 112 training and 42 test images; read only, as far as tests go."""
    folder = tmp_path_factory.mktemp("phantom") / "data"
    quiet("synth", folder, "--images", 112, "--test-images", 42)
    return folder


@pytest.fixture(scope="session")
def _trained(phantom, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        runs = tmp_path_factory.mktemp("trained") / "runs"
        patch.setenv("ENTREP_RUNS", str(runs))
        quiet("split", "--data", phantom)
        quiet("train", "dinov2", "--data", phantom, *SMALL)
        quiet("embed", "--data", phantom)
        quiet("index")
    return runs


@pytest.fixture
def trained(phantom, _trained, tmp_path, monkeypatch) -> Path:
    """A runs folder of the test's own, with a split and the complete run `dinov2`, embedded and indexed."""
    runs = tmp_path / "runs"
    shutil.copytree(_trained, runs)
    monkeypatch.setenv("ENTREP_RUNS", str(runs))
    monkeypatch.setenv("ENTREP_DATA", str(phantom))
    return runs


@pytest.fixture
def fresh(phantom, tmp_path, monkeypatch) -> Path:
    """An empty runs folder, with the phantom dataset as the data."""
    runs = tmp_path / "fresh"
    monkeypatch.setenv("ENTREP_RUNS", str(runs))
    monkeypatch.setenv("ENTREP_DATA", str(phantom))
    return runs
