"""`entrep compare` on runs that were trained: twins, and twins whose answers are planted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from entrep_cli.experiments import comparison


@pytest.fixture
def twins(trained):
    for name in ("twin", "third"):
        shutil.copytree(trained / "dinov2", trained / name)
    return trained


def test_twins_differ_by_nothing(twins, entrep):
    done = entrep("compare", "dinov2", "t*", "--split", "queries")
    assert done.code == 0, done.err
    assert "The best of several runs looks better on queries than it is" in done.err
    assert "No run is significantly better than another: permutation test over groups, level 0.05, Holm over 3 pairs a score." in done.out
    assert "c twin" in done.out and "+0.000 [+0.000, +0.000]" in done.out and "s to train" in done.out
    made = json.loads((twins / "comparisons" / "queries.json").read_text())
    assert [run["run"] for run in made["runs"]] == ["dinov2", "third", "twin"]
    assert {pair["p"] for score in made["comparisons"].values() for pair in score["pairs"]} == {1.0}
    told = done.err[done.err.index("Next:") :]
    assert "entrep compare dinov2 third twin --split val" in told and "entrep ensemble dinov2 third twin" in told
    assert "entrep predict --track 1 --run dinov2" in told and "entrep report --run dinov2" in told and "--track 3" not in told
    # What is said of one run is what `evaluate` says of it.
    alone = entrep("evaluate", "--run", "dinov2", "--split", "queries", "--json").json
    assert made["runs"][0]["scores"]["accuracy"]["low"] == pytest.approx(alone["classification"]["accuracy"]["low"])
    assert made["runs"][0]["scores"]["macro F1"]["high"] == pytest.approx(alone["classification"]["macro"]["f1"]["high"])
    assert made["runs"][0]["scores"]["image MRR, class"]["low"] == pytest.approx(alone["retrieval"]["class"]["mrr"]["low"])


def test_a_planted_difference_is_marked(twins, entrep, monkeypatch):
    """`twin` is right everywhere, the others where the image's number is even or a multiple of three."""
    real = comparison.open_scored

    def planted(folder, *args, **more):
        scored = real(folder, *args, **more)
        truth, n = scored.images.targets, len(scored.images)
        right = np.ones(n, bool) if folder.endswith("twin") else np.arange(n) % (2 if folder.endswith("third") else 3) == 0
        answered = np.where(right, truth, (truth + 1) % len(scored.images.taxonomy.names))
        shares = np.eye(len(scored.images.taxonomy.names), dtype=np.float32)[answered]
        return replace(scored, embeddings=replace(scored.embeddings, probabilities=shares))

    monkeypatch.setattr(comparison, "open_scored", planted)
    done = entrep("compare", "dinov2", "third", "twin", "--split", "queries", "--name", "planted", "--no-mask-groups")
    assert done.code == 0, done.err
    assert "1.000 [1.000, 1.000] ab" in done.out and "A letter marks a run that this one is significantly better than" in done.out
    assert "entrep predict --track 1 --run twin" in done.err and "entrep ensemble" not in done.err
    made = json.loads((twins / "comparisons" / "planted.json").read_text())
    assert made["runs"][2]["scores"]["accuracy"]["better_than"] == ["dinov2", "third"] and made["mask_groups"] is False
    assert not any(pair["significant"] for pair in made["comparisons"]["image Recall@1, class"]["pairs"])  # the vectors are the same
    only = entrep("compare", "third", "twin", "--split", "queries", "--baseline", "dinov2", "--json").json
    assert only["baseline"] == "dinov2" and [p["first"] for p in only["comparisons"]["accuracy"]["pairs"]] == ["dinov2", "dinov2"]


def test_refusals(twins, entrep):
    for name, key, value in (("twin", "split", {"fingerprint": "x"}), ("third", "data", {"catalog": "x"})):
        manifest = json.loads((twins / name / "run.json").read_text())
        (twins / name / "run.json").write_text(json.dumps(manifest | {key: manifest[key] | value}))
    done = entrep("compare", "dinov2", "twin", "third")
    assert done.code == 1 and "'third' was trained on other data" in done.err
    assert "'twin' was trained on another split" in done.err and "`entrep split --ratios" in done.err
    assert entrep("compare", "dinov2").code == 2 and entrep("compare").code == 2
    assert entrep("compare", "dinov2", "twin", "--name", "../x").code == 2
    assert entrep("train", "dinov2", "--name", "comparisons").code == 2
    assert not (twins / "comparisons").exists()
