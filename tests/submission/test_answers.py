"""Answers of a run, with a model that sees nothing but the mean colour of an image."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from entrep_cli.data.images import Preprocess
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.data.testsets import only_test_set
from entrep_cli.errors import DataError, UsageError
from entrep_cli.methods.base import Inference
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import embedded_sets
from entrep_cli.submission.answers import answer_track, gallery_names
from entrep_cli.workspace import Run
from tests.finders import Fake

RGB = Taxonomy("rgb", (ClassInfo("red", 4, "x", "red"), ClassInfo("green", 7, "x", "green"), ClassInfo("blue", 2, "x", "blue")))

A, B = "9_202501020304050607_a.png", "9_202501020304050607_b.png"
COLOURS = {
    "r0.png": (250, 10, 10),
    "r1.png": (250, 10, 10),
    A: (240, 30, 10),
    B: (240, 34, 10),
    "g.png": (10, 250, 10),
    "b.png": (10, 10, 250),
}


class Colour(Fake):
    """The colour is the embedding, and its shares are the probabilities, in the order of the ids: blue, red, green."""

    def __init__(self) -> None:
        super().__init__(RGB, Preprocess(4), reads=True, batch_size=4)
        self.anchor = nn.Parameter(torch.zeros(1))

    def infer(self, pixels):
        colour = pixels.float().mean(dim=(2, 3))
        return Inference(nn.functional.normalize(colour, dim=1), (colour / colour.sum(dim=1, keepdim=True))[:, [2, 0, 1]])

    def embed_texts(self, texts):
        named = torch.tensor([[float(name in text) for name in ("red", "green", "blue")] for text in texts])
        return nn.functional.normalize(named, dim=1)


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.path("model.safetensors").write_bytes(b"weights")
    run.mark_complete({"preprocess": {}, "taxonomy": {}})
    return run


def paint(path: Path, *colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)


@pytest.fixture
def data(tmp_path) -> Path:
    """Test images from red to blue; two are of one patient by their names, and r1 is r0's pixels again."""
    test = tmp_path / "data" / "test"
    for name, colour in COLOURS.items():
        paint(test / "imgs" / name, *colour)
    (test / "cls.csv").write_text(f"b.png\nr0.png\n{A}\n")
    (test / "i2i.csv").write_text(f"r0.png\n{A}\nb.png\n")
    (test / "t2i.csv").write_text("a green field\nred and blue, both\n")
    return tmp_path / "data"


def test_track_1_answers_ids_in_the_order_asked(run, data):
    found = answer_track(run, Colour(), data, 1)
    assert list(found.answers.items()) == [("b.png", 2), ("r0.png", 4), (A, 4)]
    assert [(rank, answer) for query, rank, answer, _ in found.ranked if query == A] == [(1, 4), (2, 7), (3, 2)]
    assert found.gallery is None and found.folder == data / "test"


def test_track_2_masks_itself_its_copies_and_its_group(run, data):
    found = answer_track(run, Colour(), data, 2)
    assert found.answers == {"r0.png": A, A: B, "b.png": B}
    # Blue and green are equally far from red: ties break by gallery order.
    assert [answer for query, _, answer, _ in found.ranked if query == "r0.png"] == [A, B, "b.png", "g.png"]
    assert answer_track(run, Colour(), data, 2, mask_groups=True).answers[A] == "r0.png"
    assert answer_track(run, Colour(), data, 2, gallery="queries").answers == {"r0.png": A, A: "r0.png", "b.png": A}
    assert len(answer_track(run, Colour(), data, 2, top_k=1).ranked) == 3


def test_groups_csv_goes_before_names_and_knows_no_case(run, data):
    (data / "test" / "groups.csv").write_text(f"image,group\n{A.upper()},x\nR0.PNG,x\n")
    found = answer_track(run, Colour(), data, 2, mask_groups=True)
    assert found.answers[A] == B and found.answers["r0.png"] == B


def test_groups_csv_of_the_dataset_serves_its_test_folder(run, data, tmp_path):
    (data / "groups.csv").write_text("image,group\nr0.png,x\nb.png,x\nG.png,x\n")
    found = answer_track(run, Colour(), data, 2, mask_groups=True)
    assert "g.png" not in [answer for query, _, answer, _ in found.ranked if query == "b.png"]
    assert found.answers[A] == "r0.png"  # not named there: by the name
    shutil.copytree(data / "test", tmp_path / "elsewhere")  # other images may have these names
    found = answer_track(run, Colour(), data, 2, queries=tmp_path / "elsewhere", mask_groups=True)
    assert "g.png" in [answer for query, _, answer, _ in found.ranked if query == "b.png"]


def test_groups_that_mask_nothing_are_told(run, data, tmp_path):
    said: list[str] = []
    answer_track(run, Colour(), data, 2, mask_groups=True, warn=said.append)
    assert said == []
    for name in (A, B):
        (data / "test" / "imgs" / name).unlink()
    (data / "test" / "i2i.csv").write_text("r0.png\nb.png\n")
    answer_track(run, Colour(), data, 2, mask_groups=True, warn=said.append)
    assert len(said) == 1 and said[0].startswith("--mask-groups masks nothing: no query has a group")


