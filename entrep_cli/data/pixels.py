"""Many images at once: checked and hashed, or decoded to uint8 arrays, in threads, cached on disk."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
from PIL import Image

from entrep_cli import console
from entrep_cli.data.images import ImageError, Preprocess, pixel_digest, raise_image_faults, read_image
from entrep_cli.limits import allowed_processors
from entrep_cli.workspace import atomic_path, cache_dir, fingerprint, write_text_atomic

MEASURES = "measures"  # folder of the cache


def probe_images(paths: Sequence[Path]) -> tuple[list[tuple[str, int, int] | None], list[ImageError]]:
    """Decode every image once: (pixel digest, width, height) each, and the faults.

    The result is cached by path, size and time of change, so the second time costs a stat each.

    Returns:
        a list as long as `paths`, None where the image cannot be read; and the errors.
    """
    cache_file = cache_dir("images") / "probe-1.json"  # the number goes up when what is cached changes
    try:
        known = dict(json.loads(cache_file.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    keys = [_stat_key(path) for path in paths]
    probes = [tuple(known[key]) if key in known else None for key in keys]
    missing = [i for i, value in enumerate(probes) if value is None]
    faults = []

    def probe(path: Path) -> tuple[str, int, int]:
        image = read_image(path)
        return pixel_digest(image), image.width, image.height

    with console.progress("Checking images", len(missing)) as advance:
        for i, result in zip(missing, map_threads(probe, [paths[i] for i in missing])):
            advance()
            if isinstance(result, ImageError):
                faults.append(result)
            else:
                probes[i] = result
                known[keys[i]] = result
    if len(missing) > len(faults):
        with contextlib.suppress(OSError):  # looking at a dataset must not need a place to write
            write_text_atomic(cache_file, json.dumps(known))
    return probes, faults


class Spent(Protocol):
    """Seconds of work spent on files and on pixels, added up, and the threads that did it."""

    reader: float
    transform: float
    threads: int


def decode_images(paths: Sequence[Path], preprocess: Preprocess, spent: Spent | None = None) -> Iterator[np.ndarray]:
    """Yield (3, size, size) uint8 in order, decoding ahead in threads; the time that takes them is added to `spent`.

    Raises:
        DataError: after the last image, naming every one that could not be read.
    """

    def decode(path: Path) -> tuple[np.ndarray, float, float]:
        start = perf_counter()
        image = read_image(path)
        read = perf_counter()
        return preprocess(image), read - start, perf_counter() - read

    faults = []
    if spent is not None:
        spent.threads = _n_threads()
    for result in map_threads(decode, paths):
        if isinstance(result, ImageError):
            faults.append(result)
        elif not faults:
            pixels, reading, transforming = result
            if spent is not None:
                spent.reader, spent.transform = spent.reader + reading, spent.transform + transforming
            yield pixels
    if faults:
        raise_image_faults(faults, Path(os.path.commonpath([p.absolute().parent for p in paths])))


def load_pixels(paths: Sequence[Path], digests: Sequence[str], preprocess: Preprocess, what: str) -> np.ndarray:
    """(N, 3, size, size) uint8 of a set of images, as a read-only memory map of the cache.

    The cache is keyed by the pixels (`digests`) and by the preprocessing, not by names or places.
    """
    path, shape = _cache_place(digests, preprocess)
    if (cached := _map(path, shape)) is not None:
        return cached
    with console.progress(f"Decoding {what}", len(paths)) as advance:
        for _ in _decode_and_cache(paths, preprocess, path, shape):
            advance()
    return _map(path, shape)


def cached_pixels(paths: Sequence[Path], digests: Sequence[str], preprocess: Preprocess) -> np.ndarray | None:
    """What `load_pixels` would give, where it is cached already; None where images would have to be decoded."""
    return _map(*_cache_place(digests, preprocess)) if paths and all(digests) else None


def stream_pixels(
    paths: Sequence[Path], digests: Sequence[str], preprocess: Preprocess, *, rows: Sequence[int] | None = None, spent: Spent | None = None
) -> Iterator[np.ndarray]:
    """Yield (3, size, size) uint8 of a set of images, in order: from the cache, or decoded ahead in threads.

    A whole set is cached as it goes by, for the next run or precision, where it takes little of the disk that is free.

    Args:
        digests: of the pixels, by which they are cached; with "" among them nothing is.
        rows: the images of which the pixels are wanted, in order; None for all, and only then are they cached.

    Raises:
        DataError: after the last image, naming every one that could not be read.
    """
    if (cached := cached_pixels(paths, digests, preprocess)) is not None:
        yield from (cached[i] for i in (range(len(paths)) if rows is None else rows))
        return
    path, shape = _cache_place(digests, preprocess)
    if rows is None and paths and all(digests) and _is_little(path, shape):
        yield from _decode_and_cache(paths, preprocess, path, shape, spent)
    else:
        yield from decode_images(paths if rows is None else [paths[i] for i in rows], preprocess, spent)


def _decode_and_cache(
    paths: Sequence[Path], preprocess: Preprocess, path: Path, shape: tuple[int, ...], spent: Spent | None = None
) -> Iterator[np.ndarray]:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        # Written, not mapped: on a full disk a write is an error to tell, a touched map page kills the process.
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for pixels in decode_images(paths, preprocess, spent):
            file.write(pixels.tobytes())
            yield pixels


def _cache_place(digests: Sequence[str], preprocess: Preprocess) -> tuple[Path, tuple[int, ...]]:
    key = fingerprint([preprocess.fingerprint, *digests])
    return cache_dir("pixels") / f"{key}.npy", (len(digests), 3, preprocess.size, preprocess.size)


def _is_little(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether pixels of this shape take at most a tenth of what is free where they would be cached."""
    above = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    return above is not None and os.access(above, os.W_OK) and 10 * math.prod(shape) <= shutil.disk_usage(above).free


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A cached array as a memory map; None where it is missing, or damaged, and then it is removed."""
    try:
        cached = np.load(path, mmap_mode="r", allow_pickle=False)
        if cached.shape == shape:
            return cached
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):
        pass
    path.unlink()
    return None


def _stat_key(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}"


# ---------------------------------------------------------------- measures, cached by the digests of the pixels


@dataclass(frozen=True)
class Measure:
    """Something computed from the decoded pixels of an image and cached by their digest.

    Attributes:
        name: of the cache file; carries a number that goes up when what is computed changes.
        shape, dtype: of one image's values.
        compute: from a decoded RGB image.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    compute: Callable[[Image.Image], np.ndarray]


