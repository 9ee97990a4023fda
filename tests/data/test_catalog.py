from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from entrep_cli.data import catalog as catalog_module
from entrep_cli.data.catalog import Catalog, finding_relevance
from entrep_cli.data.groups import name_group
from entrep_cli.data.images import MAX_PIXELS
from entrep_cli.errors import DataError, UsageError
from tests.tiny import draw, encoded, make_contest, png_header, write_json

EXAM = "123456789012345678"


def put(path: Path, label: str = "throat", seed: int = 0, size: tuple[int, int] = (16, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(label, size, seed).save(path)
    return path


def class_folders(root: Path, **counts: int) -> Path:
    for label, n in counts.items():
        for i in range(n):
            put(root / label / f"{i}.png", label, i)
    return root


def faults(root: Path) -> list[str]:
    with pytest.raises(DataError) as error:
        Catalog.read(root)
    assert error.value.where == str(root)
    return list(error.value.faults)


# ---------------------------------------------------------------- what is read


def test_the_frame(tmp_path):
    made = make_contest(tmp_path, per_class={"vc-open": 2, "nose-left": 3}, groups=2, tests=1)
    catalog = Catalog.read(tmp_path)
    frame = catalog.frame
    columns = "image path label region text_en text_vi findings group source digest width height"
    assert list(frame.columns) == columns.split()
    assert catalog.images == sorted(made.labels) and list(frame["label"]) == [made.labels[name] for name in catalog.images]
    assert set(frame["region"]) == {"nose", "vc"} and set(frame["source"]) == {"contest"}
    assert [str(path) for path in catalog.paths] == [str(made.image(name).absolute()) for name in catalog.images]
    assert list(catalog.groups) == [made.groups[name] for name in catalog.images]
    assert set(zip(frame["width"], frame["height"])) == {(64, 48)} and frame["digest"].is_unique
    assert catalog.taxonomy.name == "entrep" and list(catalog.targets) == [1, 1, 1, 4, 4]
    assert catalog.counts()["nose-left"] == 3 and catalog.counts()["throat"] == 0
    assert catalog.layouts == ("contest in train",)
    assert frame["findings"][0] == ("finding of nose-left", "pair:nose-left_000.png|nose-left_001.png")


def test_unlabelled_images_stay_but_are_not_counted(tmp_path):
    made = make_contest(tmp_path, per_class=1)
    put(made.train / "imgs" / "more.png", seed=9)
    catalog = Catalog.read(tmp_path)
    assert len(catalog) == 8 and len(catalog.labelled) == 7 and "more.png" not in catalog.labelled.images
    before = catalog.fingerprint
    (made.train / "imgs" / "more.png").unlink()
    assert Catalog.read(tmp_path).fingerprint == before


def test_subset_is_in_catalog_order(tmp_path):
    make_contest(tmp_path, per_class=2, classes=("throat", "vc-open"))
    catalog = Catalog.read(tmp_path)
    assert catalog.subset(["vc-open_001.png", "throat_000.png"]).images == ["throat_000.png", "vc-open_001.png"]


def test_the_fingerprint_changes_with_labels_groups_and_pixels(tmp_path):
    made = make_contest(tmp_path, per_class=2, groups=2)
    prints = [Catalog.read(tmp_path).fingerprint, Catalog.read(tmp_path, groups="none").fingerprint]
    write_json(made.train / "cls.json", made.labels | {"throat_000.png": "vc-open"})
    prints.append(Catalog.read(tmp_path).fingerprint)
    put(made.image("throat_001.png"), seed=5)
    prints.append(Catalog.read(tmp_path).fingerprint)
    assert len(set(prints)) == 4 and Catalog.read(tmp_path).fingerprint == prints[-1]


def test_a_taxonomy_file_beside_the_labels_is_found(tmp_path):
    made = make_contest(tmp_path, per_class={"a": 1, "b": 1})
    assert Catalog.read(tmp_path).taxonomy.name == "derived from the labels"
    (made.train / "taxonomy.toml").write_text(
        'name = "mine"\n[[classes]]\nname = "b"\nid = 0\n[[classes]]\nname = "a"\nid = 1\nregion = "r"\n'
    )
    catalog = Catalog.read(tmp_path)
    assert catalog.taxonomy.names == ["b", "a"] and list(catalog.targets) == [1, 0] and list(catalog.frame["region"]) == ["r", "b"]


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("name", "patient", "exam"),
    [
        (f"12_{EXAM}_Image01.png", "12", f"12_{EXAM}"),
        (f"sub/A7_{EXAM}_x_y.jpg", "A7", f"A7_{EXAM}"),
        (f"12_{EXAM}.png", "", ""),
        (f"12_{EXAM[:-1]}_a.png", "", ""),
        ("0060c1a9a59b6e24.jpg", "", ""),
        (f"_{EXAM}_a.png", "", ""),
    ],
)
def test_groups_in_names(name, patient, exam):
    assert (name_group(name, "auto"), name_group(name, "exam"), name_group(name, "none")) == (patient, exam, "")


def test_groups_come_from_the_file_else_the_name_else_the_image(tmp_path):
    names = [f"1_{EXAM}_a.png", f"1_{EXAM[::-1]}_b.png", f"2_{EXAM}_c.png", "d.png", "e.png"]
    for i, name in enumerate(names):
        put(tmp_path / "imgs" / name, seed=i)
    write_json(tmp_path / "cls.json", dict.fromkeys(names, "throat"))
    (tmp_path / "groups.csv").write_text(f"image,group\n2_{EXAM}_c.png,g\nd.png,g\n")
    assert list(Catalog.read(tmp_path).groups) == ["1", "1", "g", "g", "image:e.png"]
    assert list(Catalog.read(tmp_path, groups="exam").groups) == [f"1_{EXAM}", f"1_{EXAM[::-1]}", "g", "g", "image:e.png"]
    assert list(Catalog.read(tmp_path, groups="none").groups) == [f"image:{name}" for name in names]


def test_groups_by_a_pattern_of_the_names(tmp_path):
    names = ["P1_a.png", "P1_b.png", "P2_c.png", f"7_{EXAM}_d.png", f"7_{EXAM[::-1]}_e.png", "f.png"]
    for i, name in enumerate(names):
        put(tmp_path / "P9_imgs" / name, seed=i)
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"P9_imgs/{name},throat\n" for name in names))
    (tmp_path / "groups.csv").write_text("image,group\nP1_b.png,g\n")
    catalog = Catalog.read(tmp_path, groups=r"^(P\d+)_")
    # The file comes first, then the pattern on the file's own name, then what `auto` knows.
    of = {Path(image).name: group for image, group in zip(catalog.images, catalog.groups)}
    assert list(map(of.get, names)) == ["P1", "g", "P2", "7", "7", "image:P9_imgs/f.png"]
    assert catalog.group_rule == r"^(P\d+)_" and catalog.near_duplicates is not None and catalog.root == tmp_path
    assert name_group("a/P3.png", "(P.)?") == "P3" and name_group("a.png", "(P.)?") == ""
    with pytest.raises(DataError, match="finds a group in none of 6 file names") as error:
        Catalog.read(tmp_path, groups="^(Q)_")
    assert "--groups" in error.value.hint


