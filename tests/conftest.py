"""What all tests share: each writes to a runs folder of its own and finds no dataset by accident."""

from __future__ import annotations

import gc

import pytest

from entrep_cli import console


def pytest_collection_finish() -> None:
    gc.freeze()  # torch and its like are there to stay: looking through them again and again takes seconds


@pytest.fixture(autouse=True)
def human() -> None:
    console.set_mode("human")  # as of a command; a command of an earlier test may have set another


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path_factory.mktemp("own") / "runs"))
    monkeypatch.delenv("ENTREP_DATA", raising=False)
