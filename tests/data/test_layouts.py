"""How datasets lie on disk, with everything that real folders hold beside the data."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from entrep_cli.data import layouts as layouts_module
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.files import Names
from entrep_cli.data.layouts import known_images, read_sources
from entrep_cli.data.testsets import find_test_sets, read_test_folder
from entrep_cli.errors import DataError
from entrep_cli.workspace import runs_dir
from tests.tiny import draw, make_contest, write_json

# The layouts are read without decoding: an empty file does for an image.


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def contest(root: Path, labels: dict, *more: str) -> None:
    touch(root, *(f"imgs/{name}" for name in (*labels, *more)))
    write_json(root / "cls.json", labels)


def release(root: Path, *entries: dict, images: str = "images") -> None:
    (root / images).mkdir(parents=True, exist_ok=True)
    write_json(root / "data.json", [{"Path": "a.png", "Classification": "nose-left", **entry} for entry in entries])


def labels(root: Path) -> dict[str, str]:
    return {row.image: row.label for source in read_sources(root) for row in source.rows}


def faults(root: Path) -> list[str]:
    return [fault for source in read_sources(root) for fault in source.faults]


def notes(root: Path) -> list[str]:
    return [note for source in read_sources(root) for note in source.notes]


def layouts(root: Path) -> list[tuple[str, str]]:
    return [(s.layout, s.folder.relative_to(root).as_posix()) for s in read_sources(root)]


# ---------------------------------------------------------------- the contest


@pytest.mark.parametrize("inside", ["", "train", "train/train"])
def test_contest(tmp_path, inside):
    contest(tmp_path / inside, {"a.png": "nose-left", "b.png": " throat "}, "c.png")
    write_json(tmp_path / inside / "t2i.json", {"Spur, mucus": "a.png", "polyp": "gone.png"})
    write_json(tmp_path / inside / "i2i.json", {"a.png": "B.png", "B.png": "a.png", "gone.png": "a.png"})
    (source,) = read_sources(tmp_path)
    assert source.layout == "contest" and source.folder == tmp_path / inside and source.faults == []
    rows = {row.image: row for row in source.rows}
    assert {name: row.label for name, row in rows.items()} == {"a.png": "nose-left", "b.png": "throat", "c.png": ""}
    assert rows["a.png"].findings == ["Spur, mucus", "pair:a.png|b.png"] and rows["b.png"].findings == ["pair:a.png|b.png"]
    assert notes(tmp_path) == ["1 image in imgs/ without a label in cls.json", "t2i.json and i2i.json name 1 images that are not in imgs/"]


def test_contest_without_texts_or_image_folder(tmp_path):
    touch(tmp_path, "a.png")
    write_json(tmp_path / "cls.json", {"a.png": "throat"})
    assert labels(tmp_path) == {"a.png": "throat"} and not faults(tmp_path)


def test_names_mean_the_same_in_another_case_or_unicode_form(tmp_path):
    composed = "phải_Image.png"
    contest(tmp_path, {}, "X_Image01.PNG", unicodedata.normalize("NFD", composed))
    write_json(tmp_path / "cls.json", {"x_image01.png": "throat", composed: "throat"})
    assert labels(tmp_path) == {"X_Image01.PNG": "throat", unicodedata.normalize("NFD", composed): "throat"}


def test_every_fault_of_a_contest_folder_is_listed(tmp_path):
    contest(tmp_path, {}, "a.png", "A.PNG", "b.png", "d.gif")
    write_json(tmp_path / "cls.json", {"b.png": "x", "B.png": "y", "c.png": "z", "d.gif": "z", "e.png": 4, "a.pNg": "z"})
    write_json(tmp_path / "t2i.json", ["a.png"])
    (tmp_path / "i2i.json").write_text('{"a.png": "b.png", "a.png": "c.png", ')
    found = faults(tmp_path)
    assert found.pop().startswith("i2i.json: not valid JSON (")
    assert found == [
        "A.PNG and a.png in imgs/ differ only in case or unicode form",
        "cls.json: 'e.png' stands for 4, not for a text",
        "cls.json names 'b.png' twice, in different case",
        "cls.json names 'c.png', which is not in imgs/",
        "cls.json names 'd.gif', which is no .png, .jpg, .jpeg, .bmp, .tif, .tiff, .webp file",
        "cls.json names 'a.pNg', which several files in imgs/ could be",
        "t2i.json: not an object {...}",
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"3", b"[]", b'{"a.png": ["x"]}', b"{" * 100_000, b'{"a.png": ' + b"9" * 5000 + b"}"]
    + ['{"é": "x"}'.encode("latin-1"), '{"a.png": "x"}'.encode("utf-16")],
)
def test_odd_json_is_a_fault(tmp_path, content):
    contest(tmp_path, {}, "a.png")
    (tmp_path / "cls.json").write_bytes(content)
    assert [fault[:8] for fault in faults(tmp_path)] == ["cls.json"]


def test_a_key_that_stands_twice_is_a_fault_only_if_the_values_differ(tmp_path):
    contest(tmp_path, {}, "a.png")
    (tmp_path / "cls.json").write_text('\ufeff{"a.png": "x", "a.png": "x"}', "utf-8")
    assert not faults(tmp_path) and labels(tmp_path) == {"a.png": "x"}
    (tmp_path / "cls.json").write_text('{"a.png": "x", "a.png": "y"}')
    assert faults(tmp_path) == ["cls.json: 'a.png' stands twice with different values"]


def test_a_label_file_that_is_a_dead_link(tmp_path):
    contest(tmp_path, {}, "a.png")
    (tmp_path / "cls.json").unlink()
    (tmp_path / "cls.json").symlink_to(tmp_path / "nowhere")
    assert faults(tmp_path) == ["cls.json: The file cannot be read: No such file or directory."]


# ---------------------------------------------------------------- the public release


def test_release(tmp_path):
    touch(tmp_path, "images/7_123456789012345678_Image1.png", "images/extra.png")
    texts = {"Description": "gai vách ngăn", "DescriptionEN": "Septal spur,\r\nmucus", "Type": ""}
    release(tmp_path, {"Path": "dir\\7_123456789012345678_image1.png", "Classification": "nose-left ", **texts})
    (source,) = read_sources(tmp_path)
    assert source.layout == "public release" and source.faults == []
    row, extra = source.rows
    assert (row.image, row.label, row.text_vi) == ("7_123456789012345678_Image1.png", "nose-left", "gai vách ngăn")
    assert row.text_en == "Septal spur,\r\nmucus" and (extra.image, extra.label) == ("extra.png", "")


def test_every_fault_of_a_release_is_listed(tmp_path):
    touch(tmp_path, "images/a.png")
    release(tmp_path, {}, {"Path": "A.png"}, {"Path": "x/gone.png"}, {"Path": 3}, {"Path": ""}, {"Path": "b.png", "Classification": None})
    assert faults(tmp_path) == [
        "data.json, entry 2 names 'a.png' a second time",
        "data.json, entry 3 names 'gone.png', which is not in images/",
        "data.json, entry 4: needs the texts Path and Classification",
        "data.json, entry 5 names '', which is not in images/",
        "data.json, entry 6: needs the texts Path and Classification",
    ]
    release(tmp_path, {"DescriptionEN": ["x"]})
    assert faults(tmp_path) == ["data.json, entry 1: a description is not a text"]
    write_json(tmp_path / "data.json", {"a.png": "x"})
    assert faults(tmp_path) == ["data.json: not a list [...]"]


# ---------------------------------------------------------------- a CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(tmp_path, delimiter, mark, end):
    touch(tmp_path, "a.png", "sub/b.PNG", "images/c.png")
    rows = [["File ", "CLASS", "Patient", "caption"], ["a.png", "x", "7", '"scar' + delimiter + ' ""old"""']]
    rows += [["sub\\b.png", " y ", ""], [], ["./c.png", "x"]]
    (tmp_path / "labels.csv").write_text(mark + "".join(delimiter.join(row) + end for row in rows), "utf-8", newline="")
    (source,) = read_sources(tmp_path)
    assert (source.layout, source.faults) == ("CSV", [])
    first = source.rows[0]
    assert (first.label, first.group, first.text_en) == ("x", "7", f'scar{delimiter} "old"')
    assert [(row.image, row.label, row.path.name) for row in source.rows] == [
        ("a.png", "x", "a.png"),
        ("sub/b.png", "y", "b.PNG"),
        ("c.png", "x", "c.png"),
    ]


