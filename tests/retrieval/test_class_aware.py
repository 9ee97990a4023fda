"""Class-aware rankings against a naive double loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrep_cli.errors import DataError, UsageError
from entrep_cli.retrieval import ranking as ranking_module
from entrep_cli.retrieval.class_aware import FLOOR, ClassRule
from entrep_cli.retrieval.ranking import Ranking, exact_products, rank

RULES = [ClassRule("hard"), ClassRule("soft", 0.0), ClassRule("soft", 0.05), ClassRule("soft", 0.7)]


def unit_rows(n: int, dimensions: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def shares(n: int, n_classes: int = 4, seed: int = 0) -> np.ndarray:
    """Class probabilities, from undecided to sure to the last digit."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, n_classes)) * rng.choice([0.5, 3.0, 40.0], (n, 1))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def one_hot(classes: str | list[int], n_classes: int = 3) -> np.ndarray:
    return np.eye(n_classes, dtype=np.float32)[[int(c) for c in classes]]


def exact(a: np.ndarray, b: np.ndarray) -> np.float32:
    """A scalar product in whole numbers."""
    return np.float32(sum(round(float(x) * 2**26) * round(float(y) * 2**26) for x, y in zip(a, b)) / 2**52)


def naive(rule: ClassRule, queries, gallery, asked, given, exclude=()) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """Every query and every candidate by a loop of their own; what is answered, with which scores, and who fell back."""
    rows, scores, fell_back = [], [], []
    for i, query in enumerate(queries):
        candidates = [
            j for j in range(len(gallery)) if not any(keys[i] == others[j] and keys[i] not in (None, "") for keys, others in exclude)
        ]
        cosine = {j: exact(query, gallery[j]) for j in candidates}
        alone = False
        if rule.mode == "hard":
            own = [j for j in candidates if int(np.argmax(given[j])) == int(np.argmax(asked[i]))]
            alone = bool(candidates) and not own
            candidates = candidates if alone else own
        if rule.mode == "soft":
            for j in candidates:
                shared = max(float(exact(asked[i], given[j])), FLOOR)
                cosine[j] = np.float32(cosine[j] + np.float32(rule.weight * math.log(shared)))
        order = sorted(candidates, key=lambda j: (-cosine[j], j))
        rows.append(order)
        scores.append([float(cosine[j]) for j in order])
        fell_back.append(alone)
    return rows, scores, fell_back


