"""Draws the four organs of the phantom: nose, ear, larynx and throat, as layers of lit tissue.

A synthetic test bench, not medicine: the shapes follow an atlas from memory, nothing is measured,
and nothing that works on them is thereby shown to work on a patient.

How it works (ours): every structure is a signed distance field, painted back to front with a
colour and a height. One light beside the lens then falls on that relief: it weakens with distance,
and a wet surface mirrors it where it faces the lens. Only right sides are drawn; `phantom` mirrors.

Lengths are in radii of the field of view: x grows to the image's right, y downwards, and heights
grow towards the lens. A distance is negative inside its shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
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

MUCUS = (1.05, 1.02, 0.88)
PUS = (1.02, 0.90, 0.46)
RED = (0.80, 0.13, 0.13)
DARK = (0.20, 0.05, 0.05)


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

    The patient's own noise bends the coordinates `x`, `y` that the shapes are drawn in, so that no
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
        self.chance = chance  # a finding's own generator, so that it leaves the rest as it was

    def ellipse(self, x: float, y: float, a: float, b: float, turn: float = 0.0) -> Field:
        """Distance (approximate) to an ellipse at (x, y), half axes a and b, turned by radians."""
        cos, sin = math.cos(turn), math.sin(turn)
        u = (self.x - x) * cos + (self.y - y) * sin
        v = (self.y - y) * cos - (self.x - x) * sin
        return (np.hypot(u / a, v / b) - 1) * min(a, b)

    def rod(
        self, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float
    ) -> Field:
        """Distance to a round-ended rod from `start` (radius r0) to `end` (radius r1)."""
        (x0, y0), (x1, y1) = start, end
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((self.x - x0) * dx + (self.y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        return np.hypot(self.x - x0 - t * dx, self.y - y0 - t * dy) - (r0 + (r1 - r0) * t)

    def strand(
        self, rng: np.random.Generator, points: list[tuple[float, float]], r: float
    ) -> Field:
        """Distance to a string of mucus through `points`, its thickness about r and uneven."""
        parts = [
            self.rod(a, b, r * rng.uniform(0.6, 1.4), r * rng.uniform(0.6, 1.4))
            for a, b in pairwise(points)
        ]
        return np.minimum.reduce(parts) + 0.012 * self.grain

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
        """Lay one structure over what is there.

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

    def stain(
        self,
        cover: Field,
        colour: Colour,
        *,
        opacity: float = 0.55,
        vessels: float = 0.0,
        finding: str | None = None,
    ) -> None:
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

    Slopes are cut at 2.5: the step from one structure to the next is no wall, only unseen depth.
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
    twigs = [
        (*rng.uniform(0, GRID, 2), rng.uniform(0, 2 * np.pi), int(rng.integers(2, 4)))
        for _ in range(22)
    ]
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


