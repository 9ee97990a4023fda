"""Queries come in verbatim or not at all; what is written is what the checker accepts."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrep_cli.data.texts import casefold, has_control
from entrep_cli.errors import DataError, UsageError
from entrep_cli.submission.checks import check_submission
from entrep_cli.submission.tracks import read_queries, read_submission, resolve_names, write_submission

NAMES = ["a1b2.png", "9-4_Image04(1).png", "ảnh nội soi, mũi.png", "[red]x[/red].png", "<script>.jpg"]


def write(folder: Path, content: str | bytes, name: str = "queries.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def faults_of(path: Path, track: int, **options) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_queries(path, track, **options)
    assert caught.value.where == str(path) and caught.value.hint
    return list(caught.value.faults)


# ---------------------------------------------------------------- reading queries


def test_names_are_read_verbatim_and_in_order(tmp_path):
    notes: list[str] = []
    path = write(tmp_path, "\n".join(NAMES) + "\n")
    assert read_queries(path, 2, known_names=NAMES, warn=notes.append) == NAMES
    assert notes == []


def test_a_text_is_the_whole_line(tmp_path):
    texts = ["mucus, oedema of cords", " stray\u00a0blanks ", "Normal", "normal", 'the "omega" sign', "a/b"]
    assert read_queries(write(tmp_path, "\n".join(texts)), 3) == texts


def test_a_line_that_begins_with_a_quote_is_a_csv_field(tmp_path):
    path = write(tmp_path, '"one, ""two"""\nthree\n')
    assert read_queries(path, 3) == ['one, "two"', "three"]
    assert read_queries(write(tmp_path, '"a.png,1.png"\n'), 1) == ["a.png,1.png"]
    assert "line 1: " in faults_of(write(tmp_path, '"open\nb\n'), 3)[0]
    assert "quoted" in faults_of(write(tmp_path, '"omega" sign\n'), 3)[0]


