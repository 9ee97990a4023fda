"""The main job through the commands, on phantom data: contracts, determinism, refusals."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import answers, lines


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_describes_itself(trained):
    manifest = json.loads((trained / "dinov2" / "run.json").read_text())
    assert manifest["method"] == "dinov2" and manifest["files"].keys() == {
        "started.json",
        "config.toml",
        "metrics.csv",
        "model.safetensors",
    }
    assert [c["id"] for c in manifest["taxonomy"]["classes"]] == list(range(7))
    assert manifest["data"]["images"]["train"] > manifest["data"]["images"]["val"] > 0
    assert not list((trained / "dinov2").glob("checkpoint*"))


def test_the_same_commands_give_the_same_bytes(trained, entrep, small, tmp_path, monkeypatch):
    second = tmp_path / "second"
    for runs, before in ((trained, []), (second, [["split"], ["train", "dinov2", *small], ["embed"]])):
        monkeypatch.setenv("ENTREP_RUNS", str(runs))
        for line in [*before, ["predict", "--track", 1], ["predict", "--track", 2]]:
            assert entrep(*line).code == 0
    assert (trained / "split.csv").read_bytes() == (second / "split.csv").read_bytes()
    for part in ("embeddings", "submissions"):
        assert hashes(trained / "dinov2" / part) == hashes(second / "dinov2" / part) != {}
    assert (trained / "dinov2" / "model.safetensors").read_bytes() == (second / "dinov2" / "model.safetensors").read_bytes()


def test_track_1(trained, phantom, entrep):
    done = entrep("predict", "--track", 1, "--json")
    assert done.code == 0 and done.json["validated"] is True
    given = answers(trained / "dinov2" / "submissions" / "track1.zip")
    assert list(given) == lines(phantom / "test" / "cls.csv")
    assert all(type(v) is int and 0 <= v <= 6 for v in given.values())
    with open(trained / "dinov2" / "submissions" / "track1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    by_query: dict = {}
    for row in rows:
        by_query.setdefault(row["query"], []).append(row)
    for query, ranked in by_query.items():
        assert [int(r["rank"]) for r in ranked] == list(range(1, 8))
        assert int(ranked[0]["answer"]) == given[query]
        assert sum(float(r["score"]) for r in ranked) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("gallery", ["queries", "test", "train", "all"])
def test_track_2_searches_the_gallery_it_is_told(trained, phantom, entrep, gallery):
    assert entrep("predict", "--track", 2, "--gallery", gallery, "--out", trained / "t2.zip").code == 0
    given = answers(trained / "t2.zip")
    queries = lines(phantom / "test" / "i2i.csv")
    places = {
        "queries": set(queries),
        "test": {p.name for p in (phantom / "test" / "imgs").iterdir()},
        "train": {p.name for p in (phantom / "train" / "imgs").iterdir()},
    }
    places["all"] = places["test"] | places["train"]
    assert list(given) == queries
    assert set(given.values()) <= places[gallery]
    assert all(query != answer for query, answer in given.items())


def test_track_2_equals_a_naive_search(trained, phantom, entrep):
    """The answer is the image of another group with the greatest cosine, worked out here by a loop."""
    assert entrep("predict", "--track", 2, "--mask-groups").code == 0
    given = answers(trained / "dinov2" / "submissions" / "track2.zip")
    folder = trained / "dinov2" / "embeddings" / "test"
    vectors = np.load(folder / "vectors.npy")
    with open(folder / "items.csv", newline="") as file:
        items = list(csv.DictReader(file))
    assert all(item["label"] == "" for item in items)  # answers never come from labels
    for q, query in enumerate(items):
        if query["image"] not in given:
            continue
        best = max(
            (float(np.float64(vectors[q]) @ np.float64(vectors[g])), -g) for g, item in enumerate(items) if item["group"] != query["group"]
        )
        assert items[-best[1]]["image"] == given[query["image"]]


def test_a_changed_label_file_changes_no_answer(trained, phantom, entrep, tmp_path):
    copy = tmp_path / "blind"
    shutil.copytree(phantom / "test", copy)
    for path in copy.glob("truth_*.json"):
        path.unlink()
    (copy / "groups.csv").unlink()
    assert entrep("predict", "--track", 2, "--out", trained / "a.zip").code == 0
    assert entrep("predict", "--track", 2, "--queries", copy, "--out", trained / "b.zip").code == 0
    assert answers(trained / "a.zip") == answers(trained / "b.zip")


def test_a_folder_of_images_needs_no_query_file(trained, phantom, entrep):
    assert entrep("predict", "--track", 1, "--queries", phantom / "test" / "imgs", "--out", trained / "t1.zip").code == 0
    assert set(answers(trained / "t1.zip")) == {p.name for p in (phantom / "test" / "imgs").iterdir()}


def test_track_3_says_which_methods_have_a_text_tower(trained, entrep):
    done = entrep("predict", "--track", 3)
    assert done.code == 2 and "no text tower" in done.err


def test_tta_averages_over_the_label_aware_flip(trained, entrep):
    assert entrep("predict", "--track", 1).code == 0
    assert entrep("predict", "--track", 1, "--tta", "--out", trained / "tta.zip").code == 0
    plain, averaged = (np.load(trained / "dinov2" / "embeddings" / name / "probabilities.npy") for name in ("test", "test-flip"))
    assert not np.allclose(plain, averaged) and np.allclose(averaged.sum(1), 1, atol=1e-5)


def test_evaluate_a_part(trained, entrep):
    done = entrep("evaluate", "--split", "train", "--json")
    assert done.code == 0
    scores = done.json
    assert scores["classification"]["accuracy"]["low"] <= scores["classification"]["accuracy"]["value"]
    assert set(scores["retrieval"]) == {"class", "finding"}
    assert (trained / "dinov2" / "evaluation" / "train.png").stat().st_size > 10_000
    assert json.loads((trained / "dinov2" / "evaluation" / "train.json").read_text()) == scores


def test_evaluate_a_submission_by_hand(trained, phantom, entrep, tmp_path):
    """Half of the answers right by construction: the scores are known without computing them."""
    truth = json.loads((phantom / "test" / "truth_cls.json").read_text())
    ids = {"nose-right": 0, "nose-left": 1, "ear-right": 2, "ear-left": 3, "vc-open": 4, "vc-closed": 5, "throat": 6}
    given = {name: ids[label] if i % 2 else (ids[label] + 1) % 7 for i, (name, label) in enumerate(truth.items())}
    (tmp_path / "mine.json").write_text(json.dumps(given))
    done = entrep(
        "evaluate", "--submission", tmp_path / "mine.json", "--truth", phantom / "test" / "truth_cls.json", "--track", 1, "--json"
    )
    assert done.code == 0
    assert done.json["classification"]["accuracy"]["value"] == (len(truth) // 2) / len(truth)


def test_evaluate_tells_a_leak(trained, phantom, entrep, tmp_path):
    """Answers out of the query's own exam are counted, and masked in a second column."""
    groups = {row["image"]: row["group"] for row in csv.DictReader(open(phantom / "test" / "groups.csv", newline=""))}
    truth = json.loads((phantom / "test" / "truth_i2i.json").read_text())
    own = {q: next((g for g in groups if groups[g] == groups[q] and g != q), truth[q]) for q in truth}
    n_own = sum(groups[a] == groups[q] for q, a in own.items())
    (tmp_path / "mine.json").write_text(json.dumps(own))
    done = entrep(
        "evaluate", "--submission", tmp_path / "mine.json", "--truth", phantom / "test" / "truth_i2i.json", "--track", 2, "--json"
    )
    assert n_own > 0 and any(note.startswith(f"{n_own} first answers are frames") for note in done.json["notes"])
    masked = done.json["retrieval"]["pair, group masked"]["recall@1"]["value"]
    assert masked == pytest.approx((len(truth) - n_own) / len(truth))


