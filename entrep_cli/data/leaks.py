"""Pictures that stand on both sides: in training and among test queries, or in two parts of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from entrep_cli.data.duplicates import Alike
from entrep_cli.data.testsets import TestSet
from entrep_cli.data.texts import fold


@dataclass(frozen=True)
class Picture:
    """An image of the training or of a test folder.

    Attributes:
        key: unique in the dataset; the name of a training image, folder and name of a test image.
        name: of the file.
        part: "train", or the test folder's place in the dataset.
        label: "" where there is none, and for test images.
    """

    key: str
    name: str
    part: str
    path: Path
    digest: str
    width: int
    height: int
    label: str = ""

    @property
    def is_test(self) -> bool:
        return self.part != TRAIN


TRAIN = "train"


@dataclass(frozen=True)
class TestLeaks:
    """Pairs (training key, test key), each told once, by the surest sign.

    Attributes:
        by_pixels: the same pixels, under whatever name.
        by_name: the same file name without regard to case, other pixels.
        near: near-duplicates. mirrored: one is the other flipped.
    """

    __test__ = False  # no test for pytest to collect

    by_pixels: list[tuple[str, str]]
    by_name: list[tuple[str, str]]
    near: list[tuple[str, str]]
    mirrored: list[tuple[str, str]]


def find_test_leaks(pictures: Sequence[Picture], alike: Alike, aliases: Mapping[str, str] = {}) -> TestLeaks:
    """What training and test folders share.

    Args:
        alike: over `pictures`, in their order.
        aliases: other names under which training images stand in the dataset.
    """
    train = [p for p in pictures if not p.is_test]
    by_digest = {p.digest: p.key for p in train}
    by_name = {fold(p.name): p.key for p in train} | {fold(Path(name).name): key for name, key in aliases.items()}
    pixels, names = [], []
    for p in pictures:
        if p.is_test and p.digest in by_digest:
            pixels.append((by_digest[p.digest], p.key))
        elif p.is_test and fold(p.name) in by_name:
            names.append((by_name[fold(p.name)], p.key))
    told = {*pixels, *names}

    def across(pairs) -> list[tuple[str, str]]:
        found = []
        for a, b in pairs:
            one, two = sorted((pictures[a], pictures[b]), key=lambda p: p.is_test)
            if two.is_test and not one.is_test and (one.key, two.key) not in told and one.digest != two.digest:
                told.add((one.key, two.key))
                found.append((one.key, two.key))
        return found

    return TestLeaks(pixels, names, across(alike.near), across(alike.mirrored))


def query_names(test_set: TestSet) -> dict[int, set[str]]:
    """For each track that asks of images the names of its queries; a file that cannot be read asks nothing."""
    found = {}
    for track, path in test_set.queries.items():
        if track != 3:
            try:
                found[track] = {line.strip().strip('"') for line in path.read_text("utf-8-sig").splitlines() if line.strip()}
            except (OSError, ValueError):
                found[track] = set()
    return found


def straddling(sets: Mapping[str, Sequence[str]], component_of: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """The sets of images that stand in more than one part: their images by part.

    >>> straddling({"exam 1": ["a", "b"], "exam 2": ["c"]}, {"a": "train", "b": "test", "c": "test"})
    {'exam 1': {'train': ['a'], 'test': ['b']}}
    """
    found = {}
    for name, images in sets.items():
        parts: dict[str, list[str]] = {}
        for image in images:
            if image in component_of:
                parts.setdefault(component_of[image], []).append(image)
        if len(parts) > 1:
            found[name] = parts
    return found