def draw_nose(scene: Scene, findings: Collection[str], patient: np.random.Generator) -> None:
    """Right nasal cavity: septum on the image's right, turbinates left, the passage between."""
    x, y = scene.x, scene.y
    passage = patient.uniform(0.16, 0.26)
    middle_x = patient.uniform(-0.16, -0.08)
    inferior_y = patient.uniform(0.36, 0.48)
    size = patient.uniform(0.92, 1.05)
    pink = (0.88 + patient.uniform(-0.04, 0.04), 0.47 + patient.uniform(-0.05, 0.05), 0.44)
    wall, septum_pink = tuple(0.9 * c for c in pink), (pink[0], pink[1] + 0.05, pink[2] + 0.04)
    swollen = "turbinate-enlargement" in findings
    if swollen:
        size *= 1.3

    scene.paint(np.full_like(x, -1.0), DARK, -2.6, gloss=0)
    scene.paint(scene.ellipse(0.08, 0.24, 0.15, 0.25), wall, -1.5, bulge=0.2, soft=0.09, shade=0)
    floor = 0.68 + 0.25 * (x - 0.1) ** 2 - y
    scene.paint(floor, wall, -1.1 - 1.5 * floor, rounding=0.3, bulge=0.2)
    lateral = x + 0.40
    scene.paint(lateral, wall, -1.2 - 1.1 * lateral, soft=0.05)
    middle = scene.rod((middle_x - 0.05, -1.3), (middle_x, -0.04), 0.38, 0.20)
    scene.paint(middle, pink, -0.85, bulge=0.55, rounding=0.22, gloss=0.9)
    if "nasal-polyp" in findings:
        rng = scene.chance("nasal-polyp")
        polyp = scene.ellipse(
            -0.32 + rng.uniform(-0.04, 0.04), 0.0, rng.uniform(0.15, 0.19), 0.24, 0.3
        )
        pearl = (1.02, 0.86, 0.72)
        scene.paint(polyp, pearl, -0.6, bulge=0.5, vessels=0.1, gloss=1.2, finding="nasal-polyp")
    inferior = scene.ellipse(-0.78, inferior_y, 0.70 * size, 0.40 * size, 0.10)
    key = "turbinate-enlargement" if swollen else None
    scene.paint(inferior, pink, -0.6, bulge=0.75, rounding=0.34, gloss=0.9, finding=key)

    edge = passage + 0.09 * np.cos(2.2 * (y + 0.2))
    bend, ridge = np.zeros_like(x), np.zeros_like(x)
    if "septal-deviation" in findings:
        bend = np.exp(-(((y + 0.55) / 0.28) ** 2))
    if "septal-spur" in findings:
        rng = scene.chance("septal-spur")
        level, sharpness = rng.uniform(0.15, 0.35), rng.uniform(0.07, 0.10)
        ridge = np.exp(-(np.abs((y - level + 0.25 * (x - passage)) / sharpness) ** 1.5))
    septum = edge - 0.30 * bend - 0.24 * ridge - x
    crest = ridge * step(x - passage - 0.42, 0.3)
    height = -1.0 - 1.25 * septum + 0.45 * crest
    scene.paint(septum, septum_pink, height, rounding=0.25, bulge=0.25, vessels=0.4)
    if "septal-deviation" in findings:
        bulge = bend * step(septum, 0.02) * step(x - passage - 0.16, 0.1)
        scene.stain(bulge, septum_pink, finding="septal-deviation")
    if "septal-spur" in findings:
        pale = (1.02, 0.80, 0.70)
        scene.stain(crest * step(septum, 0.02), pale, opacity=0.7, finding="septal-spur")

    tissue = step(np.minimum(np.minimum(middle, inferior), lateral), 0.03) * step(-septum, 0.03)
    if "pale-mucosa" in findings:
        scene.stain(tissue, (0.83, 0.76, 0.78), finding="pale-mucosa")
    if "nasal-erythema" in findings:
        mucosa = np.maximum(tissue, step(septum, 0.03))
        scene.stain(mucosa, RED, opacity=0.45, vessels=0.9, finding="nasal-erythema")
    if "whitish-mucus" in findings:
        rng = scene.chance("whitish-mucus")
        spots = [(-0.34, -0.35), (-0.24, -0.02), (-0.05, 0.14), (0.06, 0.4), (0.10, 0.62)]
        bent = [(px + rng.uniform(-0.05, 0.05), py) for px, py in spots]
        mucus = scene.strand(rng, bent, 0.075)
        _paint_mucus(scene, mucus, -0.5, "whitish-mucus")
    if "watery-discharge" in findings:
        rng = scene.chance("watery-discharge")
        pool = np.maximum(0.60 + 0.03 * scene.mottle - y, scene.ellipse(0.0, 0.86, 0.62, 0.34))
        scene.paint(
            pool,
            (0.80, 0.68, 0.64),
            -0.35,
            opacity=0.75,
            gloss=0.8,
            shade=0.1,
            finding="watery-discharge",
        )
        _paint_bubbles(scene, rng, pool)


def _paint_mucus(
    scene: Scene, shape: Field, height: float, finding: str, colour: Colour = MUCUS
) -> None:
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


