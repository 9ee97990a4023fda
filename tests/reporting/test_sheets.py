from __future__ import annotations

import numpy as np
import pytest

from entrep_cli.evaluation.retrieval import RetrievalScores
from entrep_cli.evaluation.subsets import TextQueries, score_subset
from entrep_cli.reporting.pictures import Pictures
from entrep_cli.reporting.sheets import pick, sheets_of
from tests.made_scored import make_scored


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return make_scored(tmp_path_factory.mktemp("sheets"), per_class=6, skill=0.5, findings=["a scar", "wax"])


def scored_sheets(scored, **more):
    part, seen = scored.images, scored.embeddings
    scores = score_subset(part, seen, texts=more.get("texts"))
    return scores, sheets_of(part, seen, scores, Pictures(part.paths, part.images, more.pop("private", False)), **more)


def test_sheets_agree_with_the_scores(scored):
    """A naive ranking of each query, its own group left out, gives the same answers and the same first rank."""
    scores, sheets = scored_sheets(scored, top_k=4)
    frame, vectors = scored.images.frame.set_index("image"), np.asarray(scored.embeddings.vectors, np.float64)
    place = {name: i for i, name in enumerate(scored.images.images)}
    assert [s.relevance for s in sheets] == ["class", "finding"]
    for sheet in (*sheets[0].best, *sheets[0].worst):
        query, *answers = sheet.tiles
        own = frame.loc[query.name]
        others = [name for name in place if frame.loc[name, "group"] != own["group"]]
        others.sort(key=lambda name: -vectors[place[name]] @ vectors[place[query.name]])
        relevant = [i + 1 for i, name in enumerate(others) if frame.loc[name, "label"] == own["label"]]
        assert [t.name for t in answers[:4]] == others[:4] and query.kind == "query"
        assert [t.kind for t in answers[:4]] == ["hit" if i in relevant else "miss" for i in range(1, 5)]
        truths = [i for i in relevant if i > 4][:2]
        assert [(t.kind, t.name) for t in answers[4:]] == [("truth", others[i - 1]) for i in truths]
        assert answers[4:] == () or [int(t.lines[0].split(".")[0]) for t in answers[4:]] == truths
        assert int(scores.retrieval["class"].first_rank[place[query.name]]) == relevant[0]
        assert f"at rank {relevant[0]}, {len(relevant)} relevant" in sheet.summary


def test_texts_ask_for_images(scored):
    v = np.asarray(scored.embeddings.vectors)[:2]
    scores, sheets = scored_sheets(scored, texts=TextQueries(["a scar", "wax"], v))
    (texts,) = [s for s in sheets if s.relevance == "text to finding"]
    assert {s.heading for s in (*texts.best, *texts.worst)} == {"a scar", "wax"} and all(s.tiles[0].kind != "query" for s in texts.best)
    _, hidden = scored_sheets(scored, texts=TextQueries(["a scar", "wax"], v), private=True)
    assert {s.heading for s in (*hidden[-1].best, *hidden[-1].worst)} == {"text 1", "text 2"}
    assert not any(tile.picture or ".png" in tile.name for one in hidden for s in (*one.best, *one.worst) for tile in s.tiles)


def test_queries_are_picked_by_their_first_relevant_answer():
    first, precision = np.array([1, 1, 5, 0, 2, 1, 9]), np.array([0.9, 0.8, 0.2, 0.0, 0.5, 0.7, 0.1])
    scores = RetrievalScores(first, precision, np.array([1, 1, 1, 0, 1, 1, 1]), "class")
    best, worst = pick(scores, list("aabbbca"), 2, 2)
    assert worst == [6, 2] and best == [0, 5]  # 3 has no relevant item; 1 is of the class of 0
    assert pick(scores, None, 2, 2)[0] == [0, 1]
    one = RetrievalScores(np.array([1]), np.array([1.0]), np.array([1]), "class")
    assert pick(one, ["a"]) == ([0], [])
