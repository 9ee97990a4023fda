"""`entrep weights`, `doctor` and `cache` on the command line."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from entrep_cli.machine.caches import KINDS
from entrep_cli.models.pretrained import HubFile, PretrainedWeights
from tests.tiny import cache_files

SHA = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, a table of two weights, and a download that puts their content there."""

    def download(repository, name, force_download=False):
        return str(cache_files(tmp_path / "hub", repository, {name: "weights"}) / name)

    known, unknown = (HubFile("owner/free", "a.bin", (), 7, SHA),), (HubFile("owner/nc", "b.pth"),)
    entries = [
        PretrainedWeights("free", "Free", "tests", "owner/free", "MIT", True, "https://a.org", known),
        PretrainedWeights("nc", "Not", "tests", "owner/nc", "CC-BY-NC", False, "https://b.org", unknown, start="entrep train {path}"),
    ]
    monkeypatch.setattr("entrep_cli.models.pretrained.pretrained_weights", lambda: tuple(entries))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return tmp_path / "hub"


def test_list_fetch_check(hub, entrep):
    listed = entrep("weights", "list")
    assert listed.code == 0 and "CC-BY-NC, not commercial" in listed.out and "owner/free" in listed.out
    assert [w["state"] for w in entrep("weights", "list", "--json").json["weights"]] == ["no", "no"]
    nothing = entrep("weights", "check", "--json")
    assert nothing.code == 0 and nothing.json == {"weights": [], "ok": True}
    assert entrep("weights", "check", "free").code == 1

    fetched = entrep("weights", "fetch", "free", "nc")
    assert fetched.code == 0 and "Warning: nc is under CC-BY-NC: no commercial use" in fetched.err
    assert f"entrep train {hub}" in fetched.err and "its hash is not known" in fetched.err
    again = entrep("--json", "weights", "fetch", "free", "nc")
    assert "Warning: nc" in again.err and [f["fetched"] for w in again.json["weights"] for f in w["files"]] == [False, False]
    assert [(w["commercial"], w["files"][0]["verified"]) for w in again.json["weights"]] == [(True, True), (False, False)]

    assert entrep("weights", "list", "--json").json["weights"][1]["start"].startswith("entrep train /")
    assert entrep("weights", "check").code == 0
    Path(again.json["weights"][0]["files"][0]["path"]).write_text("wXights")
    damaged = entrep("weights", "check", "--json")
    assert damaged.code == 1 and damaged.json["weights"][0]["faults"] and "SHA-256" in damaged.err
    assert "entrep weights fetch free" in entrep("weights", "check").err


def test_fetch_names_and_interrupts(hub, entrep, monkeypatch):
    unknown = entrep("weights", "fetch", "fre", "--json")
    assert unknown.code == 2 and "free" in unknown.json["error"]["hint"]
    assert entrep("weights", "fetch").code == 2

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.hf_hub_download", interrupted)
    ended = entrep("weights", "fetch", "nc")
    assert ended.code == 130 and "`entrep weights fetch nc`" in ended.err and "Traceback" not in ended.err

    def cut_off(*_, **__):
        raise ConnectionError("peer closed the connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", cut_off)
    failed = entrep("weights", "fetch", "nc", "--json")
    assert failed.code == 1 and failed.json["error"]["where"] == "owner/nc, file b.pth" and "peer closed" in failed.json["error"]["what"]


def test_doctor(hub, entrep, monkeypatch):
    found = entrep("doctor", "--no-self-test", "--json")
    document = found.json
    assert document["ok"] == (document["faults"] == 0) == (found.code == 0)
    areas = [one["area"] for one in document["findings"]]
    assert areas[0] == "python" and {"packages", "torch", "device", "precision", "threads", "disk", "caches", "weights"} <= set(areas)
    shown = entrep("doctor", "--no-self-test", "--quiet")
    assert "precision: " in shown.out and "Looking" not in shown.err

    def broken(*_):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("entrep_cli.machine.doctor.self_test", broken)
    failed = entrep("doctor")
    assert failed.code == 1 and "no kernel image" in failed.err and "ENTREP_DEBUG=1 entrep demo" in failed.err


def test_cache(entrep):
    path = Path(os.environ["ENTREP_RUNS"], "cache", "pixels", "a.npy")
    path.parent.mkdir(parents=True)
    path.write_text("12345")
    os.utime(path, (0, 0))
    assert entrep("cache", "list", "--json").json["bytes"] == 5 and "pixels" in entrep("cache", "list").out
    assert entrep("cache", "clear", "nothing").code == 2 and entrep("cache", "clear", "--older-than", "-1").code == 2
    assert entrep("cache", "clear", "features", "--json").json["files"] == 0 and path.exists()
    cleared = json.loads(entrep("cache", "clear", "pixels", "--older-than", "7", "--json").out)
    assert (cleared["files"], cleared["bytes"], cleared["ok"]) == (1, 5, True) and not path.exists()
    assert "total" in entrep("cache", "clear").out
    told = entrep("cache", "clear", "--help").out
    assert all(kind in told for kind in KINDS)
