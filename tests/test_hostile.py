"""Hostile files through the public commands: refused or shown harmlessly, nothing written elsewhere, nothing executed.

The terminal is fed by names and texts that somebody else chose: what it gets is looked at byte by byte.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from entrep_cli.app import main
from entrep_cli.submission import archive
from tests.tiny import Contest, draw, lines, make_contest, patched_zip, png_header, traced_peak, zipped

# Clears a terminal, sets its title, links, rings, writes backwards, breaks a line, and tags of three languages.
NASTY = [
    "\x1b[2J\x1b]0;title\x07.png",
    "\x1b]8;;http://x.invalid\x1b\\click.png",
    "\x9b31m.png",
    "[red]x[/red].png",
    "[link=http://x.invalid]x[/link].png",
    "[/].png",
    "{0}%s$(touch x)`touch x`.png",
    "<script>alert(1)</script>.png",
    "a\u202egnp.exe",
    "a\r\nb.png",
    "\u2028.png",
]
TRAVERSAL = ["../../evil.png", "/etc/passwd", "..\\..\\evil.png", "C:\\evil.png", "imgs/../../evil.png"]
NEVER = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]")  # control characters and direction marks, in UTF-8


@dataclass(frozen=True)
class Shown:
    code: int
    out: bytes
    err: bytes


@pytest.fixture
def entrep(capfdbinary):
    """Run a command line in this process and look at its bytes."""

    def run(*arguments: object) -> Shown:
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        out, err = capfdbinary.readouterr()
        assert not NEVER.search(out) and not NEVER.search(err)
        assert b"Traceback" not in err and b"this is a bug" not in err
        return Shown(ended.value.code or 0, out, err)

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Contest:
    return make_contest(tmp_path_factory.mktemp("hostile") / "data", per_class=4, tests=2)


@pytest.fixture
def data(made, tmp_path, monkeypatch) -> Path:
    """A dataset of the test's own, in a folder where nothing else may appear."""
    shutil.copytree(made.root, tmp_path / "place" / "data")
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "place" / "runs"))
    monkeypatch.setenv("ENTREP_DATA", str(tmp_path / "place" / "data"))
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place" / "data"


@pytest.fixture
def mine(tmp_path) -> Path:
    return tmp_path / "mine.zip"


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---------------------------------------------------------------- submissions


def test_names_and_texts_in_a_submission_are_shown_as_they_are_spelt(data, entrep, mine):
    """Keys, answers, class names, members and the file's own name; on the screen and as JSON."""
    before = tree(data.parent)
    for track in (1, 2, 3):
        answers = {folder + name: name for name in NASTY for folder in ("", "x/")} | {"a.png": NASTY, "b.png": {NASTY[0]: NASTY[1]}}
        mine.write_bytes(zipped({NASTY[0][:-4] + ".json": json.dumps(answers), NASTY[3]: "", NASTY[7]: ""}))
        for flags in ((), ("--json",), ("--fix",)):
            done = entrep("validate", mine, "--track", track, "--limit", 99, *flags)
            assert done.code == 1
            for text in (b"\\x1b[2J", b"[red]x[/red]", b"[link=http://x.invalid]x[/link]", b"<script>alert(1)</script>"):
                assert text in done.err
    odd = mine.with_name("\x1b[31m[red]\n.zip")
    odd.write_bytes(mine.read_bytes())
    assert entrep("validate", odd, "--track", 1).code == 1 and entrep("validate", odd, "--track", 1, "--json").code == 1
    assert tree(data.parent) == before


def test_a_json_document_holds_names_whole(data, entrep, mine):
    mine.write_bytes(zipped({"a.json": json.dumps(dict.fromkeys(NASTY, 0))}))
    document = json.loads(entrep("validate", mine, "--track", 1, "--json").out)
    assert {fault["entry"] for fault in document["faults"]} >= set(NASTY)


def test_a_json_document_spells_every_control_as_an_escape(data, entrep, mine):
    mine.write_bytes(zipped({"a.json": json.dumps(dict.fromkeys(NASTY, 0))}))
    assert not NEVER.search(entrep("validate", mine, "--track", 1, "--json").out)


def test_paths_in_a_submission_lead_nowhere(data, entrep, mine):
    before = tree(data.parent.parent)
    for track in (1, 2, 3):
        mine.write_bytes(zipped({"../../evil.json": json.dumps(dict.fromkeys(TRAVERSAL, TRAVERSAL[0]))}))
        for more in ((), ("--fix",), ("--truth", data / "test" / "truth_cls.json")):
            assert entrep("validate", mine, "--track", track, *more).code == 1
    done = entrep("evaluate", "--submission", mine, "--truth", data / "test" / "truth_cls.json", "--track", 1)
    assert done.code == 1 and b"is or has a folder" in done.err
    assert tree(data.parent.parent) == before | {"mine.zip"}


