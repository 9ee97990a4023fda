"""`entrep inspect`, and what `entrep split` does with near-duplicates."""

from __future__ import annotations

import json
import shutil

import pytest

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import read_catalog_and_split
from tests.data.scenes import jpeg, scene
from tests.tiny import write_json


@pytest.fixture(scope="module")
def _copies(tmp_path_factory):
    root = tmp_path_factory.mktemp("copies")
    (root / "imgs").mkdir(parents=True)
    labels = {}
    for i in range(60):
        for k, image in enumerate((scene(i), jpeg(scene(i), 70), jpeg(scene(i), 40))):
            labels[f"{k}-{i:02}.png"] = ("throat", "vc-open")[i % 2]
            image.save(root / "imgs" / f"{k}-{i:02}.png")
    write_json(root / "cls.json", labels)
    return root


@pytest.fixture
def copies(_copies, tmp_path, monkeypatch):
    """Two classes of 30 pictures, each of which has two recompressed copies; no groups."""
    root = shutil.copytree(_copies, tmp_path / "data")
    monkeypatch.setenv("ENTREP_DATA", str(root))
    return root


def test_a_phantom_needs_no_fix(entrep, fresh):
    done = entrep("inspect", "--labels")
    assert done.code == 0 and "Must be fixed" in done.out and "nothing" in done.out and "Next:" in done.err
    document = entrep("inspect", "--json").json
    assert document["ok"] and document["counts"]["images"] == 112 and document["counts"]["subsets"] == {"train": 112, "test": 42}


def test_what_must_be_mended_is_exit_1_with_its_page(entrep, copies, tmp_path):
    (copies / "imgs" / "0-00.png").write_bytes(b"junk")
    page = tmp_path / "page.html"
    done = entrep("inspect", "--json", "--html", page)
    assert done.code == 1 and done.json["ok"] is False and done.json["html"] == str(page) and "0-00.png" in page.read_text("utf-8")
    done = entrep("inspect")
    assert done.code == 1 and "0-00.png" in done.out and "hint:" in done.out
    done = entrep("inspect", "--private", "--html", page)
    assert done.code == 1 and "0-00.png" not in done.out + page.read_text("utf-8") and str(copies) not in done.out


def test_how_the_files_were_read_is_said_but_in_private(entrep, copies):
    (copies / "unsorted").mkdir()
    scene(900).save(copies / "unsorted" / "a.png")
    note = "Note: 1 image in unsorted/ left out: named after no class of the label files."
    assert note in entrep("inspect").err and "unsorted" not in entrep("inspect", "--private").err


def test_wrong_usage(entrep, copies, tmp_path):
    assert entrep("inspect", "--html", tmp_path).code == 2
    assert entrep("inspect", "--run", "none").code == 1
    assert entrep("inspect", "--data", tmp_path / "none").code == 1


def test_the_vectors_of_a_run_judge_labels_and_are_warned_of(entrep, trained):
    done = entrep("inspect", "--labels", "--run", "dinov2", "--json")
    assert done.code == 0 and "out of fold" in done.err and done.json["label_suspects"]["from"] == "embeddings of run dinov2"


def test_split_keeps_near_duplicates_together_and_says_what_moved(entrep, copies):
    done = entrep("split")
    assert done.code == 0 and "60 clusters of 180 images" in done.err and "images moved to another subset" in done.err
    catalog, split = read_catalog_and_split(copies)
    assert split.near_duplicates["clusters"] == 60 and catalog.near_duplicates is not None
    assert all(len({split.assignment[f"{k}-{i:02}.png"] for k in range(3)}) == 1 for i in range(60))
    near = entrep("split", "--json").json["near_duplicates"]
    assert near["joined_images"] == 180 and near["straddling"] > 20 and near["moved"] > 20


def test_the_same_bytes_and_the_same_groups_again(entrep, copies, tmp_path, monkeypatch):
    from entrep_cli.data import duplicates
    from entrep_cli.workspace import runs_dir

    def written() -> list[bytes]:
        assert entrep("split", "--seed", 3).code == 0
        return [(runs_dir() / name).read_bytes() for name in ("split.csv", "split.json")]

    first = written()
    fingerprint = Catalog.read(copies).fingerprint
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "elsewhere"))  # no cache there
    assert written() == first and read_catalog_and_split(copies)[0].fingerprint == fingerprint
    monkeypatch.setattr(duplicates, "measure_images", None)  # kept: nothing is looked at again
    assert written() == first


def test_none_and_exam_know_nothing_of_near_duplicates(entrep, copies):
    for rule in ("none", "exam"):
        done = entrep("split", "--groups", rule)
        assert "Near-duplicates" not in done.err and read_catalog_and_split(copies)[0].near_duplicates is None
        assert read_catalog_and_split(copies)[1].near_duplicates is None


def test_a_split_from_before_near_duplicates_is_read_as_it_was_made(entrep, copies):
    from entrep_cli.data.splits import make_split, split_path, write_split

    old = make_split(Catalog.read(copies, near_duplicates=False))
    write_split(old)
    description = split_path().with_suffix(".json")
    assert "near_duplicates" not in json.loads(description.read_text())
    catalog, split = read_catalog_and_split(copies)
    assert split == old and catalog.near_duplicates is None
