"""The fine structure of pictures inside their lit view, which tells copies from pictures of the same disc and shading (ours).

Dense for some pictures at a time (`FineStructure`), and as a bit a pixel for all of them (`Outlines`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import minimum_filter

from entrep_cli import console
from entrep_cli.data.images import LIT

SIDE = 64  # of a thumbnail, in pixels
_SHIFT = 2  # pixels of a thumbnail either way, 3% of the view
_BLOCK = 2048  # pictures or pairs at a time: tens of MB
_CACHED = 32  # thumbnails at a time, half a MB: what is worked out of them stays in a processor's cache


@dataclass(frozen=True)
class FineStructure:
    """What pictures show between coarse shading and noise, inside the lit view; 20 kB a picture, so for some at a time.

    Attributes:
        values: (N, 64, 64) float32 of local contrast 1, 0 outside of `inside`.
        inside: (N, 64, 64) bool, three pixels and more inside the lit view.
        texture: (N,) float32, root mean square before the contrast was evened out, in grey levels.
    """

    values: np.ndarray
    inside: np.ndarray
    texture: np.ndarray

    @classmethod
    def of(cls, thumbnails: np.ndarray) -> FineStructure:
        """Band-pass of Gaussians of 0.7 and 2.5 pixels, weighted by the view, over its local contrast."""
        blocks = [cls._block(thumbnails[start : start + _CACHED]) for start in range(0, max(len(thumbnails), 1), _CACHED)]
        return cls(*map(np.concatenate, zip(*blocks)))

    @staticmethod
    def _block(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        grey = thumbnails.astype(np.float32)
        lit = (thumbnails > LIT).astype(np.float32)

        def smooth(values: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
            kernel = _blur(sigma)
            return (kernel @ (values * weights) @ kernel.T) / np.maximum(kernel @ weights @ kernel.T, 1e-3)

        # All pixels within three are lit; what lies beyond the edge is as the edge.
        inside = minimum_filter(lit, size=(1, 7, 7), mode="nearest")
        area = np.maximum(inside.sum((1, 2)), 1)
        values = (smooth(grey, lit, 0.7) - smooth(grey, lit, 2.5)) * inside
        texture = np.sqrt((values**2).sum((1, 2)) / area)
        contrast = np.sqrt(np.maximum(smooth(values**2, inside, 5.0), 0))
        # In proportion to the picture, so that a darker copy has the same values.
        values /= contrast + 0.2 * texture[:, None, None] + 1e-6
        values -= (values.sum((1, 2)) / area)[:, None, None]
        return values * inside, inside > 0, texture

    def correlation(self, rows: np.ndarray, other: FineStructure, columns: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(P,) correlation of pairs where both are inside, the second moved by so many pixels."""
        correlations = np.zeros(len(rows), np.float32)
        pad = ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT))
        for start in range(0, len(rows), _BLOCK // 8):
            some = slice(start, start + _BLOCK // 8)
            one, one_in = self.values[rows[some]], self.inside[rows[some]]
            two, two_in = np.pad(other.values[columns[some]], pad), np.pad(other.inside[columns[some]], pad)
            y = (down[some] + _SHIFT)[:, None] + np.arange(SIDE)
            x = (right[some] + _SHIFT)[:, None] + np.arange(SIDE)
            place = np.arange(len(one))[:, None, None], y[:, :, None], x[:, None, :]
            two, two_in = two[place], two_in[place]
            power = ((one * two_in) ** 2).sum((1, 2)) * ((two * one_in) ** 2).sum((1, 2))
            correlations[some] = (one * two).sum((1, 2)) / np.sqrt(np.maximum(power, 1e-12))
        return correlations


@dataclass(frozen=True)
class Outlines:
    """Of the fine structure of pictures, where it is bright, a bit a pixel: 1 kB a picture.

    Attributes:
        signs: (N, 64) uint64, a row of the picture each: whether a value is above 0.
        inside: (N, 64) uint64, likewise: whether the pixel is inside.
        texture: (N,) float32, as of `FineStructure`.
    """

    signs: np.ndarray
    inside: np.ndarray
    texture: np.ndarray

    @classmethod
    def of(cls, thumbnails: np.ndarray, what: str = "") -> Outlines:
        """Of (N, 64, 64) thumbnails; `what` is shown as progress, nothing without it."""
        n, blocks = len(thumbnails), []
        with console.progress(what, n if what else 0) as advance:
            for start in range(0, max(n, 1), _CACHED):
                block = cls.of_structure(FineStructure.of(thumbnails[start : start + _CACHED]))
                blocks.append((block.signs, block.inside, block.texture))
                advance(len(block.texture))
        return cls(*map(np.concatenate, zip(*blocks)))

    @classmethod
    def of_structure(cls, structure: FineStructure) -> Outlines:
        return cls(_bits(structure.values > 0), _bits(structure.inside), structure.texture)

    @property
    def mirrored(self) -> Outlines:
        return Outlines(_reversed(self.signs), _reversed(self.inside), self.texture)

    def agreement(self, rows: np.ndarray, other: Outlines, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How the pairs (rows[i], columns[i]) lie on each other best, by the signs of their values.

        A pair of which less than half of the smaller view overlaps has 0.

        Returns:
            (P,) fraction of the overlapping pixels with the same sign, and the shift (P,), (P,) in pixels.
        """
        n = len(rows)
        agreeing, best = np.zeros(n, np.float32), np.zeros(n, np.int64)
        order = np.argsort(columns, kind="stable")  # pairs of one picture side by side: it is shifted once
        for start in range(0, n, _BLOCK):
            pairs = order[start : start + _BLOCK]
            left, left_of = np.unique(rows[pairs], return_inverse=True)
            right, right_of = np.unique(columns[pairs], return_inverse=True)
            signs, inside = self.signs[left], self.inside[left]
            others, others_in = _bits(_shifted(_flags(other.signs[right]))), _bits(_shifted(_flags(other.inside[right])))
            area = np.bitwise_count(inside).sum(1, dtype=np.int32)[left_of]
            least = np.minimum(area, np.bitwise_count(others_in[:, _CENTRE]).sum(1, dtype=np.int32)[right_of]) / 2
            for k in range(len(_SHIFTS)):
                both = inside[left_of] & others_in[right_of, k]
                overlap = np.bitwise_count(both).sum(1, dtype=np.int32)
                differ = np.bitwise_count((signs[left_of] ^ others[right_of, k]) & both).sum(1, dtype=np.int32)
                agree = np.where((overlap >= least) & (overlap > 0), 1 - differ / np.maximum(overlap, 1), 0)
                better = agree > agreeing[pairs]
                agreeing[pairs[better]], best[pairs[better]] = agree[better], k
        return agreeing, *np.array(_SHIFTS)[best].reshape(-1, 2).T


_SHIFTS = [(y, x) for y in range(-_SHIFT, _SHIFT + 1) for x in range(-_SHIFT, _SHIFT + 1)]
_CENTRE = _SHIFTS.index((0, 0))


def _bits(flags: np.ndarray) -> np.ndarray:
    """(..., 64, 64) bool as (..., 64) uint64."""
    return np.packbits(flags, axis=-1).view(np.uint64)[..., 0]


def _flags(bits: np.ndarray) -> np.ndarray:
    """(..., 64) uint64 as (..., 64, 64) bool."""
    return np.unpackbits(np.ascontiguousarray(bits)[..., None].view(np.uint8), axis=-1).view(bool)


def _reversed(bits: np.ndarray) -> np.ndarray:
    """(N, 64) uint64, each picture flipped left to right."""
    blocks = [_bits(_flags(bits[start : start + _BLOCK])[..., ::-1]) for start in range(0, len(bits), _BLOCK)]
    return np.concatenate([np.zeros((0, SIDE), np.uint64), *blocks])


def _shifted(flags: np.ndarray) -> np.ndarray:
    """(N, 64, 64) bool as (N, S, 64, 64), moved by each of the shifts; False comes in from outside."""
    wide = np.pad(flags, ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)))
    return np.stack([wide[:, _SHIFT + y : _SHIFT + y + SIDE, _SHIFT + x : _SHIFT + x + SIDE] for y, x in _SHIFTS], axis=1)


def _blur(sigma: float) -> np.ndarray:
    """(64, 64) float32: a Gaussian along one axis, as a matrix."""
    steps = np.arange(SIDE)
    kernel = np.exp(-((steps[:, None] - steps[None]) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum(axis=1, keepdims=True)
    # Tails too small for a float32 to hold in full make a product a hundred times as slow.
    return np.where(kernel < 1e-10, 0, kernel).astype(np.float32)
