"""`entrep validate`: the report on each broken submission, the corrected copy, and mistakes that a run or a truth reveals."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from entrep_cli.data.images import Preprocess
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.methods.base import Inference
from entrep_cli.workspace import Run
from tests.finders import Fake
from tests.tiny import ENTREP, Contest, answers, draw, lines, make_contest, zipped

PACK = "pack the .json alone: `zip -j OUT.zip FILE.json`"
IDS = "write a class id, an integer: 0, 1, 2, 3, 4, 5, 6"
FOR_AN_ID = "stands where a class id belongs"
OBJECT = 'write {"query": answer, ...}'
DIFFERS, BLANKS = "differs from the query in", "blanks or invisible characters"
MARK, LATIN = "a byte-order mark, which parsers refuse", "not UTF-8, perhaps Latin-1"
QUOTES = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
OTHERS = "with different answers, 5, 0; keep the right one"


def sent(value: Any) -> bytes:
    return zipped({"submission.json": json.dumps(value)})


@pytest.fixture(scope="module")
def contest(tmp_path_factory) -> Contest:
    """28 test images, 4 of each class, and a text query for each class."""
    return make_contest(tmp_path_factory.mktemp("contest") / "data", per_class=2, tests=4)


@pytest.fixture
def data(contest, monkeypatch) -> Path:
    monkeypatch.setenv("ENTREP_DATA", str(contest.root))
    return contest.root


@pytest.fixture
def right(data) -> dict[int, dict[str, Any]]:
    """Submissions of the three tracks with nothing to find fault with."""
    images = lines(data / "test" / "i2i.csv")
    return {
        1: {image: ENTREP.index(image[5:-8]) for image in images},
        2: dict(zip(images, images[1:] + images[:1])),
        3: dict.fromkeys(lines(data / "test" / "t2i.csv"), images[0]),
    }


def all_but(answers: dict[str, Any], n: int = 1) -> dict[str, Any]:
    return dict(list(answers.items())[n:])


def changed(key: Any = str, value: Any = lambda v: v) -> Any:
    """Makes other answers of right ones, each key and value by a function."""
    return lambda answers: {key(k): value(v) for k, v in answers.items()}


def one(value: Any) -> Any:
    """Makes other answers of right ones, `A` answered by `value`."""
    return lambda answers: {**answers, A: value}


A, B = "test_nose-right_000.png", "test_nose-right_001.png"
T = "finding of nose-right"

# Name, the archive (its members, or its bytes) made of the JSON of a right submission, kind and message of a fault, whether --fix fixes it.
ARCHIVES = [
    ("empty file", lambda j: b"", "not-a-zip", f"the file is empty; {PACK}", False),
    ("another format", lambda j: b"Rar!\x1a\x07\x01\x00", "not-a-zip", f"the file is no zip archive; {PACK}", False),
    ("cut short", lambda j: zipped({"a.json": j})[:-30], "not-a-zip", f"the file is no zip archive; {PACK}", False),
    ("bare JSON", str.encode, "bare-json", f"the file is bare JSON; {PACK}", True),
    ("no JSON", lambda j: {"a.csv": "x"}, "no-json", f"the archive holds no .json; {PACK}", False),
    ("two JSONs", lambda j: {"a.json": j, "b.json": j}, "several-json", "the archive holds 'a.json', 'b.json'; keep one", False),
    ("in a folder", lambda j: {"out/a.json": j}, "sub-folder", f"'out/a.json' is or has a folder; {PACK}", True),
    ("an old one", lambda j: {"a.json": j, "old/a.json": j}, "several-json", "the archive holds 'a.json', 'old/a.json'; keep one", False),
    ("resource forks", lambda j: {"a.json": j, "__MACOSX/._a.json": "x"}, "macos-junk", f"'__MACOSX/._a.json' is macOS junk; {PACK}", True),
    ("a second file", lambda j: {"a.json": j, "notes.txt": "x"}, "extra-member", f"'notes.txt' is no .json; {PACK}", True),
    (
        "a zip",
        lambda j: {"a.zip": zipped({})},
        "nested-archive",
        f"'a.zip' is an archive in the archive, which is not opened; {PACK}",
        False,
    ),
    ("an upper-case name", lambda j: {"A.JSON": j}, "member-name", "'A.JSON' does not end in .json; call it 'A.json'", True),
    ("byte-order mark", lambda j: {"a.json": "\ufeff" + j}, "byte-order-mark", f"the JSON begins with {MARK}; save it without", True),
    ("UTF-16", lambda j: {"a.json": j.encode("utf-16")}, "encoding", "the JSON is UTF-16, not UTF-8; save it as UTF-8", True),
    ("Latin-1", lambda j: {"a.json": b'{"\xe9": 1}'}, "encoding", f"the JSON: line 1: byte 0xe9 is {LATIN}; save it as UTF-8", False),
    (
        "a Python dict",
        lambda j: {"a.json": str(json.loads(j))},
        "malformed-json",
        f"malformed JSON ({QUOTES}); write it with json.dump",
        False,
    ),
    ("a key twice", lambda j: {"a.json": f'{{"{A}": 0, ' + j[1:]}, "duplicate-key", f"'{A}' is a key 2 times; keep one", True),
    ("two answers", lambda j: {"a.json": f'{{"{A}": 5, ' + j[1:]}, "contradicting-key", f"'{A}' is a key 2 times {OTHERS}", False),
]
# Name, track, the value in the JSON made of right answers, kind and message of a fault, whether --fix fixes it.
ANSWERS = [
    ("records", 1, lambda a: [{"image": k} for k in a], "not-an-object", f"the JSON is a list of 28, not an object; {OBJECT}", False),
    ("wrapped", 1, lambda a: {"x": a}, "wrapped", "all answers stand inside of 'x'; write them without it", True),
    ("nothing in it", 1, lambda a: {}, "empty", "the JSON holds no answer; write one for each query", False),
    ("a missing key", 1, all_but, "missing-key", f"'{A}' has no answer; add one", False),
    ("a key too many", 1, lambda a: {**a, "x.png": 1}, "extra-key", "'x.png' is not among the queries; remove it", True),
    ("paths", 1, changed(lambda k: f"../x\\imgs/{k}"), "path-key", f"the key '../x\\\\imgs/{A}' is a path; write '{A}'", True),
    ("two paths", 1, lambda a: all_but(a) | {f"x/{A}": 0, f"y/{A}": 1}, "same-query", f"'x/{A}', 'y/{A}' all mean '{A}'; keep one", False),
    ("upper case", 1, changed(str.upper), "case-key", f"the key '{A.upper()}' differs from the query in case; write '{A}'", True),
    ("no extension", 1, changed(lambda k: k[:-4]), "suffix-key", f"the key '{A[:-4]}' {DIFFERS} the file extension; write '{A}'", True),
    ("line ends", 1, changed("{}\n".format), "control-character", f"the key '{A}\\n' holds a control character; write '{A}'", True),
    ("an id out of range", 1, one(7), "class-range", f"'{A}': 7 is not the id of a class; {IDS}", False),
    ("a boolean", 1, one(True), "boolean", f"'{A}': the answer is of the wrong kind, boolean: True; {IDS}", False),
    ("floats", 1, changed(value=float), "float", f"'{A}': the id 0.0 is a float; write 0", True),
    ("a half", 1, one(0.5), "float", f"'{A}': the answer is of the wrong kind, float: 0.5; {IDS}", False),
    ("ids in quotes", 1, changed(value=str), "numeric-string", f"'{A}': the id '0' stands in quotes; write 0", True),
    ("names", 1, changed(value=lambda v: ENTREP[v].upper()), "class-string", f"'{A}': 'NOSE-RIGHT' {FOR_AN_ID}; write 0", True),
    ("no class name", 1, one("nostril"), "class-string", f"'{A}': 'nostril' {FOR_AN_ID}; {IDS}", False),
    ("NaN", 1, one(float("nan")), "not-finite", f"'{A}': nan is no number in JSON; {IDS}", False),
    ("lists of one", 1, changed(value=lambda v: [v]), "list", f"'{A}': the answer is a list of one; write 0 alone", True),
    ("a list", 1, one([0, 1]), "list", f"'{A}': the answer is a list of 2; {IDS}", False),
    ("null", 1, one(None), "null", f"'{A}': the answer is of the wrong kind, null; {IDS}", False),
    ("the query itself", 2, one(A), "self-answer", f"'{A}': the answer '{A}' is the query itself; write another file", False),
    ("unknown", 2, one("x.png"), "unknown-answer", f"'{A}': 'x.png' is not in the gallery; write one of its files", False),
    ("answered by paths", 2, changed(value="imgs/{}".format), "path-answer", f"'{A}': the answer 'imgs/{B}' is a path; write '{B}'", True),
    ("loud", 2, changed(value=str.upper), "case-answer", f"'{A}': the answer '{B.upper()}' differs from a file in case; write '{B}'", True),
    ("ranked lists", 2, changed(value=lambda v: [v, A]), "list", f"'{A}': the answer is a list of 2; write one file name", False),
    ("no answer", 2, one(" "), "blank-answer", f"'{A}': the answer is blank; write a file name", False),
    (
        "trimmed texts",
        3,
        changed(lambda k: f" {k.upper()} "),
        "spacing-key",
        f"the key ' {T.upper()} ' {DIFFERS} {BLANKS}; write '{T}'",
        True,
    ),
    (
        "ids in track 3",
        3,
        changed(value=lambda v: 3),
        "number",
        f"'{T}': the answer is of the wrong kind, number: 3; write one file name",
        False,
    ),
]


@pytest.mark.parametrize("track", [1, 2, 3])
def test_a_right_submission_passes(right, entrep, tmp_path, track):
    path = tmp_path / "mine.zip"
    path.write_bytes(sent(right[track]))
    done = entrep("validate", path, "--track", track, "--fix", "--json")
    assert done.code == 0 and done.err == ""
    assert done.json["ok"] and done.json["valid"] and done.json["faults"] == [] and done.json["fix"]["written"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["mine.zip"]


BROKEN = [(name, 1, lambda a, make=make: make(json.dumps(a)), *expected) for name, make, *expected in ARCHIVES]
BROKEN += [
    (name, track, lambda a, make=make: {"submission.json": json.dumps(make(a))}, *expected) for name, track, make, *expected in ANSWERS
]


@pytest.mark.parametrize("_, track, broken, kind, message, corrected", BROKEN, ids=[row[0] for row in BROKEN])
def test_a_broken_submission_is_reported_with_a_hint(right, entrep, tmp_path, _, track, broken, kind, message, corrected):
    path, copy = tmp_path / "mine.zip", tmp_path / "mine-fixed.zip"
    content = broken(right[track])
    path.write_bytes(content if isinstance(content, bytes) else zipped(content))
    before = path.read_bytes()
    done = entrep("validate", path, "--track", track, "--fix", "--json")
    assert done.json["valid"] is False and kind in done.json["counts"]
    assert message in [fault["message"] for fault in done.json["faults"] if fault["kind"] == kind]
    assert f"Warning: {kind} ({done.json['counts'][kind]})" in done.err and message in done.err
    assert path.read_bytes() == before
    # Where the fix is certain the copy answers as was meant; else none is made.
    assert (done.code, copy.exists()) == ((0, True) if corrected else (1, False))
    if corrected:
        assert answers(copy) == right[track] and not done.json["fix"]["left"]
        assert entrep("validate", copy, "--track", track).code == 0
    else:
        assert done.json["fix"]["left"] and not done.json["fixable"]


def test_all_faults_at_once_and_what_would_be_corrected(right, entrep, tmp_path):
    broken = changed(key=lambda k: f"imgs/{k}", value=float)(all_but(right[1])) | {"imgs/x.png": [9]}
    (tmp_path / "mine.zip").write_bytes(zipped({"s/a.json": json.dumps(broken)}))
    done = entrep("validate", tmp_path / "mine.zip", "--track", 1, "--json")
    assert done.code == 1 and done.json["fix"] is None and not done.json["fixable"]
    assert done.json["counts"] == {"sub-folder": 1, "path-key": 28, "missing-key": 1, "float": 27, "list": 1, "class-range": 1}
    done = entrep("validate", tmp_path / "mine.zip", "--track", 1, "--fix")
    assert done.code == 1 and "nothing: fix the other faults first" in done.out and "missing-key (1)" in done.out
    assert "sub-folder (1), path-key (28), float (27), list (1), class-range (1)" in done.out


def test_the_command_that_fixes_is_offered_where_it_would(right, entrep, tmp_path):
    path = tmp_path / "my file.zip"
    path.write_bytes(sent(changed(value=float)(right[1])))
    assert f"entrep validate '{path}' --track 1 --fix" in entrep("validate", path, "--track", 1).err
    path.write_bytes(sent(all_but(right[1])))
    assert "--fix" not in entrep("validate", path, "--track", 1).err


def test_the_copy_goes_where_out_names_it_and_over_nothing_else(right, entrep, tmp_path):
    path, out = tmp_path / "mine.zip", tmp_path / "deep" / "good.zip"
    path.write_bytes(sent(changed(value=float)(right[1])))
    before = path.read_bytes()
    line = ("validate", path, "--track", 1, "--fix", "--out")
    for _ in range(2):  # the same copy again is no loss
        assert entrep(*line, out).code == 0 and answers(out) == right[1]
    os.symlink(path, tmp_path / "link.zip")
    os.link(path, tmp_path / "hard.zip")
    (tmp_path / "other.zip").write_bytes(b"another")
    for taken in ("mine.zip", "link.zip", "hard.zip", "other.zip", "good.json"):
        done = entrep(*line, tmp_path / taken)
        assert done.code == 2 and "--out" in done.err, taken
    assert path.read_bytes() == before and (tmp_path / "other.zip").read_bytes() == b"another"
    assert entrep("validate", path, "--track", 1, "--out", out).code == 2


def test_a_copy_keeps_the_name_of_its_json(right, entrep, tmp_path):
    for name, expected in (("ours v2.JSON", "ours v2.json"), ("s/t1.json", "t1.json"), ("..\\.json", "submission.json")):
        (tmp_path / "mine.zip").write_bytes(zipped({name: json.dumps(changed(value=str)(right[1]))}))
        out = tmp_path / f"{expected}.zip"
        assert entrep("validate", tmp_path / "mine.zip", "--track", 1, "--fix", "--out", out).code == 0
        assert zipfile.ZipFile(out).namelist() == [expected]


# ---------------------------------------------------------------- what a truth or a run tells

ALPHABETICAL = [sorted(ENTREP).index(name) for name in ENTREP]  # by contest id
MIRROR = [1, 0, 3, 2, 4, 5, 6]
MISTAKES = [
    ("alphabetical-ids", ALPHABETICAL.__getitem__, "0 to 3 (ear-left), 1 to 2 (ear-right)"),
    ("swapped-sides", MIRROR.__getitem__, "0 to 1 (nose-left), 1 to 0 (nose-right), 2 to 3 (ear-left), 3 to 2 (ear-right)"),
]


@pytest.mark.parametrize("kind, mistake, change", MISTAKES)
def test_a_truth_tells_a_mistake_as_a_warning(data, right, entrep, tmp_path, kind, mistake, change):
    path = tmp_path / "mine.zip"
    path.write_bytes(sent(changed(value=mistake)(right[1])))
    line = ("validate", path, "--track", 1, "--truth", data / "test" / "truth_cls.json")
    done = entrep(*line)
    agree = sum(mistake(id_) == id_ for id_ in right[1].values())
    assert done.code == 0 and f"Warning: {kind}: " in done.err and change in done.err
    assert f"28 of 28 answers then agree with the truth truth_cls.json, and {agree} as they stand" in done.err
    done = entrep(*line, "--json")
    (found,) = done.json["suspicions"]
    assert done.json["ok"] and found["kind"] == kind and found["agree_corrected"] == 28 and found["p"] < 1e-4
    assert done.json["compared"] == {"by": "the truth truth_cls.json", "compared": 28, "agree": agree}
    path.write_bytes(sent(right[1]))
    assert entrep(*line, "--json").json["suspicions"] == [] and "agree with the truth" in entrep(*line).out


@pytest.mark.parametrize("track", [2, 3])
def test_exchanged_sides_in_retrieval(data, right, entrep, tmp_path, track):
    truth = data / "test" / ("truth_i2i.json" if track == 2 else "truth_t2i.json")
    true = json.loads(truth.read_text())
    other = {"left": "right", "right": "left"}
    mirrored = {q: "-".join(other.get(part, part) for part in a[:-8].split("-")) + a[-8:] for q, a in true.items()}
    (tmp_path / "mine.zip").write_bytes(sent({q: a if a != q else true[q] for q, a in mirrored.items()}))
    done = entrep("validate", tmp_path / "mine.zip", "--track", track, "--truth", truth, "--json")
    assert done.code == 0
    if track == 2:
        assert [s["kind"] for s in done.json["suspicions"]] == ["swapped-sides"] and "look for a flip" in done.err
    else:
        assert done.json["compared"]["compared"] == 7 and "(7 answers with a known class are too few)" in done.err


def test_ids_from_one_need_nothing_to_compare_with(right, entrep, tmp_path):
    (tmp_path / "mine.zip").write_bytes(sent(changed(value=lambda v: v + 1)(right[1])))
    done = entrep("validate", tmp_path / "mine.zip", "--track", 1)
    assert done.code == 1 and "class-range (4)" in done.err and "no answer is 0, 4 are 7" in done.err


def test_a_truth_without_classes_is_refused(data, right, entrep, tmp_path):
    (tmp_path / "mine.zip").write_bytes(sent(right[2]))
    (tmp_path / "truth.json").write_text(json.dumps(right[2]))
    done = entrep("validate", tmp_path / "mine.zip", "--track", 2, "--truth", tmp_path / "truth.json")
    assert done.code == 1 and "put truth_cls.json beside it" in done.err
    assert entrep("validate", tmp_path / "mine.zip", "--track", 2, "--truth", tmp_path / "none.json").code == 1


class Templates(Fake):
    """A model that knows a class by its colour."""

    def __init__(self) -> None:
        super().__init__(Taxonomy.entrep(), Preprocess(16))
        seen = [self.preprocess(draw(name, seed=1)) for name in self.taxonomy.names]
        self.templates = torch.nn.Parameter(torch.from_numpy(np.stack(seen)).float(), requires_grad=False)

    def infer(self, pixels):
        flat = pixels.float().flatten(1)
        probabilities = (-torch.cdist(flat, self.templates.flatten(1)) / 100).softmax(1)
        return Inference(torch.nn.functional.normalize(flat, dim=1), probabilities)


@pytest.fixture
def run(tmp_path, monkeypatch) -> None:
    """A complete run `seen` whose model is `Templates`."""
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    made = Run(tmp_path / "runs" / "seen")
    made.folder.mkdir(parents=True)
    made.path("model.safetensors").write_bytes(b"weights")
    made.mark_complete({"method": "dinov2", "preprocess": {}, "taxonomy": Taxonomy.entrep().as_dict()})
    monkeypatch.setattr("entrep_cli.retrieval.sets.open_model", lambda run, device: Templates())


def test_a_run_tells_the_same_mistakes(data, run, right, entrep, tmp_path):
    path = tmp_path / "mine.zip"
    for kind, mistake, _ in MISTAKES:
        path.write_bytes(sent(changed(value=mistake)(right[1])))
        done = entrep("validate", path, "--track", 1, "--run", "seen", "--json")
        assert done.code == 0 and [s["kind"] for s in done.json["suspicions"]] == [kind]
    path.write_bytes(sent(right[1]))
    done = entrep("validate", path, "--track", 1, "--run", "seen")
    assert done.code == 0 and "agree with run seen" in done.out and "28 of 28" in done.out and "seems" not in done.err
    path.write_bytes(sent(right[2]))
    assert entrep("validate", path, "--track", 2, "--run", "seen", "--json").json["compared"]["compared"] == 28


def test_what_cannot_be_compared_is_wrong_usage(data, run, right, entrep, tmp_path):
    (tmp_path / "mine.zip").write_bytes(sent(right[3]))
    line = ("validate", tmp_path / "mine.zip")
    assert "--truth truth_t2i.json" in entrep(*line, "--track", 3, "--run", "seen").err
    done = entrep(*line, "--track", 1, "--run", "seen", "--truth", data / "test" / "truth_cls.json")
    assert done.code == 2 and entrep(*line, "--track", 4).code == 2


# ---------------------------------------------------------------- what it is checked against


def test_of_several_test_folders_one_is_named(data, right, entrep, tmp_path):
    for name in ("public", "private"):
        shutil.copytree(data / "test", tmp_path / "both" / name)
    (tmp_path / "mine.zip").write_bytes(sent(all_but(right[1])))
    line = ("validate", tmp_path / "mine.zip", "--track", 1, "--data", tmp_path / "both")
    done = entrep(*line)
    assert done.code == 1 and "2 test folders" in done.err and "--queries" in done.err
    assert entrep(*line, "--queries", tmp_path / "both" / "private", "--json").json["counts"] == {"missing-key": 1}


def test_what_was_not_checked_is_not_called_valid(data, right, entrep, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "test" / "i2i.csv").rename(tmp_path / "data" / "test" / "i2i (1).csv")
    (tmp_path / "mine.zip").write_bytes(sent(all_but(right[2], 9)))
    line = ("validate", tmp_path / "mine.zip", "--track", 2, "--data", tmp_path / "data")
    done = entrep(*line)
    assert done.code == 0 and "as far as was checked" in done.out and "whether each query has an answer" in done.out
    assert "uploaded" not in done.err
    done = entrep(*line, "--json")
    assert done.json["ok"] and done.json["valid"] is None and done.json["skipped"]
    (tmp_path / "mine.zip").write_bytes(sent(right[2]))
    done = entrep("validate", tmp_path / "mine.zip", "--track", 2)
    assert done.code == 0 and f"It can be uploaded as it is: {tmp_path / 'mine.zip'}" in done.err and "not checked" not in done.out


def test_queries_elsewhere_are_answered_out_of_the_dataset(data, right, entrep, tmp_path, monkeypatch):
    """As `predict` does: by the images and the classes of the dataset that is there without being named."""
    shutil.copytree(data / "test", tmp_path / "private")
    trained = sorted(path.name for path in (data / "train" / "imgs").iterdir())
    (tmp_path / "mine.zip").write_bytes(sent(dict(zip(right[2], trained * 2))))
    line = ("validate", tmp_path / "mine.zip", "--queries", tmp_path / "private")
    assert entrep(*line, "--track", 2, "--json").json["valid"] is True
    (tmp_path / "mine.zip").write_bytes(sent(changed(value=lambda v: v + 10)(right[1])))
    assert entrep(*line, "--track", 1, "--json").json["counts"] == {"class-range": 28}
    own = tmp_path / "own"
    shutil.copytree(data, own)
    (own / "taxonomy.toml").write_text("".join(f'[[classes]]\nname = "{name}"\nid = {10 + i}\n' for i, name in enumerate(ENTREP)))
    monkeypatch.setenv("ENTREP_DATA", str(own))
    assert entrep(*line, "--track", 1, "--json").json["valid"] is True


def test_the_gallery_that_was_searched(data, right, entrep, tmp_path):
    (tmp_path / "more").mkdir()
    draw("throat").save(tmp_path / "more" / "purple.png")
    path = tmp_path / "mine.zip"
    trained = next((data / "train" / "imgs").iterdir()).name
    line = ("validate", path, "--track", 3, "--json")
    for answer, galleries in (("purple.png", {str(tmp_path / "more")}), (trained, {"train", "all"}), (A, {"test", "queries", "all"})):
        path.write_bytes(sent(dict.fromkeys(right[3], answer)))
        for gallery in ("queries", "test", "train", "all", str(tmp_path / "more")):
            found = entrep(*line, "--gallery", gallery).json
            assert found["valid"] is (gallery in galleries) and set(found["counts"]) <= {"unknown-answer"}
        assert entrep(*line).json["valid"] is (answer != "purple.png")
    assert entrep(*line, "--gallery", "nowhere").code == 2
    path.write_bytes(sent(right[1]))
    assert entrep("validate", path, "--track", 1, "--gallery", "train").code == 2


def test_answers_out_of_class_folders(entrep, tmp_path):
    """Their images are known by paths, and answered by names."""
    made = make_contest(tmp_path / "made", per_class=1, tests=1)
    for label in ENTREP:
        (tmp_path / "data" / label).mkdir(parents=True)
        shutil.copy(made.image(f"{label}_000.png"), tmp_path / "data" / label)
    shutil.copytree(made.test, tmp_path / "data" / "test")
    images = lines(made.test / "cls.csv")
    (tmp_path / "data" / "test" / "i2i.csv").write_text("\n".join(images))
    (tmp_path / "mine.zip").write_bytes(sent({image: image.removeprefix("test_") for image in images}))
    line = ("validate", tmp_path / "mine.zip", "--track", 2, "--data", tmp_path / "data", "--json")
    assert entrep(*line).json["valid"] is True and entrep(*line, "--gallery", "train").json["valid"] is True
    truth = made.test / "truth_cls.json"
    scored = entrep("evaluate", "--submission", tmp_path / "mine.zip", "--truth", truth, *line[2:])
    assert scored.code == 0 and scored.json["retrieval"]["class"]["recall@1"]["value"] == 1
