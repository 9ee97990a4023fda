"""Pictures that show the same: near-duplicates and mirrored copies.

Two checks find a near-duplicate. A 64-bit perceptual hash says which pairs may be one: the signs of the
low frequencies of a discrete cosine transform against their median (Zauner, Implementation and
Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1). The correlation of the fine
structure inside the lit view then decides (ours): all endoscope pictures have a bright disc, a dark
surround and a reddish middle, which is most of what a hash sees. Both see a grey thumbnail of the view
alone, so that borders, size, compression and a little brightness change nothing.

Neither is blind to a flip: a mirrored copy shows the other side, and is listed apart.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from entrep_cli.data.fine_structure import SIDE, FineStructure, Outlines
from entrep_cli.data.images import LIT
from entrep_cli.data.pixels import MEASURES, Measure, measure_images
from entrep_cli.workspace import cache_dir, fingerprint, write_text_atomic

# Chosen on ent-open and on phantom frames, whose exams are drawn alike on purpose: at 0.75 one pair in ten of
# the phantom's is of two exams, at 0.65 four; a copy cropped by 3% at each side keeps 0.75 in 99 of 100 cases.
NEAR_BITS = 14  # of 64: a crop of 3% changes up to 12; two pictures of other patients differ in some 30
NEAR_CORRELATION = 0.75
MIRROR_BITS = 10  # stricter: the larynx is nearly symmetric, its frames are not copies of each other
MIRROR_CORRELATION = 0.85
NEAR_COSINE = 0.98  # of two embeddings; on ent-open, by an ImageNet MobileNetV2, 0.96 and more are of one group without exception
MIN_TEXTURE = 0.5  # grey levels; below it a thumbnail is flat or dark, and flat pictures are all alike
RULE = "near-1"  # the number goes up when other pairs come out
_SIGNS_AGREE = 0.7  # of the pixels; pairs of a correlation of 0.75 have more
_ZOOM = 0.96  # a crop of 2% at each side
_BLOCK = 2048  # rows or pairs at a time: tens of MB


# ---------------------------------------------------------------- thumbnails


def thumbnail(image: Image.Image) -> np.ndarray:
    """(64, 64) uint8 grey of the lit view, squeezed to a square: a copy of other proportions is a copy."""
    small = image.reduce(max(1, min(image.size) // (3 * SIDE)))  # a third of the time, and the same to 1% of a side
    grey = small.convert("L")
    view = _view(np.asarray(grey))
    # Small pictures have fewer pixels than the thumbnail: a box filter would leave steps.
    large = min(view[2] - view[0], view[3] - view[1]) >= 2 * SIDE
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX if large else Image.Resampling.BICUBIC, box=view))


def _view(grey: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the lit view, without frames, borders and captions beside it.

    Other than `field_of_view` it wants 6% of a row or column to be lit, and the whole uneven: a caption in
    the black surround, which one copy has and the other has not, must not move the box.
    """
    left, top, right, bottom = 0, 0, grey.shape[1], grey.shape[0]
    for _ in range(2):  # a white frame is cut off first, then the black surround inside of it
        box = grey[top:bottom, left:right]
        edges = []
        for axis, length in ((0, box.shape[1]), (1, box.shape[0])):
            # Compression leaves some grey levels in a uniform line, white or black.
            inside = np.flatnonzero((np.ptp(box, axis=axis) > 16) & ((box > LIT).mean(axis=axis) > 0.06))
            first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, length)
            # What is uniform or dark in the main is no frame but the picture.
            edges.append((first, last) if 3 * (last - first) >= length else (0, length))
        (x, x_end), (y, y_end) = edges
        left, top, right, bottom = left + x, top + y, left + x_end, top + y_end
    return left, top, right, bottom


THUMBNAIL = Measure("thumbnail-1", (SIDE, SIDE), "u1", thumbnail)