def measure_images(paths: Sequence[Path], digests: Sequence[str], measures: Sequence[Measure], what: str = "images") -> list[np.ndarray]:
    """(N, *shape) of each measure: an image is decoded once for all measures that are not cached of it yet.

    Raises:
        DataError: names every image that cannot be read.
    """
    cached = [_read_measure(measure) for measure in measures]
    missing = {digest: path for digest, path in zip(digests, paths) if any(digest not in known for known in cached)}

    def compute(image: Image.Image) -> list[np.ndarray]:
        return [np.asarray(measure.compute(image), measure.dtype).reshape(measure.shape) for measure in measures]

    if missing:
        with console.progress(f"Looking at {what}", len(missing)) as advance:
            for digest, values in zip(missing, decode_images(list(missing.values()), compute)):
                for known, value in zip(cached, values):
                    known[digest] = value
                advance()
        for measure, known in zip(measures, cached):
            _write_measure(measure, known)
    return [np.stack([k[d] for d in digests]) if len(digests) else np.zeros((0, *m.shape), m.dtype) for m, k in zip(measures, cached)]


def _measure_path(measure: Measure) -> Path:
    return cache_dir(MEASURES) / f"{measure.name}.npz"


def _read_measure(measure: Measure) -> dict[str, np.ndarray]:
    """By digest; empty where nothing is cached, or what is cached is damaged."""
    try:
        with np.load(_measure_path(measure), allow_pickle=False) as file:
            digests, values = file["digests"], file["values"]
        if values.shape == (len(digests), *measure.shape) and values.dtype == np.dtype(measure.dtype):
            return dict(zip(digests.astype(str).tolist(), values))
    except Exception:
        pass
    return {}


def _write_measure(measure: Measure, known: dict[str, np.ndarray]) -> None:
    with contextlib.suppress(OSError), atomic_path(_measure_path(measure)) as temporary, open(temporary, "wb") as file:
        # As in `probe_images`: looking at a dataset must not need a place to write.
        np.savez(file, digests=np.array(list(known), dtype="S16"), values=np.stack(list(known.values())))


# ---------------------------------------------------------------- threads


def map_threads(function: Callable, items: Sequence) -> Iterator:
    """`function` over items in threads, in order, a few ahead; ImageErrors are returned, not raised."""

    def guarded(item):
        try:
            return function(item)
        except ImageError as error:
            return error

    workers = _n_threads()
    with ThreadPoolExecutor(workers) as pool:
        window = 4 * workers
        pending = [pool.submit(guarded, item) for item in items[:window]]
        try:
            for i in range(len(items)):
                yield pending[i].result()
                pending[i] = None  # the result may be megabytes
                if i + window < len(items):
                    pending.append(pool.submit(guarded, items[i + window]))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _n_threads() -> int:
    # No fewer beside a model: it is the reader that must not be waited for, and threads with nothing left to read sleep.
    return min(8, allowed_processors())