def test_track_3_answers_texts(run, data):
    found = answer_track(run, Colour(), data, 3)
    assert found.answers["a green field"] == "g.png" and list(found.answers) == ["a green field", "red and blue, both"]


def test_the_queries_of_a_track_are_not_guessed_beside_those_of_others(run, data):
    for track, name in ((1, "cls.csv"), (2, "i2i.csv"), (3, "t2i.csv")):
        (data / "test" / name).rename(data / "test" / f"{track} (1).csv")
        if track < 3:
            with pytest.raises(DataError, match=f"No queries of track {track}") as caught:
                answer_track(run, Colour(), data, track)
            assert name in caught.value.hint and "--queries" in caught.value.hint
    assert embedded_sets(run) == []
    assert list(answer_track(run, Colour(), data, 2, queries=data / "test" / "2 (1).csv").answers) == ["r0.png", A, "b.png"]


def test_queries_elsewhere_need_no_dataset(run, data):
    found = answer_track(run, Colour(), None, 2, queries=data / "test" / "imgs")
    assert set(found.answers) == {p.name for p in (data / "test" / "imgs").iterdir()}


def test_a_query_file_that_lies_alone_asks_of_the_dataset(run, data, tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "mine.csv").write_text("g.png\n")
    assert answer_track(run, Colour(), data, 1, queries=tmp_path / "alone" / "mine.csv").answers == {"g.png": 7}


def test_no_image_is_embedded_twice(run, data, monkeypatch):
    """Not even where nothing can be kept."""
    monkeypatch.setattr("entrep_cli.retrieval.embeddings._store", lambda *_: None)
    for gallery in ("queries", "test"):
        model, seen = Colour(), []
        once = model.infer
        model.infer = lambda pixels, once=once, seen=seen: seen.append(len(pixels)) or once(pixels)
        answer_track(run, model, data, 2, gallery=gallery)
        assert sum(seen) == len(COLOURS)


def test_a_gallery_folder(run, data, tmp_path):
    paint(tmp_path / "more" / "purple.png", 200, 0, 200)
    found = answer_track(run, Colour(), data, 2, gallery=str(tmp_path / "more"))
    assert set(found.answers.values()) == {"purple.png"} and found.gallery == ["purple.png"]
    with pytest.raises(UsageError, match="No gallery"):
        answer_track(run, Colour(), data, 2, gallery="nowhere")


def test_the_training_images_as_gallery(run, data):
    for name, colour in {"x.png": (0, 0, 255), "y.png": (255, 0, 0), "copy.png": (10, 10, 250)}.items():
        paint(data / "train" / "imgs" / name, *colour)
    (data / "train" / "cls.json").write_text('{"x.png": "throat", "y.png": "throat", "copy.png": "throat"}')
    found = answer_track(run, Colour(), data, 2, gallery="train")
    # b.png stands among them under another name: a copy is no answer.
    assert found.answers == {"r0.png": "y.png", A: "y.png", "b.png": "x.png"}
    assert set(answer_track(run, Colour(), data, 2, gallery="all").gallery) == {p.name for p in data.rglob("*.png")}


def test_a_name_of_two_pictures_is_no_answer(run, data):
    paint(data / "train" / "imgs" / "g.png", 1, 2, 3)
    shutil.copy(data / "test" / "imgs" / "b.png", data / "train" / "imgs" / "b.png")  # one picture under one name: one image
    (data / "train" / "cls.json").write_text('{"g.png": "throat", "b.png": "throat"}')
    with pytest.raises(DataError, match="stand for two images") as caught:
        answer_track(run, Colour(), data, 2, gallery="all")
    assert list(caught.value.faults) == ["g.png"]


def test_class_folders_as_gallery(run, data):
    """A catalog has paths, an answer a name; where it could be two images nothing is computed."""
    for place, colour in {"red/x.png": (255, 9, 0), "blue/y.png": (0, 9, 255), "blue/b.png": (0, 0, 255)}.items():
        paint(data / place, *colour)
    found = answer_track(run, Colour(), data, 2, gallery="train")
    assert found.answers == {"r0.png": "x.png", A: "x.png", "b.png": "y.png"}  # blue/b.png would be named as the query is
    assert sorted(found.gallery) == ["b.png", "x.png", "y.png"]
    test_set = only_test_set(data)
    assert sorted(gallery_names("train", test_set, ["red/x.png", "blue/y.png", "blue/b.png"])) == sorted(found.gallery)
    assert set(gallery_names("all", test_set, ["red/x.png"])) == {*COLOURS, "x.png"}
    assert gallery_names("queries", test_set, [], ["R0.png"]) == ["r0.png"]
    shutil.rmtree(run.folder / "embeddings")
    paint(data / "red" / "y.png", 255, 0, 9)
    for gallery, names in (("train", ["y.png"]), ("all", ["b.png", "y.png"])):
        with pytest.raises(DataError, match="without a folder") as caught:
            answer_track(run, Colour(), data, 2, gallery=gallery)
        assert sorted(caught.value.faults) == names
    assert embedded_sets(run) == []