def _paint_bubbles(scene: Scene, rng: np.random.Generator, pool: Field) -> None:
    """Clear bubbles with a bright rim, where the distance field `pool` is inside."""
    inside = np.argwhere(pool < -0.04)
    for row, column in inside[rng.integers(0, len(inside), 14)]:
        x, y, r = scene.x[row, column], scene.y[row, column], rng.uniform(0.025, 0.06)
        bubble = scene.ellipse(x, y, r, r)
        scene.stain(step(np.abs(bubble) - 0.006, 0.012), (1.1, 1.05, 1.0))
        glint = scene.ellipse(x - 0.4 * r, y - 0.4 * r, 0.3 * r, 0.3 * r)
        scene.stain(step(glint, 0.012), (1.8, 1.8, 1.8), opacity=0.9)


def draw_ear(scene: Scene, findings: Collection[str], patient: np.random.Generator) -> None:
    """Right ear drum at the end of its canal: handle of malleus from 1 o'clock to the umbo, cone
    of light at 5 o'clock, the anterior canal wall bulging in from the image's right."""
    x, y = scene.x, scene.y
    centre_x, centre_y = patient.uniform(-0.10, -0.02), patient.uniform(-0.02, 0.04)
    radius = patient.uniform(0.62, 0.68)
    lean = patient.uniform(-0.1, 0.1)
    skin = (0.92 + patient.uniform(-0.04, 0.04), 0.63 + patient.uniform(-0.06, 0.04), 0.53)
    umbo = (centre_x + patient.uniform(-0.03, 0.02), centre_y + 0.08)
    process = (centre_x + 0.24 + 0.5 * lean, centre_y - 0.44)
    overhang = patient.uniform(0.02, 0.12)
    thick = "membrane-thickened" in findings

    drum = scene.ellipse(centre_x, centre_y, radius * 0.95, radius, 0.2)
    slope = -0.55 + 1.1 * drum  # of the canal's wall, towards the lens
    scene.paint(np.full_like(x, -1.0), skin, slope, gloss=0.15, vessels=0.15)
    if "canal-erythema" in findings:
        scene.stain(step(-drum, 0.06), RED, vessels=0.8, finding="canal-erythema")
    scene.paint(drum - 0.025, (0.82, 0.70, 0.62), -0.6, shade=0.4, vessels=0.3)
    pearl = (0.84, 0.81, 0.77)
    from_umbo = np.hypot(x - umbo[0], y - umbo[1])
    # The drum is a shallow funnel whose deepest point is the umbo.
    scene.paint(drum, pearl, -0.75 + 0.22 * from_umbo, gloss=0.35, shade=0.15, vessels=0.12)
    promontory = scene.ellipse(centre_x - 0.1, centre_y + 0.22, 0.3, 0.24)
    scene.stain(0.6 * step(promontory, 0.2), (0.98, 0.80, 0.62))
    scene.stain(
        step(-drum - 0.06, 0.1) * step(drum, 0.02), (0.88, 0.62, 0.54), opacity=0.35, vessels=0.8
    )
    flaccid = scene.ellipse(process[0] - 0.04, process[1] - 0.10, 0.26, 0.12)
    scene.stain(step(np.maximum(flaccid, drum), 0.06), (0.85, 0.50, 0.44), vessels=0.6)
    incus = scene.rod(
        (centre_x - 0.22, centre_y - 0.42), (centre_x - 0.2, centre_y - 0.12), 0.03, 0.02
    )
    scene.stain(0.5 * step(incus, 0.05), (0.62, 0.52, 0.46))
    if thick:
        cloud = step(drum + 0.04, 0.1) * np.clip(0.9 + 0.2 * scene.mottle, 0.6, 1)
        cream = (0.97, 0.87, 0.68)
        scene.stain(cloud, cream, opacity=0.85, finding="membrane-thickened")
    else:
        _paint_cone_of_light(scene, umbo)
    if "membrane-scar" in findings:
        rng = scene.chance("membrane-scar")
        scar = scene.ellipse(centre_x - 0.27, centre_y + 0.24, rng.uniform(0.15, 0.19), 0.12, 0.8)
        chalk = (1.25, 1.22, 1.14)
        scene.paint(
            scar + 0.02 * scene.mottle,
            chalk,
            -0.66,
            soft=0.03,
            shade=0.1,
            gloss=0.3,
            vessels=0,
            finding="membrane-scar",
        )
    handle = scene.rod(process, umbo, 0.062, 0.034)
    scene.stain(step(np.abs(handle) - 0.01, 0.05), (0.80, 0.42, 0.36), opacity=0.4)
    ivory = (1.08, 0.95, 0.77)
    scene.paint(handle, ivory, -0.62, bulge=0.04, rounding=0.06, soft=0.03, shade=0.15, vessels=0.1)
    knob = scene.ellipse(*process, 0.078, 0.068)
    scene.paint(knob, ivory, -0.56, bulge=0.06, rounding=0.07, soft=0.025, shade=0.1, vessels=0)
    front_wall = scene.ellipse(centre_x + 1.35 * radius + 0.42 - overhang, centre_y, 0.60, 0.85)
    scene.paint(
        front_wall, skin, slope, bulge=0.35, rounding=0.5, soft=0.03, gloss=0.15, vessels=0.15
    )
    if "canal-erythema" in findings:
        scene.stain(step(front_wall, 0.03), RED, vessels=0.8, finding="canal-erythema")
    _paint_canal_findings(scene, findings, (centre_x, centre_y), radius)


