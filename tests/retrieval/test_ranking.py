import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrep_cli.errors import DataError, UsageError
from entrep_cli.retrieval import ranking as module
from entrep_cli.retrieval.ranking import Ranking, key_codes, rank, ranked_blocks, relevance


def unit_rows(n, dimensions, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def naive_rank(queries, gallery, k, exclude=()):
    """Whole numbers, Python loops and Python's own stable sort."""
    whole = [[[round(x * 2**26) for x in row] for row in rows.tolist()] for rows in (queries, gallery)]
    answers = []
    for i, query in enumerate(whole[0]):
        scored = []
        for j, item in enumerate(whole[1]):
            if any(qs[i] == gs[j] and qs[i] not in (None, "") for qs, gs in exclude):
                continue
            score = np.float32(sum(a * b for a, b in zip(query, item, strict=True)) / 2**52)
            scored.append((j, score))
        scored.sort(key=lambda pair: -pair[1])
        scored = scored[:k]
        answers.append(scored + [(-1, -np.inf)] * (k - len(scored)))
    return [[j for j, _ in row] for row in answers], [[s for _, s in row] for row in answers]


def same(one, other):
    return np.array_equal(one.indices, other.indices) and one.scores.tobytes() == other.scores.tobytes()


def test_a_case_worked_out_by_hand():
    gallery = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
    ranking = rank(np.array([[1, 0], [0, 1]], np.float32), gallery, k=3)
    assert ranking.indices.tolist() == [[0, 2, 1], [1, 2, 0]]  # the last: 0 and 3 tie at 0
    assert ranking.scores.tolist() == [[1, pytest.approx(0.6), 0], [1, pytest.approx(0.8), 0]]
    assert ranking.indices.dtype == np.int64 and ranking.scores.dtype == np.float32


def test_against_a_naive_loop_in_whole_numbers():
    queries, gallery = unit_rows(11, 7), unit_rows(13, 7, seed=1)
    gallery[[4, 9, 12]] = gallery[2]
    names = [("a", "b", "", None)[i % 4] for i in range(13)]
    exclude = [(names[:11], names), (list(range(11)), list(range(13)))]
    for k in (1, 5, 13, 20):
        ranking = rank(queries, gallery, k, exclude)
        indices, scores = naive_rank(queries, gallery, k, exclude)
        assert ranking.indices.tolist() == indices
        assert ranking.scores.tolist() == scores


def test_scores_are_cosines_to_the_last_digit_of_float32():
    queries, gallery = unit_rows(20, 768), unit_rows(50, 768, seed=1)
    ranking = rank(queries, gallery, None)
    cosines = queries.astype(float) @ gallery.astype(float).T
    assert np.abs(np.take_along_axis(cosines, ranking.indices, 1) - ranking.scores).max() < 6e-8


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(1, 17), st.integers(1, 29), st.sampled_from([1, 4, 50, None]))
def test_neither_block_nor_tile_changes_a_bit(seed, n_queries, n_gallery, k):
    queries, gallery = unit_rows(n_queries, 24, seed), unit_rows(n_gallery, 24, seed + 1)
    whole = rank(queries, gallery, k)
    for block_size in (1, 3, 7):
        assert same(rank(queries, gallery, k, block_size=block_size), whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE", 5)
        assert same(rank(queries, gallery, k), whole)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 99), st.integers(1, 40), st.sampled_from([1, 3, 10]), st.sampled_from([2, 24, 512]),
    st.sampled_from([0.0, 1e-7, 1e-5, 1.0]), st.booleans(), st.sampled_from([4, 64, 10**9]),
)  # fmt: skip
def test_candidates_first_gives_the_same_bits_as_all_products(seed, n_gallery, k, dimensions, spread, masked, crowded):
    """Copies, near-copies within the error of float32, and rows far apart; with so many candidates that all are taken, and without."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(3, dimensions, seed)[rng.integers(3, size=n_gallery)]
    gallery = centres + np.float32(spread) * unit_rows(n_gallery, dimensions, seed + 1)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries = np.concatenate([unit_rows(5, dimensions, seed + 2), gallery[:4]])
    keys = [(rng.integers(3, size=len(queries)), rng.integers(3, size=n_gallery))] if masked else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LARGE_GALLERY", 10**9)
        whole = rank(queries, gallery, k, keys)
        patch.setattr(module, "_LARGE_GALLERY", 1)
        patch.setattr(module, "_CROWDED", n_gallery / crowded)
        patch.setattr(module, "_PRODUCT_TILE", 7)
        patch.setattr(module, "_PAIRS_AT_ONCE", 5 * dimensions)
        for block_size in (None, 1, 4):
            assert same(rank(queries, gallery, k, keys, block_size=block_size), whole)


def test_a_float32_product_is_no_further_off_than_its_bound():
    for dimensions in (1, 7, 512, 2048):
        rows, others = (np.abs(unit_rows(40, dimensions, seed)) for seed in (0, 1))
        gap = np.abs(rows @ others.T - module.exact_products(rows, others)).max()
        assert gap <= module.product_error(dimensions) < 3e-4


def test_a_large_gallery_is_ranked_by_candidates(monkeypatch):
    queries, gallery = unit_rows(9, 32), unit_rows(6000, 32, seed=1)
    gallery[5::600] = gallery[5]
    whole = rank(queries, gallery, None)
    monkeypatch.setattr(module, "exact_products", lambda *_: pytest.fail("all products were taken"))
    top = rank(queries, gallery, 20)
    assert np.array_equal(top.indices, whole.indices[:, :20])
    assert np.array_equal(top.scores, whole.scores[:, :20])


def test_copies_of_a_vector_tie_wherever_they_stand_and_keep_gallery_order():
    gallery = unit_rows(3001, 512, seed=2)
    copies = np.sort(np.random.default_rng(0).choice(3001, 40, replace=False))
    gallery[copies] = gallery[copies[0]]
    queries = unit_rows(30, 512, seed=3)
    full = rank(queries, gallery, None, block_size=9)
    for indices, scores in zip(full.indices, full.scores, strict=True):
        places = np.flatnonzero(np.isin(indices, copies))
        assert indices[places].tolist() == copies.tolist()
        assert len(set(scores[places].tolist())) == 1
    for k in (1, 10, 100):
        top = rank(queries, gallery, k)
        assert np.array_equal(top.indices, full.indices[:, :k])
    assert rank(gallery[copies[:1]], gallery, 40).indices[0].tolist() == copies.tolist()


def test_rows_of_any_float_are_taken():
    rows = unit_rows(6, 16)
    assert same(rank(rows.astype(float), rows.astype(float), 3), rank(rows, rows, 3))
    assert rank(rows.astype(np.float16), rows, 1).indices[:, 0].tolist() == list(range(6))


def test_minus_zero_ties_with_zero():
    gallery = np.array([[1.0], [-1.0], [1.0]], np.float32)
    scores = np.array([[-0.0, 0.0, -0.0]], np.float32)
    assert module._best(scores, None).indices.tolist() == [[0, 1, 2]]
    assert rank(gallery[:1], gallery, 3).indices.tolist() == [[0, 2, 1]]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_masked_item_is_never_returned_and_every_other_is(data):
    keys = st.sampled_from(["exam 1", "exam 2", "exam 3", "", None])
    n_queries, n_gallery = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    pairs = [
        (
            data.draw(st.lists(keys, min_size=n_queries, max_size=n_queries)),
            data.draw(st.lists(keys, min_size=n_gallery, max_size=n_gallery)),
        )
        for _ in range(2)
    ]
    ranking = rank(unit_rows(n_queries, 5), unit_rows(n_gallery, 5, seed=1), None, pairs)
    for i, row in enumerate(ranking.indices):
        allowed = {j for j in range(n_gallery) if not any(q[i] and q[i] == g[j] for q, g in pairs)}
        assert set(row[row >= 0].tolist()) == allowed
        assert (row[len(allowed) :] == -1).all() and np.isneginf(ranking.scores[i, len(allowed) :]).all()


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_the_gallery_does_not_matter_without_ties(order):
    queries, gallery = unit_rows(4, 16), unit_rows(12, 16, seed=1)
    plain, shuffled = rank(queries, gallery, 5), rank(queries, gallery[list(order)], 5)
    assert np.array_equal(np.array(order)[shuffled.indices], plain.indices)
    assert np.array_equal(shuffled.scores, plain.scores)


def test_a_query_in_the_gallery_answers_itself_only_without_the_mask():
    rows = unit_rows(9, 8)
    names = np.array([f"{i}.png" for i in range(9)])
    assert rank(rows, rows, 1).indices[:, 0].tolist() == list(range(9))
    masked = rank(rows, rows, 9, [(names, names)])
    assert (masked.indices[:, :8] != np.arange(9)[:, None]).all()
    assert (masked.indices[:, 8] == -1).all()


def test_empty_sets_and_long_rankings():
    rows = unit_rows(3, 4)
    assert rank(rows, rows[:0], 2).indices.tolist() == [[-1, -1]] * 3
    assert rank(rows, rows[:0], None).indices.shape == (3, 0)
    assert rank(rows[:0], rows, 2).indices.shape == (0, 2)
    assert rank(rows, rows, 5).indices[:, 3:].tolist() == [[-1, -1]] * 3


def test_blocks_cover_the_queries_once():
    blocks = list(ranked_blocks(unit_rows(10, 4), unit_rows(6, 4), 2, block_size=4))
    assert [(rows.start, rows.stop) for rows, _ in blocks] == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_wrong_row_of_a_large_gallery_is_found(dtype):
    gallery = unit_rows(20_000, 128).astype(dtype)  # more than one tile, and enough that FAISS tells the lengths
    rank(gallery[:2], gallery, 3)
    gallery[[17, 19_999]] = [[np.nan], [0.5]] * gallery[[17, 19_999]]
    with pytest.raises(DataError, match=r"2 of 20000 rows of gallery are not of unit length \(row 17 has length nan"):
        rank(gallery[:2], gallery, 3)
    with pytest.raises(DataError, match=r"1 of 3 rows of gallery .* \(row 2 has length 0.5"):
        rank(gallery[:2], gallery[[0, 1, 19_999]], 1)


def test_what_cannot_be_ranked_is_refused():
    rows = unit_rows(3, 4)
    with pytest.raises(UsageError, match="top-k must be at least 1"):
        rank(rows, rows, 0)
    with pytest.raises(DataError, match=r"1 of 3 rows of gallery are not of unit length \(row 1 has length 2"):
        rank(rows, rows * np.array([[1], [2], [1]], np.float32), 1)
    with pytest.raises(DataError, match="3 of 3 rows of queries"):
        rank(rows * np.nan, rows, 1)
    with pytest.raises(DataError, match="4 dimensions and the gallery has 2"):
        rank(rows, unit_rows(3, 2), 1)
    with pytest.raises(DataError, match="must be"):
        rank(rows[0], rows, 1)
    with pytest.raises(DataError, match=r"keys \(2, 3\) do not fit 3 queries"):
        rank(rows, rows, 1, [(["a", "b"], ["a", "b", "c"])])


@pytest.mark.parametrize(
    ("indices", "scores"),
    [([[0, 1]], [[0.5]]), ([[0, -1]], [[0.5, 0.4]]), ([[0, 1]], [[0.4, 0.5]]), ([0], [0.5])],
)
def test_a_ranking_checks_itself(indices, scores):
    with pytest.raises(ValueError, match="must"):
        Ranking(np.array(indices), np.array(scores, np.float32))


def test_relevance_is_an_equal_label_that_is_not_missing():
    ranking = Ranking(np.array([[2, 0, -1], [1, 3, -1]]), np.array([[0.9, 0.1, -np.inf]] * 2, np.float32))
    hits = relevance(ranking, ["ear", ""], ["nose", "", "ear", ""])
    assert hits.tolist() == [[True, False, False], [False, False, False]]
    assert relevance(ranking, [7, 7], [7, 8, 8, 7]).tolist() == [
        [False, True, False],
        [False, True, False],
    ]
    with pytest.raises(DataError, match="1 labels do not fit 2 queries"):
        relevance(ranking, ["ear"], ["nose"] * 4)


def test_keys_of_any_kind_are_compared_as_they_are():
    missing = [None, "", float("nan"), np.float64("nan"), pd.NA, pd.NaT]
    assert key_codes(missing)[0].tolist() == [-1] * 6
    assert [codes.tolist() for codes in key_codes(["b", "a", "nan", "0"], ["a", "b", 0])] == [
        [0, 1, 2, 3],
        [1, 0, 4],
    ]
    assert [codes.tolist() for codes in key_codes(np.array([5, 7]), [7, 5])] == [[0, 1], [1, 0]]
    assert key_codes(pd.Series(["x", None, "x"]))[0].tolist() == [0, -1, 0]


def test_a_bonus_is_added_and_brings_no_masked_item_back():
    queries, gallery = unit_rows(7, 5), unit_rows(9, 5, seed=1)
    extra = np.random.default_rng(2).uniform(0, 3, (7, 9)).astype(np.float32)
    extra[3] = -np.inf  # a query from which all is taken
    names = list("abcdefghi")
    plain = rank(queries, gallery, None)
    cosines = np.empty((7, 9), np.float32)
    np.put_along_axis(cosines, plain.indices, plain.scores, axis=1)
    wanted = np.where(np.eye(7, 9, dtype=bool), -np.inf, cosines + extra)
    seen = []

    def bonus(rows, candidates):
        seen.append((rows.start, rows.stop, candidates.tolist()))
        return extra[rows]

    for size in (2, 7):
        found = rank(queries, gallery, None, [(names[:7], names)], bonus=bonus, block_size=size)
        order = np.lexsort((np.tile(np.arange(9), (7, 1)), -wanted), axis=1)
        expected = np.take_along_axis(wanted, order, axis=1)
        assert found.scores.tolist() == expected.tolist()
        assert found.indices.tolist() == np.where(np.isneginf(expected), -1, order).tolist()
    assert [s[:2] for s in seen[:4]] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert seen[-1][2] == (~np.eye(7, 9, dtype=bool)).tolist()


@pytest.mark.parametrize("tile", [700, 2**17])
@pytest.mark.parametrize("case", ["plain", "copies", "all alike", "small groups", "large groups", "few left"])
def test_candidates_of_faiss_are_those_of_all_exact_products(monkeypatch, case, tile):
    """Enough queries for FAISS to multiply matrices; answers are the bytes of the exact ranking of everything."""
    import faiss

    rng = np.random.default_rng(0)
    n, size, dimensions, k = 520, 2600, 256, 10
    assert n * dimensions >= faiss.cvar.distance_compute_blas_threshold
    rows = rng.standard_normal((n + size, dimensions)).astype(np.float32) + 2 * rng.standard_normal(dimensions).astype(np.float32)
    if case == "copies":
        rows[n:] = rows[n + rng.integers(size // 4, size=size)]
    if case == "all alike":
        rows[n:] = rows[n] + 1e-6 * rng.standard_normal((size, dimensions)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries, gallery = rows[:n], rows[n:]
    groups = {"small groups": 200, "large groups": 2, "few left": 1}.get(case)
    exclude = [(rng.integers(groups, size=n), rng.integers(groups, size=size))] if groups else []
    if case == "few left":
        exclude[0][1][:4] = 7  # all but four of the gallery are masked
    monkeypatch.setattr(module, "_NEAREST_TILE", tile)
    settled = []
    nearest = module._nearest_candidates

    def spied(*given):
        found = nearest(*given)
        settled.append(found[2].mean())
        return found

    monkeypatch.setattr(module, "_nearest_candidates", spied)
    found = rank(queries, gallery, k, exclude)
    assert settled and {"plain": settled[0] == 1, "all alike": settled[0] == 0, "large groups": settled[0] == 0}.get(case, True)
    monkeypatch.setattr(module, "_LARGE_GALLERY", 10**9)
    wanted = rank(queries, gallery, k, exclude)
    assert np.array_equal(found.indices, wanted.indices) and found.scores.tobytes() == wanted.scores.tobytes()