def test_a_corrected_copy_has_no_path_of_its_source(data, entrep, mine):
    right = dict.fromkeys(lines(data / "test" / "cls.csv"), 0)
    mine.write_bytes(zipped({"..\\..\\evil.json": json.dumps({f"../../{name}": id_ for name, id_ in right.items()})}))
    assert entrep("validate", mine, "--track", 1, "--fix", "--out", mine.with_name("out.zip")).code == 0
    with zipfile.ZipFile(mine.with_name("out.zip")) as file:
        assert file.namelist() == ["evil.json"] and json.loads(file.read("evil.json")) == right


def overlapping(n: int) -> bytes:
    """An archive whose table names the same bytes `n` times."""
    one = zipped({"a.json": "{}"})
    start, end = one.index(b"PK\1\2"), one.index(b"PK\5\6")
    tail = bytearray(one[end:])
    struct.pack_into("<HHI", tail, 8, min(n, 65535), min(n, 65535), n * (end - start))
    return one[:start] + one[start:end] * n + bytes(tail)


GROWS = bytes(48 * 2**20)
BOMBS = {  # name: the archive, of the JSON of a right submission and a zip that grows; the kind of its fault
    "ratio": (lambda right, bomb: bomb, b"zip-bomb"),
    "small lie": (lambda right, bomb: patched_zip(bomb, size=1000), b"unreadable"),
    "nested": (lambda right, bomb: zipped({f"{n}.zip": bomb for n in range(50)}), b"nested-archive"),
    "members": (lambda right, bomb: zipped({f"{n}.json": right for n in range(2000)}), b"too-many-members"),
    "overlap": (lambda right, bomb: overlapping(100_000), b"too-many-members"),
    "beside": (lambda right, bomb: zipped({"a.json": right, "b.bin": GROWS}), b"extra-member"),
    "values": (lambda right, bomb: zipped({"a.json": json.dumps({"a": [[n] for n in range(300_000)]})}), b"too-many-values"),
    "large": (lambda right, bomb: bytes(archive.MAX_BYTES + 1), b"too-big"),
}


@pytest.fixture(scope="module")
def bomb() -> bytes:
    return zipped({"a.json": GROWS})


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_grow(data, bomb, entrep, mine, name):
    make, kind = BOMBS[name]
    mine.write_bytes(make(json.dumps(dict.fromkeys(lines(data / "test" / "cls.csv"), 0)), bomb))
    entrep("validate", data / "none.zip", "--track", 1)  # what is imported once is not counted
    done, peak = traced_peak(entrep, "validate", mine, "--track", 1)
    assert done.code == 1 and kind in done.err and peak < 32 * 2**20
    if name != "beside":
        assert entrep("evaluate", "--submission", mine, "--truth", data / "test" / "truth_cls.json", "--track", 1).code == 1


# ---------------------------------------------------------------- query files, labels, names on disk


def test_query_files_of_nasty_names_are_refused_harmlessly(data, entrep, mine):
    mine.write_bytes(zipped({"a.json": '{"a.png": 0}'}))
    query_file = data / "test" / "cls.csv"
    for name in (*NASTY[:3], *NASTY[8:], *TRAVERSAL):
        query_file.write_bytes(f"{name}\n".encode())
        assert entrep("validate", mine, "--track", 1).code == 1, name
    query_file.write_bytes("".join(f"{name}\n" for name in NASTY[3:8]).encode())
    done = entrep("validate", mine, "--track", 1)
    assert done.code == 1 and b"5 of 5 lines" in done.err and b"[red]x[/red]" in done.err


def test_text_queries_may_look_like_markup_and_html(data, entrep, mine):
    texts = ["[red]x[/red]", "[link=http://x.invalid]x[/link]", "<b>scar</b>", "=cmd()", "{0} %s [/]"]
    (data / "test" / "t2i.csv").write_text("".join(f"{text}\n" for text in texts))
    image = lines(data / "test" / "i2i.csv")[0]
    mine.write_bytes(zipped({"a.json": json.dumps(dict.fromkeys(texts, image))}))
    assert entrep("validate", mine, "--track", 3).code == 0
    mine.write_bytes(zipped({"a.json": json.dumps({text.upper(): image for text in texts})}))
    done = entrep("validate", mine, "--track", 3)
    assert done.code == 1 and all(text.encode() in done.err for text in texts)


