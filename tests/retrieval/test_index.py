import hashlib

import numpy as np
import pytest

from entrep_cli.errors import RunError
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import Embeddings, Items
from entrep_cli.retrieval.index import build_shards, load_index, measured_recall, nearest, nearest_exactly, save_index, search_index
from entrep_cli.retrieval.ranking import rank


def unit_rows(n, dimensions, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def build_index(gallery):
    (index,) = build_shards(gallery)
    return index


def test_an_exact_index_agrees_with_the_ranking():
    queries, gallery = unit_rows(20, 32), unit_rows(200, 32, seed=1)
    found = search_index(list(build_shards(gallery)), queries, 10)
    exact = rank(queries, gallery, 10)
    assert np.array_equal(found.indices, exact.indices)
    assert np.allclose(found.scores, exact.scores, atol=1e-6)


def test_equal_scores_come_in_gallery_order_and_missing_answers_as_minus_one():
    gallery = np.repeat(unit_rows(1, 8), 5, axis=0)
    found = search_index(list(build_shards(gallery)), gallery[:1], 7)
    assert found.indices.tolist() == [[0, 1, 2, 3, 4, -1, -1]]
    assert np.isneginf(found.scores[0, 5:]).all()


@pytest.mark.filterwarnings("ignore")
def test_a_large_set_is_searched_by_cells_and_finds_nearly_all():
    rng = np.random.default_rng(0)
    centres = unit_rows(30, 16)[rng.integers(30, size=3000)]
    gallery = centres + 0.05 * rng.standard_normal((3000, 16))
    gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).astype(np.float32)
    shards = list(build_shards(gallery, exact_up_to=1000, shard_rows=1300))
    assert [shard.ntotal for shard in shards] == [1300, 1300, 400]
    assert all(shard.nlist == 219 and shard.nprobe == 13 for shard in shards)
    found = search_index(shards, gallery[:200], 1).indices[:, 0]
    assert (found == np.arange(200)).mean() > 0.95
    for shard in shards:
        shard.nprobe = 1
    recall = measured_recall(shards, gallery)
    exact = rank(gallery, gallery, 10).indices
    by_hand = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, search_index(shards, gallery, 10).indices)])
    assert 0.1 < recall < 0.99 and abs(recall - by_hand) < 0.05
    for shard in shards:
        shard.nprobe = shard.nlist
    assert measured_recall(shards, gallery) == pytest.approx(1, abs=0.002)


def test_shards_answer_as_one_index_does(tmp_path):
    queries, gallery = unit_rows(20, 32), unit_rows(200, 32, seed=1)
    gallery[[3, 70, 150]] = gallery[3]
    queries[0] = gallery[3]
    whole = search_index(list(build_shards(gallery)), queries, 10)
    shards = []
    for i, shard in enumerate(build_shards(gallery, shard_rows=64)):
        shards.append(load_index(tmp_path / f"{i}.faiss", save_index(shard, tmp_path / f"{i}.faiss")))
    found = search_index(shards, queries, 10)
    assert len(shards) == 4 and np.array_equal(found.indices, whole.indices) and np.allclose(found.scores, whole.scores, atol=1e-6)
    assert found.indices[0, :3].tolist() == [3, 70, 150]
    assert search_index(shards, queries, 300).indices.shape == (20, 300)


def test_a_round_trip_through_a_file(tmp_path):
    gallery = unit_rows(50, 8)
    path = tmp_path / "chỉ mục.faiss"
    digest = save_index(build_index(gallery), path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    found = search_index([load_index(path, digest)], gallery, 1)
    assert found.indices[:, 0].tolist() == list(range(50))


def test_another_file_than_the_hashed_one_is_never_parsed(tmp_path, monkeypatch):
    import faiss

    path = tmp_path / "index.faiss"
    digest = save_index(build_index(unit_rows(5, 4)), path)
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("was parsed"))
    with pytest.raises(RunError, match="not the one its manifest describes") as error:
        load_index(path, digest)
    assert error.value.hint == "entrep index" and error.value.where == str(path)
    (tmp_path / "empty.faiss").touch()
    for name in ("none.faiss", "empty.faiss"):
        with pytest.raises(RunError, match="cannot be read"):
            load_index(tmp_path / name, digest)


def test_queries_of_another_model_are_refused():
    with pytest.raises(RunError, match="8 dimensions and the index has 4"):
        search_index(list(build_shards(unit_rows(5, 4))), unit_rows(2, 8), 1)


# ---------------------------------------------------------------- nearest: by an index, and exactly


@pytest.fixture
def gallery() -> Embeddings:
    names = [f"{i}.png" for i in range(12)]
    items = Items.of(image=names, digest=[f"d{i}" for i in range(12)], group=[f"g{i // 4}" if i < 8 else "" for i in range(12)])
    return Embeddings(items, unit_rows(12, 6), np.eye(3, dtype=np.float32)[[0, 0, 0, 1] * 3])


@pytest.mark.parametrize("k", [1, 5, 12, 40])
@pytest.mark.parametrize("digest, group", [("", ""), ("d3", ""), ("d3", "g0"), ("d9", "g1"), ("none", "none")])
def test_it_answers_as_the_index_does(gallery, k, digest, group):
    index = list(build_shards(gallery.vectors, shard_rows=5))
    for query in gallery.vectors[:, None]:
        found = nearest_exactly(gallery, query, k, digest=digest, group=group)
        other = nearest(index, gallery, query, k, digest=digest, group=group)
        assert found.indices.tolist() == other.indices.tolist() and found.scores.tolist() == other.scores.tolist()
        assert (found.indices >= 0).all()


def test_copies_come_in_the_order_of_the_gallery_however_many(gallery):
    """The index stops in the middle of equals, so it is asked again until they are all there."""
    many = gallery.take(np.repeat(np.arange(12), 30))
    index = list(build_shards(many.vectors))
    for query in gallery.vectors[:, None]:
        found, exact = nearest(index, many, query, 7, digest="d3"), nearest_exactly(many, query, 7, digest="d3")
        assert found.indices.tolist() == exact.indices.tolist() and found.scores.tolist() == exact.scores.tolist()


def test_the_classes_have_their_say_and_the_row_ends_with_them(gallery):
    rule, query, asked = ClassRule("hard"), gallery.vectors[:1], np.eye(3, dtype=np.float32)
    for c, rows in ((1, {3, 7, 11}), (0, {1, 2, 4, 5, 6, 8, 9, 10}), (2, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})):
        found = nearest_exactly(gallery, query, 20, digest="d0", bonus=rule.bonus(asked[c : c + 1], gallery.probabilities))
        assert set(found.indices[0].tolist()) == rows
        assert rule.fell_back(found, asked[c : c + 1], gallery.probabilities).tolist() == [c == 2]
    nothing = nearest_exactly(gallery.take([0]), query, 5, digest="d0", bonus=rule.bonus(asked[:1], gallery.probabilities[:1]))
    assert nothing.indices.shape == (1, 0) and not rule.fell_back(nothing, asked[:1], gallery.probabilities[:1]).any()
