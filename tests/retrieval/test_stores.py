"""A gallery in Milvus: the same answers as without, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from entrep_cli.errors import RunError, UsageError
from entrep_cli.retrieval.embeddings import Embeddings, Items
from entrep_cli.retrieval.index import nearest, nearest_exactly
from entrep_cli.retrieval.ranking import rank
from entrep_cli.retrieval.stores import MilvusStore, address, build_store, drop_store, open_store

HOSTILE = ['it\'s "one"', "a\\b\nc", "{x} and 1 == 1", "nội soi", "", "g5"]
SETS = {"train": "0123"}


@pytest.fixture(scope="module")
def gallery() -> Embeddings:
    rows = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    rows[200:260] = rows[100]  # copies, to be told apart by their place alone
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [f"{i}.png" for i in range(300)]
    digests = [f"d{min(i, 250)}" for i in range(300)]
    items = Items.of(image=names, digest=digests, group=[HOSTILE[i % 6] for i in range(300)])
    return Embeddings(items, rows, np.eye(3, dtype=np.float32)[np.arange(300) % 3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, gallery):
    folder = tmp_path_factory.mktemp("run") / "index"
    build_store("milvus.db", gallery, SETS, folder)
    return folder


@pytest.fixture(scope="module")
def made(folder, gallery):
    return build_store("milvus.db", gallery, SETS, folder)  # once more: what is there is replaced


@pytest.mark.parametrize("group", ["none", *HOSTILE])
def test_it_answers_as_the_exact_search_does(folder, made, gallery, group):
    store = open_store(made, gallery, SETS, folder)
    for row in (0, 230):
        for digest in ("", f"d{row}"):
            for k in (1, 10, 400):
                query, masks = gallery.vectors[row : row + 1], {"digest": digest, "group": group}
                found, exact = nearest(store, gallery, query, k, **masks), nearest_exactly(gallery, query, k, **masks)
                assert found.indices.tolist() == exact.indices.tolist() and found.scores.tolist() == exact.scores.tolist()


def test_the_masks_are_filters_of_the_store(folder, made, gallery):
    store = open_store(made, gallery, SETS, folder)
    for key in ("image", "digest", "group"):
        for value in set(getattr(gallery.items, key)[[0, 7, 299]]):
            rows = store.search(gallery.vectors[:1], 300, {key: value}).indices[0]
            assert sorted(rows) == np.flatnonzero(getattr(gallery.items, key) != value).tolist()
    assert len(store.search(gallery.vectors[:1], 300, {"group": ""}).indices[0]) == 300


def test_a_store_of_other_embeddings_is_refused(folder, made, gallery):
    moved = Items(gallery.items.image, gallery.items.path, gallery.items.label, gallery.items.group[::-1], gallery.items.digest)
    regrouped = Embeddings(moved, gallery.vectors, gallery.probabilities)
    for other, sets in ((gallery.take(np.arange(299)), SETS), (regrouped, SETS), (gallery, {"train": "9"})):
        with pytest.raises(RunError, match="older than the embeddings") as caught:
            open_store(made, other, sets, folder)
        assert caught.value.hint == "`entrep index --store milvus`"


def test_a_build_that_was_cut_short_is_refused(folder, made, gallery, tmp_path):
    store = open_store(made, gallery, SETS, folder)
    store.client.delete(store.collection, filter="row in [4, 5]")
    with pytest.raises(RunError, match="298 of 300 images"):
        open_store(made, gallery, SETS, folder)
    build_store("milvus.db", gallery, SETS, folder)
    open_store(made, gallery, SETS, folder)
    with pytest.raises(RunError, match="gone"):
        open_store(made, gallery, SETS, tmp_path)


def test_a_server_is_asked_as_a_file_is(tmp_path, gallery):
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, db, port = start_server_in_thread(data_dir=str(tmp_path / "served.db"), host="127.0.0.1", port=0)
    try:
        made = build_store(f"http://127.0.0.1:{port}", gallery, SETS, tmp_path / "index")
        assert not (tmp_path / "index").exists()
        store = open_store(made, gallery, SETS, tmp_path)
        query = gallery.vectors[230:231]
        found, exact = nearest(store, gallery, query, 9, group="g5"), rank(query, gallery.vectors, 9, [(["g5"], gallery.items.group)])
        assert found.indices.tolist() == exact.indices.tolist()
        drop_store(made, tmp_path)
        with pytest.raises(RunError, match="0 of 300"):
            open_store(made, gallery, SETS, tmp_path)
    finally:
        server.stop(grace=0)
        db.close()


def test_a_server_that_is_not_there_is_told_at_once(tmp_path, gallery, capfd, monkeypatch):
    monkeypatch.setenv("ENTREP_MILVUS_TOKEN", "user:secret")
    with pytest.raises(RunError, match="does not answer") as caught:
        build_store("http://127.0.0.1:9", gallery, SETS, tmp_path)
    assert caught.value.where == "http://127.0.0.1:9" and "secret" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_an_answer_that_does_not_come_in_time_is_told(gallery):
    import grpc

    class Late(grpc.RpcError):
        pass

    class Client:
        def search(self, *_, **__):
            raise Late("Deadline Exceeded")

    with pytest.raises(RunError, match="does not answer: Deadline Exceeded"):
        MilvusStore(Client(), "entrep_0", gallery, "http://host").search(gallery.vectors[:1], 5, {})


def test_without_the_extra_it_says_what_to_install(tmp_path, gallery, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(RunError, match="not installed") as caught:
        build_store("milvus.db", gallery, SETS, tmp_path)
    assert caught.value.hint == "pip install '.[milvus]', in the checkout"


def test_what_milvus_lite_did_not_make_is_left_alone(tmp_path, gallery):
    path = tmp_path / "mine.db"
    path.write_bytes(b"SQLite format 3")
    with pytest.raises(RunError, match="stays as it is"):
        build_store(str(path), gallery, SETS, tmp_path)
    assert path.read_bytes() == b"SQLite format 3"


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert address("milvus") == "milvus.db" and address("gallery.db") == str(tmp_path / "gallery.db")
    assert address("https://host:19530") == "https://host:19530"
    for wrong in ("faiss", "http://", "http://host:port", "ftp://host/a.db", "http://user:secret@host:1", "http://host:1?token=secret", ""):
        with pytest.raises(UsageError) as caught:
            address(wrong)
        assert "secret" not in str(caught.value)


def test_no_token_is_written(folder, made):
    assert json.dumps(made).count("token") == 0 and set(made) == {"uri", "collection"}
