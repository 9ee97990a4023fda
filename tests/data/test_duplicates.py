from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from entrep_cli.data import duplicates, pixels
from entrep_cli.data.duplicates import (
    THUMBNAIL,
    close_hashes,
    find_alike,
    find_duplicates,
    find_mirrored,
    find_near,
    perceptual_hashes,
    thumbnail,
)
from entrep_cli.data.fine_structure import FineStructure, Outlines
from entrep_cli.data.images import pixel_digest
from entrep_cli.data.pixels import measure_images
from entrep_cli.errors import DataError
from entrep_cli.workspace import cache_dir
from tests.data.scenes import crop, jpeg, scene
from tests.tiny import draw

COPIES = {
    "recompressed": lambda image: jpeg(image, 30),
    "half size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "squeezed": lambda image: image.resize((100, 100)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "cropped": lambda image: crop(image, 0.02),
    "black border": lambda image: ImageOps.expand(image, 20),
    "white border": lambda image: ImageOps.expand(image, 9, "white"),
}


def thumbnails(images) -> np.ndarray:
    return np.stack([thumbnail(image) for image in images])


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    return [scene(seed, round_view=bool(seed % 2)) for seed in range(40)]


# ---------------------------------------------------------------- copies and others


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_found_and_nothing_else(originals, change):
    found = find_near(thumbnails([*originals, *map(COPIES[change], originals)]))
    n = len(originals)
    wanted = {(i, i + n) for i in range(n)}
    assert set(found) <= wanted and len(found) >= 0.95 * n


def test_a_flipped_copy_is_no_near_duplicate_but_a_mirrored_one(originals):
    both = thumbnails([*originals, *map(ImageOps.mirror, originals)])
    assert not len(find_near(both))
    found = find_mirrored(both)
    n = len(originals)
    assert set(found) == {(i, i + n) for i in range(n)} and found.likeness.min() > 0.9
    assert not len(find_mirrored(thumbnails([*originals, *(jpeg(image, 60) for image in originals)])))


def test_flat_dark_and_noisy_pictures_are_like_nothing():
    flat = [Image.new("RGB", (64, 48), (grey, grey // 2, grey // 2)) for grey in range(0, 250, 10)]
    half = [draw("nose-left", seed=seed) for seed in range(20)]  # one class, drawn alike; only the noise is its own
    assert not len(find_near(thumbnails(flat))) and not len(find_mirrored(thumbnails(flat)))
    assert not len(find_near(thumbnails(half)))


def test_few_or_no_pictures():
    for n in (0, 1):
        few = thumbnails([scene(0)])[:n]
        assert len(find_near(few)) == len(find_mirrored(few)) == 0
    assert find_duplicates([], []).near.first.shape == (0,)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3, 2), (20, 500)])
def test_odd_sizes_have_thumbnails(size):
    assert thumbnail(Image.new("RGB", size, "red")).shape == THUMBNAIL.shape


# ---------------------------------------------------------------- the parts against plain oracles


def test_the_hash_is_that_of_the_plain_transform():
    from scipy.fft import dctn

    pictures = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    for picture, found in zip(pictures, perceptual_hashes(pictures)):
        low = dctn(picture.astype(float))[:8, :8].ravel()
        assert np.packbits(low > np.median(low[1:])).view(np.uint64)[0] == found


@pytest.mark.parametrize("block", [3, 2048])
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**20 - 1)), max_size=9), st.integers(0, 40))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_close_hashes_are_those_of_a_loop(monkeypatch, block, values, bits):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    hashes = [value for value, _ in values]
    others = [value ^ change for value, change in values[::-1]]
    found = close_hashes(np.array(hashes, dtype=np.uint64), np.array(others, dtype=np.uint64), bits)
    every = [(i, j, (a ^ b).bit_count()) for i, a in enumerate(hashes) for j, b in enumerate(others) if i < j]
    assert list(zip(*(column.tolist() for column in found))) == [pair for pair in every if pair[2] <= bits]


def test_a_shift_is_found_and_undone(originals):
    base = thumbnails(originals[::2][:6])  # without a surround
    moved = np.roll(base, (2, -1), axis=(1, 2))
    one, two = FineStructure.of(base), FineStructure.of(moved)
    rows = np.arange(len(base))
    share, down, right = Outlines.of(base).agreement(rows, Outlines.of(moved), rows)
    assert set(zip(down.tolist(), right.tolist())) == {(2, -1)} and share.min() > 0.9
    assert one.correlation(rows, two, rows, down, right).min() > 0.9
    assert one.correlation(rows, two, rows, 0 * down, 0 * right).max() < 0.8


def test_outlines_flip_as_the_pictures_do(originals):
    base = thumbnails(originals[:5])
    flipped, own = Outlines.of(base).mirrored, FineStructure.of(base)
    for bits, flags in ((flipped.signs, own.values > 0), (flipped.inside, own.inside)):
        assert np.array_equal(np.unpackbits(bits[..., None].view(np.uint8), axis=-1).astype(bool), flags[:, :, ::-1])


def test_alike_by_embedding_against_all_pairs():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 8))
    vectors[7], vectors[21] = vectors[3] + 1e-3, vectors[3] - 1e-3
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert list(find_alike(vectors)) == [(3, 7), (3, 21), (7, 21)]


# ---------------------------------------------------------------- files and what is kept


@pytest.fixture
def files(tmp_path):
    images = [scene(1), jpeg(scene(1), 60), ImageOps.mirror(scene(1)), scene(2)]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(4)], [pixel_digest(image) for image in images]


def test_files_are_decoded_once_and_the_result_is_kept(files, monkeypatch):
    found = find_duplicates(*files)
    assert list(found.near) == [(0, 1)] and list(found.mirrored) == [(0, 2), (1, 2)]
    monkeypatch.setattr(pixels, "decode_images", None)
    again = find_duplicates(*files)
    for name in ("near", "mirrored"):
        for column in ("first", "second", "bits", "likeness"):
            one, two = (getattr(getattr(x, name), column) for x in (found, again))
            assert one.dtype == two.dtype and (one == two).all()
    assert measure_images(*files, [THUMBNAIL])[0].shape == (4, 64, 64)


def test_a_damaged_cache_is_made_anew(files):
    find_duplicates(*files)
    for path in cache_dir("measures").iterdir():
        path.write_bytes(b"junk")
    assert list(find_duplicates(*files).near) == [(0, 1)]


def test_what_cannot_be_read_is_named(files):
    paths, digests = files
    paths[2].write_bytes(b"none")
    with pytest.raises(DataError, match="1 image cannot be read"):
        find_duplicates(paths, digests)
