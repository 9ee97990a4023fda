"""The stages of an embedding: what they give, how long they say they took, and how a batch is chosen."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from entrep_cli import processes
from entrep_cli.errors import UsageError
from entrep_cli.retrieval import pipeline
from entrep_cli.retrieval.embeddings import Items, embeddings_of
from entrep_cli.retrieval.pipeline import Stages, answers, choose_batch, fitting_batch
from entrep_cli.workspace import Run, cache_dir
from tests.retrieval.test_embeddings import Mean


@pytest.fixture
def items(tmp_path) -> Items:
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(7)]
    return Items.of(image=names, path=[str(tmp_path / n) for n in names], digest=[f"d{i}" for i in range(7)])


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.mark_complete({"preprocess": {}, "taxonomy": {}})
    return run


def answered(model: Mean, items: Items, **options):
    return answers(model, items.path, items.digest, **options)


def test_any_batch_gives_the_same_rows_in_order(items):
    (wanted, wanted_classes), (flipped, _) = answered(Mean(), items, flip=True, batch_size=7)
    for size in (1, 2, 6, 100):
        (found, classes), (turned, _) = answered(Mean(), items, flip=True, batch_size=size)
        assert np.array_equal(found, wanted) and np.array_equal(classes, wanted_classes) and np.array_equal(turned, flipped)


def test_processes_take_turns_by_whole_batches(items, monkeypatch):
    """Both halves, computed one after the other here, join to what one process gives; a batch stays what it was."""
    (wanted, _), *_ = answered(Mean(), items, batch_size=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    monkeypatch.setattr(processes, "gather", lambda found: parts.append(found))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        (none, _), *_ = answered(Mean(), items, batch_size=2)
        assert len(none) == 0
    assert [[len(batch[0]) for batch in part] for part in parts] == [[2, 2], [2, 1]]
    monkeypatch.setattr(processes, "gather", lambda _: parts)
    (joined, _), *_ = answered(Mean(), items, batch_size=2)
    assert np.array_equal(joined, wanted)


def test_pixels_are_kept_and_read_back(items):
    first, second = Stages(), Stages()
    (wanted, _), *_ = answered(Mean(), items, stages=first)
    assert len(list(cache_dir("pixels").glob("*.npy"))) == 1
    for path in items.path:
        Image.new("RGB", (8, 8)).save(path)  # a digest stands for the pixels: nothing is decoded again
    (found, _), *_ = answered(Mean(), items, stages=second)
    assert np.array_equal(found, wanted)
    assert (first.cached, second.cached) == (False, True) and first.reader > 0 == second.reader == second.transform


def test_pixels_without_digests_or_room_are_not_kept(items, monkeypatch):
    answered(Mean(), Items.of(image=items.image, path=items.path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10 * 7 * 3 * 8 * 8 - 1})())
    answered(Mean(), items)
    assert not list(cache_dir("pixels").glob("*.npy"))


def test_a_failing_model_keeps_nothing(items):
    model = Mean()
    model.infer = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        answered(model, items, batch_size=2)
    assert not list(cache_dir("pixels").rglob("*.*"))


def test_the_stages_are_told_and_are_no_part_of_the_set(items, run):
    stages = Stages()
    embeddings_of(run, "test", items, Mean(), batch_size=3, stages=stages)
    assert stages.batch_size == 3 and stages.images == 7
    assert not {"stages", "seconds"} & set(json.loads(run.path("embeddings", "test", "manifest.json").read_text()))
    assert stages.elapsed >= stages.model + stages.writer > 0
    again = Stages()
    embeddings_of(run, "test", items, Mean(), stages=again)
    assert again.images == 0


@pytest.mark.parametrize(
    ("seconds", "name"),
    [
        ({"waited": 3, "model": 1, "reader": 4, "transform": 2}, "reader"),
        ({"waited": 3, "model": 1, "reader": 2, "transform": 4}, "transform"),
        ({"waited": 1, "model": 3, "reader": 9}, "model"),
        ({"waited": 0, "model": 1, "writer": 2}, "writer"),
    ],
)
def test_the_bottleneck_is_what_the_others_wait_for(seconds, name):
    assert Stages(**seconds).bottleneck == name


def test_vectors_of_another_engine_are_taken_unless_the_own_are_wanted(items, run):
    model = Mean()
    model.engine = "bf16"
    embeddings_of(run, "test", items, model)
    plain = Mean()
    embeddings_of(run, "test", items, plain)
    assert plain.n_seen == 0
    embeddings_of(run, "test", items, plain, any_engine=False)
    assert plain.n_seen == 7
    assert json.loads(run.path("embeddings", "test", "manifest.json").read_text())["engine"] == "fp32"


def test_the_batch_and_its_reason(monkeypatch):
    model = Mean()
    assert choose_batch(model, 5) == (5, "asked for")
    model.recipe.batch_size = 64
    monkeypatch.setattr(pipeline, "_memory_limit", lambda: int(3e9))
    assert choose_batch(model, None) == (8, "the machine has 3.0 GB of memory")
    monkeypatch.setattr(pipeline, "_memory_limit", lambda: None)
    assert choose_batch(model, None)[0] == 64
    assert [fitting_batch(1e9, total) for total in (1e9, 8e9, 80e9, 8e12)] == [1, 4, 32, 256]


def test_a_compiled_model_gives_the_same_and_has_its_own_name(items):
    model = Mean()
    (wanted, _), *_ = answered(model, items)
    model.compile_answers(backend="eager")
    (found, _), *_ = answered(model, items)
    assert model.engine == "fp32 compiled" and np.allclose(found, wanted, atol=1e-6)


def test_a_model_that_cannot_be_compiled_is_told(monkeypatch):
    model = Mean()

    def fail(_):
        raise torch._dynamo.exc.InternalTorchDynamoError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    model.compile_answers()
    with pytest.raises(UsageError, match="no compiler"):
        model.answer(torch.zeros(1, 3, 8, 8))