def test_search(trained, phantom, entrep, tmp_path):
    query = sorted((phantom / "test" / "imgs").iterdir())[0]
    done = entrep("search", query, "--top-k", 3, "--save", tmp_path / "sheet.png", "--json")
    assert done.code == 0 and len(done.json["answers"]) == 3
    assert query.name not in [a["image"] for a in done.json["answers"]]
    scores = [a["score"] for a in done.json["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert entrep("search", "no-such.png").code == 2
    assert "cannot search by text" in entrep("search", "a spur on the septum").err


def test_search_wants_a_fresh_index(trained, phantom, entrep):
    query = sorted((phantom / "test" / "imgs").iterdir())[0]
    assert entrep("embed", "--folder", phantom / "train" / "imgs").code == 0
    done = entrep("search", query)
    assert done.code == 1 and "entrep index" in done.err


def test_validate_finds_faults_and_passes_ours(trained, phantom, entrep, tmp_path):
    assert entrep("predict", "--track", 1).code == 0
    good = trained / "dinov2" / "submissions" / "track1.zip"
    assert entrep("validate", good, "--track", 1, "--json").json["ok"] is True
    given = answers(good)
    dropped, first, *_ = given
    bad = {k: v for k, v in given.items() if k != dropped} | {first: "nose-left", "stranger.png": 9}
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    done = entrep("validate", tmp_path / "bad.json", "--track", 1, "--json")
    assert done.code == 1
    assert {"missing-key", "extra-key", "class-string", "class-range"} <= set(done.json["counts"])


# ---------------------------------------------------------------- refusals


def test_a_name_that_exists_is_refused_and_names_the_flag(trained, entrep, small):
    before = hashes(trained / "dinov2")
    done = entrep("train", "dinov2", "--name", "dinov2", *small)
    assert done.code == 1 and "--overwrite" in done.err
    assert hashes(trained / "dinov2") == before


def test_without_a_name_nothing_is_lost(trained, entrep, small):
    assert entrep("train", "dinov2", *small, "--epochs", 1).code == 0
    assert (trained / "dinov2" / "run.json").is_file() and (trained / "dinov2-2" / "run.json").is_file()


def test_a_half_written_run_is_not_taken_for_a_run(trained, entrep):
    (trained / "dinov2" / "run.json").unlink()
    done = entrep("predict", "--track", 1, "--run", "dinov2")
    assert done.code == 1 and "not complete" in done.err and "--resume" in done.err
    assert "No trained run" in entrep("predict", "--track", 1).err


def test_a_changed_model_is_refused(trained, entrep):
    path = trained / "dinov2" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    done = entrep("embed")
    assert done.code == 1 and "model.safetensors was changed" in done.err


def test_a_run_of_other_data_or_another_split_is_not_scored(trained, entrep):
    assert entrep("split", "--seed", 5).code == 0
    done = entrep("evaluate")
    assert done.code == 1 and "another split" in done.err


def test_damaged_embeddings_are_refused(trained, entrep):
    path = trained / "dinov2" / "embeddings" / "test" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    done = entrep("predict", "--track", 2)
    assert done.code == 1 and "vectors.npy is changed" in done.err


def test_weights_of_another_model_leave_no_folder(fresh, phantom, entrep, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"stem.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert entrep("split").code == 0
    done = entrep("train", "dinov2", "--backbone", "test_resnet", "--weights", tmp_path / "other.safetensors")
    assert done.code == 1 and "not in the model" in done.err
    assert not (fresh / "dinov2").exists()


@pytest.mark.parametrize(
    "line, said",
    [
        (["--set", "head.droput=0.5"], "head.dropout"),
        (["--set", "train.epochs=many"], "train.epochs"),
        (["--recipe", "dinov2-tny"], "dinov2-tiny"),
        (["--set", "nonsense"], "key=value"),
    ],
)
def test_wrong_settings_are_usage_errors_with_the_nearest(fresh, entrep, line, said):
    done = entrep("train", "dinov2", *line)
    assert done.code == 2 and said in done.err
    assert "dinov2" in entrep("train", "dinov3").err


def test_show_recipe_can_be_given_back(fresh, entrep, tmp_path):
    shown = entrep("train", "dinov2", "--set", "head.dropout=0.5", "--show-recipe")
    assert "dropout = 0.5" in shown.out
    (tmp_path / "mine.toml").write_text(shown.out)
    assert entrep("train", "--recipe", tmp_path / "mine.toml", "--show-recipe").out == shown.out


def test_a_gallery_of_one_has_no_answer_and_says_so(trained, phantom, entrep, tmp_path):
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    shutil.copy(sorted((phantom / "test" / "imgs").iterdir())[0], lonely)
    done = entrep("predict", "--track", 2, "--queries", lonely, "--gallery", "queries")
    assert done.code == 1 and "no candidate" in done.err


@pytest.mark.parametrize(
    "content, said",
    [
        (b"image\n{0}\n", "header"),
        (b"\xef\xbb\xbf{0}\n", None),
        (b"{0}\nmissing.png\n", "missing.png"),
        (b"{0}\n{0}\n", "line 2"),
        (b"", "empty"),
    ],
)
def test_query_files_as_people_make_them(trained, phantom, entrep, tmp_path, content, said):
    names = [p.name for p in sorted((phantom / "test" / "imgs").iterdir())]
    folder = tmp_path / "q"
    folder.mkdir()
    (folder / "imgs").symlink_to(phantom / "test" / "imgs")
    (folder / "cls.csv").write_bytes(content.replace(b"{0}", names[0].encode()))
    done = entrep("predict", "--track", 1, "--queries", folder, "--out", tmp_path / "x.zip")
    if said is None:
        assert done.code == 0 and "byte-order mark" in done.err
        assert list(answers(tmp_path / "x.zip")) == [names[0]]
    else:
        assert done.code == 1 and said in done.err
        assert not (tmp_path / "x.zip").exists()


# A command line whose process kills itself once a checkpoint is written.
KILLED = """
import os, signal
from entrep_cli.app import main
from entrep_cli.training import loop

save, loop.CHECKPOINT_SECONDS = loop._save_checkpoint, 0
loop._save_checkpoint = lambda *given: (save(*given), os.kill(os.getpid(), signal.SIGKILL))
main()
"""


def test_a_killed_training_goes_on_and_ends_the_same(fresh, entrep, small_clip):
    """SIGKILL in the middle, then --resume: the model's bytes are those of an uninterrupted training."""
    method, settings = "clip-lora", [*small_clip, "--epochs", "3", "--set", "train.patience=0"]
    assert entrep("split").code == 0
    assert entrep("train", method, "--name", "whole", *settings).code == 0
    killed = subprocess.run([sys.executable, "-c", KILLED, "train", method, "--name", "killed", *settings], stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert (fresh / "killed" / "checkpoint.pt").exists() and not (fresh / "killed" / "run.json").exists()
    assert "--resume" in entrep("train", method, "--name", "killed", *settings).err
    assert entrep("train", method, "--name", "killed", "--resume", *settings).code == 0
    assert (fresh / "killed" / "model.safetensors").read_bytes() == (fresh / "whole" / "model.safetensors").read_bytes()


def test_read_only_dataset_and_unwritable_runs(phantom, tmp_path, monkeypatch, entrep):
    monkeypatch.setenv("ENTREP_DATA", str(phantom))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "file"))
    done = entrep("split")
    assert done.code == 1 and "hint" in done.err


def test_a_training_does_not_go_on_with_another_split(fresh, entrep, small, monkeypatch):
    """Else it would be scored on images that it has learned from."""
    import entrep_cli.training.loop as loop

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    original = loop._save_checkpoint

    def interrupted(*args):
        original(*args)
        raise KeyboardInterrupt

    assert entrep("split").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save_checkpoint", interrupted)
        assert entrep("train", "dinov2", "--name", "x", *small).code == 130
    assert entrep("split", "--seed", "7").code == 0
    done = entrep("train", "--name", "x", "--resume")
    assert done.code == 1 and "another split" in done.err
    assert entrep("split").code == 0
    assert entrep("train", "--name", "x", "--resume").code == 0


def test_embed_tells_where_the_time_went(trained, entrep):
    again = entrep("embed", "--json").json
    assert all(found["stages"] is None for found in again["sets"].values())  # kept
    other = {"fp32": "bf16", "bf16": "fp32"}[again["engine"]]
    done = entrep("embed", "--precision", other, "--batch-size", 20)
    assert done.code == 0 and f"Precision: {other} (asked for)" in done.err and "Batch: 20 images (asked for)." in done.err
    assert "Stages of train: 112 images" in done.out and "Bottleneck: " in done.err
    # What other commands need is taken as it was embedded, and `auto` leaves it so.
    kept = entrep("embed", "--json").json
    assert all(found["stages"] is None for found in kept["sets"].values())
    assert json.loads((trained / "dinov2" / "embeddings" / "train" / "manifest.json").read_text())["engine"] == other


def test_images_embedded_later_answer_as_those_embedded_before(trained, phantom, entrep, tmp_path, monkeypatch):
    """On a machine that computes in bf16: the same queries in another folder, which nothing is kept of, get the same answers."""
    monkeypatch.setattr("entrep_cli.models.device._bf16_units", lambda: ["avx512_bf16"])
    assert entrep("embed", "--precision", "bf16").code == 0
    copy = tmp_path / "again"
    shutil.copytree(phantom / "test", copy)
    kept, later = trained / "kept.csv", trained / "later.csv"
    assert entrep("predict", "--track", 1, "--out", kept.with_suffix(".zip")).code == 0
    assert entrep("predict", "--track", 1, "--queries", copy, "--out", later.with_suffix(".zip")).code == 0
    assert kept.read_bytes() == later.read_bytes()
    assert {manifest_of(trained, name)["engine"] for name in sets_of(trained)} == {"bf16"}
    vectors = [np.load(trained / "dinov2" / "embeddings" / name / "vectors.npy") for name in sets_of(trained) if name != "train"]
    assert len(vectors) == 2 and np.allclose(vectors[0], vectors[1], atol=1e-6)
    # Where the CPU has no such units, what is new is embedded in fp32, and that is said.
    monkeypatch.setattr("entrep_cli.models.device._bf16_units", list)
    done = entrep("embed", "--folder", copy)
    assert "Precision: fp32 (the run's images were embedded in bf16, which is not for this device)" in done.err


def sets_of(trained):
    return sorted(path.name for path in (trained / "dinov2" / "embeddings").iterdir())


def manifest_of(trained, name):
    return json.loads((trained / "dinov2" / "embeddings" / name / "manifest.json").read_text())


def test_embed_refuses_what_does_not_go_together(trained, entrep):
    done = entrep("embed", "--engine", "onnx", "--precision", "bf16")
    assert done.code == 2 and "of the torch engine" in done.err
