"""What people do that the main job does not: interrupt, resume, move away, mix up, ask of other places."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from entrep_cli.training import loop
from entrep_cli.workspace import new_run


def test_an_interrupted_training_goes_on_as_the_message_says(fresh, entrep, small, monkeypatch):
    """Ctrl-C after a checkpoint names the command that goes on, which needs none of the settings again."""
    assert entrep("split").code == 0
    save = loop._save_checkpoint

    def save_and_interrupt(*given):
        save(*given)
        signal.raise_signal(signal.SIGINT)

    # A job in the background is started with the interrupt ignored, and its children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0)
        patch.setattr(loop, "_save_checkpoint", save_and_interrupt)
        stopped = entrep("train", "dinov2", *small, "--epochs", "60", "--set", "train.patience=0")
    signal.signal(signal.SIGINT, before)
    assert stopped.code == 130 and "entrep train --resume --name dinov2" in stopped.err
    assert (fresh / "dinov2" / "checkpoint.pt").exists()
    config = fresh / "dinov2" / "config.toml"
    config.write_text(config.read_text().replace("epochs = 60", "epochs = 4"))  # the rest would only take time
    done = entrep("train", "--resume", "--name", "dinov2", "--json")
    assert done.code == 0 and "epochs = 4" in config.read_text() and done.json["epoch"] <= 60
    assert entrep("train", "--resume", "--overwrite").code == 2


def test_an_interrupt_before_the_first_checkpoint_promises_nothing(fresh, entrep, small, monkeypatch):
    from entrep_cli.methods import runs

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    assert entrep("split").code == 0
    monkeypatch.setattr(runs, "train_run", interrupted)
    done = entrep("train", "dinov2", *small)
    assert done.code == 130 and "--resume" not in done.err and not (fresh / "dinov2").exists()


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_folder_that_is_no_run_is_left_alone(fresh, entrep, small, flag):
    assert entrep("split").code == 0
    (fresh / "thesis").mkdir()
    (fresh / "thesis" / "chapter.txt").write_text("years of work")
    done = entrep("train", "dinov2", "--name", "thesis", flag, *small)
    assert done.code == 1 and "is no run" in done.err
    assert [path.name for path in (fresh / "thesis").iterdir()] == ["chapter.txt"]


def test_show_recipe_as_json(fresh, entrep):
    assert entrep("train", "--show-recipe", "--json", "--seed", 7).json["recipe"]["seed"] == 7


def test_grouping_otherwise_does_not_age_the_index(trained, phantom, entrep):
    """`evaluate` groups as the split does, `embed` as the files say; the vectors are the same."""
    query = sorted((phantom / "test" / "imgs").iterdir())[0]
    before = (trained / "dinov2" / "embeddings" / "train" / "vectors.npy").stat().st_mtime_ns
    assert entrep("split", "--groups", "none").code == 0
    assert entrep("embed").code == 0 and entrep("predict", "--track", 1, "--tta").code == 0
    assert entrep("search", query, "--no-sheet").code == 0
    assert (trained / "dinov2" / "embeddings" / "train" / "vectors.npy").stat().st_mtime_ns == before


def test_embed_lists_the_faults_of_all_folders(trained, phantom, entrep, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantom, data)
    broken = [sorted((data / part / "imgs").iterdir())[3] for part in ("train", "test")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:1000])
    done = entrep("embed", "--data", data)
    assert done.code == 1 and all(path.name in done.err for path in broken)
    done = entrep("embed", "--folder", tmp_path / "x", "--folder", tmp_path / "y")
    assert done.code == 1 and str(tmp_path / "x") in done.err and str(tmp_path / "y") in done.err


def test_embeddings_of_a_run_of_somebody_else_are_refused_before_the_work(trained, entrep, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # a user who is root may write anywhere
    done = entrep("embed")
    assert done.code == 1 and "may not be written to" in done.err and "cp -r" in done.err


def test_queries_elsewhere_need_no_dataset(trained, phantom, entrep, tmp_path, monkeypatch):
    shutil.copytree(phantom / "test" / "imgs", tmp_path / "new")
    (trained / "split.json").unlink()
    monkeypatch.delenv("ENTREP_DATA")
    monkeypatch.chdir(tmp_path)
    assert entrep("predict", "--track", 2, "--queries", tmp_path / "new").code == 0
    done = entrep("predict", "--track", 2, "--queries", tmp_path / "new", "--gallery", "train")
    assert done.code == 1 and "No dataset folder" in done.err


def test_a_query_file_that_lies_alone(trained, phantom, entrep, tmp_path):
    name = sorted((phantom / "test" / "imgs").iterdir())[0].name
    (tmp_path / "mine.csv").write_text(f"{name}\n")
    out = tmp_path / "out" / "mine.zip"
    assert entrep("predict", "--track", 1, "--queries", tmp_path / "mine.csv", "--out", out).code == 0
    assert entrep("validate", out, "--track", 1, "--queries", tmp_path / "mine.csv").code == 0
    (tmp_path / "mine.csv").write_text(f"{name}\nother.png\n")
    done = entrep("validate", out, "--track", 1, "--queries", tmp_path / "mine.csv", "--json")
    assert done.code == 1 and done.json["counts"] == {"missing-key": 1}


def test_a_taxonomy_beside_the_labels_rules_validate(phantom, entrep, tmp_path):
    names = ["nose-right", "nose-left", "ear-right", "ear-left", "vc-open", "vc-closed", "throat"]
    data = tmp_path / "data"
    shutil.copytree(phantom, data)
    classes = "".join(f'[[classes]]\nname = "{name}"\nid = {10 + i}\n' for i, name in enumerate(names))
    (data / "train" / "taxonomy.toml").write_text(f'name = "tens"\n{classes}')
    images = (data / "test" / "cls.csv").read_text().split()
    for id_, code in ((10, 0), (0, 1)):
        (tmp_path / "mine.json").write_text(json.dumps(dict.fromkeys(images, id_)))
        done = entrep("validate", tmp_path / "mine.json", "--track", 1, "--data", data, "--json")
        assert ("class-range" in done.json["counts"]) == bool(code)


def test_a_fold_that_was_learned_from_is_told(fresh, entrep, small):
    assert entrep("split", "--folds", 3).code == 0
    assert entrep("train", "dinov2", "--fold", 0, *small, "--epochs", 1).code == 0
    assert "has learned from" not in entrep("evaluate").err
    done = entrep("evaluate", "--fold", 1, "--json")
    assert done.code == 0 and "has learned from images of fold 1" in done.json["notes"][0]
    assert {"test.json", "test-fold-1.json"} <= {path.name for path in (fresh / "dinov2" / "evaluation").iterdir()}


def test_scores_are_written_under_the_whole_name(fresh, phantom, entrep, tmp_path):
    """`v1.2.json` and `v1.3.json` are two submissions."""
    truth = phantom / "test" / "truth_cls.json"
    names = list(json.loads(truth.read_text()))
    for version in ("v1.2", "v1.3"):
        (tmp_path / f"{version}.json").write_text(json.dumps(dict.fromkeys(names, 0)))
        assert entrep("evaluate", "--submission", tmp_path / f"{version}.json", "--truth", truth, "--track", 1).code == 0
    assert {path.name for path in (fresh / "evaluation").glob("*.json")} == {"v1.2.json", "v1.3.json"}


@pytest.mark.parametrize("track, name", [(2, "truth_i2i.json"), (1, "truth_i2i.json"), (2, "truth_cls.json")])
def test_a_submission_of_another_track_is_not_scored(trained, phantom, entrep, track, name):
    assert entrep("predict", "--track", 1).code == 0
    mine = trained / "dinov2" / "submissions" / "track1.zip"
    done = entrep("evaluate", "--submission", mine, "--truth", phantom / "test" / name, "--track", track)
    assert done.code == 1 and "another track" in done.err


def test_tables_fit_a_terminal_of_80_columns(trained, phantom, entrep, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    done = entrep("evaluate", "--split", "train")
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.out)
    assert done.code == 0 and max(map(len, text.splitlines())) <= 80
    assert "nose-right (0)" in text and "vc-closed (5)" in text and re.search(r"recall@1 +0\.\d{3} \[0", text)


@pytest.mark.parametrize("name", ["sheet.jpg", "query.png"])
def test_the_sheet_never_replaces_the_query(trained, phantom, entrep, tmp_path, name):
    query = tmp_path / "query.png"
    shutil.copy(sorted((phantom / "test" / "imgs").iterdir())[0], query)
    before = query.read_bytes()
    done = entrep("search", query, "--save", tmp_path / name)
    assert done.code == 2 and "--save" in done.err and query.read_bytes() == before


def test_an_image_that_cannot_be_read_is_named(trained, entrep, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = entrep("search", tmp_path / "torn.png", "--json")
    assert done.code == 1 and done.json["error"]["faults"][0].startswith("torn.png: ") and done.json["error"]["hint"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to be somebody else"
)
def test_a_read_only_dataset_and_runs_of_somebody_else(phantom, tmp_path):
    shared = Path(tmp_path.parents[1])
    for folder in (shared, *tmp_path.relative_to(shared).parents):
        (shared / folder).chmod(0o755)
    tmp_path.chmod(0o755)
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o755)
    line = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        sys.executable,
        "-m",
        "entrep_cli",
        "split",
        "--data",
        str(phantom),
    ]
    done = subprocess.run(line, env={**os.environ, "ENTREP_RUNS": str(runs)}, capture_output=True, text=True)
    if "split.csv" in done.stderr:  # else the interpreter itself is out of reach of others
        assert done.returncode == 1 and f"where: {runs / 'split.csv'}" in done.stderr and "hint: " in done.stderr
    assert list(runs.iterdir()) == []


def test_after_a_pretraining_the_other_commands_say_what_is_missing(entrep, monkeypatch, tmp_path):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path))
    run = new_run("mics-pretrain", None)
    run.path("config.toml").touch()
    run.mark_complete({"method": "mics-pretrain", "reads_text": False, "weights": {}})
    for line, what in (
        (["predict", "--track", 1], "pre-training"),
        (["predict", "--track", 3], "pre-training"),
        (["search", "wax"], "by text"),
    ):
        done = entrep(*line)
        assert done.code == 2 and what in done.err, done.err
