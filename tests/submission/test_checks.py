"""Each fault is planted and found by its kind, alone and among others; a clean file has none."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from entrep_cli.data.images import SUFFIXES
from entrep_cli.errors import UsageError
from entrep_cli.submission import archive
from entrep_cli.submission.archive import read_contents
from entrep_cli.submission.checks import Names, Report, check_submission, difference
from tests.tiny import patched_zip, traced_peak, zipped

CLASSES = {"nose-right": 0, "nose-left": 1, "ear-right": 2, "vc-open": 4}
FILES = ["a.png", "b.png", "c_Image04(1).png"]
TEXTS = ["normal", "mucus, oedema", "scar  in a quadrant"]
CLEAN = {
    1: {"a.png": 0, "b.png": 4, "c_Image04(1).png": 1},
    2: {"a.png": "b.png", "b.png": "a.png", "c_Image04(1).png": "a.png"},
    3: {"normal": "a.png", "mucus, oedema": "a.png", "scar  in a quadrant": "b.png"},
}


def packed(json_text: str | bytes) -> bytes:
    return zipped({"submission.json": json_text})


def check(folder: Path, content: bytes | str, track: int = 1, **lists) -> Report:
    """Check `content` (bytes of the file, or the text of the JSON) with all lists known."""
    path = folder / "sub.zip"
    path.write_bytes(packed(content) if isinstance(content, str) else content)
    known = {"queries": TEXTS if track == 3 else FILES, "gallery": FILES, "classes": CLASSES}
    return check_submission(path, track, **{**known, **lists})


def kinds(report: Report) -> list[str]:
    return [fault.kind for fault in report.faults]


def with_entry(track: int, key: str, value: str) -> str:
    """The clean JSON with one entry replaced by raw text."""
    pairs = {query: json.dumps(answer) for query, answer in CLEAN[track].items()}
    pairs[key] = value
    return "{" + ", ".join(f"{json.dumps(query)}: {answer}" for query, answer in pairs.items()) + "}"


@pytest.mark.parametrize("track", [1, 2, 3])
def test_a_clean_submission_has_no_fault(tmp_path, track):
    report = check(tmp_path, json.dumps(CLEAN[track]), track)
    assert report.ok and report.faults == () and report.skipped == () and report.n_entries == 3
    assert report.lines() == [f"'{tmp_path / 'sub.zip'}': track {track}, entries: 3, faults: none"]


# ---------------------------------------------------------------- the archive

GOOD = json.dumps(CLEAN[1])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ["not-a-zip"]),
        (b"\x1f\x8b gzip", ["not-a-zip"]),
        (GOOD.encode(), ["bare-json"]),
        (b"\xef\xbb\xbf" + GOOD.encode(), ["bare-json", "byte-order-mark"]),
        (zipped({}), ["no-json"]),
        (zipped({"readme.txt": "x"}), ["extra-member", "no-json"]),
        (zipped({"SUBMISSION.JSON": GOOD}), ["member-name"]),
        (zipped({"submission.zip": packed(GOOD)}), ["nested-archive", "no-json"]),
        (zipped({"submission.json": GOOD, "old/submission.json": GOOD}), ["sub-folder", "several-json"]),
        (zipped({"submission.json": GOOD, "b.txt": "x"}), ["extra-member"]),
        (zipped({"submission.json": GOOD, "b.json": GOOD}), ["several-json"]),
        (zipped({"sub/submission.json": GOOD}), ["sub-folder"]),
        (zipped({"sub/": "", "sub/submission.json": GOOD}), ["sub-folder", "sub-folder"]),
        (zipped({"../submission.json": GOOD}), ["sub-folder"]),
        (zipped({"a\\submission.json": GOOD}), ["sub-folder"]),
        (zipped({"a/1.json": GOOD, "b/2.json": GOOD}), ["sub-folder", "sub-folder", "several-json"]),
        (zipped({"submission.json": GOOD, "__MACOSX/._submission.json": "x"}), ["macos-junk"]),
        (zipped({"submission.json": GOOD, ".DS_Store": "x", "._s.json": "x"}), ["macos-junk"] * 2),
        (zipped({f"{n}.json": "{}" for n in range(101)}), ["too-many-members"]),
        (zipped({"submission.json": GOOD}, zipfile.ZIP_BZIP2), ["compression"]),
        (zipped({"submission.json": GOOD}, zipfile.ZIP_LZMA), ["compression"]),
        (zipped({"submission.json": GOOD}, zipfile.ZIP_STORED), []),
        (patched_zip(packed(GOOD), flags=1), ["encrypted"]),
    ],
)
def test_faults_of_the_archive(tmp_path, content, expected):
    report = check(tmp_path, content)
    assert kinds(report) == expected
    assert (report.n_entries is None) == (report.skipped != ())


def test_an_unreadable_path(tmp_path):
    for path in (tmp_path / "none.zip", tmp_path):
        report = check_submission(path, 1)
        assert kinds(report) == ["unreadable"] and str(path)[:40] in report.faults[0].message


def test_a_damaged_archive(tmp_path):
    content = bytearray(zipped({"submission.json": GOOD}, zipfile.ZIP_STORED))
    content[content.index(b"a.png")] ^= 1
    assert kinds(check(tmp_path, bytes(content))) == ["unreadable"]
    whole = packed(GOOD)
    for cut in range(0, len(whole), 7):
        assert not check(tmp_path, whole[:cut]).ok
        # Some bytes of a zip mean nothing to a reader; no others may pass, and none may crash it.
        assert check(tmp_path, whole[:cut] + b"\xff\0\xff" + whole[cut + 3 :]).n_entries in (None, 3)


@pytest.fixture(scope="module")
def bomb() -> bytes:
    return packed(bytes(64 * 2**20))


def test_a_zip_bomb_is_not_inflated(tmp_path, bomb):
    path = tmp_path / "sub.zip"
    path.write_bytes(bomb)
    report, peak = traced_peak(check_submission, path, 1)
    assert kinds(report) == ["zip-bomb"] and peak < 2**20
    assert sorted(file.name for file in tmp_path.iterdir()) == ["sub.zip"]


@pytest.mark.parametrize("declared", [0, 10, 2**20])
def test_a_bomb_that_declares_a_small_size_is_not_inflated(tmp_path, bomb, declared):
    report, peak = traced_peak(check, tmp_path, patched_zip(bomb, size=declared))
    assert not report.ok and report.n_entries is None and peak < 8 * 2**20


def test_sizes_over_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    many = json.dumps({f"{n}.png": n for n in range(100)})
    assert kinds(check(tmp_path, many)) == ["too-big"]
    assert kinds(check(tmp_path, many.encode())) == ["too-big"]


def test_a_small_repetitive_json_is_no_bomb(tmp_path):
    content = packed('{"a.png": 0' + " " * 500_000 + "}")
    assert len(content) < 500_000 / 200
    assert check(tmp_path, content, queries=["a.png"]).ok


# ---------------------------------------------------------------- the JSON


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["malformed-json"]),
        ("{'a.png': 0}", ["malformed-json"]),
        ('{"a.png": 0,}', ["malformed-json"]),
        ('{"a.png": 0} {}', ["malformed-json"]),
        ("[" * 100_000, ["malformed-json"]),
        ('{"a.png": ' + "9" * 5000 + "}", ["malformed-json"]),
        ('[{"a.png": 0}]', ["not-an-object"]),
        ("3", ["not-an-object"]),
        ("{}", ["empty"]),
        ("\ufeff" + GOOD, ["byte-order-mark"]),
        (zipped({"s.json": GOOD.encode("utf-16")[:-1]}), ["encoding"]),  # half a character is not read
    ],
)
def test_faults_of_the_json(tmp_path, text, expected):
    assert kinds(check(tmp_path, text)) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding(tmp_path, encoding):
    """What the first bytes say for certain is read on, so that all faults are told at once."""
    data = '{"odème": 0}'.encode(encoding)
    report = check(tmp_path, zipped({"s.json": data}), queries=["odème", "a.png"])
    assert kinds(report) == ["encoding"] + ["missing-key"] * (encoding != "latin-1")
    assert ("perhaps Latin-1" in report.faults[0].message) == (encoding == "latin-1")
    report = check(tmp_path, data, queries=["odème"])
    assert kinds(report) == ["bare-json", "encoding"]


def test_answers_inside_of_an_object_are_found(tmp_path):
    report = check(tmp_path, json.dumps({"predictions": {**CLEAN[1], "a.png": "x"}}))
    assert kinds(report) == ["wrapped", "class-string"] and report.n_entries == 3


def test_a_json_of_very_many_values_is_not_parsed(tmp_path):
    for text in ('{"a.png": [' + "[]," * 10**6 + "0]}", '{"a": 0,' * 600_000):
        report, peak = traced_peak(check, tmp_path, text.encode())
        assert kinds(report) == ["bare-json", "too-many-values"] and peak < 4 * len(text)


def test_members_are_counted_before_their_table_is_read(tmp_path, monkeypatch):
    content = zipped({f"{n}.txt": "" for n in range(5000)})
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert kinds(check(tmp_path, content)) == ["too-many-members"]


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert kinds(check_submission(tmp_path / "pipe", 1)) == ["unreadable"]
    assert kinds(check_submission("/dev/zero", 1)) == ["unreadable"]


def test_answers_nested_too_deep_to_be_shown(tmp_path):
    for depth in (*range(200, 1000, 20), 5000):
        deep = '{"x":' * depth + "0" + "}" * depth
        report = check(tmp_path, f'{{"a.png": [{deep}], "a.png": {deep}, "b.png": 0, "c_Image04(1).png": 0}}')
        assert set(kinds(report)) in ({"contradicting-key", "list", "nested"}, {"malformed-json"})


# ---------------------------------------------------------------- keys


def test_doubled_keys_are_counted(tmp_path):
    report = check(tmp_path, GOOD[:-1] + ', "a.png": 0, "a.png": 1}')
    (fault,) = report.faults
    assert (fault.kind, fault.entry, fault.count) == ("contradicting-key", "a.png", 3)
    assert report.n_entries == 5 and "0, 1" in fault.message
    (fault,) = check(tmp_path, GOOD[:-1] + ', "a.png": 0}').faults
    assert (fault.kind, fault.entry, fault.count) == ("duplicate-key", "a.png", 2)
    # 1, 1.0 and true are equal in Python, and three answers.
    assert "1, 1.0, True" in check(tmp_path, '{"a.png": 1, "a.png": 1.0, "a.png": true}').faults[0].message


def test_two_keys_that_mean_one_query(tmp_path):
    report = check(tmp_path, '{"x/a.png": 0, "A.png": 1}', queries=["a.png"])
    assert kinds(report) == ["path-key", "case-key", "same-query"] and report.faults[2].entry == "a.png"
    report = check(tmp_path, '{"x/a.png": 0, "a.png": 1}', queries=None)
    assert kinds(report) == ["path-key", "same-query"]
    (fault,) = check(tmp_path, '{"A.png": 0, "a.png": 1}', queries=["a.png"]).faults
    assert fault.kind == "extra-key" and fault.message.endswith("'a.png' has an answer already; remove it")


@pytest.mark.parametrize(
    ("query", "key", "kind"),
    [
        ("a.png", "imgs/a.png", "path-key"),
        ("a.png", "C:\\imgs\\a.png", "path-key"),
        ("a.png", "A.png", "case-key"),
        ("é.png", "e\u0301.png", "unicode-key"),
        ("a.png", "a.png ", "spacing-key"),
        ("a.png", "\ufeffa.png", "spacing-key"),
        ("a.png", "a.png\n", "control-character"),
        ("a.png", "a", "suffix-key"),
        ("a.png", "A.jpg", "suffix-key"),
    ],
)
def test_a_key_written_otherwise_is_one_fault_that_names_the_query(tmp_path, query, key, kind):
    report = check(tmp_path, json.dumps({key: 0, "b.png": 1}), queries=[query, "b.png"])
    (fault,) = report.faults
    assert (fault.kind, fault.entry) == (kind, key)
    assert fault.message.endswith(f"write {query!r}")


def test_the_hint_for_a_path_is_the_query_it_means(tmp_path):
    report = check(tmp_path, '{"x/A.png": 0, "x/z.png": 0}', queries=["a.png"])
    assert [fault.message.split("; ")[1] for fault in report.faults] == ["write 'a.png'", "remove it"]
    report = check(tmp_path, '{"x/A.png": 0}', queries=None)
    assert report.faults[0].message.endswith("write 'A.png'")


def test_missing_extra_and_blank_keys(tmp_path):
    report = check(tmp_path, json.dumps({"a.png": 0, "z.png": 0, " ": 0, "A.PNG": 0}))
    # "A.PNG" is no misspelling, for "a.png" has its answer.
    assert {(fault.kind, fault.entry) for fault in report.faults} == {
        *(("missing-key", name) for name in ("b.png", "c_Image04(1).png")),
        *(("extra-key", name) for name in ("z.png", "A.PNG")),
        ("blank-key", " "),
    }


def test_a_text_may_hold_a_slash_and_must_keep_its_blanks(tmp_path):
    answers = {"oedema and/or erythema": "a.png", "scar in a quadrant": "a.png"}
    queries = ["oedema and/or erythema", "scar  in a quadrant"]
    report = check(tmp_path, json.dumps(answers), 3, queries=queries)
    assert [(fault.kind, fault.entry) for fault in report.faults] == [("spacing-key", "scar in a quadrant")]


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("track", "value", "kind", "hint"),
    [
        (1, '"nose-left"', "class-string", "write 1"),
        (1, '"Nose-Left "', "class-string", "write 1"),
        (1, '"nostril"', "class-string", "write a class id, an integer: 0, 1, 2, 4"),
        (1, '"4"', "numeric-string", "write 4"),
        (1, '" 4.0"', "numeric-string", "write 4"),
        (1, "3", "class-range", "0, 1, 2, 4"),
        (1, "-1", "class-range", "0, 1, 2, 4"),
        (1, "true", "boolean", "0, 1, 2, 4"),
        (1, "1.0", "float", "write 1"),
        (1, "1.5", "float", "0, 1, 2, 4"),
        (1, "null", "null", "0, 1, 2, 4"),
        (1, "[1]", "list", "write 1 alone"),
        (1, "[1, 1]", "list", "0, 1, 2, 4"),
        (1, "[]", "list", "0, 1, 2, 4"),
        (1, "[[1]]", "list", "0, 1, 2, 4"),
        (1, '{"x": 1}', "nested", "0, 1, 2, 4"),
        (1, "NaN", "not-finite", "0, 1, 2, 4"),
        (1, "-Infinity", "not-finite", "0, 1, 2, 4"),
        (1, "1e999", "not-finite", "0, 1, 2, 4"),
        (2, '"a.png"', "self-answer", "another file"),
        (2, '"A.PNG"', "self-answer", "another file"),
        (2, '"imgs/b.png"', "path-answer", "write 'b.png'"),
        (2, '"B.png"', "case-answer", "write 'b.png'"),
        (2, '"b.png "', "spacing-answer", "write 'b.png'"),
        (2, '"z.png"', "unknown-answer", "write one of its files"),
        (2, '"b.png\\n"', "control-character", "write 'b.png'"),
        (2, '"z.png\\n"', "control-character", "remove it"),
        (2, '"b"', "suffix-answer", "write 'b.png'"),
        (2, '"a"', "self-answer", "another file"),
        (2, '["b.png"]', "list", "write 'b.png' alone"),
        (2, '"\\ud800.png"', "control-character", "remove it"),
        (2, '""', "blank-answer", "write a file name"),
        (2, '["b.png", "a.png"]', "list", "write one file name"),
        (2, "7", "number", "write one file name"),
        (2, "0.5", "float", "write one file name"),
        (2, "false", "boolean", "write one file name"),
        (2, "null", "null", "write one file name"),
    ],
)
def test_one_wrong_answer_is_one_fault_with_its_hint(tmp_path, track, value, kind, hint):
    report = check(tmp_path, with_entry(track, "a.png", value), track)
    (fault,) = report.faults
    assert (fault.kind, fault.entry) == (kind, "a.png")
    assert fault.message.startswith("'a.png': ") and fault.message.endswith(hint)


def test_track_3_answers(tmp_path):
    assert kinds(check(tmp_path, with_entry(3, "normal", '"z.png"'), 3)) == ["unknown-answer"]
    report = check(tmp_path, with_entry(3, "normal", '"e\\u0301.png"'), 3, gallery=[*FILES, "é.png"])
    assert kinds(report) == ["unicode-answer"]
    # A text may well be the name of a file; only track 2 asks with files.
    assert check(tmp_path, '{"a.png": "a.png"}', 3, queries=["a.png"]).ok


def test_two_files_that_differ_in_case_are_two_where_the_gallery_holds_both(tmp_path):
    text = '{"a.png": "A.png"}'
    assert check(tmp_path, text, 2, queries=["a.png"], gallery=["a.png", "A.png"]).ok
    for gallery in (["A.png"], None):
        report = check(tmp_path, text, 2, queries=["a.png"], gallery=gallery)
        assert kinds(report) == ["self-answer"]


# ---------------------------------------------------------------- all at once


def test_many_faults_at_once(tmp_path):
    text = '{"a.png": "imgs/a.png", "a.png": null, "x/b.png": ["a.png"], "q\\u001b[2J": 3, "C_image04(1).png": "B.PNG"}'
    content = zipped({"sub/s.json": "\ufeff" + text, "__MACOSX/._s.json": "", "notes.txt": ""})
    report = check(tmp_path, content, 2)
    assert sorted(kinds(report)) == sorted(
        ["sub-folder", "macos-junk", "extra-member", "byte-order-mark", "contradicting-key"]
        + ["path-answer", "self-answer", "null", "path-key", "list", "control-character", "number"]
        + ["case-key", "case-answer"]
    )
    assert "\x1b" not in "\n".join(report.lines()) and "\\x1b[2J" in "\n".join(report.lines())


def test_without_lists_only_the_form_is_checked_and_that_is_said(tmp_path):
    path = tmp_path / "sub.zip"
    path.write_bytes(packed('{"any.png": 99, "imgs/b.png": true}'))
    report = check_submission(path, 1)
    assert kinds(report) == ["path-key", "boolean"]
    assert len(report.skipped) == 2 and "queries" in report.skipped[0] and "class" in report.skipped[1]
    assert report.lines()[-2:] == [f"not checked: {what}" for what in report.skipped]
    path.write_bytes(packed('{"a": "any.png"}'))
    assert check_submission(path, 3).ok and "gallery" in check_submission(path, 3).skipped[1]


def test_lines_group_a_kind_and_the_report_keeps_all(tmp_path):
    queries = [f"{n}.png" for n in range(749)]
    report = check(tmp_path, json.dumps(dict.fromkeys(queries, "nose-left")), queries=queries)
    assert len(report.faults) == 749
    lines = report.lines(limit=2)
    assert lines[0].endswith("track 1, entries: 749, faults: 749")
    assert lines[1:] == [
        "class-string (749)",
        "  - '0.png': 'nose-left' stands where a class id belongs; write 1",
        "  - '1.png': 'nose-left' stands where a class id belongs; write 1",
        "  ... and 747 more",
    ]


def test_as_dict_is_plain_and_whole(tmp_path):
    report = check(tmp_path, '{"\\ud800": 0, "": 1, "a.png": true}', queries=["a.png"])
    document = json.loads(json.dumps(report.as_dict(), ensure_ascii=False).encode())
    assert document["ok"] is False and document["track"] == 1 and document["n_entries"] == 3
    assert document["counts"] == {"control-character": 1, "blank-key": 1, "boolean": 1}
    assert [fault["entry"] for fault in document["faults"]] == ["\\ud800", "", "a.png"]
    assert set(document["faults"][0]) == {"kind", "message", "entry", "count"}


def test_every_message_is_short_and_ends_with_a_hint(tmp_path):
    long = "x" * 5000 + ".png"
    report = check(tmp_path, json.dumps({long: long, "a.png": "é" * 3000}), 2)
    assert all(len(fault.message) < 250 and "; " in fault.message for fault in report.faults)


def test_another_track_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="No track 4"):
        check_submission(tmp_path / "x.zip", 4)


def test_contents_come_from_bytes_too():
    contents = read_contents(zipped({"mine.json": '{"b": 1, "a": 2}'}))
    assert (contents.member, contents.entries, contents.faults) == ("mine.json", (("b", 1), ("a", 2)), ())


def test_one_value_may_have_several_faults(tmp_path):
    assert kinds(check(tmp_path, with_entry(1, "a.png", '["9"]'))) == ["list", "numeric-string", "class-range"]
    assert kinds(check(tmp_path, with_entry(2, "a.png", '["imgs/A.png"]'), 2)) == ["list", "path-answer", "self-answer"]


def test_extensions_are_those_of_images():
    assert {suffix for suffix in (*SUFFIXES, ".txt", ".gif") if Names(["a"]).alike(f"a{suffix}") == ["a"]} == set(SUFFIXES)


def test_several_that_are_alike():
    names = Names(["a.png", "A.png", "b.png", "b.jpg"])
    assert names.alike("a.png") == ["a.png"] and names.alike("a.PNG") == ["A.png", "a.png"]
    assert names.nearest("b") == "b.jpg" and names.meant("b") is None and names.meant("b.PNG") == "b.png"


def test_the_least_difference_is_named():
    assert difference("a.png", "A ")[0] == "suffix"
    assert difference("é", "e\u0301")[0] == "unicode"
    assert difference("É", "e\u0301")[0] == "case"
    assert difference("a b", "A\u00a0B ")[0] == "spacing"