def _paint_cone_of_light(scene: Scene, umbo: tuple[float, float]) -> None:
    """A bright triangle from the umbo to 5 o'clock, 0.42 long."""
    angle = math.radians(150)  # 5 o'clock, clockwise from 12
    sin, cos = math.sin(angle), math.cos(angle)
    along = (scene.x - umbo[0]) * sin - (scene.y - umbo[1]) * cos
    across = np.abs((scene.x - umbo[0]) * cos + (scene.y - umbo[1]) * sin)
    cone = np.maximum(across - 0.02 - 0.28 * along, np.maximum(0.03 - along, along - 0.42))
    scene.stain(step(cone, 0.035), (1.9, 1.9, 1.8), opacity=0.95)


def _paint_canal_findings(
    scene: Scene, findings: Collection[str], centre: tuple[float, float], radius: float
) -> None:
    """What lies in the ear canal, before the drum: wax, pus, a foreign body."""
    if "cerumen" in findings:
        rng = scene.chance("cerumen")
        brown = (0.52 + rng.uniform(-0.08, 0.1), 0.29, 0.09)
        for _ in range(7):
            angle = rng.uniform(0.45, 1.15) * math.pi
            away = radius * rng.uniform(0.75, 1.15)
            lump = scene.ellipse(
                centre[0] + away * math.cos(angle),
                centre[1] + away * math.sin(angle),
                rng.uniform(0.12, 0.22),
                rng.uniform(0.09, 0.15),
                angle,
            )
            scene.paint(
                lump + 0.02 * scene.mottle + 0.012 * scene.grain,
                brown,
                -0.2,
                bulge=0.3,
                rounding=0.12,
                gloss=0.7,
                vessels=0,
                finding="cerumen",
            )
    if "purulent-discharge" in findings:
        pool = np.maximum(
            centre[1] + 0.36 + 0.04 * scene.mottle - scene.y,
            scene.ellipse(centre[0], centre[1] + 0.35, radius * 0.95, 0.6),
        )
        _paint_mucus(scene, pool, -0.35, "purulent-discharge", PUS)
    if "foreign-body" in findings:
        rng = scene.chance("foreign-body")
        bead = scene.ellipse(centre[0] - 0.45, centre[1] + rng.uniform(-0.1, 0.3), 0.17, 0.16)
        blue = (0.16, 0.36, 0.78)
        scene.paint(
            bead,
            blue,
            -0.15,
            bulge=0.35,
            rounding=0.16,
            gloss=1.2,
            vessels=0,
            shade=0.6,
            finding="foreign-body",
        )