def answered(ranking: Ranking) -> tuple[list[list[int]], list[list[float]]]:
    """Rows of a ranking without their padding."""
    return (
        [row[row >= 0].tolist() for row in ranking.indices],
        [scores[row >= 0].tolist() for row, scores in zip(ranking.indices, ranking.scores)],
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.mode} {rule.weight}")
@pytest.mark.parametrize("seed", range(3))
def test_against_a_naive_double_loop(rule, seed):
    queries, gallery = unit_rows(11, 7, seed), unit_rows(17, 7, seed + 10)
    asked, given = shares(11, seed=seed), shares(17, seed=seed + 10)
    gallery[[4, 9, 12]], given[[4, 9, 12]] = gallery[2], given[2]  # copies tie, and keep the order of the gallery
    names = [("a", "b", "", None)[i % 4] for i in range(17)]
    exclude = [(names[:11], names), (list(range(11)), list(range(17)))]
    rows, scores, fell_back = naive(rule, queries, gallery, asked, given, exclude)
    whole = rank(queries, gallery, None, exclude, bonus=rule.bonus(asked, given))
    assert answered(whole) == (rows, scores)
    assert rule.fell_back(whole, asked, given).tolist() == fell_back
    for k in (1, 5, 30):
        top = rank(queries, gallery, k, exclude, bonus=rule.bonus(asked, given))
        assert answered(top) == ([row[:k] for row in rows], [row[:k] for row in scores])
        assert rule.fell_back(top, asked, given).tolist() == fell_back


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RULES), st.integers(0, 99), st.integers(1, 17), st.integers(1, 29), st.sampled_from([1, 4, None]))
def test_neither_block_nor_tile_changes_a_bit(rule, seed, n_queries, n_gallery, k):
    queries, gallery = unit_rows(n_queries, 24, seed), unit_rows(n_gallery, 24, seed + 1)
    bonus = rule.bonus(shares(n_queries, 5, seed), shares(n_gallery, 5, seed + 1))
    whole = rank(queries, gallery, k, bonus=bonus)

    def same(other: Ranking) -> bool:
        return np.array_equal(whole.indices, other.indices) and whole.scores.tobytes() == other.scores.tobytes()

    assert all(same(rank(queries, gallery, k, bonus=bonus, block_size=size)) for size in (1, 3, 7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_module, "_TILE", 5)
        assert same(rank(queries, gallery, k, bonus=bonus))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_masked_item_is_never_answered_and_the_filter_is_all_that_takes_others(data):
    rule = data.draw(st.sampled_from(RULES))
    n_queries, n_gallery = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    keys, classes = st.sampled_from(["exam 1", "exam 2", "exam 3", "", None]), st.integers(0, 2)
    q, g = (data.draw(st.lists(keys, min_size=n, max_size=n)) for n in (n_queries, n_gallery))
    asked, given = (one_hot(data.draw(st.lists(classes, min_size=n, max_size=n))) for n in (n_queries, n_gallery))
    found = rank(unit_rows(n_queries, 5), unit_rows(n_gallery, 5, seed=1), None, [(q, g)], bonus=rule.bonus(asked, given))
    fell_back = rule.fell_back(found, asked, given)
    for i, row in enumerate(found.indices):
        allowed = {j for j in range(n_gallery) if not (q[i] and q[i] == g[j])}
        own = {j for j in allowed if rule.mode != "hard" or (asked[i] == given[j]).all()}
        assert set(row[row >= 0].tolist()) == (own or allowed)
        assert fell_back[i] == (bool(allowed) and not own)


def test_by_hand():
    """A query at 0 degrees that is taken for class 0; candidates at 10 (class 1), 60 (class 0) and 90 degrees (half and half)."""
    angles = np.radians([0, 10, 60, 90])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query, gallery = rows[:1], rows[1:]
    asked, given = np.array([[1, 0]], np.float32), np.array([[0, 1], [1, 0], [0.5, 0.5]], np.float32)

    def order(mode: str, weight: float = 0.0) -> list[int]:
        return rank(query, gallery, 3, bonus=ClassRule(mode, weight).bonus(asked, given)).indices[0].tolist()

    assert order("off") == order("soft", 0) == [0, 1, 2]
    assert order("hard") == [1, 2, -1]  # of half and half the first class counts
    # cos 10 = 0.985 with log 1e-6 = -13.8; cos 60 = 0.5 with log 1 = 0; cos 90 = 0 with log 0.5 = -0.69.
    assert order("soft", 0.03) == [0, 1, 2]  # 0.570 > 0.5 > -0.02
    assert order("soft", 0.04) == [1, 0, 2]  # 0.5 > 0.432 > -0.03
    assert order("soft", 0.1) == [1, 2, 0]  # 0.5 > -0.07 > -0.4
    scores = rank(query, gallery, 3, bonus=ClassRule("soft", 0.1).bonus(asked, given)).scores[0]
    assert scores.tolist() == pytest.approx([0.5, 0.1 * math.log(0.5), math.cos(math.radians(10)) + 0.1 * math.log(1e-6)], abs=1e-6)


def test_a_weight_of_0_changes_no_bit_and_off_is_nothing():
    queries, gallery, asked, given = unit_rows(9, 6), unit_rows(20, 6, 1), shares(9), shares(20, seed=1)
    plain, weightless = rank(queries, gallery, 7), rank(queries, gallery, 7, bonus=ClassRule("soft", 0).bonus(asked, given))
    assert plain.indices.tolist() == weightless.indices.tolist() and plain.scores.tobytes() == weightless.scores.tobytes()
    assert ClassRule().bonus(asked, given) is None and not ClassRule().fell_back(plain, asked, given).any()


def test_a_query_falls_back_only_where_nothing_of_its_class_is_left():
    rows = unit_rows(4, 3)
    classes, exams = one_hot("0112"), ["x", "y", "y", "z"]
    rule = ClassRule("hard")
    bonus = rule.bonus(classes, classes)
    plain = rank(rows, rows, None, [(range(4), range(4))])
    found = rank(rows, rows, None, [(range(4), range(4))], bonus=bonus)
    assert rule.fell_back(found, classes, classes).tolist() == [True, False, False, True]
    assert found.indices[[0, 3]].tolist() == plain.indices[[0, 3]].tolist() and found.indices[1].tolist() == [2, -1, -1, -1]
    # With their exam masked, 1 and 2 have no other of their class either.
    masked = rank(rows, rows, None, [(range(4), range(4)), (exams, exams)], bonus=bonus)
    assert rule.fell_back(masked, classes, classes).tolist() == [True] * 4
    assert set(masked.indices[1].tolist()) == {0, 3, -1}
    # Where everything is masked, nobody is answered and nobody fell back.
    alone = rank(rows, rows, 2, [("aaaa", "aaaa")], bonus=bonus)
    assert (alone.indices == -1).all() and not rule.fell_back(alone, classes, classes).any()
    assert not rule.fell_back(rank(rows, rows[:0], 2, bonus=rule.bonus(classes, classes[:0])), classes, classes[:0]).any()


def test_products_of_shares_are_exact():
    a, b = shares(40, 7), shares(50, 7, seed=1)
    assert np.array_equal(exact_products(a, b), [[exact(x, y) for y in b] for x in a])
    assert np.abs(exact_products(a, b) - a.astype(float) @ b.T.astype(float)).max() < 2e-7


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="No class-aware retrieval 'firm'"):
        ClassRule("firm")
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="number of 0 or more"):
            ClassRule("soft", weight)
    rule = ClassRule("hard")
    with pytest.raises(DataError, match="do not fit"):
        rule.bonus(shares(2, 3), shares(2, 4))
    with pytest.raises(DataError, match=r"1 of 3 rows of gallery are no class probabilities \(the first is row 1"):
        rule.bonus(shares(2, 3), one_hot("012") * [[1], [2], [1]])
    with pytest.raises(DataError, match="2 of 2 rows of queries"):
        rule.bonus(shares(2, 3) * np.nan, shares(2, 3))
