"""Refined rankings through the commands, on phantom data, and the factors of a recipe over folds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from entrep_cli.evaluation import selection
from entrep_cli.retrieval.embeddings import read_embeddings
from entrep_cli.retrieval.refinement import Expansion, Refinement, Reranking
from entrep_cli.workspace import open_run
from tests.tiny import answers


def test_evaluate_scores_a_part_without_and_with_it(trained, entrep):
    plain = entrep("evaluate", "--json").json
    done = entrep("evaluate", "--refine", "rerank, qe", "--json")
    assert done.code == 0 and not done.json["notes"]
    assert list(done.json["retrieval"]) == ["class", "class, refined", "finding", "finding, refined"]
    assert done.json["retrieval"]["class"] == plain["retrieval"]["class"] and "refined" not in plain
    told = done.json["refined"]
    assert told["whiten"] is None and told["dba"] is None and told["validation"]["queries"] > 0
    assert told["validation"]["after"]["recall@1"] >= told["validation"]["before"]["recall@1"]
    said = entrep("evaluate", "--refine", "qe", "--split", "val").err
    assert "Refined by" in said and "too good" in said


def test_track_2_is_answered_by_the_refined_ranking(trained, entrep, monkeypatch):
    """By a refinement that validation is made to choose, for it may well choose none."""
    refinement = Refinement(expand=Expansion(3, 0.0), rerank=Reranking(5, 2, 0.3))
    chosen = selection.ChosenRefinement(refinement, (0.5, 0.5), (0.6, 0.6), 9)
    monkeypatch.setattr(selection, "tune_refinement", lambda *_: chosen)
    done = entrep("predict", "--track", 2, "--mask-groups", "--refine", "qe,rerank", "--json")
    assert done.code == 0 and done.json["refined"]["rerank"] == {"k1": 5, "k2": 2, "weight": 0.3}
    seen = read_embeddings(open_run("dinov2"), "test")
    items, vectors = seen.items, np.asarray(seen.vectors)
    exclude = [(keys, keys) for keys in (items.image, items.digest, items.group)]
    ((_, ranking),) = refinement.ranked_blocks(vectors, vectors, 1, exclude)
    best = dict(zip(items.image, items.image[ranking.indices[:, 0]]))
    found = answers(trained / "dinov2" / "submissions" / "track2.zip")
    assert found and all(best[query] == answer for query, answer in found.items())


def test_another_split_chooses_nothing(trained, entrep):
    assert entrep("split", "--seed", 5).code == 0
    done = entrep("predict", "--track", 2, "--refine", "qe")
    assert done.code == 1 and "cannot be chosen" in done.err and not (trained / "dinov2" / "submissions").exists()


@pytest.mark.parametrize(
    "line, said",
    [
        (["predict", "--track", 1, "--refine", "qe"], "track 2"),
        (["predict", "--track", 2, "--refine", "qe", "--class-aware", "hard"], "cosine alone"),
        (["evaluate", "--refine", "witen"], "'witen'"),
        (["evaluate", "--refine", " , "], "No refinement"),
        (["evaluate", "--submission", "x.zip", "--truth", "t.json", "--track", 2, "--refine", "qe"], "ranked already"),
    ],
)
def test_options_that_make_no_sense(trained, entrep, line, said):
    done = entrep(*line)
    assert done.code == 2 and said in done.err


def test_factors_of_a_recipe_over_folds(fresh, small_clip, entrep):
    line = [part for part in small_clip if part not in ("--tune", "full")] + ["--set", "tune=full", "--epochs", 1]
    refused = entrep("ablate", "best", *line, "--folds", 2)
    assert refused.code == 1 and "No split" in refused.err
    assert entrep("split", "--folds", 3).code == 0
    done = entrep("ablate", "best", *line, "--rows", "refine-qe", "--folds", 1, "--seeds", 1, "--json")
    assert done.code == 0, done.err
    assert [row["key"] for row in done.json["rows"]] == ["base", "refine-qe"] and done.json["folds"] == 1
    table = json.loads((fresh / "ablations" / "best" / "table.json").read_text())
    assert [run["run"] for row in table["rows"] for run in row["runs"]] == ["ablations/best/base-fold0-seed0"] * 2
    too_many = entrep("ablate", "best", *line, "--rows", "base", "--folds", 4)
    assert too_many.code == 2 and "3 folds" in too_many.err
    listed = entrep("ablate", "best", *line, "--rows", "loss-*", "--folds", 2, "--seeds", 3, "--list", "--json").json
    assert {row["key"] for row in listed["rows"]} >= {"loss-focal"} and listed["trainings"] == 6 * len(listed["rows"])
    unknown = entrep("ablate", "best", *line, "--rows", "los-*", "--folds", 1)
    assert unknown.code == 2 and "loss-focal" in unknown.err


def test_a_refinement_of_flipped_views_is_set_on_flipped_views(trained, entrep):
    """Their vectors are twice as long: a whitening of the plain ones would not fit them."""
    done = entrep("evaluate", "--tta", "--refine", "whiten,qe", "--split", "val")
    assert done.code == 0, done.err
    assert entrep("predict", "--track", 2, "--tta", "--refine", "whiten", "--gallery", "queries").code == 0