def draw_larynx(
    scene: Scene, findings: Collection[str], patient: np.random.Generator, *, is_open: bool
) -> None:
    """Larynx from above as in the mirror: epiglottis at the top, arytenoids at the bottom, two pale
    cords that meet in front; between them, when open, the dark triangle of the glottis."""
    x, y = scene.x, scene.y
    pink = (0.86 + patient.uniform(-0.04, 0.04), 0.46 + patient.uniform(-0.05, 0.05), 0.42)
    dull = tuple(0.85 * c for c in pink)
    front, back = patient.uniform(-0.46, -0.38), patient.uniform(0.34, 0.42)
    width = patient.uniform(0.120, 0.145)
    gap = patient.uniform(0.25, 0.34)
    lid_width, lid_height = patient.uniform(0.52, 0.66), patient.uniform(0.30, 0.38)
    half_gap = gap if is_open else 0.0
    swollen_cords = "cord-oedema" in findings
    if swollen_cords:
        width *= 1.5

    scene.paint(np.full_like(x, -1.0), dull, -0.9 + 0.5 * np.hypot(x, y) ** 2, gloss=0.5)
    across = np.abs(x)
    for side in (-1, 1):
        sinus = scene.ellipse(side * 0.74, 0.34, 0.17, 0.32, -side * 0.25)
        scene.paint(sinus, DARK, -2.2, soft=0.08, gloss=0.2, shade=0.2)
        if "pyriform-mucus" in findings:
            pool = np.maximum(scene.ellipse(side * 0.72, 0.42, 0.19, 0.28, -side * 0.25), 0.24 - y)
            _paint_mucus(scene, pool + 0.012 * scene.mottle, -0.3, "pyriform-mucus")
            _paint_bubbles(scene, scene.chance("pyriform-mucus"), pool)
    inlet = scene.ellipse(0, 0.02, 0.60, 0.66)
    scene.paint(np.abs(inlet) - 0.07, pink, -0.55, bulge=0.28, rounding=0.09, gloss=0.9)
    scene.paint(inlet + 0.05, dull, -0.9, shade=0.3)

    # The edge of a cord runs straight from the front commissure to the vocal process behind.
    along = np.clip((y - front) / (back - front), 0, 1)
    edge = half_gap * along
    breadth = width * (0.65 + 0.35 * along)
    cord_length = np.maximum(front - 0.03 - y, y - back - 0.02)
    if is_open:
        glottis = np.maximum(across - edge, np.maximum(front - y, y - back - 0.10))
        scene.paint(glottis - 0.02, DARK, -2.8, soft=0.02, gloss=0, shade=0.2)
        rings = step(np.abs(((y + 0.6) % 0.17) - 0.085) - 0.03, 0.03) * step(glottis + 0.05, 0.04)
        scene.stain(0.35 * rings, (0.75, 0.40, 0.36))
    false_cord = np.maximum(
        across - edge - width - 0.10 - 0.24 * np.sqrt(along),
        np.maximum(front - 0.06 - y, y - back - 0.10),
    )
    hidden = np.maximum(false_cord, edge + width + 0.03 - across)
    scene.paint(hidden, pink, -0.85, bulge=0.40, rounding=0.16, soft=0.03, gloss=0.9)
    cord = np.maximum(np.abs(across - edge - 0.5 * breadth - 0.008) - 0.5 * breadth, cord_length)
    white = (1.0, 0.92, 0.86)
    scene.paint(
        cord,
        white,
        -0.55,
        bulge=0.28 if swollen_cords else 0.14,
        rounding=width / 2,
        gloss=0.7,
        vessels=0.1,
        finding="cord-oedema" if swollen_cords else None,
    )
    if not is_open:
        slit = step(np.maximum(across - 0.008, cord_length), 0.012)
        scene.stain(slit, DARK, opacity=0.8)
    if "cord-erythema" in findings:
        flush = (0.86, 0.22, 0.20)
        scene.stain(step(cord, 0.03), flush, opacity=0.7, vessels=0.9, finding="cord-erythema")

    _paint_arytenoids(scene, findings, pink, half_gap, back)
    if "endolaryngeal-mucus" in findings:
        rng = scene.chance("endolaryngeal-mucus")
        level = rng.uniform(-0.12, 0.12)
        bridge = [(-0.34, level - 0.05), (-0.12, level), (0.12, level + 0.04), (0.34, level - 0.03)]
        _paint_mucus(scene, scene.strand(rng, bridge, 0.05), -0.5, "endolaryngeal-mucus")
    _paint_epiglottis(scene, "omega-epiglottis" in findings, lid_width, lid_height)


