from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from entrep_cli.data.quality import file_mode, measure_quality, quality_frame
from tests.data.scenes import scene


def flags(images: list[Image.Image]) -> list[tuple[str, ...]]:
    measured = np.stack([measure_quality(image.convert("RGB")) for image in images])
    frame = quality_frame([str(i) for i in range(len(images))], [image.size for image in images], [""] * len(images), measured)
    return frame["flags"].tolist()


GOOD = [scene(seed, (320, 240), round_view=bool(seed % 2)) for seed in range(24)]
FAULTY = {
    "dark": ImageEnhance.Brightness(GOOD[0]).enhance(0.1),
    "overexposed": ImageEnhance.Brightness(GOOD[1]).enhance(3),
    "blurred": GOOD[2].filter(ImageFilter.GaussianBlur(7)),
    "empty": Image.fromarray(np.random.default_rng(0).integers(118, 124, (240, 320, 3), dtype=np.uint8)),
    "small view": Image.new("RGB", (320, 240)),
    "tiny": scene(30, (48, 36)),
    "other size": scene(31, (960, 720)),
    "other shape": scene(32, (480, 160), round_view=False),
}
FAULTY["small view"].paste(scene(33, (170, 130), round_view=False), (70, 50))


def test_good_pictures_have_no_flag():
    assert set(flags(GOOD)) == {()}


@pytest.mark.parametrize("fault", FAULTY)
def test_each_fault_is_flagged(fault):
    assert fault in flags([*GOOD, FAULTY[fault]])[-1]


def test_a_second_camera_is_no_outlier():
    other = [scene(seed, (960, 720)) for seed in range(3)]
    assert "other size" not in {flag for found in flags(GOOD + other) for flag in found}


def test_the_surround_is_no_darkness_and_no_blur():
    view = GOOD[1]
    wide = Image.new("RGB", (380, 300))
    wide.paste(view, (30, 30))
    assert np.allclose(measure_quality(view)[[0, 3]], measure_quality(wide)[[0, 3]], rtol=0.05)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 300), (3, 3)])
def test_odd_sizes_are_measured(size):
    assert np.isfinite(measure_quality(Image.new("RGB", size, "white"))).all()


def test_modes_are_told_from_the_header(tmp_path):
    for name, image, wanted in (
        ("a.png", Image.new("RGB", (4, 4)), ""),
        ("b.png", Image.new("L", (4, 4)), "grey"),
        ("c.png", Image.new("RGBA", (4, 4)), "alpha"),
        ("d.png", Image.new("P", (4, 4)), "palette"),
        ("e.png", Image.new("I;16", (4, 4)), "mode I;16"),
    ):
        image.save(tmp_path / name)
        assert file_mode(tmp_path / name).startswith(wanted) and bool(file_mode(tmp_path / name)) == bool(wanted)
    (tmp_path / "f.png").write_bytes(b"junk")
    assert file_mode(tmp_path / "f.png") == ""