@pytest.mark.parametrize(
    ("rule", "said"),
    [("patient", "0 capture groups"), ("", "0 capture groups"), (r"(a)(b)", "2 capture groups"), ("(", "no regular expression: missing )")],
)
def test_what_is_no_way_to_group(tmp_path, rule, said):
    with pytest.raises(UsageError) as error:
        Catalog.read(tmp_path, groups=rule)
    assert said in error.value.what and "auto, exam, none" in error.value.hint


def test_that_groups_are_not_known_is_noted(tmp_path):
    made = make_contest(tmp_path, per_class={"throat": 4})
    put(made.train / "imgs" / "unlabelled.png", seed=9)
    unknown = "no exam or patient is known of {} of 4 labelled images: frames of one may stand in two subsets, "
    unknown += "and intervals are over images"

    def told(groups: str = "auto") -> list[str]:
        return [note.split(";")[0] for note in Catalog.read(tmp_path, groups=groups).notes if "is known of" in note]

    assert told() == told("exam") == [unknown.format(4)] and told("none") == [] == told(r"(_\d)")
    (made.train / "groups.csv").write_text("image,group\nthroat_000.png,g\n")
    assert told() == [unknown.format(3)]
    (made.train / "groups.csv").write_text("image,group\nthroat_000.png,g\nthroat_001.png,g\n")
    assert told() == []


def test_copies_that_join_hide_no_unknown_groups(tmp_path):
    from tests.data.scenes import jpeg, scene

    (tmp_path / "throat").mkdir()
    for i, image in enumerate((scene(1), jpeg(scene(1), 60), jpeg(scene(1), 40))):
        image.save(tmp_path / "throat" / f"{i}.png")
    catalog = Catalog.read(tmp_path)
    assert len(set(catalog.groups)) == 1 and catalog.notes[-1].startswith("no exam or patient is known of 3 of 3")