def test_csv_in_a_folder_of_its_own_names_paths_from_the_root(tmp_path):
    touch(tmp_path, "images/a.png")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "labels.csv").write_text("image,label\nimages/a.png,x\n")
    assert labels(tmp_path) == {"images/a.png": "x"} and not faults(tmp_path)


def test_every_fault_of_a_csv_is_listed(tmp_path):
    touch(tmp_path, "a.png", "A.png", "b.png")
    lines = ["image,label,text", "b.png,x,", "b.png,y", ",x", "../b.png,x", f"{tmp_path}/b.png,x", "gone.png,x", "a.png,x,scar, mucus"]
    (tmp_path / "labels.csv").write_text("\n".join([*lines, "A.png,x"]))
    assert faults(tmp_path) == [
        "labels.csv, line 8: 4 cells under a header of 3; quote texts with commas",
        "labels.csv, line 3: 'b.png' is listed a second time",
        "labels.csv, line 4: '.' is no path inside the dataset folder",
        "labels.csv, line 5: '../b.png' is no path inside the dataset folder",
        f"labels.csv, line 6: '{tmp_path}/b.png' is no path inside the dataset folder",
        "labels.csv, line 7: no image 'gone.png'",
        "A.png and a.png in " + tmp_path.name + "/ differ only in case or unicode form",
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"a,b\n1,2\n", b"image\na.png\n", b"\x89PNG\0\0", "name,age\né,7".encode("latin-1"), "name,age\nx,7".encode("utf-16")],
)
def test_a_csv_that_is_no_list_of_labels_is_passed_over(tmp_path, content):
    contest(tmp_path, {"a.png": "x"})
    (tmp_path / "other.csv").write_bytes(content)
    assert layouts(tmp_path) == [("contest", ".")]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("Image;Label\na.png;x".encode("utf-16"), "The file is UTF-16; UTF-8 is wanted."),
        ("\ufeffimage,label\na.png,x".encode("utf-16-be"), "The file is UTF-16; UTF-8 is wanted."),
        ("image,label\né.png,x".encode("latin-1"), "The file is not UTF-8 (line 2)."),
        (b'"image","label"\n"a.png,x\n', "The file is not valid CSV (line 2: unexpected end of data)."),
        (b"image,label\n" + b"x" * 200_000, "The file is not valid CSV (line 2: field larger than field limit (131072))."),
    ],
)
def test_a_list_of_labels_that_cannot_be_read_is_a_fault_beside_others(tmp_path, content, fault):
    contest(tmp_path, {"a.png": "x"})
    (tmp_path / "more.csv").write_bytes(content)
    assert [(source.layout, source.faults) for source in read_sources(tmp_path)] == [("contest", []), ("CSV", [fault])]
    (tmp_path / "more.csv").rename(tmp_path / "test.csv")  # not for training, whatever it holds
    assert not faults(tmp_path)


