"""`entrep explain` from the command line: what is shown and where it is written, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def some(phantom: Path) -> list[Path]:
    return sorted((phantom / "test" / "imgs").iterdir())[:2]


def test_images_are_explained_and_kept_in_the_run(trained, entrep, some, tmp_path):
    done = entrep("explain", *some, "--json")
    assert done.code == 0, done.err
    rows = done.json["images"]
    for row, path in zip(rows, some, strict=True):
        assert row["image"] == str(path) and row["by"] == "LayerCAM" and row["shown"] == row["predicted"]
        assert row["probability"] == row["probability_of_shown"] > 1 / 7 and row["brightest_tenth"] <= 1
        assert Path(row["file"]) == trained / "dinov2" / "explain" / f"{path.stem}.png"
        with Image.open(row["file"]) as image:
            assert image.width > 2 * image.height > 200
    assert entrep("explain", some[0], "--class", "throat", "--by", "grad-cam").code == 0
    assert (trained / "dinov2" / "explain" / f"{some[0].stem}-throat-grad-cam.png").is_file()  # beside the other, not over it
    # On one sheet, and a file each in a folder; images of one name do not meet.
    (twin := tmp_path / "twin" / some[0].name).parent.mkdir()
    shutil.copy(some[1], twin)
    done = entrep("explain", some[0], twin, "--save", tmp_path / "one.png")
    assert done.code == 0 and (tmp_path / "one.png").is_file() and "brightest tenth" in done.out
    assert entrep("explain", some[0], twin, "--save", tmp_path / "each").code == 0
    assert sorted(p.name for p in (tmp_path / "each").iterdir()) == [f"{some[0].stem}-2.png", f"{some[0].stem}.png"]


def test_a_hostile_name_is_shown_harmlessly(trained, entrep, some, tmp_path):
    (path := tmp_path / "[red]<script>alert(1)<" / "script>.png").parent.mkdir()
    shutil.copy(some[0], path)
    plain = tmp_path / "[red]<script>alert(1).png"
    shutil.copy(some[0], plain)
    assert entrep("explain", path, plain, "--save", tmp_path / "out").code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["red_script_alert_1.png", "script.png"]
    told = entrep("explain", plain).out
    assert "[red]<script>alert(1).png" in told


def test_all_unreadable_images_are_named_at_once(trained, entrep, some, tmp_path):
    (damaged := tmp_path / "damaged.png").write_bytes(some[0].read_bytes()[:500])
    done = entrep("explain", damaged, some[0], tmp_path / "missing.png", "--save", tmp_path / "out")
    assert done.code == 1 and "2 images cannot be read" in done.err
    assert "damaged.png" in done.err and "missing.png: no such" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["--class", "nose-lef"], "did you mean 'nose-left'"),
        (["--class", "throat", "--text", "a spur"], "two questions"),
        (["--text", "a spur"], "text tower"),
        (["--text", "a spur", "--by", "rollout"], "knows no text"),
        (["--by", "rollout"], "no attention over patches"),
    ],
)
def test_what_a_run_cannot_show_is_wrong_usage(trained, entrep, some, line, told):
    done = entrep("explain", some[0], *line)
    assert done.code == 2 and told in done.err
    assert not (trained / "dinov2" / "explain").exists()


def test_nothing_is_written_over_what_is_there(trained, entrep, some, tmp_path):
    (own := tmp_path / "own.png").write_bytes(some[0].read_bytes())
    for save in (own, tmp_path):
        done = entrep("explain", own, "--save", save)
        assert done.code == 2 and "over the images themselves" in done.err
    (notes := tmp_path / "notes.txt").write_text("mine")
    assert entrep("explain", own, "--save", notes).code == 2 and notes.read_text() == "mine"
    assert own.read_bytes() == some[0].read_bytes()


def test_a_text_is_shown_on_an_image(trained_clip, entrep, some):
    done = entrep("explain", some[0], "--text", "a [red]$polyp$", "--json")
    assert done.code == 0, done.err
    (row,) = done.json["images"]
    assert row["shown"] == "a [red]$polyp$" and -1 <= row["cosine"] <= 1 and row["by"] == "LayerCAM"
    assert Path(row["file"]).name == f"{some[0].stem}-a_red_polyp.png" and Path(row["file"]).is_file()
