from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from entrep_cli.data.images import ImageError, Preprocess, decode_image, field_of_view, pixel_digest, raise_image_faults, read_image
from entrep_cli.errors import DataError
from tests.tiny import draw, encoded, png_header

# What is checked is what comes back; the console is checked in `test_no_warning_without_a_name`.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "PIL.Image.DecompressionBombWarning")]

SMALL = draw("nose-left", (32, 24))


def read(tmp_path, content: bytes, name: str = "a.png") -> Image.Image:
    path = tmp_path / name
    path.write_bytes(content)
    return read_image(path)


# ---------------------------------------------------------------- reading

RED = Image.new("RGB", (4, 3), (200, 30, 40))
GREY16 = Image.fromarray(np.full((3, 4), 200 * 257, dtype=np.uint16))


@pytest.mark.parametrize(
    ("image", "form", "colour"),
    [
        (RED, "PNG", (200, 30, 40)),
        (RED, "BMP", (200, 30, 40)),
        (RED, "TIFF", (200, 30, 40)),
        (RED.quantize(4), "PNG", (200, 30, 40)),
        (RED.convert("CMYK"), "TIFF", (200, 30, 40)),
        (RED.convert("CMYK"), "JPEG", (200, 30, 40)),
        (Image.new("L", (4, 3), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (4, 3), 1), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (4, 3), (200, 30, 40, 255)), "PNG", (200, 30, 40)),
        (Image.new("RGBA", (4, 3), (200, 30, 40, 0)), "PNG", (0, 0, 0)),
        (Image.new("LA", (4, 3), (200, 51)), "PNG", (40, 40, 40)),
        (GREY16, "PNG", (200, 200, 200)),
        (GREY16, "TIFF", (200, 200, 200)),
        (Image.fromarray(np.full((3, 4), 0.5, dtype=np.float32)), "TIFF", (128, 128, 128)),
        (Image.fromarray(np.full((3, 4), 99.0, dtype=np.float32)), "TIFF", (99, 99, 99)),
        (Image.fromarray(np.full((3, 4), np.nan, dtype=np.float32)), "TIFF", (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, image, form, colour):
    seen = read(tmp_path, encoded(image, form))
    assert (seen.mode, seen.size) == ("RGB", (4, 3))
    assert np.abs(np.asarray(seen).astype(int) - colour).max() <= (3 if form == "JPEG" else 0)


def test_a_transparent_palette_lies_on_black(tmp_path):
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 200, 30, 40])
    assert read(tmp_path, encoded(palette, "PNG")).getpixel((0, 0)) == (200, 30, 40)
    assert read(tmp_path, encoded(palette, "PNG", transparency=1)).getpixel((0, 0)) == (0, 0, 0)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    seen = read(tmp_path, encoded(SMALL, "PNG", exif=exif))
    assert np.array_equal(np.asarray(seen), np.rot90(np.asarray(SMALL), -1))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path, form):
    whole = encoded(SMALL, form)
    pixels = read(tmp_path, whole).tobytes()
    for cut in range(0, len(whole), max(1, len(whole) // 60)):
        try:
            # Only the end mark of a PNG may be missing: its pixels are all there.
            assert read(tmp_path, whole[:cut]).tobytes() == pixels and len(whole) - cut <= 20
        except ImageError as error:
            assert str(tmp_path / "a.png") == error.where


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP"]),
    changes=st.dictionaries(st.integers(0, 400), st.integers(0, 255), min_size=1, max_size=4),
)
def test_changed_bytes_give_an_image_or_an_image_error(tmp_path_factory, form, changes):
    content = bytearray(encoded(SMALL, form))
    for place, value in changes.items():
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(content)
    try:
        assert read_image(path).mode == "RGB"
    except ImageError:
        pass


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"this is no image\n", "not an image in a known format"),
        (encoded(SMALL, "GIF"), "not an image in a known format"),
        (png_header(30_000, 30_000), "more pixels than the 64 million allowed"),
        (png_header(30_000, 3_000), "30000 x 3000 pixels, more than the 64 million allowed"),
        (png_header(3_000, 3_000), "damaged or truncated"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, content, what):
    with pytest.raises(ImageError) as error:
        read(tmp_path, content)
    assert error.value.what.startswith(what) and error.value.where == str(tmp_path / "a.png")
    with pytest.raises(ImageError) as same:
        decode_image(content, "sent.png")
    assert same.value.what.startswith(what) and same.value.where == "sent.png"


def test_bytes_are_decoded_as_their_file_is(tmp_path):
    for form in ("PNG", "JPEG", "TIFF"):
        content = encoded(SMALL, form)
        assert decode_image(content, "sent").tobytes() == read(tmp_path, content).tobytes()


