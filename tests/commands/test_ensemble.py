"""`entrep ensemble` and `train --folds` through the commands, on phantom data and a tiny contest."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from entrep_cli.evaluation.calibration import reliability, with_temperature
from entrep_cli.experiments import folds as folds_module
from entrep_cli.workspace import Run
from tests.tiny import answers, make_contest


def another(runs, made: str, name: str, **manifest) -> None:
    """A copy of a run with another head, complete in itself; `manifest` in the place of its own entries."""
    shutil.copytree(runs / made, runs / name, ignore=shutil.ignore_patterns("embeddings", "index", "evaluation"))
    run = Run(runs / name)
    weights = load_file(run.path("model.safetensors"))
    head = {key for key in weights if key.startswith("head.")}
    generator = torch.Generator().manual_seed(0)
    assert head
    save_file(
        {k: v + 0.3 * torch.randn(v.shape, generator=generator) * v.std() if k in head and v.ndim > 1 else v for k, v in weights.items()},
        run.path("model.safetensors"),
    )
    told = run.manifest
    run.mark_complete({key: value for key, value in told.items() if key not in ("files", "completed")} | manifest)


def scores_of(path) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["query"], []).append((row["answer"], float(row["score"])))
    return found


def test_an_ensemble_is_a_run_that_every_command_takes(trained, entrep):
    another(trained, "dinov2", "other")
    made = entrep("ensemble", "dinov2", "other", "--json")
    assert made.code == 0 and made.json["run"] == "ensemble" and made.json["method"] == "ensemble"
    told = {row["run"]: row for row in made.json["ensemble"]["members"]}
    assert list(told) == ["dinov2", "other"]
    for key in ("classes", "ranking"):
        assert sum(row[key] for row in told.values()) == pytest.approx(1) and min(row[key] for row in told.values()) >= 0
    nll = {name: row["NLL"]["value"] for name, row in made.json["ensemble"]["validation"].items()}
    assert nll["ensemble"] <= min(nll["dinov2"], nll["other"]) + 1e-4  # what the weights were chosen for
    assert set(made.json["validation"]) == {"val_loss", "val_accuracy", "val_macro_f1"}
    assert not (trained / "other" / "embeddings").exists()

    assert entrep("embed", "--run", "other").code == 0
    for name in ("dinov2", "other", "ensemble"):
        assert entrep("predict", "--track", 1, "--run", name).code == 0
    tracks = {name: scores_of(trained / name / "submissions" / "track1.csv") for name in ("dinov2", "other", "ensemble")}
    query = next(iter(tracks["ensemble"]))
    own = {name: dict(rows[query]) for name, rows in tracks.items()}
    ids = sorted(own["ensemble"])
    wanted = sum(
        row["classes"] * with_temperature(np.array([[own[name][i] for i in ids]]), row["temperature"])[0] for name, row in told.items()
    )
    assert np.allclose([own["ensemble"][i] for i in ids], wanted, atol=1e-4)

    ranked = entrep("predict", "--track", 2, "--gallery", "queries", "--run", "ensemble", "--json")
    assert ranked.json["validated"] and len(answers(trained / "ensemble" / "submissions" / "track2.zip")) == ranked.json["queries"]
    scored = entrep("evaluate", "--run", "ensemble", "--json")
    assert scored.code == 0 and scored.json["classification"]["n_items"] > 0 and scored.json["calibration"]["temperature"]["value"] > 0
    refused = entrep("predict", "--track", 3, "--run", "ensemble")
    assert refused.code == 2 and "No member" in refused.err

    again = entrep("ensemble", "dinov2", "other", "--name", "twice", "--weights", "3,1", "--json").json
    assert [row["classes"] for row in again["ensemble"]["members"]] == [0.75, 0.25]
    nested = entrep("ensemble", "ensemble", "twice", "--name", "nested", "--weights", "equal")
    assert nested.code == 0 and "entrep evaluate --run nested" in nested.err

    another(trained, "other", "third")
    shutil.rmtree(trained / "other")
    (trained / "third").rename(trained / "other")
    changed = entrep("evaluate", "--run", "ensemble")
    assert changed.code == 1 and "other is another run now" in changed.err
    shutil.rmtree(trained / "other")
    gone = entrep("evaluate", "--run", "nested")
    assert gone.code == 1 and "other is missing" in gone.err and "Traceback" not in gone.err


def test_members_answer_in_the_precision_of_their_own_images(trained, entrep, monkeypatch):
    """Also those of an ensemble inside it; what is asked for in fp32 takes nothing that was computed in bf16."""
    monkeypatch.setattr("entrep_cli.models.device._bf16_units", lambda: ["amx_bf16"])
    another(trained, "dinov2", "other")
    for name, precision in (("dinov2", "bf16"), ("other", "fp32")):
        assert entrep("embed", "--run", name, "--precision", precision).code == 0
    assert entrep("ensemble", "dinov2", "other", "--weights", "equal").code == 0
    assert entrep("ensemble", "ensemble", "other", "--weights", "equal", "--name", "nested").code == 0

    def embedded(run: str, *more: str) -> tuple[str, np.ndarray]:
        assert entrep("embed", "--run", run, *more).code == 0
        folder = trained / run / "embeddings" / "train"
        return json.loads((folder / "manifest.json").read_text())["engine"], np.load(folder / "vectors.npy")

    assert embedded("ensemble")[0] == "bf16, fp32"
    engine, vectors = embedded("nested")
    assert engine == "bf16, fp32, fp32"
    engine, exact = embedded("nested", "--precision", "fp32")
    assert engine == "fp32" and not np.array_equal(exact, vectors) and np.allclose(exact, vectors, atol=0.05)


def test_runs_that_make_no_ensemble_are_told_all_at_once(trained, entrep):
    told = Run(trained / "dinov2").manifest
    another(trained, "dinov2", "data", data={**told["data"], "catalog": "other"})
    another(trained, "dinov2", "split", split={**told["split"], "fingerprint": "other"})
    another(trained, "dinov2", "classes", taxonomy={"name": "other", "classes": [{"name": "a", "id": 0, "region": "a", "prompts": {}}]})
    another(trained, "dinov2", "pretraining", method="mics-pretrain")
    another(trained, "dinov2", "half")
    (trained / "half" / "run.json").unlink()
    done = entrep("ensemble", "dinov2", "data", "split", "classes", "pretraining", "half", "[red]none", "dinov2", "--json")
    faults = done.json["error"]["faults"]
    assert done.code == 1 and len(faults) == 7
    for start in ("data: was trained on other data", "split: was trained on another split", "classes: has other classes"):
        assert any(fault.startswith(start) for fault in faults)
    for part in ("mics-pretrain classifies nothing", "half", "[red]none: no such run", "dinov2: named 2 times"):
        assert any(part in fault for fault in faults)
    assert not (trained / "ensemble").exists()
    assert "two runs or more" in entrep("ensemble", "dinov2").err
    assert "two ways" in entrep("ensemble", "dinov2", trained / "dinov2").err


@pytest.mark.parametrize(
    "line",
    [
        ["ensemble", "a", "b", "--weights", "1"],
        ["ensemble", "a", "b", "--weights", "0,0"],
        ["ensemble", "a", "b", "--weights", "1,nan"],
        ["ensemble", "a", "b", "--weights", "best"],
        ["ensemble", "a", "b", "--name", "b"],
        ["train", "ensemble"],
        ["train", "--folds", "3", "--fold", "0"],
        ["evaluate", "--tta", "--submission", "x.zip"],
        ["predict", "--track", "2", "--calibrate"],
        ["predict", "--track", "3", "--tta"],
    ],
)
def test_wrong_usage(line, trained, entrep):
    done = entrep(*line)
    assert done.code == 2 and "hint" in done.err


def test_calibrated_scores_and_flips(trained, entrep):
    """The answers stay, the scores change; the temperature is fitted once, on validation."""
    plain = entrep("predict", "--track", 1, "--json").json
    before = scores_of(plain["ranked"])
    assert plain["temperature"] is None
    done = entrep("predict", "--track", 1, "--calibrate", "--json").json
    t = done["temperature"]["value"]
    assert done["temperature"]["nll_calibrated"] <= done["temperature"]["nll"] + 1e-3
    for query, rows in scores_of(done["ranked"]).items():
        assert [answer for answer, _ in rows] == [answer for answer, _ in before[query]]
        assert np.allclose([p for _, p in rows], with_temperature(np.array([[p for _, p in before[query]]]), t)[0], atol=1e-4)
    kept = json.loads((trained / "dinov2" / "selection.json").read_text())
    assert kept["temperature"]["value"] == t and "temperature-flip" not in kept
    scored = entrep("evaluate", "--json").json["calibration"]
    assert scored["temperature"]["value"] == t and {"ECE", "NLL", "Brier", "bins"} == set(scored["calibrated"])
    flipped = entrep("evaluate", "--tta")
    assert flipped.code == 0 and "with flips" in flipped.out and "Calibration" in flipped.out
    assert (trained / "dinov2" / "evaluation" / "test-tta.json").is_file()
    flipped = json.loads((trained / "dinov2" / "selection.json").read_text())
    assert flipped["temperature"] == kept["temperature"] and flipped["temperature-flip"]["value"] != t
    assert entrep("predict", "--track", 2, "--tta", "--gallery", "queries").code == 0
    noted = entrep("evaluate", "--split", "val")
    assert "fitted on the validation split itself" in noted.err


def test_folds_are_trained_gathered_and_answer_together(tmp_path, monkeypatch, entrep, small):
    contest = make_contest(tmp_path / "data", per_class=6, classes=("nose-left", "nose-right", "throat"), tests=2)
    runs = tmp_path / "runs"
    monkeypatch.setenv("ENTREP_RUNS", str(runs))
    monkeypatch.setenv("ENTREP_DATA", str(contest.root))
    assert entrep("split").code == 0
    refused = entrep("train", "dinov2", "--folds", 3, *small)
    assert refused.code == 2 and "entrep split --folds 3" in refused.err and not (runs / "dinov2").exists()
    assert entrep("split", "--folds", 3).code == 0

    trained, once = [], folds_module.train_run

    def train_run(*arguments, fold, **more):
        if fold == 2 and len(trained) == 2:
            trained.append("stopped")
            raise KeyboardInterrupt
        trained.append((fold, arguments[3].complete))
        return once(*arguments, fold=fold, **more)

    monkeypatch.setattr(folds_module, "train_run", train_run)
    stopped = entrep("train", "dinov2", "--folds", 3, *small, "--epochs", 1)
    assert stopped.code == 130 and "entrep train --resume --name dinov2" in stopped.err
    assert entrep("evaluate", "--run", "dinov2").code == 1  # not complete
    done = entrep("train", "--resume", "--json")
    assert done.code == 0 and trained == [(0, False), (1, False), "stopped", (0, True), (1, True), (2, False)]
    assert done.json["method"] == "ensemble" and done.json["split"]["fold"] is None and not (runs / "dinov2" / "checkpoint.pt").exists()

    with open(runs / "dinov2" / "out-of-fold.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["image"] for row in rows) == sorted(contest.labels)
    assert all(row["label"] == contest.labels[row["image"]] for row in rows)
    with open(runs / "split.csv", newline="") as file:
        assert {row["image"]: row["fold"] for row in csv.DictReader(file)} == {row["image"]: row["fold"] for row in rows}
    told = json.loads((runs / "dinov2" / "cross-validation.json").read_text())
    right = [row["label"] == row["predicted"] for row in rows]
    accuracy = told["scores"]["accuracy"]
    assert told["method"] == "dinov2" and accuracy["pooled"]["value"] == pytest.approx(np.mean(right))
    folds = [np.mean([r for r, row in zip(right, rows) if row["fold"] == str(fold)]) for fold in range(3)]
    assert accuracy["folds"] == pytest.approx(folds) and accuracy["deviation"] == pytest.approx(np.std(folds, ddof=1))
    names = list(rows[0])[4:]
    shares = np.array([[float(row[name]) for name in names] for row in rows])
    targets = np.array([names.index(row["label"]) for row in rows])
    assert told["scores"]["NLL"]["pooled"]["value"] == pytest.approx(reliability(shares, targets).nll, abs=1e-3)

    for part in ("test", "val", "train"):
        refused = entrep("evaluate", "--run", "dinov2", "--split", part, "--fold", 0)
        assert refused.code == 1 and "learned from" in refused.err and "--split queries" in refused.err
    scored = entrep("evaluate", "--run", "dinov2", "--split", "queries")
    assert scored.code == 0 and "cannot be calibrated" in scored.err
    assert entrep("evaluate", "--run", "dinov2/fold-1").code == 0
    assert entrep("predict", "--track", 1, "--run", "dinov2").code == 0
    uncalibrated = entrep("predict", "--track", 1, "--run", "dinov2", "--calibrate")
    assert uncalibrated.code == 1 and "every fold" in uncalibrated.err
    mixed = entrep("ensemble", "dinov2", "dinov2/fold-1", "--json")
    assert mixed.code == 1 and len(mixed.json["error"]["faults"]) == 2
