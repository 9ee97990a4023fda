import hashlib

import numpy as np
import pytest

from entrep_cli.errors import RunError
from entrep_cli.retrieval.index import build_index, load_index, save_index, search_index
from entrep_cli.retrieval.ranking import rank


def unit_rows(n, dimensions, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_an_exact_index_agrees_with_the_ranking():
    queries, gallery = unit_rows(20, 32), unit_rows(200, 32, seed=1)
    found = search_index(build_index(gallery), queries, 10)
    exact = rank(queries, gallery, 10)
    assert np.array_equal(found.indices, exact.indices)
    assert np.allclose(found.scores, exact.scores, atol=1e-6)


def test_equal_scores_come_in_gallery_order_and_missing_answers_as_minus_one():
    gallery = np.repeat(unit_rows(1, 8), 5, axis=0)
    found = search_index(build_index(gallery), gallery[:1], 7)
    assert found.indices.tolist() == [[0, 1, 2, 3, 4, -1, -1]]
    assert np.isneginf(found.scores[0, 5:]).all()


@pytest.mark.filterwarnings("ignore")
def test_a_large_set_is_searched_by_cells_and_finds_nearly_all():
    rng = np.random.default_rng(0)
    centres = unit_rows(30, 16)[rng.integers(30, size=3000)]
    gallery = centres + 0.05 * rng.standard_normal((3000, 16))
    gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).astype(np.float32)
    index = build_index(gallery, exact_up_to=1000)
    assert index.nlist == 219 and index.nprobe == 13
    found = search_index(index, gallery[:200], 1).indices[:, 0]
    assert (found == np.arange(200)).mean() > 0.95


def test_a_round_trip_through_a_file(tmp_path):
    gallery = unit_rows(50, 8)
    path = tmp_path / "chỉ mục.faiss"
    digest = save_index(build_index(gallery), path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    found = search_index(load_index(path, digest), gallery, 1)
    assert found.indices[:, 0].tolist() == list(range(50))


def test_another_file_than_the_hashed_one_is_never_parsed(tmp_path, monkeypatch):
    import faiss

    path = tmp_path / "index.faiss"
    digest = save_index(build_index(unit_rows(5, 4)), path)
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(faiss, "deserialize_index", lambda data: pytest.fail("was parsed"))
    with pytest.raises(RunError, match="not the one its manifest describes") as error:
        load_index(path, digest)
    assert error.value.mend == "entrep index" and error.value.where == str(path)
    with pytest.raises(RunError, match="cannot be read"):
        load_index(tmp_path / "none.faiss", digest)


def test_queries_of_another_model_are_refused():
    with pytest.raises(RunError, match="8 dimensions and the index has 4"):
        search_index(build_index(unit_rows(5, 4)), unit_rows(2, 8), 1)