# ---------------------------------------------------------------- two checks


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 64, 64) to (N,) uint64: the 8 x 8 lowest frequencies of a cosine transform, above their median or not.

    The constant term says how bright a picture is, and does not count for the median.
    """
    steps = np.arange(SIDE)
    basis = np.cos(np.pi / SIDE * np.arange(8)[:, None] * (steps + 0.5)).astype(np.float32)
    hashes = np.empty(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), _BLOCK):
        block = thumbnails[start : start + _BLOCK].astype(np.float32)
        frequencies = (basis @ block @ basis.T).reshape(-1, 64)
        bits = frequencies > np.median(frequencies[:, 1:], axis=1, keepdims=True)
        hashes[start : start + _BLOCK] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return hashes


def close_hashes(hashes: np.ndarray, others: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs i < j of which hashes[i] and others[j], (N,) uint64, differ in at most so many bits.

    All pairs are compared, for at a fifth of the bits no table of pieces of a hash leaves much out; FAISS takes
    half a nanosecond or so for one, an eighth of numpy's time.

    Returns:
        (P,) i, (P,) j and (P,) bits in which they differ, in order of i and j.
    """
    import faiss

    index = faiss.IndexBinaryFlat(64)
    index.add(np.ascontiguousarray(others).view(np.uint8).reshape(-1, 8))
    codes = np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8)
    blocks = []
    for start in range(0, len(codes), _BLOCK):
        ends, distances, columns = index.range_search(codes[start : start + _BLOCK], bits + 1)  # less than that
        rows = start + np.repeat(np.arange(len(ends) - 1), np.diff(ends.astype(np.int64)))
        order = np.lexsort((columns, rows))
        order = order[columns[order] > rows[order]]
        blocks.append((rows[order], columns[order], distances[order]))
    return tuple(map(np.concatenate, zip(*blocks))) if blocks else (np.zeros(0, np.int64),) * 3


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, in order of their rows.

    Attributes:
        first, second: (P,) rows, first < second.
        bits: (P,) in which the hashes differ; of mirrored pairs, those of the flipped picture.
        likeness: (P,) correlation of the fine structure, or cosine of the embeddings.
    """

    first: np.ndarray
    second: np.ndarray
    bits: np.ndarray
    likeness: np.ndarray

    @classmethod
    def none(cls) -> Pairs:
        return _pairs([])

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self.first.tolist(), self.second.tolist()))

    def take(self, chosen: np.ndarray) -> Pairs:
        return Pairs(self.first[chosen], self.second[chosen], self.bits[chosen], self.likeness[chosen])


def find_near(thumbnails: np.ndarray, outlines: Outlines | None = None) -> Pairs:
    """Near-duplicates among (N, 64, 64) thumbnails; flat and dark ones are like nothing.

    Args:
        outlines: of the thumbnails, where they are at hand.
    """
    return _search(thumbnails, outlines or Outlines.of(thumbnails), False, NEAR_BITS, NEAR_CORRELATION)


def find_mirrored(thumbnails: np.ndarray, outlines: Outlines | None = None) -> Pairs:
    """Pairs of which one is the other flipped left to right, and is more like it flipped than as it stands.

    For the arguments see `find_near`.
    """
    outlines = outlines or Outlines.of(thumbnails)
    pairs = _search(thumbnails, outlines, True, MIRROR_BITS, MIRROR_CORRELATION)
    _, down, right = outlines.agreement(pairs.first, outlines, pairs.second)
    direct = _correlation(thumbnails, pairs, False, down, right)
    return pairs.take(pairs.likeness > direct + 0.1)


def find_alike(vectors: np.ndarray, *, cosine: float = NEAR_COSINE) -> Pairs:
    """Pairs of embeddings, (N, D) unit rows, of at least this cosine; `bits` are 0."""
    vectors = np.asarray(vectors, np.float32)
    blocks = []
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK] @ vectors[start:].T
        rows, columns = np.nonzero(np.triu(block, 1) >= cosine)
        blocks.append((rows + start, columns + start, np.zeros(len(rows)), block[rows, columns]))
    return _pairs(blocks)


def _search(thumbnails: np.ndarray, outlines: Outlines, mirrored: bool, bits: int, correlation: float) -> Pairs:
    """Pairs i < j, the second flipped if `mirrored`, that pass both checks.

    The checks go from the cheap to the dear: hashes of all pairs, signs of those, correlation of what is left.
    A pair that fails by little is looked at again with one of the two enlarged, as after a crop.
    """
    textured = np.flatnonzero(outlines.texture >= MIN_TEXTURE)
    hashes = perceptual_hashes(thumbnails)[textured]
    others = perceptual_hashes(thumbnails[:, :, ::-1])[textured] if mirrored else hashes
    rows, columns, distance = close_hashes(hashes, others, bits)
    pairs = _pairs([(textured[rows], textured[columns], distance, np.zeros(len(rows)))])
    agreeing, down, right = outlines.agreement(pairs.first, outlines.mirrored if mirrored else outlines, pairs.second)
    keep = agreeing >= _SIGNS_AGREE
    pairs, down, right = pairs.take(keep), down[keep], right[keep]
    likeness = _correlation(thumbnails, pairs, mirrored, down, right)
    again = np.flatnonzero((likeness < correlation) & (likeness >= correlation - 0.25))
    for enlarge_first in (False, True) if len(again) else ():
        first, rows = _chosen(thumbnails, pairs.first[again], enlarge_first, False)
        second, columns = _chosen(thumbnails, pairs.second[again], not enlarge_first, mirrored)
        _, down, right = Outlines.of_structure(first).agreement(rows, Outlines.of_structure(second), columns)
        likeness[again] = np.maximum(likeness[again], first.correlation(rows, second, columns, down, right))
    return Pairs(pairs.first, pairs.second, pairs.bits, likeness).take(likeness >= correlation)


def _correlation(thumbnails: np.ndarray, pairs: Pairs, mirrored: bool, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(P,) correlation of the pairs, the second flipped if `mirrored` and moved by so many pixels.

    The structure is worked out again for the pictures of some pairs at a time: of all pictures it would take most of the memory.
    """
    correlations = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), _BLOCK):
        some = slice(start, start + _BLOCK)
        first, rows = _chosen(thumbnails, pairs.first[some], False, False)
        second, columns = _chosen(thumbnails, pairs.second[some], False, mirrored)
        correlations[some] = first.correlation(rows, second, columns, down[some], right[some])
    return correlations


