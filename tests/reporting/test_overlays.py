"""Heat over pictures: what is mixed, what colours mean without colour, and captions that are somebody else's text."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from entrep_cli.reporting.overlays import Look, explanation_sheet, overlay


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)


def lightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), float)


def test_hotter_is_lighter_on_any_one_picture():
    pixels = np.full((3, 4, 101), 90, np.uint8)
    light = lightness(overlay(pixels, np.tile(np.linspace(0, 1, 101), (4, 1))))
    assert (np.diff(light, axis=1) >= -1).all() and light[0, -1] - light[0, 0] > 60
    assert (np.diff(light[0, ::10]) > 0).all()


def test_the_picture_shows_through_in_grey():
    pixels = picture()
    cold = overlay(pixels, np.zeros(pixels.shape[1:]))
    assert cold.size == (32, 24) and cold.mode == "RGB"
    grey = lightness(Image.fromarray(pixels.transpose(1, 2, 0)))
    assert np.corrcoef(grey.ravel(), lightness(cold).ravel())[0, 1] > 0.999
    spread = np.ptp(np.asarray(cold, int) - np.asarray(cold, int)[..., :1], axis=(0, 1))
    assert (spread <= 1).all(), "of the picture's own colours nothing is left"


def test_heat_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        overlay(picture(), np.zeros((5, 5)))
    for wrong in (np.nan, 1.5, -0.1):
        with pytest.raises(ValueError, match="outside"):
            overlay(picture(), np.full((24, 32), wrong))


def test_a_sheet_has_a_row_an_image_and_any_caption(tmp_path):
    hostile = ("[red]<script>alert(1)</script>.png", "$\\frac{1}{", "a\u202egnp.exe \x1b[2J", "Ống tai " * 40)
    heat = np.linspace(0, 1, 24 * 32).reshape(24, 32)
    sizes = []
    for n in (1, 3):
        path = explanation_sheet([Look(picture(), heat, hostile)] * n, "Where [red]x[/red] looks for '$5'", tmp_path / f"{n}.png")
        first = path.read_bytes()
        explanation_sheet([Look(picture(), heat, hostile)] * n, "Where [red]x[/red] looks for '$5'", path)
        assert path.read_bytes() == first
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] > 2 * sizes[0][1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.png", "3.png"]
