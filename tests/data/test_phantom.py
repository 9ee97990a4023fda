"""The phantom: its pictures, its findings, its files."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from entrep_cli.data.phantom import FINDINGS, PHANTOM_CLASSES, region_of, render, write_phantom
from entrep_cli.data.phantom.plan import plan_frames
from entrep_cli.errors import DataError, UsageError

IMAGES, TEST_IMAGES = 29, 15  # four and two of every class, and one that is left over
SIZE = (160, 120)
LABEL_OF_REGION = {"nose": "nose-left", "ear": "ear-right", "vc": "vc-closed", "throat": "throat"}
ABNORMAL = [key for key in FINDINGS if key != "normal"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom(target, images=IMAGES, test_images=TEST_IMAGES, seed=3, size=SIZE, workers=2)
    return target


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_json(path: Path) -> dict[str, str]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_groups(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "group", "text_en", "text_vi"]
    return {row["image"]: row for row in rows}


def findings_of(row: dict[str, str], language: str = "text_en") -> set[str]:
    return set(row[language].split(", "))


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def drawn(*scene) -> np.ndarray:
    """The pixels of what `render` draws."""
    return as_array(render(*scene)[0])


# Pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", PHANTOM_CLASSES)
def test_a_frame_is_a_round_view_on_black(label: str):
    image, _ = render(label, (), 1, 2)
    assert (image.size, image.mode) == ((640, 480), "RGB")
    pixels = as_array(image)
    centre = pixels[140:340, 220:420]
    assert pixels[[0, 0, -1, -1], [0, -1, 0, -1]].max() == 0 and centre.mean() > 40 and centre.std() > 10


@pytest.mark.parametrize("region", ["nose", "ear"])
def test_a_left_side_is_the_mirror_image_of_the_right(region: str):
    findings = ("septal-spur", "whitish-mucus") if region == "nose" else ("cerumen",)
    right, right_masks = render(f"{region}-right", findings, 5, None, SIZE)
    left, left_masks = render(f"{region}-left", findings, 5, None, SIZE)
    # Resampling may round a value up on one side and down on the other.
    assert np.abs(as_array(left)[:, ::-1] - as_array(right)).max() <= 2
    for finding in findings:
        assert (left_masks[finding][:, ::-1] ^ right_masks[finding]).mean() < 0.002
    assert np.abs(as_array(left) - as_array(right)).mean() > 5  # it is not its own mirror


def test_the_cone_of_light_stands_at_five_in_a_right_ear_and_at_seven_in_a_left():
    for label, sign in (("ear-right", 1), ("ear-left", -1)):
        for exam in range(5):
            bright = drawn(label, (), exam, None, (320, 240)).min(axis=2) > 225
            rows, columns = np.nonzero(bright)
            assert len(rows) > 50 and rows.mean() > 120  # below the centre
            assert sign * (columns.mean() - 160) > 2.5


def test_an_open_glottis_is_dark_and_a_closed_one_is_not():
    for exam in range(5):
        middles = [drawn(label, (), exam, None, SIZE)[55:75, 74:86].mean() for label in ("vc-open", "vc-closed")]
        assert middles[0] < 0.5 * middles[1]


def test_frames_of_an_exam_have_one_anatomy_and_differ_in_nuisance():
    one, other = (drawn("throat", (), 4, frame, SIZE) for frame in (1, 2))
    assert np.abs(one - other).mean() > 2
    steady, again = (drawn("throat", (), 4, None, SIZE) for _ in range(2))
    assert (steady == again).all()
    stranger = drawn("throat", (), 5, None, SIZE)
    assert np.abs(steady - stranger).mean() > 2


@cache
def healthy(label: str) -> np.ndarray:
    """What every finding of a region is compared with: drawn once."""
    return drawn(label, (), 7, None, (320, 240))


@pytest.mark.parametrize("finding", ABNORMAL)
def test_a_finding_is_visible_where_its_mask_is(finding: str):
    label = LABEL_OF_REGION[FINDINGS[finding].region]
    image, masks = render(label, (finding,), 7, None, (320, 240))
    assert set(masks) == {finding}
    mask = masks[finding]
    rows, columns = np.nonzero(mask)
    assert mask.sum() > 0.004 * np.pi * 113**2
    assert np.hypot(rows - 119.5, columns - 159.5).max() < 0.47 * 240

    change = np.abs(as_array(image) - healthy(label)).max(axis=2)
    assert change[mask].mean() > 12
    assert change[mask].mean() > 3 * change[~mask].mean()


def test_masks_follow_the_camera():
    image, masks = render("ear-left", ("foreign-body",), 7, 11)
    blue = as_array(image)
    bead = (blue[..., 2] > blue[..., 0] + 40) & (blue.max(axis=2) < 250)
    mask = masks["foreign-body"]
    assert (bead & mask).sum() > max(0.7 * bead.sum(), 0.5 * mask.sum())


def test_normal_has_no_mask_and_changes_nothing():
    image, masks = render("nose-right", ("normal",), 1, 1, SIZE)
    assert masks == {}
    assert (as_array(image) == drawn("nose-right", (), 1, 1, SIZE)).all()


def test_wrong_labels_and_findings_are_refused():
    with pytest.raises(ValueError, match="no phantom class 'nose'"):
        render("nose", (), 0, 0, SIZE)
    with pytest.raises(ValueError, match="no finding 'cerumen' in region 'nose'"):
        render("nose-left", ("cerumen",), 0, 0, SIZE)


def test_texts_can_be_joined_by_commas_and_are_distinct():
    for language in ("english", "vietnamese"):
        texts = [getattr(finding, language) for finding in FINDINGS.values()]
        assert len(set(texts)) == len(texts)
        assert not any("," in text or text != text.strip() for text in texts)
    regions = dict.fromkeys(LABEL_OF_REGION, 0)
    for key in ABNORMAL:
        regions[FINDINGS[key].region] += 1
    assert min(regions.values()) >= 5


# Files -------------------------------------------------------------------------------------------


def test_layout_and_counts(folder: Path):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    images = {file for file in files if file.endswith(".png")}
    assert files - images == {
        "README.txt",
        *(f"train/{name}" for name in ("cls.json", "t2i.json", "i2i.json", "groups.csv")),
        *(f"test/{name}.csv" for name in ("cls", "i2i", "t2i", "groups")),
        *(f"test/truth_{track}.json" for track in ("cls", "i2i", "t2i")),
    }
    labels = read_json(folder / "train/cls.json")
    truth = read_json(folder / "test/truth_cls.json")
    assert images == {f"train/imgs/{name}" for name in labels} | {f"test/imgs/{name}" for name in truth}
    assert (len(labels), len(truth)) == (IMAGES, TEST_IMAGES)
    for label in PHANTOM_CLASSES:
        assert list(labels.values()).count(label) >= 4
        assert list(truth.values()).count(label) >= 2
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.png", n) for n in labels)
    assert "test bench" in (folder / "README.txt").read_text(encoding="utf-8")
    with Image.open(next((folder / "test/imgs").iterdir())) as image:
        assert (image.format, image.size, image.mode) == ("PNG", SIZE, "RGB")


def test_no_exam_in_both_subsets_and_one_region_an_exam(folder: Path):
    train, test = (read_groups(folder / name / "groups.csv") for name in ("train", "test"))
    labels = read_json(folder / "train/cls.json") | read_json(folder / "test/truth_cls.json")
    assert not {r["group"] for r in train.values()} & {r["group"] for r in test.values()}
    exams: dict[str, list[str]] = {}
    for name, row in (train | test).items():
        exams.setdefault(row["group"], []).append(labels[name])
    assert max(map(len, exams.values())) <= 4
    assert all(len({region_of(label) for label in exam}) == 1 for exam in exams.values())
    assert any(len(set(exam)) == 2 for exam in exams.values())


def test_training_pairs_have_a_finding_in_common_across_exams(folder: Path):
    rows = read_groups(folder / "train/groups.csv")
    pairs = read_json(folder / "train/i2i.json")
    assert pairs
    for one, other in pairs.items():
        assert pairs[other] == one
        assert rows[one]["group"] != rows[other]["group"]
        assert findings_of(rows[one]) & findings_of(rows[other])
    texts = read_json(folder / "train/t2i.json")
    assert set(texts) == set.union(*(findings_of(row) for row in rows.values()))
    assert all(text in findings_of(rows[name]) for text, name in texts.items())


def test_truth_answers_every_query(folder: Path):
    def column(name: str) -> list[str]:
        content = (folder / "test" / name).read_bytes().decode("utf-8")
        assert content.endswith("\n") and "\r" not in content
        return content.splitlines()

    rows = read_groups(folder / "test/groups.csv")
    labels, images, texts = (read_json(folder / f"test/truth_{track}.json") for track in ("cls", "i2i", "t2i"))
    assert column("cls.csv") == sorted(rows) == list(labels)
    assert column("i2i.csv") == list(images)
    assert column("t2i.csv") == list(texts)
    assert images
    for query, answer in images.items():
        assert labels[query] == labels[answer]
        assert rows[query]["group"] != rows[answer]["group"]
        assert findings_of(rows[query]) & findings_of(rows[answer])
    languages = set()
    for text, name in texts.items():
        matched = [lang for lang in ("text_en", "text_vi") if text in findings_of(rows[name], lang)]
        assert matched
        languages.update(matched)
    assert languages == {"text_en", "text_vi"}


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path):
    images, test_images = 8, 7  # more than one chunk of the work for each of two workers
    total = images + test_images
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()  # a missing folder is made, an empty one is used
    for workers, folder in enumerate((one, two), start=1):
        steps: list[tuple[int, int]] = []
        counts = {"images": images, "test_images": test_images}
        summary = write_phantom(folder, **counts, seed=3, workers=workers, progress=lambda *step, steps=steps: steps.append(step))
        assert steps == [(done, total) for done in range(1, total + 1)]
        assert [sum(summary["images"][subset].values()) for subset in ("train", "test")] == [images, test_images]
        for subset, exams in summary["exams"].items():
            assert exams == len({row["group"] for row in read_groups(folder / subset / "groups.csv").values()})
    assert (two / "README.txt").exists()
    assert hashes(one) == hashes(two)
    with Image.open(next((one / "test/imgs").iterdir())) as image:
        assert image.size == (640, 480)  # unless asked for


def test_another_seed_gives_other_names_and_exams():
    plans = [plan_frames(IMAGES, TEST_IMAGES, seed) for seed in (0, 1)]
    assert not {frame.name for frame in plans[0]} & {frame.name for frame in plans[1]}


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write_phantom(tmp_path, images=7, test_images=7, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("arguments", [{"images": 6}, {"test_images": 6}, {"seed": -1}], ids=lambda a: next(iter(a)))
def test_impossible_requests_are_refused(tmp_path: Path, arguments: dict):
    with pytest.raises(UsageError):
        write_phantom(tmp_path / "set", **arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, workers: int):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "set", images=7, test_images=7, size=SIZE, workers=workers, progress=interrupt)
    assert not any(tmp_path.iterdir())
