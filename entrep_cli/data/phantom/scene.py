"""What the phantom's organs are drawn on: layers of tissue, and the one light that falls on them.

A synthetic test bench, not medicine: nothing is measured, and what works on these drawings is not
thereby shown to work on a patient.

How it works (ours): every structure is a signed distance field, painted back to front with a
colour and a height. One light beside the lens then falls on that relief: it weakens with distance,
and a wet surface mirrors it where it faces the lens.

Lengths are in radii of the field of view: x grows to the image's right, y downwards, and heights
grow towards the lens. A distance is negative inside its shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

GRID = 288
"""Side of the square drawing in pixels; the camera enlarges it, for time goes with its square."""

EXTENT = 1.22
"""The drawing reaches from -EXTENT to EXTENT, so that a shifted view does not meet its edge."""

Field = np.ndarray
Box = tuple[slice, slice]
Colour = tuple[float, float, float]
Seed = int | Sequence[int]

MUCUS = (1.05, 1.02, 0.88)
RED = (0.80, 0.13, 0.13)
DARK = (0.20, 0.05, 0.05)


def generator(*keys: Seed) -> np.random.Generator:
    """The random generator of one purpose: every tuple of seeds has another, so that none disturbs another."""
    flat = [int(number) for key in keys for number in np.ravel(key)]
    return np.random.default_rng(np.random.SeedSequence(flat))


def smooth_noise(rng: np.random.Generator, cells: int) -> Field:
    """Smooth noise (GRID, GRID) of about unit variance, with `cells` waves across the drawing."""
    coarse = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((GRID, GRID), Image.Resampling.BICUBIC)) * 1.4


def step(distance: Field, soft: float) -> Field:
    """1 inside a shape, 0 outside, a smooth ramp of half width `soft` between."""
    t = np.clip(0.5 - distance / (2 * soft), 0, 1)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=1)
def _grid() -> tuple[Field, Field]:
    line = np.linspace(-EXTENT, EXTENT, GRID, dtype=np.float32)
    y, x = np.meshgrid(line, line, indexing="ij")
    return x, y


class Scene:
    """One drawing: colour (3, GRID, GRID), relief, gloss, and a mask for every painted finding.

    Noise drawn for the patient bends the coordinates `x`, `y` that the shapes are drawn in, so that no
    edge is a ruler's and no two exams look alike.
    """

    def __init__(self, patient: np.random.Generator, chance: Callable[[str], np.random.Generator]):
        x, y = _grid()
        self.x = x + 0.032 * smooth_noise(patient, 2) + 0.004 * smooth_noise(patient, 8)
        self.y = y + 0.032 * smooth_noise(patient, 2) + 0.004 * smooth_noise(patient, 8)
        self.mottle = smooth_noise(patient, 5) + 0.6 * smooth_noise(patient, 14)
        self.grain = smooth_noise(patient, 45)
        self.vessels = _vessel_trees(patient)
        self.colour = np.zeros((3, GRID, GRID), np.float32)
        self.relief = np.zeros((GRID, GRID), np.float32)
        self.gloss = np.zeros((GRID, GRID), np.float32)
        self.masks: dict[str, np.ndarray] = {}
        self.chance = chance  # a generator for each finding, so that a finding changes nothing else

    def ellipse(self, x: float, y: float, a: float, b: float, turn: float = 0.0) -> Field:
        """Distance (approximate) to an ellipse at (x, y), half axes a and b, turned by radians."""
        cos, sin = math.cos(turn), math.sin(turn)
        u = (self.x - x) * cos + (self.y - y) * sin
        v = (self.y - y) * cos - (self.x - x) * sin
        return (np.hypot(u / a, v / b) - 1) * min(a, b)

    def rod(self, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float) -> Field:
        """Distance to a round-ended rod from `start` (radius r0) to `end` (radius r1)."""
        (x0, y0), (x1, y1) = start, end
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((self.x - x0) * dx + (self.y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        return np.hypot(self.x - x0 - t * dx, self.y - y0 - t * dy) - (r0 + (r1 - r0) * t)

    def strand(self, rng: np.random.Generator, points: list[tuple[float, float]], r: float) -> Field:
        """Distance to a string of mucus through `points`, its thickness about r and uneven."""
        pieces = [self.rod(a, b, r * rng.uniform(0.6, 1.4), r * rng.uniform(0.6, 1.4)) for a, b in pairwise(points)]
        return np.minimum.reduce(pieces) + 0.012 * self.grain

    def paint(
        self,
        distance: Field,
        colour: Colour,
        height: float | Field,
        *,
        bulge: float = 0.0,
        rounding: float = 0.2,
        soft: float = 0.02,
        gloss: float = 0.6,
        opacity: float = 1.0,
        shade: float = 0.3,
        vessels: float = 0.25,
        finding: str | None = None,
    ) -> None:
        """Lay one structure over the drawing.

        Args:
            distance: its shape.
            height: of its rim; `bulge` is added over `rounding` inwards, as on a cushion.
            shade: how dark its shadow falls on what lies beside and below it.
            vessels: how strongly the patient's vessels show through it.
            finding: the finding that this structure is; its mask is where it hides the rest.
        """
        box = _box(distance < 0.2)
        distance = distance[box]
        if isinstance(height, np.ndarray):
            height = height[box]
        cover = step(distance, soft) * opacity
        shadow = 1 - shade * opacity * np.exp(np.maximum(distance, 0) * -14)
        rim = 1 - np.clip(distance * (-1 / rounding), 0, 1)
        texture = 1 + 0.045 * self.mottle[box] + 0.012 * self.grain[box]
        blood = vessels * self.vessels[box]
        for plane, tone, absorbed in zip(self.colour, colour, (0.22, 0.62, 0.58), strict=True):
            beneath = plane[box] * shadow
            plane[box] = beneath + (tone * texture * (1 - absorbed * blood) - beneath) * cover
        self.relief[box] += (height + bulge * (1 - rim * rim) - self.relief[box]) * cover
        self.gloss[box] += (gloss - self.gloss[box]) * cover
        for mask in self.masks.values():
            mask[box] &= cover < 0.5
        if finding:
            self._mark(finding, cover, box)

    def stain(self, cover: Field, colour: Colour, *, opacity: float = 0.55, vessels: float = 0.0, finding: str | None = None) -> None:
        """Tint the tissue where `cover` (0 to 1), without changing its shape."""
        box = _box(cover > 0.004)
        cover = cover[box]
        blood = vessels * self.vessels[box] * cover
        for plane, tone, absorbed in zip(self.colour, colour, (0.15, 0.6, 0.55), strict=True):
            tinted = plane[box] + (tone - plane[box]) * (opacity * cover)
            plane[box] = tinted * (1 - absorbed * blood)
        if finding:
            self._mark(finding, cover, box)

    def _mark(self, finding: str, cover: Field, box: Box) -> None:
        """Add the pixels of the box that `cover` about half fills to the finding's mask."""
        mask = self.masks.setdefault(finding, np.zeros((GRID, GRID), bool))
        mask[box] |= cover > 0.45

    def lit(self, light: tuple[float, float]) -> np.ndarray:
        """The scene (GRID, GRID, 3) under a light at (x, y): 0 to about 1, highlights above it."""
        x, y = _grid()
        # The lens sees in a wide angle: rays lean outwards, so a facing surface leans inwards.
        lean = np.stack([-0.55 * (x - light[0]), -0.55 * (y - light[1]), np.ones_like(x)])
        lean /= np.sqrt((lean * lean).sum(0))
        relief = gaussian_filter(self.relief, 0.7)
        wet = relief + 0.010 * self.mottle + 0.0035 * self.grain
        matt, mirror = (_facing(surface, lean) for surface in (relief, wet))
        near = 1.45 / (1 + 0.42 * (0.6 - relief)) ** 2
        body = near * (0.45 + 0.65 * matt)
        shine = self.gloss * near * np.clip(mirror, 0, 1) ** 40
        return np.moveaxis(self.colour * body + 1.6 * np.clip(shine - 0.28, 0, None), 0, -1)


