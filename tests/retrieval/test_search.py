"""Queries of an opened run: what is known of them, hits and misses, and what was missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from entrep_cli.data.images import read_image
from entrep_cli.errors import UsageError
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.search import find_cases, gallery_query, image_query, labelled, text_query
from tests.finders import HOSTILE_LABEL, make_finder
from tests.tiny import draw


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    return make_finder(tmp_path_factory.mktemp("gallery"))


def test_an_image_of_the_gallery_is_known_by_its_pixels(finder):
    for row in range(len(finder.gallery)):
        picture = read_image(Path(finder.gallery.items.path[row]))
        seen, kept = image_query(finder, picture, "another-name.png"), gallery_query(finder, row)
        assert (seen.label, seen.group, seen.digest, seen.row) == (kept.label, kept.group, kept.digest, row)
        assert np.allclose(seen.vector, kept.vector, atol=1e-6) and np.allclose(seen.probabilities, kept.probabilities, atol=1e-5)
    with pytest.raises(IndexError):
        gallery_query(finder, len(finder.gallery))


def test_an_image_from_elsewhere_has_no_label_and_the_group_of_its_name(finder):
    query = image_query(finder, draw("throat", seed=99), "a.png")
    assert (query.label, query.group, query.row) == ("", "", None)
    assert all(case.hit is None for case in find_cases(finder, query, 5).cases)
    marked = find_cases(finder, labelled(finder, query, "throat"), 5).cases
    assert [case.hit for case in marked] == [case.label == "throat" if case.label else None for case in marked]
    with pytest.raises(UsageError, match="of the class 'nose'") as error:
        labelled(finder, query, "nose")
    assert HOSTILE_LABEL in error.value.hint


@pytest.mark.parametrize("mode", ["off", "soft"])
@pytest.mark.parametrize("index", [True, False])
def test_hits_misses_and_what_was_missed(tmp_path, mode, index):
    """Against a plain loop: labels tell a hit, and the nearest of the class that are not answered are the missed."""
    finder = make_finder(tmp_path, index=index)
    items, rule = finder.gallery.items, ClassRule(mode, 0.05 if mode == "soft" else 0.0)
    swapped = items.label.copy()
    swapped[[5, 9]] = swapped[[9, 5]]  # else every neighbour is of the query's class
    items.label[:] = swapped
    for row in range(12):
        result = find_cases(finder, gallery_query(finder, row), 3, rule=rule)
        shared = finder.gallery.probabilities.astype(np.float64) @ finder.gallery.probabilities[row]
        scores = finder.gallery.vectors @ finder.gallery.vectors[row] + rule.weight * np.log(np.maximum(shared, 1e-6))
        order = [other for other in np.argsort(-scores, kind="stable") if items.digest[other] != items.digest[row]]
        assert [case.rank for case in result.cases] == [1, 2, 3]
        assert np.allclose([case.score for case in result.cases], scores[order[:3]], atol=1e-5)
        for case in result.cases:
            assert case.hit == (items.label[case.row] == items.label[row] if items.label[case.row] else None)
        answered = {case.row for case in result.cases}
        missed = [other for other in order if items.label[other] == items.label[row] and other not in answered]
        if any(case.hit is False for case in result.cases):
            assert {case.row for case in result.missed} == set(missed[:5]) and all(case.rank is None for case in result.missed)
        else:
            assert result.missed == ()


def test_the_own_group_can_be_left_out(finder):
    query = gallery_query(finder, 5)
    masked = find_cases(finder, query, 20, mask_group=True)
    assert query.group in {case.group for case in find_cases(finder, query, 20).cases}
    assert query.group not in {case.group for case in (*masked.cases, *masked.missed)}


def test_the_hard_rule_tells_the_class_and_when_it_falls_back(finder):
    query = gallery_query(finder, 5)
    result = find_cases(finder, query, 20, rule=ClassRule("hard"))
    best = int(query.probabilities[0].argmax())
    assert result.taken_for == (finder.model.taxonomy.names[best], pytest.approx(float(query.probabilities[0, best])))
    assert {int(finder.gallery.probabilities[case.row].argmax()) for case in result.cases} == {best} and not result.fell_back
    assert find_cases(finder, query, 5).taken_for is None


def test_texts(finder, tmp_path):
    query = text_query(finder, "a spur", "an image of {}", classes=True)
    assert query.name == "a spur" and (query.label, query.digest, query.group) == ("", "", "")
    assert np.allclose(query.vector, finder.model.embed_texts(["an image of a spur"]).numpy())
    assert query.probabilities.shape == (1, 3) and text_query(finder, "a spur").probabilities is None
    with pytest.raises(UsageError, match="cannot search by text"):
        text_query(make_finder(tmp_path, text=False), "a spur")


def test_a_result_as_a_table_a_frame_and_a_document(finder):
    query = replace(gallery_query(finder, 1), name="a.png", source="folder/a.png")
    result = find_cases(finder, query, 3, rule=ClassRule("hard"))
    document, (table,) = result.to_dict(), result.tables()
    case = result.cases[0]
    assert document["answers"][0] == {key: getattr(case, key) for key in ("rank", "image", "label", "group", "score", "hit")}
    assert (document["run"], document["query"], document["label"], document["template"]) == ("colours", "folder/a.png", query.label, None)
    best = finder.model.taxonomy.names[int(query.probabilities[0].argmax())]
    assert document["class_aware"] == {"mode": "hard", "weight": None, "validation": None, "class": best, "fell_back": 0}
    assert table.title == f"Nearest to a.png (run colours, class-aware hard, {query.label})" and table.columns[-1] == "truth"
    assert table.rows[0] == ("1", case.image, case.label, case.score, "hit")
    assert list(result.frame()) == ["query", "rank", "image", "label", "group", "score", "hit"]
    assert result.frame()["score"].tolist() == [case.score for case in result.cases] and set(result.frame()["query"]) == {"a.png"}
    unknown = find_cases(finder, replace(query, label=""), 3)
    assert "truth" not in unknown.tables()[0].columns and unknown.to_dict()["label"] is None and "sheet" not in unknown.to_dict()
    assert finder.labels == finder.model.taxonomy.names
