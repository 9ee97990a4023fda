"""Draws the phantom's larynx, open and closed.

A synthetic test bench, not medicine: the shapes (ours) follow an atlas from memory, nothing is
measured. Lengths and heights: see `scene`.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from entrep_cli.data.phantom.scene import DARK, RED, Colour, Scene, paint_bubbles, paint_mucus, step


def draw_larynx(scene: Scene, findings: Collection[str], patient: np.random.Generator, *, is_open: bool) -> None:
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
            paint_mucus(scene, pool + 0.012 * scene.mottle, -0.3, "pyriform-mucus")
            paint_bubbles(scene, scene.chance("pyriform-mucus"), pool)
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
    false_cord = np.maximum(across - edge - width - 0.10 - 0.24 * np.sqrt(along), np.maximum(front - 0.06 - y, y - back - 0.10))
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
        paint_mucus(scene, scene.strand(rng, bridge, 0.05), -0.5, "endolaryngeal-mucus")
    _paint_epiglottis(scene, "omega-epiglottis" in findings, lid_width, lid_height)


def _paint_arytenoids(scene: Scene, findings: Collection[str], pink: Colour, half_gap: float, back: float) -> None:
    """Two knobs behind the cords that separate as the glottis opens, and the ridge between them."""
    puffy = "arytenoid-oedema" in findings
    size = 1.45 if puffy else 1.0
    ridge = scene.ellipse(0, back + 0.30, 0.26 + half_gap, 0.13)
    scene.paint(ridge, pink, -0.6, bulge=0.2, rounding=0.12, gloss=0.9)
    for side in (-1, 1):
        knob = scene.ellipse(side * (half_gap + 0.17), back + 0.18, 0.155 * size, 0.135 * size, side * 0.5)
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
        np.maximum(lid, -hollow), ivory, -0.25, bulge=0.35, rounding=0.13, vessels=0.7, gloss=0.7, shade=0.6, finding="omega-epiglottis"
    )