def _facing(surface: Field, lean: np.ndarray) -> Field:
    """Cosine between a surface's normal and the ray to the lens (GRID, GRID).

    Slopes are cut at 2.5: the step from one structure to the next is no wall, only hidden depth.
    """
    slopes = np.gradient(surface, 2 * EXTENT / (GRID - 1))
    slope_y, slope_x = (np.clip(slope, -2.5, 2.5).astype(np.float32) for slope in slopes)
    facing = lean[2] - slope_x * lean[0] - slope_y * lean[1]
    return facing / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)


def _box(inside: np.ndarray) -> Box:
    """The rows and columns that hold all the True pixels: a small structure costs little."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _vessel_trees(rng: np.random.Generator) -> Field:
    """Branching vessels (GRID, GRID), 0 to 1, thinner at every fork."""
    image = Image.new("L", (GRID, GRID))
    pen = ImageDraw.Draw(image)
    twigs = [(*rng.uniform(0, GRID, 2), rng.uniform(0, 2 * np.pi), int(rng.integers(2, 4))) for _ in range(22)]
    while twigs:
        x, y, heading, width = twigs.pop()
        path = [(x, y)]
        for bend in rng.normal(0, 0.28, int(rng.integers(5, 12))):
            heading += bend
            x, y = x + 6 * np.cos(heading), y + 6 * np.sin(heading)
            path.append((x, y))
        pen.line(path, fill=85 * width, width=width - 1)
        if width > 1:
            twigs += [(x, y, heading + fork, width - 1) for fork in (-0.5, 0.5)]
    soft = image.filter(ImageFilter.GaussianBlur(0.8))
    return np.asarray(soft, np.float32) / 255


def paint_mucus(scene: Scene, shape: Field, height: float, finding: str, colour: Colour = MUCUS) -> None:
    """Thick, wet and nearly opaque."""
    scene.paint(shape, colour, height, bulge=0.07, rounding=0.08, opacity=0.92, gloss=1.2, shade=0.25, vessels=0, finding=finding)


def paint_bubbles(scene: Scene, rng: np.random.Generator, pool: Field) -> None:
    """Clear bubbles with a bright rim, where the distance field `pool` is inside."""
    inside = np.argwhere(pool < -0.04)
    for row, column in inside[rng.integers(0, len(inside), 14)]:
        x, y, r = scene.x[row, column], scene.y[row, column], rng.uniform(0.025, 0.06)
        bubble = scene.ellipse(x, y, r, r)
        scene.stain(step(np.abs(bubble) - 0.006, 0.012), (1.1, 1.05, 1.0))
        glint = scene.ellipse(x - 0.4 * r, y - 0.4 * r, 0.3 * r, 0.3 * r)
        scene.stain(step(glint, 0.012), (1.8, 1.8, 1.8), opacity=0.9)