# ---------------------------------------------------------------- several sources


def test_a_picture_under_two_names_counts_once_and_joins_its_groups(tmp_path):
    made = make_contest(tmp_path / "contest", per_class={"throat": 3}, groups=1)
    first, second, _ = made.labels
    images = tmp_path / "release" / "images"
    images.mkdir(parents=True)
    # The same pixels in another format, twice; and a frame of the same patient that is in the contest too.
    (images / f"7_{EXAM}_a.bmp").write_bytes(encoded(draw_of(made.image(first)), "BMP"))
    shutil.copy(made.image(second), images / f"7_{EXAM}_b.png")
    put(images / f"7_{EXAM}_c.png", seed=77)
    entries = [{"Path": f"x/{path.name}", "Classification": "throat", "DescriptionEN": "Spur"} for path in sorted(images.iterdir())]
    write_json(tmp_path / "release" / "data.json", entries)
    catalog = Catalog.read(tmp_path)
    assert len(catalog) == 4
    assert catalog.aliases == {f"7_{EXAM}_a.bmp": first, f"7_{EXAM}_b.png": second}
    groups = dict(zip(catalog.images, catalog.groups))
    assert groups[first] == groups[second] == groups[f"7_{EXAM}_c.png"] != groups["throat_002.png"]
    assert catalog.frame.set_index("image")["text_en"][first] == "Spur"
    assert catalog.notes[-1] == "pixel for pixel copies of other images, counted once: 2"


def draw_of(path: Path):
    from PIL import Image

    return Image.open(path)


def test_a_copy_lends_its_label(tmp_path):
    made = make_contest(tmp_path, per_class={"throat": 1, "vc-open": 1})
    shutil.copy(made.image("throat_000.png"), made.train / "imgs" / "a-copy.png")
    catalog = Catalog.read(tmp_path)
    assert catalog.images == ["a-copy.png", "vc-open_000.png"] and list(catalog.frame["label"]) == ["throat", "vc-open"]
    assert list(catalog.frame["region"]) == ["throat", "vc"]


def test_one_file_told_of_by_two_sources_is_no_copy(tmp_path):
    made = make_contest(tmp_path, per_class=1)
    (made.train / "labels.csv").write_text("image,label,group\n" + "".join(f"{name},{label},g\n" for name, label in made.labels.items()))
    catalog = Catalog.read(tmp_path)
    assert len(catalog) == 7 and set(catalog.groups) == {"g"} and not any("copies" in note for note in catalog.notes)


def test_pictures_that_contradict_each_other_are_faults(tmp_path):
    class_folders(tmp_path, polyp=2, normal=1)
    shutil.copy(tmp_path / "polyp" / "0.png", tmp_path / "normal" / "copy.png")
    assert faults(tmp_path) == ["polyp/0.png (polyp) and normal/copy.png (normal) are the same picture"]


def test_one_name_for_two_pictures_is_a_fault_even_where_one_is_a_copy(tmp_path):
    one, two = (make_contest(tmp_path / part, per_class={"throat": 2}, seed=seed) for part, seed in (("one", 0), ("two", 1)))
    assert faults(tmp_path) == [f"{name}: 2 different pictures have this name" for name in one.labels]
    # The clash is one of names: a copy under a name that stands for another picture is no better.
    shutil.copy(one.image("throat_000.png"), two.image("throat_001.png"))
    assert "throat_001.png: 2 different pictures have this name" in faults(tmp_path)


def test_a_folder_of_ENTRep_s_name_beside_other_labels_brings_no_ids(tmp_path):
    put(tmp_path / "images" / "a.png", "polyp")
    (tmp_path / "labels.csv").write_text("image,label\na.png,polyp\n")
    class_folders(tmp_path, throat=3)
    catalog = Catalog.read(tmp_path)
    assert catalog.images == ["a.png"] and catalog.taxonomy.names == ["polyp"]
    assert "3 images in throat/ left out: named after no class of the label files" in catalog.notes


# ---------------------------------------------------------------- faults