def test_a_csv_that_cannot_be_read_is_named_where_nothing_else_is(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_bytes("image,label\na.png,x".encode("utf-16"))
    with pytest.raises(DataError) as error:
        read_sources(tmp_path)
    assert "could not be read: labels.csv: The file is UTF-16; UTF-8 is wanted." in error.value.faults


def test_a_folder_is_not_gone_through_for_each_line(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(50)]
    touch(tmp_path, *names)
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"{name},x\n" for name in names))
    made = []
    monkeypatch.setattr(layouts_module, "Names", lambda *given: (made.append(given), Names(*given))[1])
    assert len(labels(tmp_path)) == 50 and len(made) < 10


# ---------------------------------------------------------------- class folders


def test_class_folders(tmp_path):
    touch(tmp_path, "set/polyp/a.png", "set/polyp/b.JPG", "set/normal/a.png", "set/polyp/notes.txt", "lower/deep/ulcer/c.png")
    assert labels(tmp_path) == {
        "set/polyp/a.png": "polyp",
        "set/polyp/b.JPG": "polyp",
        "set/normal/a.png": "normal",
        "lower/deep/ulcer/c.png": "ulcer",
    }
    assert not faults(tmp_path)


@pytest.mark.parametrize("depth", ["", "nose/"])
@pytest.mark.parametrize("held", ["test", "Val", "validation"])
def test_held_out_folders_do_not_train(tmp_path, depth, held):
    touch(tmp_path, f"train/{depth}left/a.png", f"train/{depth}right/b.png", f"{held}/{depth}left/c.png")
    assert set(labels(tmp_path)) == {f"train/{depth}left/a.png", f"train/{depth}right/b.png"}
    assert notes(tmp_path) == [f"1 image in {held}{'/nose' if depth else ''} left out of the training images"]
    # Alone, it is what there is.
    assert labels(tmp_path / held) == {f"{depth}left/c.png": "left"}