def _paint_arytenoids(
    scene: Scene, findings: Collection[str], pink: Colour, half_gap: float, back: float
) -> None:
    """Two knobs behind the cords that part as the glottis opens, and the ridge between them."""
    puffy = "arytenoid-oedema" in findings
    size = 1.45 if puffy else 1.0
    ridge = scene.ellipse(0, back + 0.30, 0.26 + half_gap, 0.13)
    scene.paint(ridge, pink, -0.6, bulge=0.2, rounding=0.12, gloss=0.9)
    for side in (-1, 1):
        knob = scene.ellipse(
            side * (half_gap + 0.17), back + 0.18, 0.155 * size, 0.135 * size, side * 0.5
        )
        scene.paint(
            knob,
            pink,
            -0.45,
            bulge=0.45 if puffy else 0.3,
            rounding=0.13 * size,
            gloss=1.0,
            vessels=0.35,
            finding="arytenoid-oedema" if puffy else None,
        )
        if "arytenoid-erythema" in findings:
            scene.stain(step(knob - 0.03, 0.05), RED, vessels=0.9, finding="arytenoid-erythema")
    if "arytenoid-erythema" in findings:
        scene.stain(step(ridge, 0.05), RED, vessels=0.9, finding="arytenoid-erythema")
    if "posterior-commissure-hypertrophy" in findings:
        heap = scene.ellipse(0, back + 0.12, 0.15 + 0.5 * half_gap, 0.12)
        scene.paint(
            heap + 0.02 * np.abs(scene.mottle),
            (0.93, 0.72, 0.66),
            -0.25,
            bulge=0.35,
            rounding=0.12,
            gloss=0.9,
            vessels=0.2,
            finding="posterior-commissure-hypertrophy",
        )


def _paint_epiglottis(scene: Scene, omega: bool, width: float, height: float) -> None:
    """The lid at the top; as an omega it is narrow, tall and rolled in at both edges."""
    ivory = (0.93, 0.70, 0.58)
    if not omega:
        lid = scene.ellipse(0, -0.92, width, height)
        scene.paint(lid, ivory, -0.25, bulge=0.35, rounding=0.25, vessels=0.7, gloss=0.7, shade=0.6)
        return
    lobes = [scene.ellipse(side * 0.25, -0.52, 0.13, 0.15) for side in (-1, 1)]
    lid = np.minimum.reduce([scene.ellipse(0, -0.84, 0.34, 0.42), *lobes])
    hollow = scene.ellipse(0, -0.50, 0.13, 0.22)
    scene.paint(
        np.maximum(lid, -hollow),
        ivory,
        -0.25,
        bulge=0.35,
        rounding=0.13,
        vessels=0.7,
        gloss=0.7,
        shade=0.6,
        finding="omega-epiglottis",
    )


