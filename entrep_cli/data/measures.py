"""What is computed from the pixels of images and kept by their digests: each file is decoded once for all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from entrep_cli import console
from entrep_cli.data.pixels import decode_images
from entrep_cli.workspace import atomic_path, cache_dir

FOLDER = "measures"  # of the cache


@dataclass(frozen=True)
class Measure:
    """Something computed from the decoded pixels of an image and kept by their digest.

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
    """(N, *shape) of each measure: an image is decoded once for all measures that are not kept of it yet.

    Raises:
        DataError: names every image that cannot be read.
    """
    kept = [_read_kept(measure) for measure in measures]
    missing = {digest: path for digest, path in zip(digests, paths) if any(digest not in k for k in kept)}

    def compute(image: Image.Image) -> list[np.ndarray]:
        return [np.asarray(measure.compute(image), measure.dtype).reshape(measure.shape) for measure in measures]

    if missing:
        with console.progress(f"Looking at {what}", len(missing)) as advance:
            for digest, values in zip(missing, decode_images(list(missing.values()), compute)):
                for known, value in zip(kept, values):
                    known[digest] = value
                advance()
        for measure, known in zip(measures, kept):
            _keep(measure, known)
    return [np.stack([k[d] for d in digests]) if len(digests) else np.zeros((0, *m.shape), m.dtype) for m, k in zip(measures, kept)]


def _kept_path(measure: Measure) -> Path:
    return cache_dir(FOLDER) / f"{measure.name}.npz"


def _read_kept(measure: Measure) -> dict[str, np.ndarray]:
    """By digest; empty where nothing is kept, or what is kept is damaged."""
    try:
        with np.load(_kept_path(measure), allow_pickle=False) as file:
            digests, values = file["digests"], file["values"]
        if values.shape == (len(digests), *measure.shape) and values.dtype == np.dtype(measure.dtype):
            return dict(zip(digests.astype(str).tolist(), values))
    except Exception:
        pass
    return {}


def _keep(measure: Measure, known: dict[str, np.ndarray]) -> None:
    path = _kept_path(measure)
    with contextlib.suppress(OSError), atomic_path(path) as temporary, open(temporary, "wb") as file:
        # As in `probe_images`: looking at a dataset must not need a place to write.
        np.savez(file, digests=np.array(list(known), dtype="S16"), values=np.stack(list(known.values())))
