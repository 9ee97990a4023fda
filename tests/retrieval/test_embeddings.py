"""Embeddings on disk: what is kept, what is computed again, what is refused; the index over them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from entrep_cli.data.images import Preprocess
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import DataError, RunError
from entrep_cli.methods.base import Inference
from entrep_cli.retrieval import embeddings
from entrep_cli.retrieval.embeddings import Embeddings, Items, Rows, embed_items, embedded_sets, embeddings_of, read_embeddings
from entrep_cli.retrieval.index import build_run_index, nearest, open_run_index
from entrep_cli.retrieval.ranking import rank
from entrep_cli.workspace import Run
from tests.finders import Fake


class Mean(Fake):
    """The colour of an image as its embedding; an image is of class 1 as far as its right half is the brighter."""

    def __init__(self) -> None:
        sides = {"classes": [{"name": "a", "id": 0, "mirror": "b"}, {"name": "b", "id": 1, "mirror": "a"}]}
        super().__init__(Taxonomy.from_dict(sides), Preprocess(8), batch_size=2)
        self.anchor = nn.Parameter(torch.zeros(1))
        self.n_seen = 0

    def infer(self, pixels):
        self.n_seen += len(pixels)
        x = pixels.float()
        colour = x.mean(dim=(2, 3)) + 1
        right = x[..., 4:].mean(dim=(1, 2, 3)) / (x[..., 4:].mean(dim=(1, 2, 3)) + 2 * x[..., :4].mean(dim=(1, 2, 3)) + 1)
        return Inference(nn.functional.normalize(colour, dim=1), torch.stack([1 - right, right], dim=1))


@pytest.fixture
def items(tmp_path) -> Items:
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(5)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / name)
    return Items.of(image=names, path=[str(tmp_path / n) for n in names], group=list("xxyyz"), digest=[f"d{i}" for i in range(5)])


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.path("model.safetensors").write_bytes(b"weights")
    run.mark_complete({"preprocess": {}, "taxonomy": {}})
    return run


def test_embed_items_against_one_at_a_time(items):
    model = Mean()
    whole = embed_items(model, items)
    for i, path in enumerate(items.path):
        pixels = torch.from_numpy(model.preprocess(Image.open(path).convert("RGB")))[None]
        vector, probability, _ = model.infer(pixels)
        assert np.allclose(whole.vectors[i], vector[0]) and np.allclose(whole.probabilities[i], probability[0])


def test_flip_sends_probabilities_to_the_mirror_class(items):
    model = Mean()
    plain, averaged = embed_items(model, items), embed_items(model, items, flip=True)
    for i, path in enumerate(items.path):
        pixels = torch.from_numpy(model.preprocess(Image.open(path).convert("RGB")))[None]
        a, b = model.infer(pixels.flip(-1))[1][0].tolist()
        wanted = [(plain.probabilities[i, 0] + b) / 2, (plain.probabilities[i, 1] + a) / 2]
        assert np.allclose(averaged.probabilities[i], wanted, atol=1e-6)


def test_kept_until_images_or_model_change(items, run):
    model = Mean()
    first = embeddings_of(run, "test", items, model)
    seen = model.n_seen
    again = embeddings_of(run, "test", items, model)
    assert model.n_seen == seen and np.array_equal(first.vectors, again.vectors)
    embeddings_of(run, "test", items.take([0, 1]), model)
    assert model.n_seen == seen + 2
    run.path("model.safetensors").write_bytes(b"other weights")
    run.mark_complete({"preprocess": {}, "taxonomy": {}})
    embeddings_of(run, "test", items.take([0, 1]), model)
    assert model.n_seen == seen + 4


def test_other_labels_groups_and_places_keep_the_vectors(items, run):
    """Where the pixels are the same, nothing is computed, the list is written anew and the index stays good."""
    model = Mean()
    embeddings_of(run, "test", items, model)
    build_run_index(run)
    seen = model.n_seen
    moved = replace(items, label=np.array(list("abcde"), dtype=object), path=np.array([f"/gone/{i}" for i in range(5)], dtype=object))
    again = embeddings_of(run, "test", moved, model)
    assert model.n_seen == seen and again.items.rows() == moved.rows()
    assert read_embeddings(run, "test").items.rows() == moved.rows()
    assert open_run_index(run)[1].items.label.tolist() == list("abcde")
    repainted = replace(items, digest=np.array(["other", *items.digest[1:]], dtype=object))
    embeddings_of(run, "test", repainted, model)
    assert model.n_seen == seen + 5


def test_settings_and_preprocessing_are_part_of_what_is_kept(items, run):
    model = Mean()
    embeddings_of(run, "test", items, model)
    model.preprocess = Preprocess(16)
    embeddings_of(run, "test", items, model)
    assert model.n_seen == 10
    run.path("config.toml").write_text("embedding = 'both'")  # another view of the same weights
    run.mark_complete({"preprocess": {}, "taxonomy": {}})
    embeddings_of(run, "test", items, model)
    assert model.n_seen == 15


def test_a_write_that_fails_leaves_no_set(items, run, monkeypatch):
    embeddings_of(run, "test", items.take([0, 1]), Mean())

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "write_csv_atomic", full)
        with pytest.raises(OSError):
            embeddings_of(run, "test", items, Mean())
    assert embedded_sets(run) == []  # half old and half new would be worse than none
    embeddings_of(run, "test", items, Mean())
    assert len(read_embeddings(run, "test")) == 5


def test_in_a_run_of_somebody_else_nothing_is_kept(items, run, monkeypatch, capsys):
    moved = replace(items, path=items.path.copy(), label=np.array(list("abcde"), dtype=object))

    def refused(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "atomic_path", refused)
        found = embeddings_of(run, "test", items, Mean())
    assert len(found) == 5 and embedded_sets(run) == []
    assert "are not stored" in capsys.readouterr().err
    kept = embeddings_of(run, "test", items, Mean())
    assert np.array_equal(found.vectors, kept.vectors) and capsys.readouterr().err == ""
    with monkeypatch.context() as patch:  # where only the list changes, too
        patch.setattr("pathlib.Path.unlink", refused)
        again = embeddings_of(run, "test", moved, Mean())
    assert again.items.rows() == moved.rows() and "the list of images is not stored" in capsys.readouterr().err
    assert read_embeddings(run, "test").items.rows() == items.rows()


def test_the_flip_is_no_part_of_the_gallery(items, run):
    embeddings_of(run, "test", items, Mean())
    build_run_index(run)
    embeddings_of(run, "test-flip", items, Mean(), flip=True)
    assert embedded_sets(run) == ["test"]
    open_run_index(run)  # as good as before


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"sets": {}}', "null"),
        '{"sets": {}, "images": 5, "files": {"../other.faiss": "0"}}',
        '{"sets": {}, "images": 5, "store": 3}',
    ],
)
def test_a_damaged_index_is_told(items, run, content):
    embeddings_of(run, "test", items, Mean())
    build_run_index(run)
    run.path("index", "manifest.json").write_text(content)
    with pytest.raises(RunError) as caught:
        open_run_index(run)
    assert "entrep index" in caught.value.hint


def test_round_trip(items, run):
    made = embeddings_of(run, "test", items, Mean())
    read = read_embeddings(run, "test")
    assert read.vectors.dtype == np.float32 and np.allclose(np.linalg.norm(read.vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(made.vectors, read.vectors) and made.items.rows() == read.items.rows()
    assert embedded_sets(run) == ["test"]


@pytest.mark.parametrize("file", ["vectors.npy", "probabilities.npy", "items.csv"])
def test_damage_is_refused_by_name(items, run, file):
    embeddings_of(run, "test", items, Mean())
    path = run.path("embeddings", "test", file)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError) as caught:
        read_embeddings(run, "test")
    assert caught.value.faults == (f"{file} is changed",)


def test_without_a_manifest_there_are_no_embeddings(items, run):
    embeddings_of(run, "test", items, Mean())
    run.path("embeddings", "test", "manifest.json").unlink()
    assert embedded_sets(run) == []
    with pytest.raises(RunError):
        read_embeddings(run, "test")


def test_an_unreadable_image_is_named_and_nothing_is_written(items, run, tmp_path):
    for i in (1, 3):
        (tmp_path / f"{i}.png").write_bytes(b"torn")
    with pytest.raises(DataError) as caught:
        embeddings_of(run, "test", items, Mean())
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["1.png", "3.png"]
    assert not run.path("embeddings").exists()


def test_joined_sets_count_a_name_once(items):
    whole = embed_items(Mean(), items)
    sets = [whole.take([0, 1, 2]), whole.take([2, 3])]
    joined = Embeddings.joined(sets)
    assert joined.items.image.tolist() == ["0.png", "1.png", "2.png", "3.png"]
    assert np.shares_memory(joined.vectors[:3], sets[0].vectors)  # nothing was copied
    assert np.array_equal(joined.vectors, whole.vectors[:4]) and np.array_equal(joined.probabilities, whole.probabilities[:4])
    assert Embeddings.joined([whole]) is whole
    namesake = replace(whole, items=replace(whole.items, digest=np.array(["other"] * 5, dtype=object)))
    assert len(Embeddings.joined([whole, namesake])) == 10  # two pictures of one name are two


def test_nearest_against_a_naive_search(items, run):
    made = embeddings_of(run, "test", items, Mean())
    build_run_index(run)
    index, gallery = open_run_index(run)
    for i in range(5):
        for group in ("", str(items.group[i])):
            found = nearest(index, gallery, made.vectors[i : i + 1], 3, digest=str(items.digest[i]), group=group)
            allowed = [j for j in range(5) if j != i and (not group or items.group[j] != group)]
            wanted = sorted(allowed, key=lambda j: -float(made.vectors[i] @ made.vectors[j]))[:3]
            assert found.indices[0].tolist() == wanted


def test_an_index_older_than_the_embeddings_is_refused(items, run):
    embeddings_of(run, "test", items, Mean())
    with pytest.raises(RunError, match="no index"):
        open_run_index(run)
    build_run_index(run)
    embeddings_of(run, "more", items.take([0]), Mean())
    with pytest.raises(RunError, match="older"):
        open_run_index(run)
    build_run_index(run)
    manifest = run.path("index", "manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": {"shard-0.faiss": "0" * 64}}))
    with pytest.raises(RunError, match="not the one"):
        open_run_index(run)


# ---------------------------------------------------------------- rows of several arrays, against the copy they spare


@pytest.fixture
def parts() -> list[np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((90, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [rows[:40], rows[40:41], rows[41:]]


@pytest.mark.parametrize("kept", [np.arange(90), np.arange(0, 90, 3), np.array([39, 40, 41]), np.array([5]), np.arange(0)])
def test_every_selection_is_that_of_the_copy(parts, kept):
    rows, copy = Rows(parts, kept), np.concatenate(parts)[kept]
    n = len(copy)
    assert len(rows) == n and rows.shape == copy.shape and rows.ndim == 2 and rows.dtype == np.float32
    asked = [slice(None), slice(1, 3), slice(2, None, 2), slice(5, 5), np.arange(n)[::-1], np.arange(n) % 2 == 0, list(range(min(n, 2)))]
    for selection in asked:
        assert np.array_equal(rows[selection], copy[selection])
    for i in range(n):
        assert np.array_equal(rows[i], copy[i])
    assert np.array_equal(np.asarray(rows), copy)


def test_one_piece_is_not_copied(parts):
    rows = Rows(parts, np.arange(90))
    assert np.shares_memory(rows[3:20], parts[0]) and np.shares_memory(rows[41:90], parts[2])
    copied = np.asarray(Rows(parts[:1], np.arange(40)))
    copied[:] = 0
    assert parts[0].any()


def test_a_ranking_of_them_is_that_of_the_copy(parts):
    rows, copy = Rows(parts, np.arange(2, 88)), np.concatenate(parts)[2:88]
    for k in (3, None):
        assert np.array_equal(rank(copy[:5], rows, k).scores, rank(copy[:5], copy, k).scores)
