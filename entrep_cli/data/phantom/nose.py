"""Draws the phantom's nasal cavity.

A synthetic test bench, not medicine: the shapes (ours) follow an atlas from memory, nothing is
measured. Only the right side is drawn; `frames` mirrors it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from entrep_cli.data.phantom.scene import DARK, RED, Scene, paint_bubbles, paint_mucus, step


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
        polyp = scene.ellipse(-0.32 + rng.uniform(-0.04, 0.04), 0.0, rng.uniform(0.15, 0.19), 0.24, 0.3)
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
        paint_mucus(scene, mucus, -0.5, "whitish-mucus")
    if "watery-discharge" in findings:
        rng = scene.chance("watery-discharge")
        pool = np.maximum(0.60 + 0.03 * scene.mottle - y, scene.ellipse(0.0, 0.86, 0.62, 0.34))
        scene.paint(pool, (0.80, 0.68, 0.64), -0.35, opacity=0.75, gloss=0.8, shade=0.1, finding="watery-discharge")
        paint_bubbles(scene, rng, pool)