def test_labels_with_paths_and_controls(data, entrep):
    cls, before = data / "train" / "cls.json", tree(data.parent.parent)
    right = json.loads(cls.read_text())
    names = [*TRAVERSAL, *NASTY]
    cls.write_text(json.dumps(right | dict.fromkeys(names, "nose-left")))
    done = entrep("split", "--data", data)
    assert done.code == 1 and done.err.count(b"\n  - ") >= len(names) and b"../../evil.png" in done.err
    cls.write_text(json.dumps({**right, next(iter(right)): "\x1b[2J[red]<b>"}))
    done = entrep("split", "--data", data)
    assert done.code == 1 and b"[2J[red]<b>" in done.err
    assert {path for path in tree(data.parent.parent) - before if "cache" not in path} <= {"place/runs"}


def test_tables_of_paths_that_leave_the_dataset(entrep, tmp_path, monkeypatch):
    """The file is there, an image, and none of the dataset's."""
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    draw("x").save(tmp_path / "outside.png")
    table, outside = tmp_path / "data" / "labels.csv", tmp_path / "outside.png"
    table.parent.mkdir()
    draw("y").save(table.with_name("a.png"))
    for name in ("../outside.png", str(outside), "x/../../outside.png", "../[red]\x1b[2J.png"):
        table.write_text(f'image,label\na.png,nose-left\n"{name}",nose-right\n')
        done = entrep("split", "--data", table.parent)
        assert done.code == 1 and b"no path inside the dataset folder" in done.err
    (table.parent / "images").mkdir()
    table.with_name("data.json").write_text(json.dumps([{"Path": "../../outside.png", "Classification": "nose-left"}]))
    table.unlink()
    done = entrep("split", "--data", table.parent)
    assert done.code == 1 and b"'outside.png', which is not in images/" in done.err


def test_groups_with_paths_and_controls(data, entrep):
    images = lines_of_labels(data)
    rows = [*((name, "x") for name in TRAVERSAL), *((name, f"[red]../{i}<b>") for i, name in enumerate(images))]
    (data / "train" / "groups.csv").write_text("image,group\n" + "".join(f'"{name}","{group}"\n' for name, group in rows))
    done = entrep("split", "--data", data)
    assert done.code == 0 and b"groups.csv names" in done.err and b"../" not in done.err
    (data / "train" / "groups.csv").write_text(f'image,group\n{images[0]},"\x1b[2J"\n')
    done = entrep("split", "--data", data)
    assert done.code == 0 and b"groups of 1 of 28 images" in done.err and b"\x1b[2J" not in done.err
    assert not list(data.parent.parent.rglob("evil*"))


def test_file_names_on_disk_with_controls_and_markup(data, entrep, mine):
    images = data / "test" / "imgs"
    first = sorted(images.iterdir())[0]
    for name in NASTY[:8]:
        if "/" not in name:
            shutil.copy(first, images / name)
    mine.write_bytes(zipped({"a.json": '{"a.png": 0}'}))
    assert entrep("validate", mine, "--track", 2, "--queries", images).code == 1
    (images.parent / "truth_cls.json").write_text(json.dumps({NASTY[0]: NASTY[3], "a.png": "\x1b[2J"}))
    done = entrep("validate", mine, "--track", 1, "--truth", images.parent / "truth_cls.json")
    assert done.code == 1
    done = entrep("evaluate", "--submission", mine, "--truth", images.parent / "truth_cls.json", "--track", 1)
    assert done.code == 1


# ---------------------------------------------------------------- images and weights


def test_a_png_bomb_is_refused_from_its_header(data, entrep):
    bomb = data / "train" / "imgs" / lines_of_labels(data)[0]
    bomb.write_bytes(png_header(60_000, 60_000))
    done, peak = traced_peak(entrep, "split", "--data", data)
    assert done.code == 1 and bomb.name.encode() in done.err and b"pixels" in done.err and peak < 64 * 2**20


def lines_of_labels(data: Path) -> list[str]:
    return list(json.loads((data / "train" / "cls.json").read_text()))


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "torch", "named safetensors"])
def test_pickled_weights_are_not_executed(data, entrep, tmp_path, form):
    import torch

    assert entrep("split", "--data", data).code == 0
    weights, planted = tmp_path / ("w.safetensors" if form == "named safetensors" else "w.pth"), tmp_path / "planted"
    if form == "torch":
        torch.save({"state_dict": {"x": Touch(planted)}}, weights)
    else:
        weights.write_bytes(pickle.dumps({"x": Touch(planted)}))
    done = entrep("train", "dinov2", "--backbone", "test_resnet", "--weights", weights, "--epochs", 1)
    assert done.code == 1 and b"weights cannot be read" in done.err and not planted.exists()
    pickle.loads(pickle.dumps(Touch(planted)))  # the trap itself works
    assert planted.exists()