def test_held_out_tables_do_not_train(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "train.csv").write_text("image,label\na.png,x\n")
    (tmp_path / "test.csv").write_text("image,label\nb.png,x\ngone.png,x\n")
    assert labels(tmp_path) == {"a.png": "x"} and not faults(tmp_path)


def test_a_folder_of_test_images_is_no_class(tmp_path):
    contest(tmp_path / "train", {"a.png": "x"})
    touch(tmp_path, "test/b.png", "images/c.png", "Imgs/d.png")
    assert labels(tmp_path) == {"a.png": "x"}


def test_folders_beside_label_files_are_classes_only_where_these_know_them(tmp_path):
    contest(tmp_path / "train", {"a.png": "nose-left", "b.png": "throat"})
    touch(tmp_path, "public_test/c.png", "public_test/C.png", "private_test/d.png", "more/throat/e.png", "more/ulcer/f.png")
    assert labels(tmp_path) == {"a.png": "nose-left", "b.png": "throat", "more/throat/e.png": "throat"} and not faults(tmp_path)
    left = "4 images in more/ulcer/, private_test/, public_test/ left out: named after no class of the label files"
    assert notes(tmp_path) == [left] and known_images(tmp_path)[1].name == "entrep"
    touch(tmp_path, "x/g.png", "y/h.png")
    assert "6 images in more/ulcer/, private_test/, public_test/ and 2 other folders left out" in notes(tmp_path)[0]
    # A taxonomy of one's own decides too; one that does not hold is told of elsewhere.
    (tmp_path / "taxonomy.toml").write_text("[[classes]]\nname = 'ulcer'\nid = 0\n")
    assert "more/ulcer/f.png" in labels(tmp_path) and "more/throat/e.png" not in labels(tmp_path)
    (tmp_path / "taxonomy.toml").write_text("[[classes]]")
    assert "more/throat/e.png" in labels(tmp_path)


def test_folders_do_not_change_the_ids(tmp_path):
    """Most images lie in folders of ENTRep's classes; the label file says that there are others."""
    contest(tmp_path / "train", {"a.png": "polyp", "b.png": "polyp", "c.png": "nose-left"})
    touch(tmp_path, *(f"nose-left/{i}.png" for i in range(5)))
    images, taxonomy = known_images(tmp_path)
    assert len(images) == 8 and taxonomy.names == ["nose-left", "polyp"]


def test_class_folders_beside_the_labels_of_held_out_images_are_all_classes(tmp_path):
    touch(tmp_path, "images/a.png", "train/left/b.png", "train/rare/c.png")
    (tmp_path / "test.csv").write_text("image,label\na.png,left\n")
    assert set(labels(tmp_path).values()) == {"left", "rare"}


# ---------------------------------------------------------------- Kvasir

KVASIR = "dyed-lifted-polyps dyed-resection-margins esophagitis normal-cecum normal-pylorus normal-z-line polyps ulcerative-colitis".split()


@pytest.mark.parametrize("inside", ["", "kvasir-dataset/", "kvasir-dataset-v2/"])
def test_kvasir_as_it_unpacks(tmp_path, inside):
    for i, name in enumerate(KVASIR):
        for j in range(2):
            (tmp_path / inside / name).mkdir(parents=True, exist_ok=True)
            draw(name, (20, 16), seed=2 * i + j).save(tmp_path / inside / name / f"0be91a4e-be3d-4c06-92d7-6e0ee417f5{i}{j}.jpg")
    # Beside the images lie their features, which are no images, and the archive itself.
    touch(tmp_path, f"kvasir-dataset-features/{KVASIR[0]}/0be91a4e.features", "kvasir-dataset-v2.zip")
    catalog = Catalog.read(tmp_path)
    assert catalog.counts() == dict.fromkeys(KVASIR, 2) and catalog.layouts == (f"class folders in {inside.rstrip('/') or '.'}",)
    assert catalog.taxonomy.mirrors == list(range(8))  # nothing here has a side
    assert len(catalog.notes) == 1 and catalog.notes[0].startswith("no exam or patient is known of 16 of 16")


