"""Several processes: who does what, and that two of them come to what one comes to."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from entrep_cli import processes
from entrep_cli.app import main
from entrep_cli.errors import UsageError
from entrep_cli.training.gathering import average_gradients, same_start
from entrep_cli.workspace import Run
from tests.tiny import CLIP, make_contest
from tests.two_processes import contrast_gradients


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")


@pytest.mark.parametrize(("n", "size"), [(5, 2), (3, 4), (0, 3), (64, 8)])
def test_the_parts_of_all_are_the_whole(monkeypatch, n, size):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    found = []
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        found += range(n)[processes.portion(n)]
    assert found == list(range(n))


def test_one_process_is_the_main_one_and_waits_for_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")  # left over from somewhere: without a size it means nothing
    assert (processes.size(), processes.rank(), processes.is_main()) == (1, 0, True)
    assert processes.on_main(lambda: 7) == 7 and processes.gather(8) == [8]
    with processes.main_first():
        average_gradients(torch.nn.Linear(2, 2))


def test_open_mpi_is_understood(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in (("SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    assert (processes.size(), processes.rank(), processes.local_rank()) == (4, 3, 1)


def test_the_others_write_into_a_copy_that_goes(second_of_two, tmp_path):
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.path("checkpoint.pt").write_bytes(b"state")
    with processes.private_copy(run) as own:
        assert own.folder != run.folder and own.path("checkpoint.pt").read_bytes() == b"state"
        own.path("config.toml").write_text("mine")
    assert not own.folder.exists() and not run.path("config.toml").exists()


def test_what_cannot_be_shared_is_refused(second_of_two, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["index"])
    assert ended.value.code == 2 and "runs in one process, and 2 were started" in capfd.readouterr().err
    with pytest.raises(UsageError, match="Batch norm"):
        same_start(torch.nn.Sequential(torch.nn.BatchNorm1d(2)))


def start_two(folder: Path, lines: list[list[str]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.two_processes", str(folder), json.dumps(lines)]
    root = Path(__file__).parents[1]
    both = []
    for rank in ("0", "1"):
        own = {**environment, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(root)}
        both.append(subprocess.Popen(command, cwd=root, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    deadline = time.monotonic() + 240
    try:
        while any(one.poll() is None for one in both) and not any(one.poll() for one in both) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for one in both:
            if one.poll() is None:
                one.kill()
    (_, errors), (silent, more_errors) = (one.communicate() for one in both)
    assert [one.returncode for one in both] == [0, 0], errors + more_errors
    assert silent == ""  # the main process alone prints


def test_two_come_to_what_one_comes_to(tmp_path, monkeypatch):
    """The same gradients, the same learning curve with the same global batch, and the same bytes of embeddings."""
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ENTREP_DATA", str(make_contest(tmp_path / "data", per_class=6).root))
    (tmp_path / "clip.json").write_text(json.dumps(CLIP))
    line = ["--quiet", "train", "clip-lora", "--backbone", str(tmp_path / "clip.json"), "--weights", "none", "--tune", "full"]
    line += ["--epochs", "2", "--device", "cpu"]
    for setting in ("image.size=32", "fusion.levels=[1,2]", "train.batch_size=12", "mix=true"):
        line += ["--set", setting]

    def embed(run: str) -> list[str]:
        return ["--quiet", "embed", "--run", run, "--batch-size", "5", "--device", "cpu"]

    for one in (["--quiet", "split"], [*line, "--name", "one"], embed("one")):
        with pytest.raises(SystemExit) as ended:
            main(one)
        assert not ended.value.code, one
    alone = tmp_path / "alone"
    (tmp_path / "runs" / "one" / "embeddings").rename(alone)
    start_two(tmp_path, [[*line, "--name", "two"], embed("one")])

    wanted = contrast_gradients(slice(None))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))

    completed = [Path((tmp_path / f"completed-{rank}.txt").read_text()) for rank in (0, 1)]
    assert completed[0] == (tmp_path / "runs" / "two").resolve()  # the other process has written into a copy, which is gone
    assert completed[1].name == "two" and not completed[1].exists()

    curves = []
    for name in ("one", "two"):
        with open(tmp_path / "runs" / name / "metrics.csv", newline="") as file:
            curves.append([[float(value) for value in row.values()] for row in csv.DictReader(file)])
    assert np.allclose(*curves, rtol=2e-3)
    one, two = (load_file(tmp_path / "runs" / name / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 5e-3  # of steps of Adam, which divides small numbers

    embedded = tmp_path / "runs" / "one" / "embeddings" / "train"
    manifest = json.loads((embedded / "manifest.json").read_text())
    assert manifest["images"] == 42
    for file in ("vectors.npy", "probabilities.npy"):
        assert np.allclose(np.load(embedded / file), np.load(alone / "train" / file), atol=1e-6)