def _chosen(thumbnails: np.ndarray, rows: np.ndarray, enlarge: bool, mirrored: bool) -> tuple[FineStructure, np.ndarray]:
    """The structure of these rows alone, at will of their middle enlarged or flipped; and where each row is in it."""
    unique, place = np.unique(rows, return_inverse=True)
    pictures = thumbnails[unique].astype(np.float32)
    if enlarge:
        grid = (np.arange(SIDE) + 0.5 - SIDE / 2) * _ZOOM + SIDE / 2 - 0.5
        low = np.floor(grid).astype(int)
        lens = np.zeros((SIDE, SIDE), np.float32)
        lens[np.arange(SIDE), low] = 1 - (grid - low)
        lens[np.arange(SIDE), low + 1] = grid - low
        pictures = lens @ pictures @ lens.T
    return FineStructure.of(pictures[:, :, ::-1] if mirrored else pictures), place


def _pairs(blocks: list[tuple[np.ndarray, ...]]) -> Pairs:
    dtypes = (np.int64, np.int64, np.uint8, np.float32)
    columns = zip(*blocks) if blocks else [()] * 4
    return Pairs(*(np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype) for arrays, dtype in zip(columns, dtypes)))


# ---------------------------------------------------------------- of files, cached


@dataclass(frozen=True)
class Alike:
    """The near-duplicates among some images, and the pairs of which one is the other mirrored."""

    near: Pairs
    mirrored: Pairs


def find_duplicates(paths: Sequence[Path], digests: Sequence[str], what: str = "images") -> Alike:
    """Near-duplicates and mirrored copies among images; thumbnails and result are cached by the pixels' digests.

    Images of equal digest are near-duplicates of each other.

    Raises:
        DataError: names every image that cannot be read.
    """
    path = cache_dir(MEASURES) / f"{RULE}-{fingerprint(list(digests))}.json"
    try:
        cached = json.loads(path.read_text("utf-8"))
        tables = [[tuple(map(np.array, zip(*cached[key])))] if cached[key] else [] for key in ("near", "mirrored")]
        return Alike(*map(_pairs, tables))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    (thumbnails,) = measure_images(paths, digests, [THUMBNAIL], what)
    outlines = Outlines.of(thumbnails, f"Comparing {what}")
    alike = Alike(find_near(thumbnails, outlines), find_mirrored(thumbnails, outlines))
    rows = {f.name: list(zip(*(column.tolist() for column in astuple(getattr(alike, f.name))))) for f in fields(alike)}
    with contextlib.suppress(OSError):
        write_text_atomic(path, json.dumps(rows))
    return alike
