"""A map puts similar images together, and is the same for the same vectors; the thumbnails beside it."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.reporting import embedding_map
from entrep_cli.reporting.embedding_map import places, tsne
from entrep_cli.reporting.pictures import Pictures, sprite
from tests.tiny import draw


def clusters(n: int = 30) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    centres = np.eye(16)[:4]
    vectors = np.repeat(centres, n, axis=0) + rng.normal(0, 0.05, (4 * n, 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), [f"class {i // n}" for i in range(4 * n)]


def test_neighbours_on_the_map_are_of_one_class_and_the_map_repeats():
    vectors, labels = clusters()
    where = tsne(vectors)
    distance = np.linalg.norm(where[:, None] - where[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(axis=1)
    assert np.mean([labels[i] == labels[j] for i, j in enumerate(nearest)]) == 1.0
    assert np.array_equal(where, tsne(vectors))


def test_few_images_have_a_map_and_three_have_none():
    vectors, _ = clusters(1)
    assert tsne(vectors).shape == (4, 2)
    with pytest.raises(ValueError, match="four"):
        tsne(vectors[:3])


def test_pca_is_the_plane_of_most_variance(monkeypatch):
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    points = rng.normal(size=(50, 2)) * [3, 1]
    points -= points.mean(axis=0)
    monkeypatch.setattr(embedding_map, "MAX_TSNE", 49)
    drawn, how = places(points @ plane.T + 7)
    assert how == "PCA" and np.array_equal(drawn, places(points @ plane.T + 7)[0])
    assert np.allclose(np.linalg.norm(drawn[:, None] - drawn, axis=2), np.linalg.norm(points[:, None] - points, axis=2))
    assert drawn[:, 0].var() >= drawn[:, 1].var()


def test_large_sets_are_mapped_by_pca(monkeypatch):
    monkeypatch.setattr(embedding_map, "MAX_TSNE", 10)
    vectors = np.random.default_rng(0).normal(size=(11, 4))
    assert places(vectors)[1] == "PCA" and places(vectors[:10])[1] == "t-SNE"


def test_a_map_of_a_large_part_is_an_even_sample(monkeypatch, tmp_path):
    monkeypatch.setattr(embedding_map, "MAX_POINTS", 8)
    monkeypatch.setattr(embedding_map, "MAX_THUMBNAILS", 4)
    paths = []
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        draw("x", seed=i).save(paths[-1])
    taxonomy = Taxonomy.derive(["a", "b"])
    vectors = np.random.default_rng(0).normal(size=(20, 5))
    drawn = embedding_map.embedding_map(vectors, np.arange(20) % 2, taxonomy, Pictures(paths, [p.name for p in paths]))
    assert len(drawn.places) == 8 and drawn.n_images == 20 and drawn.captions[0] == "0.png" and drawn.captions[-1] == "19.png"
    sheet = Image.open(io.BytesIO(base64.b64decode(drawn.sprite.split(",")[1])))
    assert sheet.size == (2 * 48, 2 * 48)  # every second of the eight
    hidden = embedding_map.embedding_map(vectors, np.arange(20) % 2, taxonomy, Pictures(paths, [p.name for p in paths], private=True))
    assert hidden.sprite == "" and hidden.captions[0] == "image 1"
    assert embedding_map.embedding_map(vectors[:3], np.arange(3) % 2, taxonomy, Pictures(paths, [])) is None


def test_a_sprite_has_every_picture_in_its_place_and_survives_a_broken_one(tmp_path):
    for i, colour in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    uri = sprite([tmp_path / f"{i}.png" for i in range(3)], 2)
    sheet = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    corners = [sheet.getpixel((24 + 48 * (i % 2), 24 + 48 * (i // 2))) for i in range(3)]
    assert corners[0][0] > 200 and max(corners[1]) < 40 and corners[2][2] > 200 and sprite([], 3) == ""
