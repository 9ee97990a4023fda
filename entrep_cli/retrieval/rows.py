"""Rows of several arrays as one, read where they are asked for: a gallery of many sets that is never held whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Rows:
    """Some rows of arrays (n_i, D), in order, without a copy of them.

    rows = Rows([train_vectors, test_vectors], np.array([0, 1, 5]))
    rows[:2]  # (2, D): the array's own memory where that is one piece, else a copy of these rows

    Slices, row numbers and masks select rows, and `np.asarray` copies all of them.

    Args:
        parts: arrays or memory maps of one D and one type.
        kept: (N,) int64, rising: which rows, counted through all parts.
    """

    def __init__(self, parts: Sequence[np.ndarray], kept: np.ndarray) -> None:
        self.parts, self.kept = tuple(parts), kept
        self.starts = np.cumsum([0, *map(len, parts)])
        self.shape, self.dtype, self.ndim = (len(kept), *parts[0].shape[1:]), parts[0].dtype, parts[0].ndim

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, rows) -> np.ndarray:
        asked = np.atleast_1d(self.kept[rows])
        component_of = np.searchsorted(self.starts, asked, side="right") - 1
        one_piece = len(asked) and component_of[0] == component_of[-1] and (len(asked) == 1 or (np.diff(asked) == 1).all())
        if one_piece:
            first = asked[0] - self.starts[component_of[0]]
            found = self.parts[component_of[0]][first : first + len(asked)]
        else:
            found = np.empty((len(asked), *self.shape[1:]), self.dtype)
            for i in np.unique(component_of):
                found[component_of == i] = self.parts[i][asked[component_of == i] - self.starts[i]]
        return found[0] if np.ndim(self.kept[rows]) == 0 else found

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self[:], dtype)
