"""Many images at once: checked and hashed, or decoded to uint8 arrays, in threads, cached on disk."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from entrep_cli import console
from entrep_cli.data.images import ImageError, Preprocess, pixel_digest, raise_image_faults, read_image
from entrep_cli.workspace import atomic_path, cache_dir, fingerprint, write_text_atomic


def probe_images(paths: Sequence[Path]) -> tuple[list[tuple[str, int, int] | None], list[ImageError]]:
    """Decode every image once: (pixel digest, width, height) each, and the faults.

    What was found is kept by path, size and time of change, so the second time costs a stat each.

    Returns:
        a list as long as `paths`, None where the image cannot be read; and the errors.
    """
    cache_file = cache_dir("images") / "probe-1.json"  # the number goes up when what is kept changes
    try:
        known = dict(json.loads(cache_file.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    keys = [_stat_key(path) for path in paths]
    found = [tuple(known[key]) if key in known else None for key in keys]
    missing = [i for i, value in enumerate(found) if value is None]
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
                found[i] = result
                known[keys[i]] = result
    if len(missing) > len(faults):
        with contextlib.suppress(OSError):  # looking at a dataset must not need a place to write
            write_text_atomic(cache_file, json.dumps(known))
    return found, faults


def decode_images(paths: Sequence[Path], preprocess: Preprocess) -> Iterator[np.ndarray]:
    """Yield (3, size, size) uint8 in order, decoding ahead in threads.

    Raises:
        DataError: after the last image, naming every one that could not be read.
    """
    faults = []
    for result in map_threads(lambda path: preprocess(read_image(path)), paths):
        if isinstance(result, ImageError):
            faults.append(result)
        elif not faults:
            yield result
    if faults:
        raise_image_faults(faults, Path(os.path.commonpath([p.absolute().parent for p in paths])))


def load_pixels(paths: Sequence[Path], digests: Sequence[str], preprocess: Preprocess, what: str) -> np.ndarray:
    """(N, 3, size, size) uint8 of a set of images, as a read-only memory map that is kept.

    The cache is keyed by the pixels (`digests`) and by the preprocessing, not by names or places.
    """
    key = fingerprint([preprocess.fingerprint, *digests])
    path = cache_dir("pixels") / f"{key}.npy"
    shape = (len(paths), 3, preprocess.size, preprocess.size)
    if (kept := _map(path, shape)) is not None:
        return kept
    with console.progress(f"Decoding {what}", len(paths)) as advance, atomic_path(path) as temporary, open(temporary, "wb") as file:
        # Written, not mapped: on a full disk a write is an error to tell, a touched map page kills the process.
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for pixels in decode_images(paths, preprocess):
            file.write(pixels.tobytes())
            advance()
    return _map(path, shape)


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A kept array as a memory map; None where there is none, or a damaged one, which is removed."""
    try:
        kept = np.load(path, mmap_mode="r", allow_pickle=False)
        if kept.shape == shape:
            return kept
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


def map_threads(function: Callable, items: Sequence) -> Iterator:
    """`function` over items in threads, in order, a few ahead; ImageErrors are returned, not raised."""

    def guarded(item):
        try:
            return function(item)
        except ImageError as error:
            return error

    workers = min(8, os.cpu_count() or 1)
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
