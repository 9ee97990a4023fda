"""A map puts what is alike together, is the same for the same vectors, and draws any name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from entrep_cli.reporting.embedding_map import map_png, tsne


def clusters(n: int = 30) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    centres = np.eye(16)[:4]
    vectors = np.repeat(centres, n, axis=0) + rng.normal(0, 0.05, (4 * n, 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), [f"class {i // n}" for i in range(4 * n)]


def test_neighbours_on_the_map_are_of_one_class_and_the_map_repeats():
    vectors, labels = clusters()
    places = tsne(vectors)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(axis=1)
    assert np.mean([labels[i] == labels[j] for i, j in enumerate(nearest)]) == 1.0
    assert np.array_equal(places, tsne(vectors))


def test_few_images_have_a_map_and_three_have_none():
    vectors, _ = clusters(1)
    assert tsne(vectors).shape == (4, 2)
    with pytest.raises(ValueError, match="four"):
        tsne(vectors[:3])


def test_the_picture_holds_both_maps_and_any_name(tmp_path):
    vectors, labels = clusters(5)
    places = np.random.default_rng(0).normal(size=(20, 2))
    odd = ["$x^2$ \\frac", "mũi trái"] * 10
    many = [f"{i}" for i in range(20)]
    path = map_png(places, [("regions", odd), ("classes", many)], tmp_path / "map.png", "A title that is long " * 8)
    again = map_png(places, [("regions", odd), ("classes", many)], tmp_path / "again.png", "A title that is long " * 8)
    assert path.read_bytes() == again.read_bytes()
    with Image.open(path) as image:
        assert image.width > 1.6 * image.height and len(image.convert("RGB").getcolors(1 << 24)) > 20
