"""The phantom's random generators: one for every purpose, so that none disturbs another.

All of it is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Seed = int | Sequence[int]


def generator(*keys: Seed) -> np.random.Generator:
    """A generator of its own for every tuple of seeds."""
    flat = [int(part) for key in keys for part in np.ravel(key)]
    return np.random.default_rng(np.random.SeedSequence(flat))
