from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from entrep_cli.data import pixels as pixels_module
from entrep_cli.data.images import Preprocess, pixel_digest, read_image
from entrep_cli.data.pixels import decode_images, load_pixels, probe_images
from entrep_cli.errors import DataError
from entrep_cli.workspace import runs_dir
from tests.tiny import draw


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    """70 images of sizes of their own, more than are decoded ahead, in no order of size."""
    found = []
    for i in range(70):
        found.append(tmp_path / f"{i}.png")
        draw("nose-left", (10 + i * 7 % 31, 12), seed=i).save(found[-1])
    return found


def count_reads(monkeypatch) -> list[Path]:
    seen: list[Path] = []
    monkeypatch.setattr(pixels_module, "read_image", lambda path: (seen.append(path), read_image(path))[1])
    return seen


def test_probing_tells_digest_and_size_in_order_and_remembers(paths, monkeypatch):
    seen = count_reads(monkeypatch)
    found, faults = probe_images(paths)
    images = [Image.open(path) for path in paths]
    assert found == [(pixel_digest(image), *image.size) for image in images] and not faults
    assert len(seen) == 70
    assert probe_images(paths) == (found, []) and len(seen) == 70
    draw("throat", (9, 9)).save(paths[3])
    assert probe_images(paths)[0][3][1:] == (9, 9) and len(seen) == 71


def test_probing_lists_every_fault_and_keeps_the_places(paths, monkeypatch):
    paths[1].write_text("no image")
    paths[5].unlink()
    found, faults = probe_images(paths)
    assert [i for i, value in enumerate(found) if value is None] == [1, 5]
    assert [fault.where for fault in faults] == [str(paths[1]), str(paths[5])]
    draw("throat").save(paths[1])
    assert probe_images(paths)[0][1] is not None


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "3", '{"a": 1}'])
def test_a_damaged_memory_is_no_harm(paths, content):
    probe_images(paths[:2])
    (cache,) = (runs_dir() / "cache" / "images").iterdir()
    cache.write_text(content)
    assert probe_images(paths[:2])[0][0] is not None
    json.loads(cache.read_text())


def test_probing_needs_no_place_to_write(paths, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "file" / "runs"))
    found, faults = probe_images(paths[:3])
    assert None not in found and not faults


def test_decoding_keeps_the_order(paths):
    square = Preprocess(16)
    decoded = list(decode_images(paths, square))
    assert all(np.array_equal(d, square(read_image(path))) for d, path in zip(decoded, paths, strict=True))
    assert list(decode_images([], square)) == []


def test_decoding_names_every_broken_image(paths):
    paths[2].write_bytes(b"")
    paths[60].unlink()
    with pytest.raises(DataError) as error:
        list(decode_images([os.path.relpath(p) and Path(os.path.relpath(p)) for p in paths], Preprocess(16)))
    assert [fault.split(":")[0] for fault in error.value.faults] == ["2.png", "60.png"]


def test_pixels_are_kept_by_what_they_show(paths, monkeypatch):
    digests = [probe[0] for probe in probe_images(paths)[0]]
    seen = count_reads(monkeypatch)
    first = load_pixels(paths, digests, Preprocess(16), "images")
    assert first.shape == (70, 3, 16, 16) and first.dtype == np.uint8 and not first.flags.writeable
    assert np.array_equal(first, np.stack(list(decode_images(paths, Preprocess(16)))))
    seen.clear()
    moved = [path.rename(path.with_name(f"moved-{path.name}")) for path in paths]
    assert np.array_equal(load_pixels(moved, digests, Preprocess(16), "images"), first) and not seen
    load_pixels(moved, digests, Preprocess(16, "crop"), "images")
    load_pixels(moved[::-1], digests[::-1], Preprocess(16), "images")
    assert len(seen) == 140


def test_a_broken_image_leaves_no_cache(paths):
    paths[2].write_bytes(b"")
    with pytest.raises(DataError):
        load_pixels(paths, list(map(str, range(70))), Preprocess(16), "images")
    assert not list((runs_dir() / "cache" / "pixels").iterdir())