def test_faults_of_the_gallery_show_before_anything_is_computed(run, data):
    (data / "train").mkdir()
    (data / "train" / "cls.json").write_text('{"gone.png": "throat"}')
    with pytest.raises(DataError):
        answer_track(run, Colour(), data, 2, gallery="all")
    assert embedded_sets(run) == []


def test_no_candidate_is_told_with_the_queries(run, data):
    for name in ("g.png", "b.png", A, B):
        (data / "test" / "imgs" / name).unlink()
    (data / "test" / "i2i.csv").write_text("r0.png\nr1.png\n")
    with pytest.raises(DataError, match="2 queries have no candidate") as caught:
        answer_track(run, Colour(), data, 2)
    assert list(caught.value.faults) == ["r0.png", "r1.png"]


def test_the_flip_is_a_set_of_its_own_and_no_gallery(run, data):
    plain, flipped = (answer_track(run, Colour(), data, 1, flip=flip) for flip in (False, True))
    assert [row[:3] for row in plain.ranked] == [row[:3] for row in flipped.ranked]
    assert np.allclose([row[3] for row in plain.ranked], [row[3] for row in flipped.ranked])
    assert embedded_sets(run) == ["test"] and (run.folder / "embeddings" / "test-flip").is_dir()


# ---------------------------------------------------------------- class-aware, templates


class Named(Colour):
    """Texts have a class too, and what is embedded is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded: list[str] = []

    def embed_texts(self, texts):
        self.embedded += texts
        return super().embed_texts(texts)

    def classify_texts(self, texts):
        return torch.tensor([[0.1, 0.1, 0.8] if "field" in text else [0.8, 0.1, 0.1] for text in texts])  # green, or blue


def test_hard_filters_by_the_classes_that_the_model_sees(run, data):
    (data / "test" / "i2i.csv").write_text(f"r0.png\nb.png\n{A}\n")
    said: list[str] = []
    found = answer_track(run, Colour(), data, 2, rule=ClassRule("hard"), warn=said.append)
    # Red ones alone for red; blue has no other blue one, and keeps them all.
    assert [answer for query, _, answer, _ in found.ranked if query == "r0.png"] == [A, B]
    assert [answer for query, _, answer, _ in found.ranked if query == "b.png"] == [
        answer for query, _, answer, _ in answer_track(run, Colour(), data, 2).ranked if query == "b.png"
    ]
    assert found.fell_back == 1 and len(said) == 1 and said[0].startswith("1 of 3 queries have no candidate")
    assert len(found.gallery) == 6  # what could be answered is still the whole gallery
    masked = answer_track(run, Colour(), data, 2, rule=ClassRule("hard"), mask_groups=True)
    assert [answer for query, _, answer, _ in masked.ranked if query == A] == ["r0.png", "r1.png"] and masked.fell_back == 1


def test_soft_adds_its_bonus_to_the_scores(run, data):
    seen = {name: np.array(colour, float) for name, colour in COLOURS.items()}

    def score(query: str, answer: str, weight: float) -> float:
        q, a = seen[query], seen[answer]
        return q @ a / np.linalg.norm(q) / np.linalg.norm(a) + weight * np.log(q @ a / q.sum() / a.sum())

    for weight in (0.0, 0.05, 2.0):
        found = answer_track(run, Colour(), data, 2, rule=ClassRule("soft", weight))
        assert found.fell_back == 0
        for query, _, answer, given in found.ranked:
            assert given == pytest.approx(score(query, answer, weight), abs=1e-5)
    assert answer_track(run, Colour(), data, 2, rule=ClassRule("soft", 0.0)).ranked == answer_track(run, Colour(), data, 2).ranked


def test_the_class_of_a_text(run, data):
    asked = ["a green field", "red and blue, both"]
    assert answer_track(run, Named(), data, 3).answers == {asked[0]: "g.png", asked[1]: "b.png"}
    hard = answer_track(run, Named(), data, 3, rule=ClassRule("hard"))
    assert [row[:3] for row in hard.ranked] == [(asked[0], 1, "g.png"), (asked[1], 1, "b.png")] and hard.fell_back == 0
    (data / "test" / "imgs" / "g.png").unlink()
    assert answer_track(run, Named(), data, 3, rule=ClassRule("hard")).fell_back == 1


def test_a_template_changes_what_is_embedded_and_no_query(run, data):
    plain, model = answer_track(run, Named(), data, 3), Named()
    found = answer_track(run, model, data, 3, template="something red: {}")
    assert model.embedded == ["something red: a green field", "something red: red and blue, both"]
    assert found.queries == plain.queries and list(found.answers) == list(plain.answers) == ["a green field", "red and blue, both"]
    assert {row[0] for row in found.ranked} == set(plain.answers) and found.answers != plain.answers
    with pytest.raises(UsageError, match="one {} where"):
        answer_track(run, Named(), data, 3, template="something red")
