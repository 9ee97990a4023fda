"""The third track and the default method through the commands, on phantom data."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from entrep_cli.methods.runs import load_model
from entrep_cli.workspace import open_run
from tests.tiny import CONV_CLIP, answers, cache_files, lines


def test_track_3_from_the_run_to_its_scores(trained_clip, phantom, entrep):
    done = entrep("predict", "--track", 3, "--json")
    assert done.code == 0 and done.json["validated"] is True
    mine, queries = trained_clip / "clip-lora" / "submissions" / "track3.zip", lines(phantom / "test" / "t2i.csv")
    given = answers(mine)
    assert list(given) == queries
    # The answer is the image with the greatest cosine to the text, worked out here.
    vectors = np.load(trained_clip / "clip-lora" / "embeddings" / "test" / "vectors.npy")
    names = lines(trained_clip / "clip-lora" / "embeddings" / "test" / "items.csv")[1:]
    cosines = load_model(open_run()).embed_texts(queries).numpy() @ vectors.T
    assert [name.split(",")[0] for name in (names[i] for i in cosines.argmax(axis=1))] == list(given.values())

    assert entrep("validate", mine, "--track", 3, "--json").json["ok"] is True
    scores = entrep("evaluate", "--submission", mine, "--truth", phantom / "test" / "truth_t2i.json", "--track", 3, "--json").json
    assert {"pair", "finding", "class"} <= scores["retrieval"].keys()
    assert 0 < scores["chance"]["finding"] < scores["retrieval"]["finding"]["recall@10"]["value"] <= 1
    assert scores["retrieval"]["finding"]["n_queries"] == len(queries)


def test_tracks_1_and_2_of_the_same_run(trained_clip, phantom, entrep):
    for track, query_file in ((1, "cls.csv"), (2, "i2i.csv")):
        assert entrep("predict", "--track", track).code == 0
        mine = trained_clip / "clip-lora" / "submissions" / f"track{track}.zip"
        assert list(answers(mine)) == lines(phantom / "test" / query_file)
        assert entrep("validate", mine, "--track", track).code == 0


@pytest.mark.parametrize("text", ["septal spur", "gai vách ngăn"])
def test_search_by_text_in_both_languages(trained_clip, entrep, tmp_path, text):
    done = entrep("search", text, "--top-k", 3, "--save", tmp_path / "sheet.png", "--json")
    assert done.code == 0 and done.json["query"] == text and len(done.json["answers"]) == 3
    scores = [answer["score"] for answer in done.json["answers"]]
    assert scores == sorted(scores, reverse=True) and done.err == ""
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


@pytest.mark.parametrize("text", ["", "  ", "\u200b"])
def test_an_empty_text_finds_nothing_and_says_why(trained_clip, entrep, text):
    done = entrep("search", text, "--no-sheet", "--json")
    assert done.code == 1 and done.json["error"]["what"] == "1 of 1 texts are empty."


def test_empty_text_queries_are_listed(trained_clip, phantom, entrep, tmp_path):
    (tmp_path / "t2i.csv").write_text("septal spur\n\n  \n")
    done = entrep("predict", "--track", 3, "--queries", tmp_path / "t2i.csv", "--out", tmp_path / "x.zip", "--json")
    assert done.code == 1 and [fault.split(":")[0].split()[1] for fault in done.json["error"]["faults"]] == ["2", "3"]
    assert not (tmp_path / "x.zip").exists()


# ---------------------------------------------------------------- the default method


def test_it_is_the_default(fresh, entrep):
    assert entrep("train", "--show-recipe", "--json").json["recipe"]["method"] == "clip-lora"
    assert entrep("train", "--show-recipe").out == entrep("train", "--recipe", "mlcf", "--show-recipe").out


def test_a_batch_too_small_for_positives_is_wrong_usage(fresh, entrep):
    done = entrep("train", "--set", "train.batch_size=2")
    assert done.code == 2 and "does not hold 4 images of a class" in done.err and "train.batch_size=4" in done.err
    assert not fresh.exists()


def test_weights_that_are_not_cached_leave_no_folder(fresh, entrep, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cache_files(tmp_path / "hub", "owner/model", {"open_clip_config.json": json.dumps(CONV_CLIP)})
    assert entrep("split").code == 0
    done = entrep("train", "--backbone", "hf-hub:owner/model", "--set", "fusion.levels=[4,5]", "--json")
    error = done.json["error"]
    assert done.code == 1 and error["where"].startswith("owner/model, file open_clip_model.safetensors")
    assert "`hf download owner/model open_clip_model.safetensors`" in error["hint"] and "--weights" in error["hint"]
    assert not (fresh / "clip-lora").exists()


def test_a_class_without_prompts_leaves_no_folder(fresh, phantom, entrep, small_clip, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantom, data)
    names = ["nose-right", "nose-left", "ear-right", "ear-left", "vc-open", "vc-closed", "throat"]
    classes = "".join(f'[[classes]]\nname = "{name}"\nid = {i}\nprompts.en = ["{name}"]\n' for i, name in enumerate(names))
    (data / "train" / "taxonomy.toml").write_text(classes.replace('prompts.en = ["throat"]', ""))
    assert entrep("split", "--data", data).code == 0
    done = entrep("train", *small_clip, "--data", data, "--json")
    assert done.code == 1 and done.json["error"]["faults"] == ["throat"] and "prompts.en" in done.json["error"]["hint"]
    assert not (fresh / "clip-lora").exists()


# ---------------------------------------------------------------- the demo


def test_the_demo_does_the_whole_job(phantom, entrep, small_clip, tmp_path, monkeypatch):
    """Its own data and recipe would take minutes; each command it prints is run all the same."""
    from entrep_cli.commands.train import train

    def small_train(**given):
        settings = [setting for flag, setting in zip(small_clip, small_clip[1:]) if flag == "--set"]
        return train(**given, backbone=small_clip[1], epochs=2, set_=settings)

    monkeypatch.setattr("entrep_cli.commands.synth.synth", lambda folder, **_: {"folder": str(shutil.copytree(phantom, folder))})
    monkeypatch.setattr("entrep_cli.commands.train.train", small_train)
    before = os.environ["ENTREP_RUNS"]
    done = entrep("demo", tmp_path / "demo")
    assert done.code == 0 and os.environ["ENTREP_RUNS"] == before
    for track in (1, 2, 3):
        assert (tmp_path / "demo" / "runs" / "clip-lora" / "submissions" / f"track{track}.zip").is_file()
        assert f"$ entrep predict --track {track}" in done.err
    assert "$ entrep search 'septal spur' --top-k 5" in done.err and (tmp_path / "demo" / "search.png").is_file()
    last = done.out[done.out.index("Demo on phantom data") :]
    assert "track 3 Recall@1 by finding" in last and "by chance" in last
    assert done.err.count("Next:") == 1 and done.err.rstrip().endswith("entrep --help")
    again = entrep("demo", tmp_path / "demo")
    assert again.code == 1 and "not empty" in again.err
