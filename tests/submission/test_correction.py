"""A copy holds the answers that were meant, or there is none."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrep_cli.data.texts import casefold
from entrep_cli.errors import DataError, UsageError
from entrep_cli.submission.checks import Expected, check_submission, entry_faults
from entrep_cli.submission.correction import correct_entries, correct_submission, write_corrected
from entrep_cli.submission.tracks import read_submission, write_submission

CLASSES = {"nose-right": 0, "nose-left": 1, "vc-open": 4}
FILES = ["a.png", "b.png", "É.png"]


def corrected(track: int, entries: list[tuple], queries=FILES) -> list[tuple]:
    return correct_entries(track, entries, Expected(queries, FILES, CLASSES))[1]


@pytest.mark.parametrize(
    "value, meant",
    [
        (4.0, 4),
        ("4", 4),
        (" 4.00 ", 4),
        ("+1", 1),
        ([1], 1),
        (["1"], 1),
        (["Nose-Left"], 1),
        (9.0, 9),  # another integer, and still no class
        *((value, value) for value in (4, True, 0.5, "x", "", "1e0", "9" * 50, None, [], [1, 1], [[1]], [None], [True], float("inf"))),
    ],
)
def test_class_ids(value, meant):
    ((_, found),) = corrected(1, [("a.png", value)])
    assert (type(found), found) == (type(meant), meant)


@pytest.mark.parametrize(
    "value, meant",
    [
        ("x/y\\B.PNG", "b.png"),
        (["b.png"], "b.png"),
        ("e\u0301.png", "É.png"),
        ("b.png\n", "b.png"),
        ("b", "b.png"),
        (["x/c.png"], "x/c.png"),
        *((value, value) for value in ("imgs/A.png", "c.png", "", "imgs/", 3, None, ["b.png", "a.png"])),
    ],
)
def test_answers_are_files_of_the_gallery_and_never_the_query(value, meant):
    assert corrected(2, [("a.png", value)]) == [("a.png", meant)]


def test_keys():
    assert corrected(1, [("x/A.PNG", 0), ("é", 1), ("b.png ", 4), ("c.png", 0), ("", 1)]) == [("a.png", 0), ("É.png", 1), ("b.png", 4)]
    assert corrected(1, [("x/A.PNG", 0), ("c", 1)], queries=None) == [("A.PNG", 0), ("c", 1)]
    # A text is no path, and of two that are alike none is certain.
    assert corrected(3, [("x/normal", "a.png"), ("NORMAL", "a.png")], queries=["Normal", "normal", "x/normal"]) == [("x/normal", "a.png")]


def test_pairs_of_one_query_are_one_where_they_agree():
    assert corrected(1, [("a.png", 1), ("x/a.png", "1"), ("A.png", [1.0])]) == [("a.png", 1)]
    contradicting = [("a.png", 1), ("A.png", 0)]
    assert corrected(1, contradicting) == contradicting
    assert [f.kind for f in entry_faults(1, contradicting, Expected(["a.png"]))] == ["extra-key"]
    assert corrected(1, [("x/a.png", 1), ("y/a.png", True)]) == [("x/a.png", 1), ("y/a.png", True)]


def test_what_is_left_and_what_was_corrected(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"x/a.png": 1.0, "b.png": 9.0, "c.png": 0}')
    correction = correct_submission(path, 1, queries=FILES, classes=CLASSES)
    assert [f.kind for f in correction.corrected] == ["bare-json", "path-key", "extra-key", "float", "float"]
    assert [(f.kind, f.entry) for f in correction.left] == [("missing-key", "É.png"), ("class-range", "b.png")]
    assert correction.answers == {"a.png": 1, "b.png": 9} and not correction.certain
    with pytest.raises(DataError) as caught:
        write_corrected(correction, tmp_path / "out.zip")
    assert len(caught.value.faults) == 2 and not (tmp_path / "out.zip").exists()
    with pytest.raises(UsageError):
        write_corrected(correction, tmp_path / "out.json")


def test_nothing_to_read_nothing_to_correct(tmp_path):
    correction = correct_submission(tmp_path / "none.zip", 1)
    assert [f.kind for f in correction.left] == ["unreadable"] and correction.answers == {} and not correction.certain


# ---------------------------------------------------------------- there and back

NAMES = st.text(st.sampled_from("abAB01 ._-(é\u0301鼻[]<'\""), min_size=1, max_size=8).filter(str.strip).map(lambda text: f"{text}.png")


def essence(name: str) -> str:
    """Two names of one essence could be meant by one spoilt name."""
    return casefold(name).replace(" ", "").replace("\u0301", "").replace("é", "e")


quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(files=st.lists(NAMES, min_size=2, max_size=8, unique_by=essence), seed=st.integers(0, 999))
def test_a_valid_submission_stays_and_a_spoilt_one_comes_back(tmp_path, files, seed):
    """What is written passes with the same answers; spoilt in every way that is certain to correct, it comes back."""
    rng = random.Random(seed)
    right = {1: {f: rng.choice([0, 1, 4]) for f in files}, 2: dict(zip(files, files[1:] + files[:1]))}
    for track, answers in right.items():
        known = {"queries": files, "gallery": files, "classes": CLASSES}
        path, _ = write_submission(tmp_path / f"t{track}.zip", track, answers, [])
        assert check_submission(path, track, **known).ok and read_submission(path).answers == answers
        unchanged = correct_submission(path, track, **known)
        assert unchanged.corrected == () and unchanged.answers == answers and not unchanged.certain
        spoilt = {spoil_name(rng, f): spoil_value(rng, v, track) for f, v in answers.items()}
        source, out = tmp_path / "spoilt.json", tmp_path / "out" / f"{seed}-{track}.zip"
        source.write_bytes(json.dumps(spoilt, ensure_ascii=False).encode(rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"])))
        correction = correct_submission(source, track, **known)
        assert correction.left == () and correction.answers == answers and list(correction.answers) == list(answers)
        write_corrected(correction, out)
        assert check_submission(out, track, **known).ok and read_submission(out).answers == answers
        Path(out).unlink()


def spoil_name(rng: random.Random, name: str) -> str:
    return rng.choice([name, f"imgs/{name}", f"C:\\x\\{name}", name.upper(), f"{name}\n", f" {name}", name[:-4], f"\ufeff{name}"])


def spoil_value(rng: random.Random, value: int | str, track: int) -> object:
    if track == 1:
        name = next(name for name, id_ in CLASSES.items() if id_ == value)
        return rng.choice([value, float(value), str(value), f"{value}.0", [value], name, name.title(), [name]])
    return rng.choice([spoil_name(rng, value), [spoil_name(rng, value)]])
