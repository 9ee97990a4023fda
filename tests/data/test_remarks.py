from __future__ import annotations

from pathlib import Path

import numpy as np

from entrep_cli.data.duplicates import Alike, Pairs
from entrep_cli.data.remarks import Picture, find_test_leaks, straddling


def pictures(*rows: tuple[str, str, str]) -> list[Picture]:
    return [Picture(name if part == "train" else f"{part}/{name}", name, part, Path(name), digest, 4, 3) for name, part, digest in rows]


def pairs(*rows: tuple[int, int]) -> Pairs:
    first, second = (np.array([row[k] for row in rows], dtype=np.int64) for k in (0, 1))
    return Pairs(first, second, np.zeros(len(rows), np.uint8), np.ones(len(rows), np.float32))


def test_each_shared_picture_is_told_once_by_the_surest_sign():
    those = pictures(
        ("a.png", "train", "1"), ("b.png", "train", "2"), ("c.png", "train", "3"), ("d.png", "train", "4"),
        ("other.png", "test", "1"), ("B.PNG", "test", "9"), ("e.png", "test", "5"), ("f.png", "test", "6"), ("old.png", "test", "7"),
    )  # fmt: skip
    alike = Alike(pairs((0, 4), (1, 5), (2, 6), (0, 1), (6, 7)), pairs((3, 7), (2, 6)))
    found = find_test_leaks(those, alike, {"old.png": "c.png"})
    assert found["pixels"] == [("a.png", "test/other.png")]
    assert found["name"] == [("b.png", "test/B.PNG"), ("c.png", "test/old.png")]
    assert found["near-duplicates"] == [("c.png", "test/e.png")] and found["mirrored copies"] == [("d.png", "test/f.png")]


def test_copies_and_names_in_one_part_are_no_leak():
    those = pictures(("a.png", "train", "1"), ("b.png", "train", "2"), ("c.png", "test", "3"), ("d.png", "test", "4"))
    found = find_test_leaks(those, Alike(pairs((0, 1), (2, 3)), pairs((0, 1))))
    assert len(found) == 4 and not any(found.values())


def test_only_what_stands_in_several_parts_straddles():
    parts = {"a": "train", "b": "test", "c": "test"}
    assert straddling({"x": ["a", "b", "none"], "y": ["b", "c"], "z": ["none", "a"]}, parts) == {"x": {"train": ["a"], "test": ["b"]}}
