import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from entrep_cli.errors import DataError
from entrep_cli.evaluation.intervals import bootstrap_mean
from entrep_cli.evaluation.retrieval import RetrievalScores, score_retrieval
from entrep_cli.retrieval.ranking import rank, relevance


def unit_rows(n, dimensions, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def naive_scores(hits, n_relevant):
    """Recall@1, 5, 10, reciprocal rank and average precision of one query, as a loop."""
    recall = [float(any(hits[:k])) for k in (1, 5, 10)]
    seen, reciprocal, precision = 0, 0.0, 0.0
    for place, hit in enumerate(hits, 1):
        if hit:
            seen += 1
            precision += seen / place
            reciprocal = reciprocal or 1 / place
    return [*recall, reciprocal, precision / n_relevant]


def as_hits(text):
    return np.array([[letter == "x" for letter in row] for row in text.split()])


def test_against_values_worked_out_by_hand():
    hits = as_hits("x..x.. ..x.x. ...... .....x")
    scores = RetrievalScores.from_relevance(hits, [2, 2, 0, 1], "class")
    assert scores.depth is None and scores.n_without_relevant == 1
    per_query = scores.per_query
    assert per_query["recall@1"][[0, 1, 3]].tolist() == [1, 0, 0]
    assert per_query["recall@5"][[0, 1, 3]].tolist() == [1, 1, 0]
    assert per_query["recall@10"][[0, 1, 3]].tolist() == [1, 1, 1]
    assert per_query["mrr"][[0, 1, 3]].tolist() == [1, 1 / 3, 1 / 6]
    # (1/1 + 2/4) / 2, (1/3 + 2/5) / 2, 1/6
    assert per_query["map"][[0, 1, 3]] == pytest.approx([3 / 4, 11 / 30, 1 / 6])
    assert all(math.isnan(column[2]) for column in per_query.values())
    assert scores.means["mrr"].value == pytest.approx((1 + 1 / 3 + 1 / 6) / 3)
    assert scores.means["recall@1"].value == pytest.approx(1 / 3)


def test_a_cut_ranking_says_so():
    # The first query has a third relevant item below rank 6: its share of the precision is 0.
    scores = RetrievalScores.from_relevance(as_hits("x..x.. ......"), [3, 1], "finding")
    assert scores.depth == 6
    assert list(scores.means) == ["recall@1", "recall@5", "mrr@6", "map@6"]
    assert scores.per_query["map@6"] == pytest.approx([(1 + 2 / 4) / 3, 0])
    assert scores.per_query["mrr@6"].tolist() == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 25), st.integers(0, 999))
def test_against_a_naive_loop(n_queries, width, seed):
    hits = np.random.default_rng(seed).random((n_queries, width)) < 0.2
    n_relevant = hits.sum(axis=1)
    scores = RetrievalScores.from_relevance(hits, n_relevant, "class", resamples=2)
    for query in range(n_queries):
        ours = [column[query] for column in scores.per_query.values()]
        if n_relevant[query]:
            assert ours == pytest.approx(naive_scores(hits[query].tolist(), n_relevant[query]))
        else:
            assert np.isnan(ours).all()


def test_average_precision_against_scikit_learn():
    queries, gallery = unit_rows(30, 16), unit_rows(80, 16, seed=1)
    rng = np.random.default_rng(2)
    query_labels, gallery_labels = rng.integers(5, size=30), rng.integers(5, size=80)
    scores = score_retrieval(queries, gallery, (query_labels, gallery_labels), name="class")
    cosines = queries @ gallery.T
    theirs = [average_precision_score(gallery_labels == query_labels[i], cosines[i]) for i in range(30)]
    assert scores.per_query["map"] == pytest.approx(theirs)


def scored_set():
    rng = np.random.default_rng(5)
    rows = unit_rows(41, 12)
    rows[7] = rows[3]
    names, exams = np.arange(41), rng.integers(12, size=41)
    labels = [("ear", "nose", "throat", "", None)[i] for i in rng.integers(5, size=41)]
    labels[0] = "alone"
    return rows, labels, exams, [(names, names), (exams, exams)]


