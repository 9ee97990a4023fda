"""A clean dataset has nothing to be remarked; of each planted fault exactly its own remark tells."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.inspection import inspect_dataset
from entrep_cli.data.splits import make_split, write_split
from entrep_cli.submission.tracks import read_queries
from tests.data.scenes import jpeg, scene
from tests.tiny import ENTREP, write_json

TEXTS = {
    "nose": ("septal spur, watery discharge", "gai vách ngăn, dịch trong loãng"),
    "ear": ("thickened tympanic membrane", "màng nhĩ dày"),
    "vc": ("oedema of both vocal cords", "phù nề hai dây thanh"),
    "throat": ("tonsillar hypertrophy", "amidan quá phát"),
}


class Dataset:
    """A contest with texts, written anew by `write` after its tables were changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: dict[str, Image.Image] = {}
        self.labels: dict[str, str] = {}
        self.rows: dict[str, list[str]] = {}
        self.tests: dict[str, Image.Image] = {f"test_{i}.png": scene(500 + i) for i in range(6)}
        self.queries: list[str] = list(self.tests)
        self.texts: list[str] = ["septal spur", "gai vách ngăn"]
        for c, label in enumerate(ENTREP):
            for i in range(4):
                self.add(f"{label}_{i}.png", scene(10 * c + i), label, f"exam {label} {i // 2}")

    def add(self, name: str, image: Image.Image, label: str, group: str = "") -> None:
        self.images[name], self.labels[name] = image, label
        self.rows[name] = [group or f"exam of {name}", *TEXTS[label.split("-")[0]]]

    def write(self) -> Path:
        for part, images in (("train", self.images), ("test", self.tests)):
            (self.root / part / "imgs").mkdir(parents=True)
            for name, image in images.items():
                image.save(self.root / part / "imgs" / name, compress_level=1)
        write_json(self.root / "train" / "cls.json", self.labels)
        with open(self.root / "train" / "groups.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "group", "text_en", "text_vi"), *((name, *row) for name, row in self.rows.items())])
        for track, lines in (("cls", self.queries), ("i2i", self.queries), ("t2i", self.texts)):
            (self.root / "test" / f"{track}.csv").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return self.root


@pytest.fixture
def made(tmp_path) -> Dataset:
    return Dataset(tmp_path / "data")


def kinds(root: Path, **more) -> dict[str, str]:
    found = inspect_dataset(root, read_queries=read_queries, **more)
    json.dumps([found.as_dict(), found.as_dict(private=True)])
    return {remark.kind: remark.severity for remark in found.remarks}


FIRST = "nose-left_0.png"
Plant = Callable[[Dataset], object]
PLANTED: dict[str, tuple[Plant, dict[str, str]]] = {
    "dark": (lambda d: d.images.update({FIRST: ImageEnhance.Brightness(scene(10)).enhance(0.15)}), {"quality: dark": "note"}),
    "overexposed": (lambda d: d.images.update({FIRST: ImageEnhance.Brightness(scene(10)).enhance(3)}), {"quality: overexposed": "note"}),
    "blurred": (lambda d: d.images.update({FIRST: scene(10).filter(ImageFilter.GaussianBlur(4))}), {"quality: blurred": "note"}),
    "empty": (lambda d: d.images.update({FIRST: Image.new("RGB", (160, 120), (90, 60, 60))}), {"quality: empty": "note"}),
    "small view": (lambda d: d.images.update({FIRST: ImageOps.expand(scene(10), 60)}), {"quality: small view": "note"}),
    "tiny": (lambda d: d.images.update({FIRST: scene(10, (50, 38))}), {"quality: tiny": "note", "quality: other size": "note"}),
    "other size": (lambda d: d.images.update({FIRST: scene(10, (640, 480))}), {"quality: other size": "note"}),
    "other shape": (lambda d: d.images.update({FIRST: scene(10, (240, 100), round_view=False)}), {"quality: other shape": "note"}),
    "palette": (lambda d: d.images.update({FIRST: scene(10).quantize(256)}), {"modes": "note"}),
    "exact copy": (lambda d: d.add("copy.png", scene(10), "nose-left"), {"exact copies": "note"}),
    "near-duplicate": (lambda d: d.add("copy.png", jpeg(scene(10), 60), "nose-left"), {"near-duplicates": "note"}),
    "near-duplicate of another class": (
        lambda d: d.add("copy.png", jpeg(scene(10), 60), "nose-right"),
        {"near-duplicates": "note", "near-duplicates of different classes": "note"},
    ),
    "mirrored copy": (lambda d: d.add("copy.png", ImageOps.mirror(scene(10)), "nose-right"), {"mirrored copies": "note"}),
    "mirrored copy, side forgotten": (
        lambda d: d.add("copy.png", ImageOps.mirror(scene(10)), "nose-left"),
        {"mirrored copies": "note", "mirrored labels": "must fix"},
    ),
    "copy with another label": (
        lambda d: d.add("copy.png", scene(10), "nose-right"),
        {"contradicting copies": "must fix", "exact copies": "note"},
    ),
    "unknown class": (lambda d: d.labels.update({FIRST: "nose-lfet"}), {"unknown classes": "must fix"}),
    "missing image": (lambda d: d.labels.update({"none.png": "throat"}), {"label files": "must fix"}),
    "leak by pixels": (lambda d: d.tests.update({"test_0.png": scene(10)}), {"leak by pixels": "must fix"}),
    "leak by name": (lambda d: d.tests.update({FIRST.upper().replace("PNG", "png"): scene(600)}), {"leak by name": "note"}),
    "leak by likeness": (lambda d: d.tests.update({"test_0.png": jpeg(scene(10), 60)}), {"leak by near-duplicates": "note"}),
    "leak by a flip": (lambda d: d.tests.update({"test_0.png": ImageOps.mirror(scene(10))}), {"leak by mirrored copies": "note"}),
    "query without image": (lambda d: d.queries.append("none.png"), {"query files": "must fix"}),
    "query twice": (lambda d: d.queries.append("test_0.png"), {"query files": "must fix"}),
    "query debris": (lambda d: d.texts.append("toward the nasopharynx"), {"debris in queries": "note"}),
    "empty text": (lambda d: d.rows.update({FIRST: ["exam nose-left 0", "", ""]}), {"empty texts": "note"}),
    "one language": (lambda d: d.rows.update({FIRST: ["exam nose-left 0", "septal spur", ""]}), {"texts in one language": "note"}),
    "Vietnamese as English": (
        lambda d: d.rows.update({FIRST: ["exam nose-left 0", "gai vách ngăn", "gai vách ngăn"]}),
        {"wrong language": "note"},
    ),
    "English as Vietnamese": (
        lambda d: d.rows.update({FIRST: ["exam nose-left 0", "septal spur", "septal spur"]}),
        {"wrong language": "note"},
    ),
    "debris": (lambda d: d.rows.update({FIRST: ["exam nose-left 0", "toward the nasopharynx", "gai vách ngăn"]}), {"debris": "note"}),
    "text of another organ": (
        lambda d: d.rows.update({FIRST: ["exam nose-left 0", "retracted eardrum", "màng nhĩ co lõm"]}),
        {"texts of another organ": "note"},
    ),
    "text under two organs": (
        lambda d: d.rows.update({f"{c}_0.png": [f"exam {c} 0", "white spot", "đốm trắng"] for c in ("nose-left", "throat")}),
        {"same text under many classes": "note"},
    ),
}  # fmt: skip


def test_a_clean_dataset_has_nothing_to_remark(made):
    root = made.write()
    write_split(make_split(Catalog.read(root), ratios=(50, 50, 0)), root)
    found = inspect_dataset(root, read_queries=read_queries)
    assert found.remarks == () and found.ok and not found.clusters and not found.mirrored
    assert found.counts["images"] == found.counts["labelled"] == 28 and found.counts["subsets"] == {"train": 28, "test": 6}
    assert found.counts["texts"] == {"English": 0, "Vietnamese": 0, "both": 28, "none": 0} and found.counts["sizes"] == {"160 x 120": 34}
    assert found.groups == {"groups": 14, "several_images": 14, "largest": 2} and found.layouts == ("contest in train",)


@pytest.mark.parametrize("fault", PLANTED)
def test_each_planted_fault_is_found_and_nothing_else(made, fault):
    plant, wanted = PLANTED[fault]
    plant(made)
    assert kinds(made.write()) == wanted


def test_unreadable_images_of_both_parts(made):
    root = made.write()
    (root / "train" / "imgs" / FIRST).write_bytes(b"\x89PNG junk")
    (root / "test" / "imgs" / "test_3.png").write_bytes(b"")
    assert kinds(root) == {"unreadable images": "must fix", "unreadable test images": "must fix"}


def test_all_at_once_and_nothing_is_raised(made):
    for fault in ("near-duplicate", "leak by pixels", "missing image", "query twice", "debris"):
        PLANTED[fault][0](made)
    # The near-duplicate of a leaked image is a leak as well.
    wanted = {"near-duplicates", "leak by pixels", "leak by near-duplicates", "label files", "query files", "debris"}
    assert set(kinds(made.write())) == wanted


def test_pictures_that_share_a_name_keep_their_own_remarks(made):
    """`images/` of a public release holds another picture under a name of the contest; the last row has a copy."""
    made.add("zz.png", jpeg(scene(20), 60), "ear-right")
    root = made.write()
    (root / "images").mkdir()
    scene(900).save(root / "images" / FIRST)
    write_json(root / "data.json", [{"Path": FIRST, "Classification": "nose-left"}])
    found = inspect_dataset(root, labels=True)
    both = {f"train/imgs/{FIRST}", f"images/{FIRST}"}
    assert both <= set(found.pictures) and len(found.pictures) == 36 and json.dumps(found.as_dict())
    assert all(found.pictures[key].path == root / key for key in both)
    assert found.of_kind("contradicting copies").details == (f"{FIRST}: 2 different pictures have this name",)
    assert found.clusters == (("ear-right_0.png", "zz.png"),)


def test_that_groups_are_not_known_is_remarked_unless_the_split_knows_them(made):
    made.rows = {}
    root = made.write()
    remark = inspect_dataset(root).of_kind("unknown groups")
    assert remark.severity == "note" and "of 28 of 28 labelled" in remark.what and "groups.csv" in remark.hint
    write_split(make_split(Catalog.read(root, groups=r"(^\w+-?\w*_\d)"), ratios=(50, 50, 0)), root)
    found = inspect_dataset(root)
    assert found.of_kind("unknown groups") is None and found.ok


def test_notes_on_the_files_are_kept(made):
    root = made.write()
    (root / "elsewhere").mkdir()
    scene(900).save(root / "elsewhere" / "a.png")
    found = inspect_dataset(root)
    assert any("in elsewhere/ left out" in note for note in found.as_dict()["notes"]) and found.as_dict(private=True)["notes"] == []


@pytest.mark.parametrize(
    "files", [{}, {"a.txt": b"x"}, {"cls.json": b"{"}, {"cls.json": b"[]", "imgs/a.png": b"x"}, {"taxonomy.toml": b"=", "x/a.png": b"y"}]
)
def test_a_folder_that_is_no_dataset_is_a_remark_too(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = inspect_dataset(tmp_path, labels=True, read_queries=read_queries)
    assert not found.ok and json.dumps(found.as_dict(), allow_nan=False)


def test_a_split_that_lets_groups_and_copies_straddle(made):
    made.add("copy.png", jpeg(scene(10), 60), "nose-left")
    root = made.write()
    split = make_split(Catalog.read(root), ratios=(50, 50, 0))
    write_split(split, root)
    assert set(kinds(root)) == {"near-duplicates"}
    split.assignment["copy.png"] = "train" if split.assignment[FIRST] == "val" else "val"
    write_split(split, root)
    assert set(kinds(root)) == {"near-duplicates", "split near-duplicates"}
    write_split(make_split(Catalog.read(root, groups="none"), ratios=(50, 50, 0)), root)
    assert kinds(root)["split groups"] == "must fix"


def test_the_split_of_another_dataset_is_not_judged(made, tmp_path):
    other = Dataset(tmp_path / "other")
    other.images = {f"other_{name}": image for name, image in other.images.items()}
    other.labels = {f"other_{name}": label for name, label in other.labels.items()}
    other.rows = {}
    write_split(make_split(Catalog.read(other.write(), groups="none"), ratios=(50, 50, 0)))
    assert kinds(made.write()) == {}


def test_swapped_labels_are_ranked_by_vectors_and_told_by_what(made):
    import numpy as np

    for label in ENTREP:
        for i in range(4, 10):
            made.add(f"{label}_{i}.png", scene(1000 + 10 * ENTREP.index(label) + i), label)
    made.labels[FIRST] = "throat"
    made.rows[FIRST][1:] = ["", ""]
    root = made.write()

    def vectors(catalog: Catalog) -> tuple[np.ndarray, str]:
        rng = np.random.default_rng(0)
        truth = [ENTREP.index(name.split("_")[0]) for name in catalog.images]
        rows = np.eye(7, 16)[truth] + rng.normal(0, 0.2, (len(truth), 16))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), "embeddings of run x"

    found = inspect_dataset(root, labels=True, vectors=vectors)
    assert found.suspects["image"][0] == FIRST and found.suspects["suggested"][0] == "nose-left"
    assert found.of_kind("label suspects").images[0] == (FIRST,) and "embeddings of run x" in found.of_kind("label suspects").what
    assert found.as_dict()["label_suspects"]["ranked"][0]["image"] == FIRST
    assert found.ok, "a suspicion is no fault"
    assert inspect_dataset(root, labels=True).suspects_from == "colours and edges of the pixels"


def test_alike_by_embedding_alone(made):
    import numpy as np

    def vectors(catalog: Catalog) -> tuple[np.ndarray, str]:
        rows = np.eye(len(catalog), len(catalog))
        rows[3] = rows[9]
        return rows, "embeddings of run x"

    found = inspect_dataset(made.write(), vectors=vectors)
    assert [r.kind for r in found.remarks] == ["alike by embedding"] and len(found.remarks[0].images) == 1
    collapsed = inspect_dataset(made.root, vectors=lambda catalog: (np.ones((len(catalog), 1)), "embeddings of run x"))
    assert [r.kind for r in collapsed.remarks] == ["alike by embedding"] and not collapsed.remarks[0].images


def test_private_tells_no_name_text_or_place(made):
    for fault in ("near-duplicate", "leak by pixels", "missing image", "query twice", "debris", "text of another organ", "dark"):
        PLANTED[fault][0](made)
    found = inspect_dataset(made.write(), labels=True, read_queries=read_queries)
    text = json.dumps(found.as_dict(private=True))
    assert not any(word in text for word in (*made.images, *made.tests, "nasopharynx", "eardrum", "exam ", str(made.root), "test/"))
    assert "image 1" in text and len(json.loads(text)["remarks"]) == len(found.remarks)
