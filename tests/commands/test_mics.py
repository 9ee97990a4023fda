"""`entrep pretrain mics` and what follows, from the command line."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from entrep_cli.methods import mics_pretraining
from entrep_cli.training import loop
from tests.tiny import answers, make_contest

TINY = ["image.size=32", "backbone.options={patch_size = 8, depth = 1}", "fusion.depth=1", "fusion.heads=4", "shift.clusters=4"]
TINY += ["epoch_images=0", "train.batch_size=16", "train.accumulate=1"]
TINY += ["pretraining.decoder={width = 32, depth = 1, heads = 4}", "pretraining.held_out=0.1", "pretraining.pictures=0"]
SMALL = ["--backbone", "test_vit", "--precision", "fp32", *(part for setting in TINY for part in ("--set", setting))]


@pytest.fixture
def contest(tmp_path, monkeypatch):
    made = make_contest(tmp_path / "data", per_class=8, groups=2, tests=2, size=(32, 32))
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ENTREP_DATA", str(made.root))
    return made


@pytest.fixture
def split(contest, entrep):
    assert entrep("split", "--ratios", "50/25/25").code == 0
    return contest


def test_from_images_without_labels_to_two_submissions(split, entrep, tmp_path):
    done = entrep("pretrain", "mics", "--epochs", 3, *SMALL, "--set", "pretraining.pictures=2")
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "mics-pretrain"
    told = json.loads((run / "run.json").read_text())
    assert told["method"] == "mics-pretrain" and told["data"]["images"] == {"train": 24, "held out": 4}
    with open(run / "metrics.csv", newline="") as file:
        history = list(csv.DictReader(file))
    losses = {f"{part}_{name}" for part in ("train", "val") for name in ("loss", "reconstruction", "consistency", "alignment")}
    assert len(history) == 3 and losses < set(history[0])
    assert f"{float(history[0]['train_reconstruction']):.3f}" in done.out and "consistency, held out" in done.out
    assert "random encoders" in done.out and "after pre-training" in done.out and "difference, paired" in done.out
    for name in ("reconstructions/epoch-002.png", "reconstructions/epoch-003.png", "losses.png"):
        assert Image.open(run / name).format == "PNG"
    assert not (run / "reconstructions" / "epoch-001.png").exists() and not (run / "checkpoint.pt").exists()
    assert "entrep train mics --weights mics-pretrain" in done.err and "entrep train dinov2" in done.err

    trained = entrep("train", "mics", "--weights", "mics-pretrain", "--label-fraction", 0.5, "--epochs", 2, *SMALL)
    assert trained.code == 0, trained.err
    assert "Labels: 14 of 28" in trained.err and "Encoders: run mics-pretrain." in trained.err and "From scratch" not in trained.err
    made = entrep("--json", "predict", "--track", 1)
    assert made.code == 0, made.err
    assert set(answers(tmp_path / "runs" / "mics" / "submissions" / "track1.zip")) == set(split.test_labels)
    assert entrep("predict", "--track", 2).code == 0
    assert entrep("predict", "--track", 3).code != 0
    scores = entrep("evaluate", "--json")
    assert scores.code == 0, scores.err
    sent, truth = tmp_path / "runs" / "mics" / "submissions" / "track1.zip", split.test / "truth_cls.json"
    again = entrep("evaluate", "--submission", sent, "--truth", truth, "--track", 1)
    assert again.code == 0 and "accuracy" in again.out

    dino = [a for a in SMALL if a in ("--backbone", "test_vit") or a.startswith(("image.", "backbone.opt"))]
    line = ["--backbone", "test_vit", "--set", dino[2], "--set", dino[3], "--set", "views=0", "--epochs", 1]
    assert entrep("train", "dinov2", "--weights", "mics-pretrain", *line).code == 0
    refused = entrep("evaluate", "--run", "mics-pretrain")
    assert refused.code == 2 and "answers nothing" in refused.err


def test_an_interrupted_pretraining_goes_on(split, entrep, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole = entrep("--json", "pretrain", "mics", "--epochs", 2, "--name", "whole", *SMALL)
    assert whole.code == 0, whole.err
    drawn = mics_pretraining.augment_alike

    def killed(*given):
        if given[-1].initial_seed() == 2:  # of epoch 2 with seed 0
            raise KeyboardInterrupt
        return drawn(*given)

    with monkeypatch.context() as patch:
        patch.setattr(mics_pretraining, "augment_alike", killed)
        stopped = entrep("pretrain", "mics", "--epochs", 2, *SMALL)
    assert stopped.code == 130 and "entrep pretrain mics --resume --name mics-pretrain" in stopped.err
    assert entrep("train", "mics", "--weights", "mics-pretrain", *SMALL).code == 1  # half a run
    other = entrep("train", "--resume")
    assert other.code == 2 and "pre-training" in other.err
    assert (tmp_path / "runs" / "mics-pretrain" / "checkpoint.pt").exists()
    done = entrep("--json", "pretrain", "mics", "--resume")
    assert done.code == 0, done.err
    files = [(tmp_path / "runs" / name / "model.safetensors").read_bytes() for name in ("whole", "mics-pretrain")]
    assert files[0] == files[1] and done.json["validation"] == whole.json["validation"]
    assert done.json["probe"]["after"] == whole.json["probe"]["after"]
    refused = entrep("pretrain", "mics", "--name", "whole", *SMALL)
    assert refused.code == 1 and "--overwrite" in refused.err
    assert entrep("pretrain", "mics", "--name", "whole", "--overwrite", "--epochs", 1, *SMALL).code == 0


def test_folders_alone_are_enough(contest, entrep, monkeypatch, tmp_path):
    monkeypatch.delenv("ENTREP_DATA")
    monkeypatch.chdir(tmp_path.parent)
    done = entrep("--json", "pretrain", "mics", "--images", contest.train / "imgs", "--images", contest.test, "--epochs", 1, *SMALL)
    assert done.code == 0, done.err
    assert sum(done.json["data"]["images"].values()) == 70 and done.json["probe"] is None
    assert str(contest.root) not in (tmp_path / "runs" / "mics-pretrain" / "run.json").read_text()
    assert str(contest.root) not in (tmp_path / "runs" / "mics-pretrain" / "images.csv").read_text()


def test_without_a_split_all_images_are_learned_from_and_that_is_told(contest, entrep):
    done = entrep("--json", "pretrain", "mics", "--epochs", 1, *SMALL)
    assert done.code == 0 and sum(done.json["data"]["images"].values()) == 56 and "No split yet" in done.err
    assert done.json["probe"] is None
    assert entrep("split", "--ratios", "50/25/25").code == 0
    trained = entrep("train", "mics", "--weights", "mics-pretrain", "--epochs", 1, *SMALL)
    assert trained.code == 0 and "was trained on 14 of the 14 validation images" in " ".join(trained.err.split())


def test_wrong_usage(split, entrep, tmp_path):
    for line, code, told in (
        (["pretrain", "dinov2"], 2, "No pre-training of 'dinov2'"),
        (["pretrain", "mics", "--resume", "--overwrite"], 2, "give one of them"),
        (["pretrain", "mics", "--resume"], 1, "No incomplete run"),
        (["pretrain", "mics", "--recipe", "dinov2"], 2, "a recipe of dinov2"),
        (["pretrain", "mics", "--images", tmp_path / "nowhere"], 1, "No such folder"),
        (["pretrain", "mics", "--set", "pretraining.mask=0.5"], 2, "did you mean 'pretraining.mask_ratio'"),
        (["pretrain", "mics", *SMALL, "--set", "image.size=36"], 2, "cannot take images of 36"),
        (["pretrain", "mics", *SMALL, "--backbone", "test_resnet", "--set", "backbone.options={}"], 2, "no plain ViT"),
        (["train", "mics", "--label-fraction", 0, *SMALL], 2, "label_fraction"),
        (["train", "mics", "--label-fraction", 1.5, *SMALL], 2, "label_fraction"),
        (["train", "dinov2", "--label-fraction", 0.5], 2, "label_fraction"),
        (["train", "mics", "--weights", "nowhere", *SMALL], 1, "No such weights file"),
    ):
        done = entrep(*line)
        assert done.code == code and told in " ".join(done.err.split()), (line, done.err)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.name != "cache") == ["split.csv", "split.json"]
    shown = entrep("pretrain", "mics", "--recipe", "mics-tiny", "--epochs", 7, "--show-recipe")
    assert shown.code == 0 and 'method = "mics-pretrain"' in shown.out and "epochs = 7" in shown.out and "label_fraction" not in shown.out