@pytest.mark.parametrize("block_size", [1, 3, 7, None])
def test_block_by_block_is_the_same_as_at_once(block_size):
    rows, labels, exams, exclude = scored_set()
    whole = rank(rows, rows, None, exclude)
    hits = relevance(whole, labels, labels)
    expected = RetrievalScores.from_relevance(hits, hits.sum(axis=1), "class", exams)
    scores = score_retrieval(
        rows,
        rows,
        (labels, labels),
        name="class",
        exclude=exclude,
        groups=exams,
        block_size=block_size,
    )
    assert scores.as_dict() == expected.as_dict()
    assert scores.n_without_relevant == sum(not label or label == "alone" for label in labels)


def test_masked_items_are_neither_answers_nor_relevant():
    rows, labels, exams, exclude = scored_set()
    scores = score_retrieval(rows, rows, (labels, labels), name="class", exclude=exclude)
    for i in range(41):
        others = [j for j in range(41) if exams[j] != exams[i] and labels[i] and labels[j] == labels[i]]
        assert scores.n_relevant[i] == len(others)
    itself = score_retrieval(rows, rows, (labels, labels), name="class")
    assert itself.means["recall@1"].value > scores.means["recall@1"].value


def test_findings_by_a_function_of_the_rows():
    queries, gallery = unit_rows(9, 8), unit_rows(20, 8, seed=1)
    rng = np.random.default_rng(0)
    has = rng.random((9, 20)) < 0.2  # several findings an image: a matrix, not labels
    scores = score_retrieval(queries, gallery, lambda rows: has[rows], name="finding", block_size=4)
    order = rank(queries, gallery, None).indices
    for i in range(9):
        if has[i].any():
            assert [column[i] for column in scores.per_query.values()] == pytest.approx(
                naive_scores(has[i][order[i]].tolist(), has[i].sum())
            )
    labels, others = list("abcabcabc"), list("abcd" * 5)
    equal = np.array(labels)[:, None] == np.array(others)
    by_labels = score_retrieval(queries, gallery, (labels, others), name="class")
    by_matrix = score_retrieval(queries, gallery, lambda rows: equal[rows], name="class")
    assert by_labels.as_dict() == by_matrix.as_dict()


def test_intervals_are_over_the_groups_of_scored_queries():
    hits = np.random.default_rng(0).random((30, 40)) < 0.1
    n_relevant = hits.sum(axis=1)
    n_relevant[:5], hits[:5] = 0, False
    exams = [f"exam {i // 4}" for i in range(30)]
    scores = RetrievalScores.from_relevance(hits, n_relevant, "group", exams, resamples=200, seed=7)
    keep = n_relevant > 0
    for name, column in scores.per_query.items():
        alone = bootstrap_mean(column[keep], np.array(exams)[keep], resamples=200, seed=7)
        ours = scores.means[name]
        assert (ours.value, ours.low, ours.high) == pytest.approx((alone.value, alone.low, alone.high)), name


def test_the_dictionary_is_json_also_where_nothing_is_relevant():
    scores = RetrievalScores.from_relevance(np.zeros((3, 4), bool), [0, 0, 0], "group")
    read = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert (read["relevance"], read["n_queries"], read["n_without_relevant"], read["depth"]) == (
        "group",
        3,
        3,
        None,
    )
    assert read["recall@1"]["value"] is None


def test_what_cannot_be_scored_is_refused():
    rows = unit_rows(3, 4)
    with pytest.raises(DataError, match="Unknown relevance 'organ'"):
        RetrievalScores.from_relevance(as_hits("x x"), [1, 1], "organ")
    with pytest.raises(DataError, match="Query 1 has 2 hits but 1 relevant items"):
        RetrievalScores.from_relevance(as_hits("xx xx"), [2, 1], "class")
    with pytest.raises(DataError, match="do not fit"):
        RetrievalScores.from_relevance(as_hits("x x"), [1], "class")
    with pytest.raises(DataError, match=r"differ in length: \[2, 3\]"):
        RetrievalScores.from_relevance(as_hits("x x"), [1, 1], "class", ["exam"] * 3)
    with pytest.raises(DataError, match="no queries"):
        score_retrieval(rows[:0], rows, ([], [1, 2, 3]), name="class")
    with pytest.raises(DataError, match=r"Labels \(2, 3\)"):
        score_retrieval(rows, rows, ([1, 2], [1, 2, 3]), name="class")
    with pytest.raises(DataError, match="shape"):
        score_retrieval(rows, rows, lambda rows: np.ones((1, 2)), name="class")