def draw_throat(scene: Scene, findings: Collection[str], patient: np.random.Generator) -> None:
    """Oropharynx through the mouth: back wall, two tonsils between their pillars, palate with uvula
    above, base of the tongue below."""
    x, y = scene.x, scene.y
    pink = (0.87 + patient.uniform(-0.04, 0.04), 0.46 + patient.uniform(-0.05, 0.05), 0.41)
    back_wall = (pink[0] * 0.95, pink[1] * 0.92, pink[2] * 0.92)
    uvula_tip = (patient.uniform(-0.05, 0.05), patient.uniform(-0.12, 0.02))
    arch = patient.uniform(0.72, 0.80)
    tongue_y = patient.uniform(0.54, 0.64)
    size = patient.uniform(0.85, 1.0)
    swollen = "tonsillar-hypertrophy" in findings
    inflamed = "chronic-tonsillitis" in findings
    if swollen:
        size *= 1.5

    scene.paint(np.full_like(x, -1.0), back_wall, -0.95, vessels=0.55, gloss=0.5)
    for px, py, r in patient.uniform((-0.4, -0.3, 0.03), (0.4, 0.6, 0.07), (10, 3)).tolist():
        granule = scene.ellipse(px, py, r, 0.8 * r)  # lymphoid, as common on this wall
        scene.paint(granule, back_wall, -0.95, bulge=0.08, rounding=0.05, soft=0.03, shade=0.12)
    if "posterior-wall-erythema" in findings:
        wall = step(scene.ellipse(0, 0.22, 0.46, 0.55), 0.12)
        scene.stain(wall, RED, vessels=1.0, finding="posterior-wall-erythema")
    if "posterior-wall-mucus" in findings:
        rng = scene.chance("posterior-wall-mucus")
        spots = [(rng.uniform(-0.1, 0.1), py) for py in (-0.25, 0.0, 0.22, 0.42, 0.6)]
        side = float(rng.choice([-0.16, 0.16]))
        run = [(px + side, py) for px, py in spots]
        _paint_mucus(scene, scene.strand(rng, run, 0.075), -1.0, "posterior-wall-mucus")
    inner_arch = -scene.ellipse(0, 0.36, arch * 0.76, 0.86)
    scene.paint(inner_arch, pink, -0.95, bulge=0.2, rounding=0.12)
    for side in (-1, 1):
        tonsil = scene.ellipse(side * arch * 0.82, 0.16, 0.23 * size, 0.38 * size, side * 0.1)
        scene.paint(
            tonsil + 0.012 * scene.mottle,
            (0.92, 0.48, 0.40),
            -0.6,
            bulge=0.42,
            rounding=0.2,
            gloss=0.9,
            finding="tonsillar-hypertrophy" if swollen else None,
        )
        _paint_crypts(scene, patient, tonsil, inflamed)
    uvula = scene.rod((0.3 * uvula_tip[0], -0.56), uvula_tip, 0.17, 0.11)
    scene.paint(uvula, pink, -0.55, bulge=0.3, rounding=0.11, gloss=1.0, vessels=0.4)
    outer_arch = -scene.ellipse(0, 0.34, arch + 0.06, 0.88)
    scene.paint(
        outer_arch,
        pink,
        -0.6 + 0.35 * outer_arch,
        bulge=0.22,
        rounding=0.15,
        gloss=0.8,
        vessels=0.45,
    )
    if inflamed:
        scene.stain(
            step(np.abs(outer_arch + 0.05) - 0.06, 0.05) * step(-0.2 - y, 0.1), RED, vessels=0.8
        )
    tongue = scene.ellipse(0, tongue_y + 0.62, 0.98, 0.62)
    coated = (0.84, 0.54, 0.50)
    scene.paint(
        tongue + 0.006 * scene.grain, coated, -0.35, bulge=0.5, rounding=0.4, gloss=0.5, vessels=0.1
    )
    if "lingual-tonsillar-hypertrophy" in findings:
        rng = scene.chance("lingual-tonsillar-hypertrophy")
        for px in np.linspace(-0.52, 0.52, 8).tolist():
            r = rng.uniform(0.085, 0.12)
            lump = scene.ellipse(
                px, tongue_y + 0.10 + 0.35 * px * px + rng.uniform(-0.05, 0.05), r, r
            )
            scene.paint(
                lump,
                (0.92, 0.52, 0.44),
                -0.3,
                bulge=0.25,
                rounding=0.09,
                gloss=1.0,
                finding="lingual-tonsillar-hypertrophy",
            )


def _paint_crypts(
    scene: Scene, patient: np.random.Generator, tonsil: Field, inflamed: bool
) -> None:
    """Pits of a tonsil; in chronic inflammation, whitish plugs fill them."""
    inside = np.argwhere(tonsil < -0.04)
    for row, column in inside[(patient.random(9) * len(inside)).astype(int)]:
        pit = scene.ellipse(scene.x[row, column], scene.y[row, column], 0.022, 0.032)
        if inflamed:
            plug = (0.97, 0.93, 0.70)
            scene.paint(
                pit - 0.018, plug, -0.3, shade=0.12, vessels=0, finding="chronic-tonsillitis"
            )
        else:
            scene.stain(step(pit, 0.02), (0.45, 0.15, 0.13))