def test_both_kvasirs_in_one_folder_count_their_common_images_once(tmp_path):
    for inside in ("kvasir-dataset", "kvasir-dataset-v2"):
        for name in KVASIR:
            (tmp_path / inside / name).mkdir(parents=True)
            draw(name, (20, 16)).save(tmp_path / inside / name / "a.jpg")
    catalog = Catalog.read(tmp_path)
    assert len(catalog) == 8 and catalog.notes[0] == "pixel for pixel copies of other images, counted once: 8"


# ---------------------------------------------------------------- pairs of modalities


def test_pairs_are_one_image_of_the_class_each(tmp_path):
    touch(tmp_path, "set/polyp_WLI/a.png", "set/polyp_WLI/b.png", "set/polyp_NBI/a.png", "set/polyp_NBI/B.PNG")
    touch(tmp_path, "set/ulcer_wli/a.png", "set/ulcer_nbi/a.png", "set/normal/a.png")
    assert labels(tmp_path) == {
        "set/polyp_WLI/a.png": "polyp",
        "set/polyp_WLI/b.png": "polyp",
        "set/ulcer_wli/a.png": "ulcer",
        "set/normal/a.png": "normal",
    }
    assert not faults(tmp_path) and not notes(tmp_path) and layouts(tmp_path) == [("class folders", "set")]


def test_images_without_a_partner_are_counted(tmp_path):
    touch(tmp_path, "polyp_WLI/a.png", "polyp_WLI/b.png", "polyp_NBI/a.png", "polyp_NBI/c.png", "polyp_NBI/d.png", "normal_WLI/a.png")
    assert set(labels(tmp_path)) == {"polyp_WLI/a.png", "polyp_WLI/b.png", "normal_WLI/a.png"} and not faults(tmp_path)
    assert notes(tmp_path) == [
        "1 image in normal_WLI/ without a partner: no folder normal_NBI/",
        "1 image in polyp_WLI/ without a partner in polyp_NBI/",
        "2 images in polyp_NBI/ without a white-light image in polyp_WLI/, left out",
    ]


def test_faults_of_pairs(tmp_path):
    touch(tmp_path, "polyp_WLI/a.png", "polyp_NBI/a_nbi.png", "ulcer_NBI/a.png", "normal_WLI/a.png", "normal_NBI/a.png", "normal_NBI/A.png")
    assert faults(tmp_path) == [
        "A.png and a.png in normal_NBI/ differ only in case or unicode form",
        "polyp_WLI/ and polyp_NBI/ have no file name in common",
        "ulcer_NBI/ has no ulcer_WLI/ beside it",
    ]


def test_a_set_of_narrow_band_alone_has_classes_like_others(tmp_path):
    touch(tmp_path, "polyp_NBI/a.png", "_NBI/b.png", "_WLI/b.png", "NBI/c.png")
    assert set(labels(tmp_path).values()) == {"polyp_NBI", "_NBI", "_WLI", "NBI"} and not faults(tmp_path)


def test_pairs_in_train_and_test(tmp_path):
    for part in ("train", "test"):
        touch(tmp_path, f"{part}/polyp_WLI/{part}.png", f"{part}/polyp_NBI/{part}.png")
    assert labels(tmp_path) == {"train/polyp_WLI/train.png": "polyp"}
    assert labels(tmp_path / "test") == {"polyp_WLI/test.png": "polyp"}


# ---------------------------------------------------------------- several at once, and junk


def test_all_four_layouts_in_one_folder(tmp_path):
    made = make_contest(tmp_path / "contest" / "contest", per_class=1, tests=1)
    touch(tmp_path, "release/images/r.png", "more/throat/k.png", "table/t.png")
    release(tmp_path / "release", {"Path": "r.png"})
    (tmp_path / "table" / "labels.csv").write_text("image,label\nt.png,throat\n")
    assert layouts(tmp_path) == [
        ("contest", "contest/contest/train"),
        ("public release", "release"),
        ("CSV", "table/labels.csv"),
        ("class folders", "more"),
    ]
    assert set(labels(tmp_path)) == {*made.labels, "r.png", "t.png", "more/throat/k.png"} and not faults(tmp_path)
    (found,) = find_test_sets(tmp_path)
    assert set(found.images) == set(made.test_labels)


