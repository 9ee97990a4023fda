"""Class-aware retrieval and templates through the commands, on phantom data."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from entrep_cli.evaluation.selection import WEIGHTS
from entrep_cli.methods.runs import load_model
from entrep_cli.retrieval.class_aware import FLOOR
from entrep_cli.workspace import open_run
from tests.tiny import answers, lines


def embedded(run: Path, name: str = "test") -> tuple[list[dict], np.ndarray, np.ndarray]:
    """Items, vectors and probabilities of a set as they lie in the run."""
    folder = run / "embeddings" / name
    with open(folder / "items.csv", newline="") as file:
        items = list(csv.DictReader(file))
    return items, np.load(folder / "vectors.npy").astype(float), np.load(folder / "probabilities.npy").astype(float)


def naive_best(items, rows, shares, asked, asked_shares, allowed, mode: str, weight: float) -> tuple[str, bool]:
    """The first answer by a loop, and whether the filter had left nothing."""
    kept = [g for g in allowed if shares[g].argmax() == asked_shares.argmax()] if mode == "hard" else list(allowed)
    fell_back = not kept

    def score(g: int) -> float:
        return float(asked @ rows[g]) + (weight * np.log(max(float(asked_shares @ shares[g]), FLOOR)) if mode == "soft" else 0)

    return items[max(kept or allowed, key=lambda g: (score(g), -g))]["image"], fell_back


@pytest.mark.parametrize("mode, weight", [("hard", None), ("soft", 0.3), ("soft", 0)])
def test_track_2_equals_a_naive_search(trained, entrep, mode, weight):
    option = [] if weight is None else ["--class-weight", weight]
    done = entrep("predict", "--track", 2, "--mask-groups", "--class-aware", mode, *option, "--json")
    assert done.code == 0 and done.json["validated"] is True
    run = trained / "dinov2"
    items, rows, shares = embedded(run)
    place = {item["image"]: i for i, item in enumerate(items)}
    fallen = 0
    for query, answer in answers(run / "submissions" / "track2.zip").items():
        q = place[query]
        allowed = [g for g in range(len(items)) if items[g]["group"] != items[q]["group"]]
        best, fell_back = naive_best(items, rows, shares, rows[q], shares[q], allowed, mode, weight)
        assert answer == best
        fallen += fell_back
    assert done.json["class_aware"] == {"mode": mode, "weight": weight, "validation": None, "fell_back": fallen}
    assert ("have no candidate of their predicted class" in done.err) == (fallen > 0)
    if weight == 0:
        assert entrep("predict", "--track", 2, "--mask-groups", "--out", trained / "plain.zip").code == 0
        assert (trained / "plain.csv").read_bytes() == (run / "submissions" / "track2.csv").read_bytes()


def test_off_is_the_default_and_says_so(trained, entrep):
    done = entrep("predict", "--track", 2, "--json")
    assert done.json["class_aware"] == {"mode": "off", "weight": None, "validation": None, "fell_back": 0}
    assert done.json["template"] is None and not (trained / "dinov2" / "selection.json").exists()
    first = (trained / "dinov2" / "submissions" / "track2.csv").read_bytes()
    assert entrep("predict", "--track", 2, "--class-aware", "off").code == 0
    assert (trained / "dinov2" / "submissions" / "track2.csv").read_bytes() == first


def test_a_fallback_is_said_aloud(trained, phantom, entrep, tmp_path):
    """A gallery of one other image, of another class."""
    items, _, shares = embedded(trained / "dinov2")
    first = items[0]["image"]
    other = next(item["image"] for item, p in zip(items, shares) if p.argmax() != shares[0].argmax())
    for name in (first, other):
        (tmp_path / "q").mkdir(exist_ok=True)
        shutil.copy(phantom / "test" / "imgs" / name, tmp_path / "q")
    done = entrep("predict", "--track", 2, "--queries", tmp_path / "q", "--class-aware", "hard")
    assert done.code == 0 and "2 of 2 queries have no candidate of their predicted class" in done.err
    assert re.search(r"no candidate of the class +2", done.out) and re.search(r"class-aware +hard", done.out)
    assert answers(trained / "dinov2" / "submissions" / "track2.zip") == {first: other, other: first}


# ---------------------------------------------------------------- the tuned weight


def test_the_weight_is_tuned_on_validation_told_and_kept(trained, entrep):
    done = entrep("predict", "--track", 2, "--class-aware", "soft")
    assert done.code == 0 and re.search(r"Class-aware: weight \S+ \(chosen on \d+ validation images: Recall@1 by class \d\.\d{3}", done.err)
    kept = json.loads((trained / "dinov2" / "selection.json").read_text())["class_weight"]
    assert [row["weight"] for row in kept["tried"]] == list(WEIGHTS)
    best = max(kept["tried"], key=lambda row: (row["recall@1"], row["mrr"], -row["weight"]))
    assert kept["weight"] == best["weight"]
    again = entrep("predict", "--track", 2, "--class-aware", "soft", "--out", trained / "again.zip", "--json")
    assert again.json["class_aware"]["weight"] == kept["weight"]
    assert again.json["class_aware"]["validation"] == kept
    run = trained / "dinov2"
    assert (trained / "again.zip").read_bytes() == (run / "submissions" / "track2.zip").read_bytes()
    given = entrep("predict", "--track", 2, "--class-aware", "soft", "--class-weight", kept["weight"], "--out", trained / "given.zip")
    assert given.code == 0 and (trained / "given.csv").read_bytes() == (trained / "again.csv").read_bytes()


def test_neither_test_nor_training_images_choose_it(trained, phantom, entrep, tmp_path):
    """Without the test folder, and with the embeddings of the training part spoilt, the same weight is found."""
    assert entrep("evaluate", "--class-aware", "soft").code == 0
    kept = (trained / "dinov2" / "selection.json").read_bytes()
    (trained / "dinov2" / "selection.json").unlink()
    data = tmp_path / "blind"
    shutil.copytree(phantom / "train", data / "train")
    shutil.rmtree(trained / "dinov2" / "embeddings" / "train")
    assert entrep("evaluate", "--class-aware", "soft", "--data", data).code == 0
    tried, before = (json.loads(text)["class_weight"] for text in ((trained / "dinov2" / "selection.json").read_text(), kept))
    assert tried["queries"] == before["queries"] and tried["weight"] == before["weight"]


def test_once_tuned_it_needs_no_dataset(trained, phantom, entrep, tmp_path, monkeypatch):
    shutil.copytree(phantom / "test" / "imgs", tmp_path / "new")
    line = ["predict", "--track", 2, "--queries", tmp_path / "new", "--class-aware", "soft"]
    shutil.copytree(trained, tmp_path / "untuned")
    assert entrep(*line).code == 0
    monkeypatch.delenv("ENTREP_DATA")
    monkeypatch.chdir(tmp_path)
    (trained / "split.json").unlink()
    assert entrep(*line).code == 0
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "untuned"))
    (tmp_path / "untuned" / "split.json").unlink()
    done = entrep(*line)
    assert done.code == 1 and "cannot be tuned" in done.err and "--class-weight" in done.err
    assert entrep(*line, "--class-weight", 0.1).code == 0 and entrep(*line[:-1], "hard").code == 0


def test_another_split_is_not_the_runs_own(trained, phantom, entrep):
    assert entrep("split", "--seed", 5).code == 0
    query = sorted((phantom / "test" / "imgs").iterdir())[0]
    for line in (["predict", "--track", 2], ["search", query]):
        done = entrep(*line, "--class-aware", "soft", "--json")
        told = done.json["error"]
        assert done.code == 1 and "its split is not the one" in told["what"] and "--class-weight" in told["hint"]


# ---------------------------------------------------------------- search


def test_search_ranks_exactly_and_needs_no_index(trained, phantom, entrep, tmp_path):
    shutil.rmtree(trained / "dinov2" / "index")
    sets = [embedded(trained / "dinov2", name) for name in ("test", "train")]
    items = [item for part in sets for item in part[0]]
    rows, shares = (np.concatenate([part[i] for part in sets]) for i in (1, 2))
    place = {item["image"]: i for i, item in enumerate(items)}
    for query in sorted((phantom / "test" / "imgs").iterdir())[:4]:
        q = place[query.name]
        for mode, option in (("hard", []), ("soft", ["--class-weight", 0.2])):
            done = entrep("search", "--no-sheet", query, "--class-aware", mode, *option, "--top-k", 5, "--json")
            assert done.code == 0
            allowed = [g for g in range(len(items)) if items[g]["digest"] != items[q]["digest"]]
            best, fell_back = naive_best(items, rows, shares, rows[q], shares[q], allowed, mode, 0.2)
            assert done.json["answers"][0]["image"] == best and query.name not in [a["image"] for a in done.json["answers"]]
            told = done.json["class_aware"]
            names = [c["name"] for c in open_run().manifest["taxonomy"]["classes"]]
            assert told["mode"] == mode and told["class"] == names[shares[q].argmax()] and told["fell_back"] == int(fell_back)
            if mode == "hard" and not fell_back:
                assert all(shares[place[a["image"]]].argmax() == shares[q].argmax() for a in done.json["answers"])
    assert "entrep index" in entrep("search", "--no-sheet", query).err
    shown = entrep("search", query, "--class-aware", "soft", "--save", tmp_path / "sheet.png")
    assert shown.code == 0 and "class-aware soft" in shown.out and "the query is taken for" in shown.err
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_search_masks_the_own_group(trained, phantom, entrep):
    items, _, _ = embedded(trained / "dinov2")
    group = {item["image"]: item["group"] for item in items}
    several = next(name for name in group if list(group.values()).count(group[name]) > 1)
    image = phantom / "test" / "imgs" / several
    done = entrep("search", "--no-sheet", image, "--class-aware", "hard", "--mask-groups", "--top-k", 200, "--json")
    assert done.code == 0 and not {name for name in group if group[name] == group[several]} & {a["image"] for a in done.json["answers"]}


# ---------------------------------------------------------------- evaluate


@pytest.mark.parametrize("mode, option", [("hard", []), ("soft", ["--class-weight", 0.1]), ("soft", [])])
def test_evaluate_shows_before_and_after_side_by_side(trained, entrep, monkeypatch, mode, option):
    plain = entrep("evaluate", "--split", "train", "--json").json
    done = entrep("evaluate", "--split", "train", "--class-aware", mode, *option, "--json")
    assert done.code == 0
    found = done.json["retrieval"]
    assert list(found) == ["class", f"class, class-aware {mode}", "finding", f"finding, class-aware {mode}"]
    for name in ("class", "finding"):
        before, after = found[name], found[f"{name}, class-aware {mode}"]
        assert before == plain["retrieval"][name]
        assert after["n_queries"] == before["n_queries"] and after["n_without_relevant"] == before["n_without_relevant"]
        assert {"recall@1", "recall@5", "recall@10", "mrr", "map"} <= after.keys() and after["depth"] is None
        assert after["recall@1"]["low"] <= after["recall@1"]["value"] <= after["recall@1"]["high"]
        assert done.json["chance"][name] == done.json["chance"][f"{name}, class-aware {mode}"] > 0
    told = done.json["class_aware"]
    assert told["mode"] == mode and (told["validation"] is not None) == (mode == "soft" and not option)
    assert json.loads((trained / "dinov2" / "evaluation" / "train.json").read_text()) == done.json
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", entrep("evaluate", "--split", "train", "--class-aware", mode, *option).out)
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search(rf"relevance by +class +class, class-aware {mode}", shown) and "text to finding" not in shown


def test_scores_on_the_part_that_chose_the_weight_are_marked(trained, entrep):
    line = ["evaluate", "--split", "val", "--class-aware", "soft"]
    assert "chosen on the validation split itself" in entrep(*line).err
    assert "chosen on the validation split itself" not in entrep(*line, "--class-weight", 0.1).err
    assert "chosen on the validation split itself" not in entrep("evaluate", "--class-aware", "soft").err


def test_evaluate_asks_the_texts_of_the_part(trained_clip, entrep):
    done = entrep("evaluate", "--split", "train", "--class-aware", "hard", "--json")
    assert done.code == 0
    found = done.json["retrieval"]
    assert list(found)[-2:] == ["text to finding", "text to finding, class-aware hard"]
    scores = found["text to finding"]
    assert scores["relevance"] == "finding" and scores["n_without_relevant"] == 0 < scores["n_queries"]
    # The same by hand: each distinct finding of the part asks for the images that have it.
    from entrep_cli.data.splits import read_catalog_and_split
    from entrep_cli.workspace import data_dir

    catalog, split = read_catalog_and_split(data_dir())
    part = catalog.subset(split.images("train"))
    findings = part.frame["findings"].tolist()
    texts = sorted({key for keys in findings for key in keys if not key.startswith("pair:")})
    items, rows, _ = embedded(trained_clip / "clip-lora", "train")
    place = {item["image"]: i for i, item in enumerate(items)}
    cosines = load_model(open_run()).embed_texts(texts).numpy().astype(float) @ rows[[place[name] for name in part.images]].T
    first = [texts[i] in findings[g] for i, g in enumerate(cosines.argmax(axis=1))]
    assert scores["n_queries"] == len(texts) and scores["recall@1"]["value"] == pytest.approx(np.mean(first))
    relevant = [sum(text in keys for keys in findings) / len(findings) for text in texts]
    assert done.json["chance"]["text to finding"] == pytest.approx(np.mean(relevant))
    assert set(done.json["class_aware"]["fell_back"]) == {"images", "texts"}


def test_classes_without_prompts_leave_the_texts_to_the_cosine(trained_clip, entrep, monkeypatch):
    from entrep_cli.errors import DataError
    from entrep_cli.methods.clip_lora import ClipLora

    def none(*_):
        raise DataError("The classes of the texts cannot be told.", faults=["class throat has no prompt"])

    monkeypatch.setattr(ClipLora, "classify_texts", none)
    done = entrep("evaluate", "--split", "train", "--class-aware", "hard", "--json")
    assert done.code == 0 and "text to finding" in done.json["retrieval"]
    assert "text to finding, class-aware hard" not in done.json["retrieval"]
    assert any("texts are not scored" in note and "class throat" in note for note in done.json["notes"])


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize("mode, weight", [("hard", None), ("soft", 0.05)])
def test_track_3_equals_a_naive_search(trained_clip, phantom, entrep, mode, weight):
    option = [] if weight is None else ["--class-weight", weight]
    template = "an endoscopic image showing {}"
    done = entrep("predict", "--track", 3, "--class-aware", mode, *option, "--template", template, "--json")
    assert done.code == 0 and done.json["template"] == template and done.json["validated"] is True
    run = trained_clip / "clip-lora"
    given, queries = answers(run / "submissions" / "track3.zip"), lines(phantom / "test" / "t2i.csv")
    assert list(given) == queries  # verbatim, whatever was embedded
    items, rows, shares = embedded(run)
    model = load_model(open_run())
    texts = [template.replace("{}", query) for query in queries]
    vectors, classes = model.embed_texts(texts).numpy().astype(float), model.classify_texts(texts).numpy().astype(float)
    found = [naive_best(items, rows, shares, v, c, range(len(items)), mode, weight) for v, c in zip(vectors, classes)]
    assert list(given.values()) == [image for image, _ in found]
    assert done.json["class_aware"]["fell_back"] == sum(fell_back for _, fell_back in found)
    with open(run / "submissions" / "track3.csv", newline="") as file:
        assert {row["query"] for row in csv.DictReader(file)} == set(queries)
    assert entrep("validate", run / "submissions" / "track3.zip", "--track", 3).code == 0


def test_a_template_of_nothing_but_the_text_is_verbatim(trained_clip, entrep):
    for name, option in (("plain", []), ("same", ["--template", "{}"]), ("other", ["--template", "no {} at all"])):
        assert entrep("predict", "--track", 3, *option, "--out", trained_clip / f"{name}.zip").code == 0
    plain, same, other = ((trained_clip / f"{name}.csv").read_bytes() for name in ("plain", "same", "other"))
    assert plain == same != other
    shown = entrep("predict", "--track", 3, "--template", "no {} at all").out
    assert re.search(r"template +no \{\} at all", shown)


def test_search_by_text(trained_clip, entrep):
    index = entrep("search", "--no-sheet", "septal spur", "--template", "an image of a {}", "--json").json
    assert index["query"] == "septal spur" and index["template"] == "an image of a {}"
    verbatim = entrep("search", "--no-sheet", "an image of a septal spur", "--json").json
    assert [a["score"] for a in index["answers"]] == [a["score"] for a in verbatim["answers"]]
    bare = entrep("search", "--no-sheet", "septal spur", "--json").json
    assert [a["score"] for a in index["answers"]] != [a["score"] for a in bare["answers"]]
    line = ("search", "--no-sheet", "septal spur", "--class-aware", "soft", "--class-weight", 0, "--template", "an image of a {}", "--json")
    soft = entrep(*line).json
    assert [a["image"] for a in soft["answers"]] == [a["image"] for a in index["answers"]]
    assert soft["class_aware"]["class"] in ("nose-right", "nose-left", "ear-right", "ear-left", "vc-open", "vc-closed", "throat")
    assert entrep("search", "--no-sheet", "septal spur", "--class-aware", "hard").code == 0
    long = entrep("search", "--no-sheet", "a septal spur and " * 30)  # longer than a file may be called
    assert long.code == 0 and "are cut" in long.err


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "line, said",
    [
        (["predict", "--track", 1, "--class-aware", "hard"], "tracks 2 and 3"),
        (["predict", "--track", 2, "--class-aware", "firm"], "firm"),
        (["predict", "--track", 2, "--class-weight", 0.1], "--class-aware soft"),
        (["predict", "--track", 2, "--class-aware", "hard", "--class-weight", 0.1], "--class-aware soft"),
        (["predict", "--track", 2, "--class-aware", "soft", "--class-weight", -1], "class-weight"),
        (["predict", "--track", 2, "--class-aware", "soft", "--class-weight", "inf"], "must be a number"),
        (["predict", "--track", 1, "--template", "a {}"], "track 3"),
        (["predict", "--track", 1, "--mask-groups"], "track 2"),
        (["predict", "--track", 3, "--mask-groups"], "no text tower"),
        (["search", "septal spur", "--mask-groups"], "no image file"),
        (["predict", "--track", 2, "--template", "a {}"], "track 3"),
        (["evaluate", "--class-weight", 0.1], "--class-aware soft"),
        (["evaluate", "--submission", "x.zip", "--truth", "t.json", "--track", 2, "--class-aware", "hard"], "ranked already"),
    ],
)
def test_options_that_make_no_sense(trained, entrep, line, said):
    done = entrep(*line)
    assert done.code == 2 and said in done.err
    assert not (trained / "dinov2" / "submissions").exists()


@pytest.mark.parametrize("template", ["no gap", "{} and {}", "", "{finding}"])
def test_a_template_needs_one_gap(trained_clip, entrep, template):
    for line in (["predict", "--track", 3], ["search", "septal spur"]):
        done = entrep(*line, "--template", template)
        assert done.code == 2 and "one {} where the text goes" in done.err


def test_an_image_is_set_into_no_template(trained, phantom, entrep):
    query = sorted((phantom / "test" / "imgs").iterdir())[0]
    done = entrep("search", "--no-sheet", query, "--template", "an image of {}")
    assert done.code == 2 and "text queries" in done.err
