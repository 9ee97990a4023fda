"""The exact search without an index: as the index answers, and with a bonus."""

from __future__ import annotations

import numpy as np
import pytest

from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import Embeddings, Items
from entrep_cli.retrieval.index import build_shards
from entrep_cli.retrieval.search import nearest, nearest_exactly


@pytest.fixture
def gallery() -> Embeddings:
    rows = np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [f"{i}.png" for i in range(12)]
    items = Items.of(image=names, digest=[f"d{i}" for i in range(12)], group=[f"g{i // 4}" if i < 8 else "" for i in range(12)])
    return Embeddings(items, rows, np.eye(3, dtype=np.float32)[[0, 0, 0, 1] * 3])


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