def test_contest_and_release_side_by_side_keep_their_images_apart(tmp_path):
    contest(tmp_path, {"a.png": "throat"})
    touch(tmp_path, "Images/r.png")
    release(tmp_path, {"Path": "r.png"}, images="Images")
    assert labels(tmp_path) == {"a.png": "throat", "r.png": "nose-left"} and not faults(tmp_path)


def test_junk_and_hidden_files_are_passed_over(tmp_path):
    contest(tmp_path / "train", {"a.png": "x"}, "._a.png", ".b.png", "Thumbs.db")
    contest(tmp_path / "__MACOSX" / "train", {"._a.png": "x"})
    contest(tmp_path / ".git", {"c.png": "x"})
    assert labels(tmp_path) == {"a.png": "x"} and layouts(tmp_path) == [("contest", "train")] and not notes(tmp_path)


def test_the_runs_folder_is_no_data(tmp_path, monkeypatch):
    contest(tmp_path, {"a.png": "x"})
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    touch(runs_dir(), "dinov2/report/sheet.png", "dinov2/embeddings/train/a.png")
    (runs_dir() / "items.csv").write_text("image,path,label\na.png,/x/a.png,x\n")
    assert layouts(tmp_path) == [("contest", ".")]


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    contest(tmp_path / "store", {"a.png": "x"})
    data = tmp_path / "data"
    data.mkdir()
    (data / "train").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "again").symlink_to(data)
    (tmp_path / "store" / "imgs" / "self").symlink_to(".")
    assert layouts(data) == [("contest", "train")]


def test_two_folders_may_share_their_images_by_links(tmp_path):
    touch(tmp_path, "pool/a.png", "pool/b.png")
    for part in ("train", "test"):
        (tmp_path / "data" / part).mkdir(parents=True)
        (tmp_path / "data" / part / "imgs").symlink_to(tmp_path / "pool")
    write_json(tmp_path / "data" / "train" / "cls.json", {"a.png": "x"})
    (tmp_path / "data" / "test" / "cls.csv").write_text("b.png\n")
    assert labels(tmp_path / "data") == {"a.png": "x", "b.png": ""}
    assert set(find_test_sets(tmp_path / "data")[0].images) == {"a.png", "b.png"}


# ---------------------------------------------------------------- nothing there


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="0 images, but no labels") as error:
        read_sources(tmp_path)
    assert error.value.where == str(tmp_path) and len(error.value.faults) == 4 and "`entrep synth phantom`" in error.value.hint


def test_images_without_labels(tmp_path):
    touch(tmp_path, "imgs/a.png")
    with pytest.raises(DataError, match="1 image, but"):
        read_sources(tmp_path)


def test_the_image_folder_itself_points_at_the_one_above(tmp_path, monkeypatch):
    contest(tmp_path, {"a.png": "x"})
    for place in (tmp_path / "imgs", Path()):
        monkeypatch.chdir(tmp_path / "imgs")
        with pytest.raises(DataError) as error:
            read_sources(place)
        assert error.value.hint == f"the folder above has labels: --data {tmp_path}"


@pytest.mark.parametrize("read", [read_sources, find_test_sets, read_test_folder])
def test_no_such_folder(tmp_path, read):
    touch(tmp_path, "file")
    for place in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(DataError) as error:
            read(place)
        assert error.value.where == str(place)


# ---------------------------------------------------------------- groups.csv


def grouped(root: Path, content: str) -> dict[str, str]:
    (root / "groups.csv").write_text(content, "utf-8")
    return {row.image: row.group for source in read_sources(root) for row in source.rows}


def test_groups_file(tmp_path):
    contest(tmp_path, {"a.png": "x", "b.png": "x", "c.png": "x"})
    content = "\ufeffImage;Group;text_en;Text_VI\nA.png;g1;spur;gai\nb.png;g1\ngone.png;g2\n"
    assert grouped(tmp_path, content) == {"a.png": "g1", "b.png": "g1", "c.png": ""} and not faults(tmp_path)
    assert notes(tmp_path) == ["groups.csv gives the groups of 2 of 3 images", "groups.csv names 1 image that this source does not have"]
    row = read_sources(tmp_path)[0].rows[0]
    assert (row.text_en, row.text_vi) == ("spur", "gai")