def test_all_faults_are_listed_at_once(tmp_path):
    made = make_contest(tmp_path, per_class=3)
    made.image("throat_000.png").unlink()
    made.image("throat_001.png").write_bytes(b"")
    made.image("throat_002.png").write_text("no image")
    made.image("vc-open_000.png").write_bytes(png_header(30_000, 30_000))
    whole = made.image("vc-open_001.png").read_bytes()
    made.image("vc-open_001.png").write_bytes(whole[: len(whole) // 2])
    made.image("vc-open_002.png").write_bytes(encoded(draw("throat"), "GIF"))
    shutil.copy(made.image("nose-left_000.png"), made.image("nose-right_000.png"))
    put(made.train / "imgs" / "NOSE-LEFT_002.png")
    write_json(made.train / "cls.json", made.labels | {"ear-left_000.png": "ear-lefd", "ear-left_001.png": "zebra", "gone.png": "throat"})
    (made.train / "t2i.json").write_text("[")
    found = faults(tmp_path)
    expected = [
        "train: NOSE-LEFT_002.png and nose-left_002.png in imgs/ differ only in case or unicode form",
        "train: cls.json names 'throat_000.png', which is not in imgs/",
        "train: cls.json names 'gone.png', which is not in imgs/",
        "train: t2i.json: not valid JSON",
        "train/imgs/throat_001.png: the file is empty",
        "train/imgs/throat_002.png: not an image in a known format",
        f"train/imgs/vc-open_000.png: more pixels than the {MAX_PIXELS // 1_000_000} million allowed",
        "train/imgs/vc-open_001.png: damaged or truncated",
        "train/imgs/vc-open_002.png: not an image in a known format",
        "unknown class 'ear-lefd' (1 image, first 'ear-left_000.png'); did you mean 'ear-left'?",
        "unknown class 'zebra' (1 image, first 'ear-left_001.png'); known are nose-right,",
        "nose-right_000.png (nose-right) and nose-left_000.png (nose-left) are the same picture",
    ]
    assert [next((e for e in expected if fault.startswith(e)), fault) for fault in found] == [
        e for e in expected if any(f.startswith(e) for f in found)
    ]
    assert len(found) == len(expected)


def test_images_without_any_label(tmp_path):
    made = make_contest(tmp_path, per_class=1)
    write_json(made.train / "cls.json", {})
    assert faults(tmp_path) == ["no image has a label"]
    write_json(made.train / "cls.json", {"gone.png": "throat"})
    assert faults(tmp_path) == ["train: cls.json names 'gone.png', which is not in imgs/"]


def test_a_broken_taxonomy_file_hides_no_other_fault(tmp_path):
    class_folders(tmp_path, polyp=1, normal=1)
    (tmp_path / "polyp" / "0.png").write_bytes(b"")
    (tmp_path / "taxonomy.toml").write_text("[[classes]]\nname = 'polyp'\n")
    assert faults(tmp_path) == [
        "polyp/0.png: the file is empty",
        "taxonomy.toml: class 'polyp': needs a name and an id of 0 or more, has id None",
    ]
    (tmp_path / "taxonomy.toml").write_text("[[classes")
    assert faults(tmp_path)[1].startswith("taxonomy.toml: The taxonomy cannot be read")
    (tmp_path / "taxonomy.toml").write_text("[[classes]]\nname = 'polyp'\nid = 0\n")
    assert "unknown class 'normal' (1 image, first 'normal/0.png'); known are polyp, or those of a taxonomy.toml" in faults(tmp_path)


def test_classes_that_differ_only_in_case(tmp_path):
    class_folders(tmp_path, polyp=1)
    put(tmp_path / "more" / "Polyp" / "1.png", seed=8)
    assert faults(tmp_path) == ["classes 'Polyp' and 'polyp' differ only in case or blanks"]


@pytest.mark.skipif(os.name != "posix", reason="such names exist on POSIX only")
def test_hostile_names(tmp_path):
    good = [b"=cmd|' C calc'!A0.png", b"<b>&amp;[red].png", b" .png", b"-rf.png", "Ph\u1ea3i (1).png".encode()]
    for i, name in enumerate([b"not-\xff-utf8.png", b"\x1b[2Jclear.png", b"new\nline.png", *good]):
        put(tmp_path / "polyp" / os.fsdecode(name), seed=i)
    assert [fault.split(" holds")[0] for fault in faults(tmp_path)] == [
        "'polyp/\\x1b[2Jclear.png'",
        "'polyp/new\\nline.png'",
        "'polyp/not-\\udcff-utf8.png'",
    ]
    for bad in set(os.listdir(tmp_path / "polyp")) - set(map(os.fsdecode, good)):
        (tmp_path / "polyp" / bad).unlink()
    assert Catalog.read(tmp_path).images == sorted(f"polyp/{os.fsdecode(name)}" for name in good)


def test_a_surrogate_in_a_label_is_a_fault(tmp_path):
    made = make_contest(tmp_path, per_class={"a": 2})
    (made.train / "cls.json").write_text('{"a_000.png": "\\ud800", "a_001.png": "b\\u0007"}')
    assert [fault.split(" holds")[0] for fault in faults(tmp_path)] == ["'\\ud800'", "'b\\x07'"]


def test_nothing_is_written_into_the_dataset(tmp_path, monkeypatch):
    made = make_contest(tmp_path / "data", per_class=1, groups=1)
    for path in (made.root, *made.root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in made.root.rglob("*"))
    monkeypatch.chdir(tmp_path)
    Catalog.read(Path("data"))
    assert sorted((str(path), path.stat().st_mtime_ns) for path in made.root.rglob("*")) == before
    for path in (made.root, *made.root.rglob("*")):
        path.chmod(0o755)


# ---------------------------------------------------------------- relevance by finding


def test_finding_relevance():
    queries, gallery = [("a", "b"), (), ("z",), ("c",)], [("b",), ("c", "a"), ()]
    expected = [[True, True, False], [False] * 3, [False] * 3, [False, True, False]]
    assert np.array_equal(finding_relevance(iter(queries), iter(gallery)), expected)
    assert finding_relevance([("a",)], []).shape == (1, 0)


def test_findings_are_shared_by_texts_of_either_language_and_by_pairs(tmp_path):
    images = tmp_path / "images"
    texts = [("Septal spur, mucus", "gai"), ("MUCUS", ""), ("gai", ""), ("normal", "bình thường")]
    for i in range(4):
        put(images / f"{i}.png", seed=i)
    entries = [{"Path": f"{i}.png", "Classification": "throat", "DescriptionEN": en, "Description": vi} for i, (en, vi) in enumerate(texts)]
    write_json(tmp_path / "data.json", entries)
    findings = Catalog.read(tmp_path).frame["findings"]
    assert finding_relevance(findings, findings).tolist() == [
        [True, True, True, False],
        [True, True, False, False],
        [True, False, True, False],
        [False, False, False, True],
    ]


def test_chains_of_copies_make_one_group():
    blank = {**dict.fromkeys(("label", "region", "text_en", "text_vi"), ""), "findings": ()}
    made = [("p", "a"), ("p", "b"), ("q", "b"), ("q", "c"), ("r", "c"), ("s", "d")]
    records = [{**blank, "image": f"{i}", "path": f"{i}", "digest": digest, "group": group} for i, (digest, group) in enumerate(made)]
    merged, aliases, _, contradictions = catalog_module._merge(records)
    assert [(r["digest"], r["group"]) for r in merged] == [("p", "a"), ("q", "a"), ("r", "a"), ("s", "d")]
    assert aliases == {"1": "0", "3": "2"} and not contradictions


# ---------------------------------------------------------------- near-duplicates


def test_near_duplicates_and_mirrored_copies_join_groups(tmp_path):
    from PIL import ImageOps

    from tests.data.scenes import jpeg, scene

    made = {"a.png": scene(1), "b.png": jpeg(scene(1), 60), "c.png": ImageOps.mirror(scene(1))}
    made |= {"d.png": scene(2), "e.png": jpeg(scene(2), 60)}
    (tmp_path / "imgs").mkdir()
    for name, image in {**made, "f.png": scene(3), "g.png": scene(4)}.items():
        image.save(tmp_path / "imgs" / name)
    write_json(tmp_path / "cls.json", dict.fromkeys((*made, "f.png"), "throat"))
    (tmp_path / "groups.csv").write_text("image,group\nb.png,exam 2\nf.png,exam 2\nc.png,exam 1\n")
    catalog = Catalog.read(tmp_path)
    assert list(catalog.groups) == ["exam 1", "exam 1", "exam 1", "image:d.png", "image:d.png", "exam 1", "image:g.png"]
    assert catalog.near_duplicates.clusters == (("a.png", "b.png", "c.png"), ("d.png", "e.png"))
    assert catalog.near_duplicates.as_dict() == {"clusters": 2, "images": 5, "joining_clusters": 2, "joined_images": 5}
    for more in ({"groups": "exam"}, {"near_duplicates": False}):
        plain = Catalog.read(tmp_path, **more)
        assert list(plain.groups)[:2] == ["image:a.png", "exam 2"] and plain.near_duplicates is None
    assert set(Catalog.read(tmp_path, groups="none").groups) == {f"image:{name}" for name in catalog.images}


def test_pictures_drawn_alike_stay_apart(tmp_path):
    make_contest(tmp_path, per_class=6)
    assert len(set(Catalog.read(tmp_path).groups)) == 42
