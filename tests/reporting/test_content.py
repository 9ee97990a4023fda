from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.reporting import content
from entrep_cli.reporting.embedding_map import pca, places
from entrep_cli.reporting.pictures import Pictures, sprite
from tests.tiny import draw


def test_the_worst_mistakes_are_the_most_confident_wrong_answers():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95], [0.3, 0.7]])
    assert content.worst_mistakes(probabilities, np.array([0, 0, 0, 1, 0]), 2).tolist() == [1, 4]
    assert content.worst_mistakes(probabilities, probabilities.argmax(axis=1), 2).tolist() == []


def test_curves_of_one_measure_share_a_panel():
    rows = [{"epoch": "1", "train_loss": "2", "val_loss": "", "val_macro_f1": "0.5", "shift": "x"}, {"epoch": "2", "train_loss": "1"}]
    found = content.learning_curves(rows, 2)
    assert found.epochs == (1, 2) and found.kept == 2 and list(found.panels) == ["Loss", "Macro F1"]
    assert found.panels["Loss"]["train loss"] == (2.0, 1.0) and "val loss" not in found.panels["Loss"]
    for nothing in ([], [{"loss": "1"}], [{"epoch": "1", "loss": "x"}], [{"epoch": "one", "loss": "1"}]):
        assert content.learning_curves(nothing, 0) is None


def test_pca_is_the_plane_of_most_variance():
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    points = rng.normal(size=(50, 2)) * [3, 1]
    points -= points.mean(axis=0)
    found = pca(points @ plane.T + 7)
    assert np.allclose(np.linalg.norm(found[:, None] - found, axis=2), np.linalg.norm(points[:, None] - points, axis=2))
    assert found[:, 0].var() >= found[:, 1].var() and np.array_equal(found, pca(points @ plane.T + 7))


def test_large_sets_are_mapped_by_pca(monkeypatch):
    monkeypatch.setattr("entrep_cli.reporting.embedding_map.MAX_TSNE", 10)
    vectors = np.random.default_rng(0).normal(size=(11, 4))
    assert places(vectors)[1] == "PCA" and places(vectors[:10])[1] == "t-SNE"


def test_a_map_of_a_large_part_is_an_even_sample(monkeypatch, tmp_path):
    monkeypatch.setattr(content, "MAX_POINTS", 8)
    monkeypatch.setattr(content, "MAX_THUMBNAILS", 4)
    paths = []
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        draw("x", seed=i).save(paths[-1])
    taxonomy = Taxonomy.derive(["a", "b"])
    vectors = np.random.default_rng(0).normal(size=(20, 5))
    found = content.embedding_map(vectors, np.arange(20) % 2, taxonomy, Pictures(paths, [p.name for p in paths]))
    assert len(found.places) == 8 and found.n_part == 20 and found.captions[0] == "0.png" and found.captions[-1] == "19.png"
    sheet = Image.open(io.BytesIO(base64.b64decode(found.sprite.split(",")[1])))
    assert sheet.size == (2 * 48, 2 * 48)  # every second of the eight
    hidden = content.embedding_map(vectors, np.arange(20) % 2, taxonomy, Pictures(paths, [p.name for p in paths], private=True))
    assert hidden.sprite == "" and hidden.captions[0] == "image 1"
    assert content.embedding_map(vectors[:3], np.arange(3) % 2, taxonomy, Pictures(paths, [])) is None


def test_a_sprite_has_every_picture_in_its_place_and_survives_a_broken_one(tmp_path):
    for i, colour in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    uri = sprite([tmp_path / f"{i}.png" for i in range(3)], 2)
    sheet = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    seen = [sheet.getpixel((24 + 48 * (i % 2), 24 + 48 * (i // 2))) for i in range(3)]
    assert seen[0][0] > 200 and max(seen[1]) < 40 and seen[2][2] > 200 and sprite([], 3) == ""