def test_groups_of_class_folders_go_by_path_or_by_a_name_that_is_the_only_one(tmp_path):
    touch(tmp_path, "x/a.png", "y/a.png", "y/b.png")
    assert grouped(tmp_path, "image,group\nx/a.png,1\ny/a.png,2\nb.png,3\n") == {"x/a.png": "1", "y/a.png": "2", "y/b.png": "3"}
    assert not faults(tmp_path)
    grouped(tmp_path, "image,group\na.png,1\n")
    assert faults(tmp_path) == ["groups.csv, line 2: 'a.png' could be x/a.png or y/a.png; write the path"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "groups.csv: It needs a header with the columns image and group."),
        ("name,group\na.png,1\n", "groups.csv: It needs a header with the columns image and group."),
        ("image,group\na.png,1\na.png,2\n", "groups.csv, line 3: 'a.png' stands twice, in different groups"),
        ("image,group\na.png,1,2\n", "groups.csv, line 2: 3 cells under a header of 2; quote texts with commas"),
        ('image,group\n"a.png,1\n', "groups.csv: The file is not valid CSV (line 2: unexpected end of data)."),
    ],
)
def test_faults_of_a_groups_file(tmp_path, content, fault):
    contest(tmp_path, {"a.png": "x"})
    grouped(tmp_path, content)
    assert faults(tmp_path) == [fault]


# ---------------------------------------------------------------- test folders


def test_test_folders(tmp_path):
    made = make_contest(tmp_path, per_class=1, classes=("throat",), tests=2)
    (found,) = find_test_sets(tmp_path)
    assert found == read_test_folder(made.test)
    assert found.queries == {1: made.test / "cls.csv", 2: made.test / "i2i.csv", 3: made.test / "t2i.csv"}
    assert found.images == {name: made.image(name) for name in made.test_labels}
    assert read_test_folder(made.test / "imgs").queries == {}


def test_labels_beside_test_queries_are_not_read(tmp_path):
    made = make_contest(tmp_path, per_class=1, classes=("throat",), tests=2)
    phase = made.test.rename(tmp_path / "phase two")
    (phase / "labels.csv").write_text("image,label\n" + "".join(f"{name},throat\n" for name in made.test_labels))
    assert set(labels(tmp_path)) == set(made.labels)


def test_a_test_folder_without_images_or_with_names_that_clash(tmp_path):
    (tmp_path / "imgs").mkdir()
    with pytest.raises(DataError, match="No images"):
        read_test_folder(tmp_path)
    touch(tmp_path, "imgs/a.png", "imgs/A.png", "imgs/\x1b.png")
    with pytest.raises(DataError) as error:
        read_test_folder(tmp_path)
    assert len(error.value.faults) == 2


def test_a_gallery_of_one(tmp_path):
    draw("throat").save(tmp_path / "only (1).PNG")
    assert list(read_test_folder(tmp_path).images) == ["only (1).PNG"]


def test_reading_writes_nothing(tmp_path):
    make_contest(tmp_path, per_class=1, tests=1, groups=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    read_sources(tmp_path), find_test_sets(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert json.loads((tmp_path / "train" / "cls.json").read_text())


# ---------------------------------------------------------------- names and labels alone


def test_known_images(tmp_path):
    made = make_contest(tmp_path / "data", per_class=1, tests=1)
    (made.train / "imgs" / "new.png").write_bytes(b"")  # never opened
    images, taxonomy = known_images(made.root)
    assert images == made.labels | {"new.png": ""} and taxonomy.name == "entrep"
    assert known_images(made.test) == ({}, None)


@pytest.mark.parametrize("beside", ["", "train"])
def test_a_taxonomy_file_is_found_where_the_catalog_finds_it(tmp_path, beside):
    made = make_contest(tmp_path / "data", per_class=1, classes=["b", "a"])
    (made.root / beside / "taxonomy.toml").write_text('name = "mine"\n[[classes]]\nname = "b"\nid = 4\n[[classes]]\nname = "a"\nid = 7\n')
    _, taxonomy = known_images(made.root)
    assert taxonomy == Catalog.read(made.root).taxonomy and taxonomy.ids == [4, 7]
