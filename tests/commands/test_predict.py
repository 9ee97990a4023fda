"""`entrep predict` and `entrep evaluate`: what they refuse, where they write, what they say comes next."""

from __future__ import annotations

import json

import pytest

from entrep_cli.data.taxonomy import Taxonomy

SUBMISSION = ["evaluate", "--submission", "x.zip", "--truth", "t.json", "--track"]


@pytest.mark.parametrize(
    "line, said",
    [
        (["predict", "--track", 1, "--gallery", "test"], "--gallery is for what is searched"),
        (["predict", "--track", 1, "--top-k", 10], "--top-k is for what is searched"),
        ([*SUBMISSION, 1, "--split", "test"], "--split is of a split"),
        ([*SUBMISSION, 1, "--fold", 0], "--fold is of a split"),
        ([*SUBMISSION, 2, "--mask-groups"], "--mask-groups is of a split"),
        ([*SUBMISSION, 2, "--no-mask-groups"], "--mask-groups is of a split"),
        ([*SUBMISSION, 2, "--run", "dinov2"], "--run says what the class ids"),
        (["evaluate", "--split", "queries", "--fold", 3], "--fold chooses among the images of the split"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(trained, entrep, line, said):
    done = entrep(*line)
    assert done.code == 2 and said in done.err
    assert not (trained / "dinov2" / "submissions").exists() and not (trained / "dinov2" / "evaluation").exists()


def test_what_comes_next(trained, phantom, entrep):
    first = entrep("predict", "--track", 1).err
    assert f"entrep evaluate --submission {trained}/dinov2/submissions/track1.zip --truth {phantom}" in first
    # The run has no text tower, and so it is never told to answer track 3.
    assert "entrep predict --track 2 --run dinov2" in first and "--track 3" not in first
    assert f"# then upload {trained}/dinov2/submissions/track1.zip" in first
    again = entrep("predict", "--track", 2, "--mask-groups", "--gallery", "all", "--queries", phantom / "test")
    assert "entrep predict" not in again.err and "# then upload" in again.err  # both are there
    (trained / "dinov2" / "submissions" / "track1.zip").unlink()
    told = entrep("predict", "--track", 2, "--queries", phantom / "test")
    assert f"entrep predict --track 1 --run dinov2 --queries {phantom}/test" in told.err


def test_the_document_tells_gallery_and_masking(trained, entrep):
    told = entrep("predict", "--track", 2, "--mask-groups", "--gallery", "all", "--json").json
    assert told["gallery"] == "all" and told["mask_groups"] is True
    told = entrep("predict", "--track", 2, "--json").json
    assert told["gallery"] == "test" and told["mask_groups"] is False
    assert entrep("predict", "--track", 1, "--json").json["gallery"] is None


def test_a_run_that_reads_no_texts_says_so_before_anything_is_embedded(trained, entrep, monkeypatch):
    path = trained / "dinov2" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "method": "clip-lora"}))
    monkeypatch.setattr("entrep_cli.retrieval.sets.open_model", lambda run, device: pytest.fail("no model is needed"))
    for more in ([], ["--class-aware", "soft"]):
        done = entrep("predict", "--track", 3, *more)
        assert done.code == 2 and "has learned nothing" in done.err and "texts.contrast" in done.err


def test_a_run_of_somebody_else_needs_another_place(trained, entrep, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda place, mode: not str(place).startswith(str(trained)))
    refused = entrep("predict", "--track", 1)
    assert refused.code == 2 and "--out track1.zip" in refused.err and f"where: {trained / 'dinov2'}" in refused.err
    assert entrep("predict", "--track", 1, "--out", tmp_path / "mine" / "track1.zip").code == 0


def test_unmasked_scores_replace_no_masked_ones(trained, entrep):
    masked = entrep("evaluate", "--split", "train")
    assert masked.code == 0
    for command in ("entrep report --run dinov2", "entrep predict --track 1 --run dinov2"):
        assert command in masked.err
    entrep("evaluate", "--split", "train", "--no-mask-groups")
    folder = trained / "dinov2" / "evaluation"
    told = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("train", "train-unmasked")}
    assert [document["mask_groups"] for document in told.values()] == [True, False]
    assert (folder / "train-unmasked.png").is_file()
    recall = [document["retrieval"]["class"]["recall@1"]["value"] for document in told.values()]
    assert recall[1] >= recall[0]


def test_images_of_a_run_that_tells_regions_are_scored_by_class(trained, phantom, entrep):
    """What the run takes for classes matters to its class ids alone, and there are none in tracks 2 and 3."""
    assert entrep("predict", "--track", 2).code == 0
    path = trained / "dinov2" / "run.json"
    regions = Taxonomy.derive(["ear", "nose", "throat", "vc"])
    path.write_text(json.dumps({**json.loads(path.read_text()), "taxonomy": regions.as_dict()}))
    sent, truth = trained / "dinov2" / "submissions" / "track2.zip", phantom / "test" / "truth_i2i.json"
    done = entrep("evaluate", "--submission", sent, "--truth", truth, "--track", 2)
    assert done.code == 0 and "entrep report --run dinov2" in done.err
    assert {"pair", "class"} <= set(json.loads((trained / "dinov2" / "evaluation" / "track2.json").read_text())["retrieval"])