def test_mark_and_windows_line_ends_are_dropped_and_said(tmp_path):
    notes: list[str] = []
    path = write(tmp_path, b"\xef\xbb\xbfa.png\r\nb.png\r\n")
    assert read_queries(path, 1, warn=notes.append) == ["a.png", "b.png"]
    assert len(notes) == 2 and "byte-order mark" in notes[0] and "CRLF" in notes[1]
    assert read_queries(path, 1) == ["a.png", "b.png"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_utf16_is_refused(tmp_path, encoding):
    with pytest.raises(DataError, match="UTF-16"):
        read_queries(write(tmp_path, "a.png\nb.png\n".encode(encoding)), 1)


def test_latin1_is_refused_with_its_line(tmp_path):
    with pytest.raises(DataError, match="line 2: byte 0xe8 .* Latin-1"):
        read_queries(write(tmp_path, "normal\nœdème\n".replace("œ", "o").encode("latin-1")), 3)


def test_a_missing_an_empty_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.csv", write(tmp_path, ""), tmp_path):
        with pytest.raises(DataError) as caught:
            read_queries(path, 1)
        assert caught.value.where == str(path) and caught.value.hint


@pytest.mark.parametrize("word", ["image", "FileName", "path", "id", "image,label"])
def test_a_header_over_file_names_is_refused(tmp_path, word):
    (fault,) = faults_of(write(tmp_path, f"{word}\na.png\nb.png\n"), 1)
    assert fault.startswith("line 1: ") and "first query would be lost" in fault


def test_a_header_over_texts_is_refused(tmp_path):
    assert "header" in faults_of(write(tmp_path, "query\nnormal\n"), 3)[0]
    assert "header" in faults_of(write(tmp_path, '"Text"\nnormal\n'), 3)[0]


def test_what_only_looks_like_a_header_is_a_query(tmp_path):
    assert read_queries(write(tmp_path, "image\nscan\n"), 1) == ["image", "scan"]
    path = write(tmp_path, "image\na.png\n")
    assert read_queries(path, 1, known_names=["image", "a.png"]) == ["image", "a.png"]
    assert read_queries(write(tmp_path, "normal\nimage of a polyp\n"), 3)[0] == "normal"


def test_all_faulty_lines_are_said_at_once(tmp_path):
    lines = ["file", "a.png", "", "A.PNG", "imgs/b.png", "c\x1b[31m.png", "a.png", "d.png,nose-left", "e\\f.png", "good.png"]
    faults = faults_of(write(tmp_path, "\n".join(lines) + "\n"), 1)
    assert [fault.split(":")[0] for fault in faults] == [f"line {n}" for n in range(1, 10) if n != 2]
    said = ["header", "blank", "line 2, but for case", "'b.png'", "control", "line 2", "'d.png'", "'f.png'"]
    assert all(word in fault for word, fault in zip(said, faults, strict=True))
    assert not any("\x1b" in fault for fault in faults)


def test_texts_that_differ_in_case_are_two_queries(tmp_path):
    path = write(tmp_path, "Normal\nnormal\nnormal\n")
    assert faults_of(path, 3) == ["line 3: 'normal' stands already in line 2"]


def test_queries_are_looked_up_in_the_folder(tmp_path):
    notes: list[str] = []
    path = write(tmp_path, "x_image.png\nb.png\n")
    known = ["x_Image.png", "b.png"]
    assert read_queries(path, 2, known_names=known, warn=notes.append) == ["x_image.png", "b.png"]
    assert len(notes) == 1 and "'x_image.png' for 'x_Image.png'" in notes[0]
    faults = faults_of(path, 2, known_names=["b.png"])
    assert faults == ["line 1: 'x_image.png' is not in the image folder"]
    assert len(faults_of(path, 2, known_names=[])) == 2


def test_names_that_differ_in_case_are_two_images_where_both_exist(tmp_path):
    path = write(tmp_path, "a.png\nA.png\n")
    assert read_queries(path, 1, known_names=["a.png", "A.png"]) == ["a.png", "A.png"]
    assert "line 1" in faults_of(path, 1, known_names=["a.png"])[0]


def test_resolve_names():
    known = ["a.png", "A.PNG", "É.png", "b.PNG"]
    names = ["a.png", "A.png", "e\u0301.png", "b.png", "c.png"]
    assert resolve_names(names, known) == {"a.png": "a.png", "e\u0301.png": "É.png", "b.png": "b.PNG"}


# ---------------------------------------------------------------- writing and reading answers


def test_zip_and_csv_are_as_the_contest_wants_them(tmp_path):
    answers = {"b.png": np.int64(1), "a.png": 0, "œ.png": np.uint8(6)}
    ranked = [("b.png", 1, 1, 0.75), ("b.png", 2, 0, np.float32(0.25))]
    paths = write_submission(tmp_path / "sub" / "t1.zip", 1, answers, iter(ranked))
    assert paths == (tmp_path / "sub" / "t1.zip", tmp_path / "sub" / "t1.csv")
    with zipfile.ZipFile(paths[0]) as archive:
        assert archive.namelist() == ["submission.json"]
        text = archive.read("submission.json").decode()
    assert "œ.png" in text
    assert list(json.loads(text).items()) == [("b.png", 1), ("a.png", 0), ("œ.png", 6)]
    assert paths[1].read_text() == ("query,rank,answer,score\nb.png,1,1,0.750000\nb.png,2,0,0.250000\n")
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["t1.csv", "t1.zip"]


def test_ranked_texts_survive_csv(tmp_path):
    text = 'a, "b" [red] =1+1'
    _, table = write_submission(tmp_path / "t.zip", 3, {text: "x,y.png"}, [(text, 1, "x,y.png", 1)])
    rows = list(csv.reader(io.StringIO(table.read_text(), newline="")))
    assert rows[1] == [text, "1", "x,y.png", "1.000000"]


def test_same_answers_same_bytes(tmp_path, monkeypatch):
    answers = {f"q{n}.png": f"a{n}.png" for n in range(50)}
    ranked = [(query, 1, answer, 1 / 3) for query, answer in answers.items()]
    first = write_submission(tmp_path / "one.zip", 2, answers, ranked)
    monkeypatch.setattr("time.time", lambda: 2e9)
    second = write_submission(tmp_path / "two.zip", 2, answers, ranked)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with zipfile.ZipFile(first[0]) as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("track", "answers", "said"),
    [
        (1, {"a.png": True}, "boolean"),
        (1, {"a.png": np.True_}, "no class id"),
        (1, {"a.png": np.float64(1)}, "float"),
        (1, {"a.png": "nose-left"}, "class id"),
        (1, {"a.png": None}, "null"),
        (2, {"a.png": "a.png"}, "query itself"),
        (2, {"a.png": "A.PNG"}, "query itself"),
        (2, {"a.png": ["b.png"]}, "list"),
        (2, {"imgs/a.png": "b.png"}, "path"),
        (3, {"normal": "imgs/b.png"}, "path"),
        (3, {"two\nlines": "b.png"}, "control"),
        (3, {"normal": "\udcff.png"}, "cannot be written"),
        (3, {}, "no answer"),
    ],
)
def test_what_can_be_no_answer_is_refused_and_nothing_written(tmp_path, track, answers, said):
    with pytest.raises(DataError) as caught:
        write_submission(tmp_path / "t.zip", track, answers, [])
    assert said in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_score_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(DataError, match="nan"):
        write_submission(tmp_path / "t.zip", 3, {"x": "b.png"}, [("x", 1, "b.png", float("nan"))])


