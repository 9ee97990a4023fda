"""Draws the phantom's throat.

A synthetic test bench, not medicine: the shapes (ours) follow an atlas from memory, nothing is
measured. Lengths and heights: see `scene`.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from entrep_cli.data.phantom.scene import RED, Field, Scene, paint_mucus, step


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
        paint_mucus(scene, scene.strand(rng, run, 0.075), -1.0, "posterior-wall-mucus")
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
    scene.paint(outer_arch, pink, -0.6 + 0.35 * outer_arch, bulge=0.22, rounding=0.15, gloss=0.8, vessels=0.45)
    if inflamed:
        scene.stain(step(np.abs(outer_arch + 0.05) - 0.06, 0.05) * step(-0.2 - y, 0.1), RED, vessels=0.8)
    tongue = scene.ellipse(0, tongue_y + 0.62, 0.98, 0.62)
    coated = (0.84, 0.54, 0.50)
    scene.paint(tongue + 0.006 * scene.grain, coated, -0.35, bulge=0.5, rounding=0.4, gloss=0.5, vessels=0.1)
    if "lingual-tonsillar-hypertrophy" in findings:
        rng = scene.chance("lingual-tonsillar-hypertrophy")
        for px in np.linspace(-0.52, 0.52, 8).tolist():
            r = rng.uniform(0.085, 0.12)
            lump = scene.ellipse(px, tongue_y + 0.10 + 0.35 * px * px + rng.uniform(-0.05, 0.05), r, r)
            scene.paint(lump, (0.92, 0.52, 0.44), -0.3, bulge=0.25, rounding=0.09, gloss=1.0, finding="lingual-tonsillar-hypertrophy")


def _paint_crypts(scene: Scene, patient: np.random.Generator, tonsil: Field, inflamed: bool) -> None:
    """Pits of a tonsil; in chronic inflammation, whitish plugs fill them."""
    inside = np.argwhere(tonsil < -0.04)
    for row, column in inside[(patient.random(9) * len(inside)).astype(int)]:
        pit = scene.ellipse(scene.x[row, column], scene.y[row, column], 0.022, 0.032)
        if inflamed:
            plug = (0.97, 0.93, 0.70)
            scene.paint(pit - 0.018, plug, -0.3, shade=0.12, vessels=0, finding="chronic-tonsillitis")
        else:
            scene.stain(step(pit, 0.02), (0.45, 0.15, 0.13))