def test_no_warning_without_a_name(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(30_000, 3_000))
    code = "import sys; from pathlib import Path; from entrep_cli.data.pixels import probe_images;"
    code += "print(probe_images([Path(sys.argv[1])])[1][0].where)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (str(tmp_path / "a.png"), "")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    for name in ("none.png", "link.png", "pipe.png", ""):
        with pytest.raises(ImageError, match="no such file"):
            read_image(tmp_path / name)


def test_faults_are_told_together():
    raise_image_faults([], "folder")
    faults = [ImageError("damaged", where="d/a.png"), ImageError("empty", where="d/b.png")]
    with pytest.raises(DataError) as error:
        raise_image_faults(faults, "d")
    assert list(error.value.faults) == ["a.png: damaged", "b.png: empty"] and error.value.what.startswith("2 images")


def test_the_digest_is_of_the_pixels(tmp_path):
    digest = pixel_digest(SMALL)
    assert digest == pixel_digest(read(tmp_path, encoded(SMALL, "BMP"))) == pixel_digest(read(tmp_path, encoded(SMALL, "PNG")))
    turned = Image.frombytes("RGB", (24, 32), SMALL.tobytes())
    assert len({digest, pixel_digest(turned), pixel_digest(draw("nose-left", (32, 24), seed=1))}) == 3


# ---------------------------------------------------------------- the model's square


def test_field_of_view():
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    assert field_of_view(pixels) == (0, 0, 128, 96)
    pixels[20:80, 24:100] = (90, 20, 20)
    pixels[0, 0] = 255  # a speck in the surround
    assert field_of_view(pixels) == (24, 20, 100, 80)
    pixels[20:80, 24:100] = 0
    pixels[20:40, 24:40] = 200  # too small to be the view
    assert field_of_view(pixels) == (0, 0, 128, 96)


def test_padding_keeps_everything_and_the_aspect():
    square = Preprocess(32, "pad")(Image.new("RGB", (64, 48), (200, 100, 50)))
    assert square.shape == (3, 32, 32) and square.dtype == np.uint8 and square.flags.c_contiguous
    assert (square[:, 4:28] == np.array([200, 100, 50])[:, None, None]).all()
    assert not square[:, :4].any() and not square[:, 28:].any()


def test_cropping_takes_the_middle():
    image = Image.new("RGB", (64, 48), (200, 0, 0))
    image.paste((0, 200, 0), (2, 0, 62, 48))
    square = Preprocess(24, "crop")(image)
    assert square.shape == (3, 24, 24) and (square == np.array([0, 200, 0])[:, None, None]).all()


def test_squashing_keeps_everything_and_no_aspect():
    image = Image.new("RGB", (64, 16), (200, 0, 0))
    image.paste((0, 200, 0), (32, 0, 64, 16))
    square = Preprocess(32, "squash")(image)
    red, green = (np.array(colour)[:, None, None] for colour in ((200, 0, 0), (0, 200, 0)))
    assert (square[:, :, :14] == red).all() and (square[:, :, 18:] == green).all()


def test_a_mirrored_image_has_a_mirrored_square():
    for size, side in (((64, 48), 32), ((61, 47), 32), ((47, 61), 33), ((64, 48), 224)):
        for fit in ("pad", "crop", "squash"):
            image = draw("nose-left", size)
            square = Preprocess(side, fit)(image)
            mirrored = Preprocess(side, fit)(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[:, :, ::-1]
            # An odd border is a pixel wider on one side.
            apart = min(np.abs(square.astype(int) - np.roll(mirrored, by, axis=2)).max() for by in (0, 1, -1))
            assert apart <= 1, (size, side, fit)


def test_the_dark_surround_is_cut_off_first():
    image = Image.new("RGB", (64, 48))
    image.paste((180, 60, 60), (16, 8, 48, 40))
    assert (Preprocess(32, "pad", field_of_view=True)(image)[0] == 180).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1), (7, 500)])
@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_extreme_shapes(size, fit):
    square = Preprocess(16, fit)(Image.new("RGB", size, (250, 250, 250)))
    assert square.shape == (3, 16, 16) and square.max() == 250


def test_the_fingerprint_is_of_what_changes_pixels():
    base = Preprocess(32)
    assert base.fingerprint == Preprocess(32, mean=(0, 0, 0)).fingerprint
    others = [Preprocess(33), Preprocess(32, "crop"), Preprocess(32, field_of_view=True)]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert all(Preprocess.from_dict(p.as_dict()) == p for p in (base, *others))