def test_the_ranked_list_never_replaces_another_csv(tmp_path):
    queries = write(tmp_path, "a.png\n", "i2i.csv")
    with pytest.raises(UsageError, match="replace"):
        write_submission(tmp_path / "i2i.zip", 2, {"a.png": "b.png"}, [])
    assert queries.read_text() == "a.png\n"
    for _ in range(2):
        write_submission(tmp_path / "t2.zip", 2, {"a.png": "b.png"}, [])
    with pytest.raises(UsageError, match="zip"):
        write_submission(tmp_path / "t2.json", 2, {"a.png": "b.png"}, [])


def test_a_failed_zip_leaves_the_old_one(tmp_path, monkeypatch):
    path, _ = write_submission(tmp_path / "t.zip", 2, {"a.png": "b.png"}, [])
    before, replace = path.read_bytes(), os.replace

    def fail_on_zip(source, target):
        if str(target).endswith(".zip"):
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_on_zip)
    with pytest.raises(OSError, match="disk full"):
        write_submission(path, 2, {"a.png": "c.png"}, [])
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.csv", "t.zip"]


def test_read_submission_takes_zip_and_bare_json(tmp_path):
    path, _ = write_submission(tmp_path / "t.zip", 2, {"b.png": "a.png", "a.png": "b.png"}, [])
    read = read_submission(path)
    assert (read.path, read.member) == (path, "submission_i2i.json")
    assert list(read.answers.items()) == [("b.png", "a.png"), ("a.png", "b.png")]
    bare = read_submission(write(tmp_path, '{"x": 3, "y": "nose-left"}', "old.json"))
    assert (bare.member, bare.answers) == (None, {"x": 3, "y": "nose-left"})


def test_read_submission_says_every_fault(tmp_path):
    path = write(tmp_path, '{"a": 1, "a": 2, "b": true, "c": [1], "d": NaN}', "bad.json")
    with pytest.raises(DataError) as caught:
        read_submission(path)
    assert len(caught.value.faults) == 4
    for content in ("{}", "[]", "no", ""):
        with pytest.raises(DataError):
            read_submission(write(tmp_path, content, "bad.json"))
    with pytest.raises(DataError):
        read_submission(tmp_path / "none.zip")


# ---------------------------------------------------------------- there and back

NASTY = st.sampled_from([*"ab.,'\"[]{}<>&;=|%~# \u00a0", "é", "e\u0301", "ß", "İ", "ﬁ", "鼻", "𝒳", "\u200d"])
TEXTS = st.one_of(st.lists(NASTY, min_size=1).map("".join), st.text(min_size=1)).filter(
    lambda text: text.strip() and not has_control(text) and not text.startswith(('"', "\ufeff"))
)
FILES = TEXTS.filter(lambda name: not {"/", "\\"} & set(name)).map(lambda name: name + ".png")


def there_and_back(folder, track, answers, **known):
    ranked = [(query, 1, answer, 0.5) for query, answer in answers.items()]
    path, table = write_submission(folder / "t.zip", track, answers, ranked)
    assert check_submission(path, track).faults == ()
    assert check_submission(path, track, queries=list(answers), **known).faults == ()
    assert list(read_submission(path).answers.items()) == list(answers.items())
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [(row[0], row[2]) for row in rows] == [(key, str(value)) for key, value in answers.items()]


quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(answers=st.dictionaries(FILES, st.integers(0, 6), min_size=1))
def test_round_trip_of_classes(tmp_path, answers):
    there_and_back(tmp_path, 1, answers, classes={f"class {n}": n for n in range(7)})


@quick
@given(files=st.lists(FILES, min_size=2, unique_by=casefold))
def test_round_trip_of_images(tmp_path, files):
    answers = dict(zip(files, files[1:] + files[:1], strict=True))
    there_and_back(tmp_path, 2, answers, gallery=files)


@quick
@given(answers=st.dictionaries(TEXTS, FILES, min_size=1))
def test_round_trip_of_texts(tmp_path, answers):
    there_and_back(tmp_path, 3, answers, gallery=set(answers.values()))


@quick
@given(texts=st.lists(TEXTS, min_size=1, unique=True))
def test_queries_are_read_as_written(tmp_path, texts):
    lines = ['"' + text.replace('"', '""') + '"' for text in texts]
    queries = ["first", *texts]
    assert read_queries(write(tmp_path, "\n".join(["first", *texts])), 3) == queries
    assert read_queries(write(tmp_path, "\n".join(["first", *lines])), 3) == queries


def test_nothing_heavy_is_imported():
    code = (
        "import sys, entrep_cli.submission.checks, entrep_cli.submission.tracks;"
        "print({'torch', 'numpy', 'pandas', 'typer', 'rich'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr
