from __future__ import annotations

import re


def test_a_report_of_a_run(trained_clip, entrep):
    done = entrep("--json", "report")
    assert done.code == 0, done.err
    page = trained_clip / "clip-lora" / "report.html"
    text = page.read_text("utf-8")
    assert done.json["page"] == str(page) and done.json["bytes"] == page.stat().st_size < 3e6
    assert f"{done.json['accuracy']['value']:.3f}" in text and f"{done.json['retrieval']['class']['recall@1']['value']:.3f}" in text
    assert done.json["temperature"] > 0 and "Text to image" in text and 'alt="attention map of' in text
    assert "--recipe" in text and str(trained_clip / "clip-lora" / "config.toml") in text


def test_a_private_report_elsewhere(trained, phantom, entrep, tmp_path):
    out = tmp_path / "deep" / "[red]<b>.html"
    done = entrep("report", "--run", "dinov2", "--split", "val", "--private", "--out", out)
    assert done.code == 0, done.err
    text = out.read_text("utf-8")
    assert "data:image" not in text and str(phantom) not in text and str(trained) not in text
    names = [path.name for path in phantom.rglob("*.png")]
    assert names and not any(name in text for name in names)
    assert "the very images scored here" in text and "[red]<b>.html" in done.err
    assert re.search(r"accuracy +\d\.\d{3} \[", done.out)


def test_what_was_embedded_in_bf16_is_explained_as_well(trained, entrep, monkeypatch):
    monkeypatch.setattr("entrep_cli.models.device._bf16_units", lambda: ["amx_bf16"])
    assert entrep("embed", "--precision", "bf16").code == 0
    done = entrep("report", "--run", "dinov2")
    assert done.code == 0, done.err
    assert 'alt="attention map of' in (trained / "dinov2" / "report.html").read_text("utf-8")


def test_what_no_report_can_be_made_of(trained, entrep):
    assert entrep("report", "--split", "train").code == 2
    assert entrep("report", "--out", "report.pdf").code == 2
    assert entrep("report", "--run", "nothing").code == 1
