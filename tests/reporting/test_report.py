from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from entrep_cli.errors import UsageError
from entrep_cli.evaluation.calibration import reliability, with_temperature
from entrep_cli.evaluation.selection import temperature_on
from entrep_cli.evaluation.subsets import score_subset
from entrep_cli.reporting.pictures import Pictures
from entrep_cli.reporting.published import published, tables_beside
from entrep_cli.reporting.report import content_of, facts, mistakes_of, remade
from tests.made_scored import MANIFEST, make_scored
from tests.tiny import write_json


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return make_scored(tmp_path_factory.mktemp("report"), per_class=4, skill=0.5)


def test_the_commands_that_made_a_run():
    split, train = remade(MANIFEST, "my runs/made", "made", " --data d")
    assert split == "entrep split --ratios 80/10/10 --seed 3 --data d"
    assert train == "entrep train --recipe 'my runs/made/config.toml' --precision fp32 --name made-again --data d"
    folds = {**MANIFEST, "split": {**MANIFEST["split"], "folds": 5, "fold": 0}}
    split, train = remade(folds, "runs/made", "made", "")
    assert "--folds 5 --seed 3" in split and " --fold 0 " in train
    by_exam = {**MANIFEST, "split": {**MANIFEST["split"], "groups": "exam"}}
    assert remade(by_exam, "runs/made", "made", "")[0] == "entrep split --ratios 80/10/10 --seed 3 --groups exam"
    together = remade(MANIFEST, "runs/made", "made", "", ["a", "b c"], "validation")[1]
    assert together == "entrep ensemble a 'b c' --weights validation --name made-again"
    of_folds = remade(folds, "runs/cv", "cv", "", ["./fold-0", "./fold-1"], "equal")[1]
    assert of_folds == "entrep train --recipe runs/cv/fold-0/config.toml --folds --precision fp32 --name cv-again"
    part_of_another = {**MANIFEST, "split": {"fold": None, "fingerprint": None}}
    assert len(remade(part_of_another, "runs/made", "made", "")) == 1


def test_facts_say_what_was_trained_on_what():
    told = facts(MANIFEST, 'seed = 0\ntune = "lora"\n', private=False)
    assert told["Run"]["training"] == "1 h 02 min" and told["Run"]["learned parameters"] == "12,345" and told["Run"]["tune"] == "lora"
    assert told["Data"] == {
        "layout": "contest in secret-folder",
        "fingerprint": "c0ffee",
        "train images": "80",
        "val images": "10",
        "split": "80/10/10",
        "split seed": "3",
    }
    assert told["Machine"]["entrep"] == "0.1.0" and told["Weights it started from"]["sha256"] == "ab12"
    assert "secret" not in json.dumps(facts(MANIFEST, "", private=True))
    assert facts({**MANIFEST, "epoch": 0}, "not [ toml", private=False)["Run"]["best epoch"].startswith("none")


def test_the_temperature_is_of_the_validation_part_alone(scored):
    """Answers on validation that are surer than they may be: a temperature above 1, whatever the part itself is like."""
    rng = np.random.default_rng(0)
    targets = rng.integers(7, size=200)
    sure = np.full((200, 7), 0.001)
    sure[np.arange(200), np.where(rng.random(200) < 0.5, targets, (targets + 1) % 7)] = 0.994
    found = content_of(scored, temperature=temperature_on(sure, targets)).calibration
    assert found.temperature > 1.5 and found.n_fitted == 200 and not found.same_images
    own = scored.embeddings.probabilities
    assert found.tempered.ece == pytest.approx(reliability(with_temperature(own, found.temperature), scored.images.targets).ece)
    assert found.plain.ece == pytest.approx(reliability(own, scored.images.targets).ece) == found.ece.value
    assert content_of(scored).calibration.temperature is None


def test_mistakes_are_explained_for_what_was_answered(scored):
    asked = {}

    def explain(pixels, classes):
        asked.update(pixels=pixels, classes=classes)
        return [Image.new("RGB", (32, 32)) for _ in pixels], "rollout"

    part = scored.images
    pictures = Pictures(part.paths, part.images)
    found = mistakes_of(scored, pictures, explain, n=3)
    answers = scored.embeddings.probabilities.argmax(axis=1)
    assert found.n == int((answers != part.targets).sum()) > 3 and len(found.shown) == 3 and found.by == "rollout"
    assert asked["pixels"].shape == (3, 3, 32, 32) and asked["pixels"].dtype == np.uint8
    assert [part.taxonomy.names[c] for c in asked["classes"]] == [one.answer for one in found.shown]
    for one in found.shown:
        i = part.images.index(one.name)
        assert one.p_answer == pytest.approx(float(scored.embeddings.probabilities[i].max())) and one.p_answer > one.p_truth
        assert one.truth == part.frame["label"][i] != one.answer and one.attention.startswith("data:image/jpeg")

    def refuse(pixels, classes):
        raise UsageError("This model cannot be looked into.")

    refused = mistakes_of(scored, pictures, refuse, n=3)
    assert refused.reason == "This model cannot be looked into." and not any(one.attention for one in refused.shown)


def test_published_figures_stand_beside_ours_and_are_never_ours(tmp_path, scored):
    scores = score_subset(scored.images, scored.embeddings)
    tables = tables_beside(scored, scores)
    assert [t.title.split(":")[0] for t in tables[:2]] == ["Table 6", "Table 9"]  # the baseline's
    accuracy = dict(zip(tables[1].headings[1:], {row[0]: row[1:] for row in tables[1].rows}["baseline"]))
    assert accuracy["accuracy, paper"] == "0.9140" and accuracy["accuracy, ours"] == f"{scores.classification.accuracy.value:.4f}"
    boards = tables[2:]
    assert len(boards) == 3 and all("not on the board" in t.caption for t in boards)
    for table, number in zip(boards, (11, 12, 13)):
        theirs = published("foregut").table(number).rows
        assert [row[0] for row in table.rows[:-1]] == list(theirs) and table.ours == (len(theirs),)
    assert boards[2].rows[-1][1:] == ("-", "-")  # no texts were asked
    assert "same class" in boards[1].caption and "not published" in boards[1].caption

    hybrid = make_scored(tmp_path / "h", per_class=2, method="hybrid")
    write_json(hybrid.run.path("paper", "test.json"), {"images": 14, "tables": {"7": {"ear": {"precision": 0.5}}}})
    first = tables_beside(hybrid, score_subset(hybrid.images, hybrid.embeddings))[0]
    assert first.title.startswith("Table 7") and first.rows[0][:3] == ("ear", "0.9744", "0.5000")
    other = make_scored(tmp_path / "o", per_class=2, classes=["polyp", "cyst"])
    assert tables_beside(other, score_subset(other.images, other.embeddings)) == ()
