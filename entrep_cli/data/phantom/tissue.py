"""What more than one organ of the phantom shows: colours of tissue, mucus, bubbles.

A synthetic test bench, not medicine; all of it is ours.
"""

from __future__ import annotations

import numpy as np

from entrep_cli.data.phantom.scene import Colour, Field, Scene, step

MUCUS = (1.05, 1.02, 0.88)
RED = (0.80, 0.13, 0.13)
DARK = (0.20, 0.05, 0.05)


def paint_mucus(scene: Scene, shape: Field, height: float, finding: str, colour: Colour = MUCUS) -> None:
    """Thick, wet and nearly opaque."""
    scene.paint(
        shape,
        colour,
        height,
        bulge=0.07,
        rounding=0.08,
        opacity=0.92,
        gloss=1.2,
        shade=0.25,
        vessels=0,
        finding=finding,
    )


def paint_bubbles(scene: Scene, rng: np.random.Generator, pool: Field) -> None:
    """Clear bubbles with a bright rim, where the distance field `pool` is inside."""
    inside = np.argwhere(pool < -0.04)
    for row, column in inside[rng.integers(0, len(inside), 14)]:
        x, y, r = scene.x[row, column], scene.y[row, column], rng.uniform(0.025, 0.06)
        bubble = scene.ellipse(x, y, r, r)
        scene.stain(step(np.abs(bubble) - 0.006, 0.012), (1.1, 1.05, 1.0))
        glint = scene.ellipse(x - 0.4 * r, y - 0.4 * r, 0.3 * r, 0.3 * r)
        scene.stain(step(glint, 0.012), (1.8, 1.8, 1.8), opacity=0.9)
