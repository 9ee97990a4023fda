"""Draws the phantom's ear drum and ear canal.

A synthetic test bench, not medicine: the shapes (ours) follow an atlas from memory, nothing is
measured. Only the right side is drawn; `frames` mirrors it.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from entrep_cli.data.phantom.scene import RED, Scene, paint_mucus, step

PUS = (1.02, 0.90, 0.46)


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
    scene.stain(step(-drum - 0.06, 0.1) * step(drum, 0.02), (0.88, 0.62, 0.54), opacity=0.35, vessels=0.8)
    flaccid = scene.ellipse(process[0] - 0.04, process[1] - 0.10, 0.26, 0.12)
    scene.stain(step(np.maximum(flaccid, drum), 0.06), (0.85, 0.50, 0.44), vessels=0.6)
    incus = scene.rod((centre_x - 0.22, centre_y - 0.42), (centre_x - 0.2, centre_y - 0.12), 0.03, 0.02)
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
        scene.paint(scar + 0.02 * scene.mottle, chalk, -0.66, soft=0.03, shade=0.1, gloss=0.3, vessels=0, finding="membrane-scar")
    handle = scene.rod(process, umbo, 0.062, 0.034)
    scene.stain(step(np.abs(handle) - 0.01, 0.05), (0.80, 0.42, 0.36), opacity=0.4)
    ivory = (1.08, 0.95, 0.77)
    scene.paint(handle, ivory, -0.62, bulge=0.04, rounding=0.06, soft=0.03, shade=0.15, vessels=0.1)
    knob = scene.ellipse(*process, 0.078, 0.068)
    scene.paint(knob, ivory, -0.56, bulge=0.06, rounding=0.07, soft=0.025, shade=0.1, vessels=0)
    front_wall = scene.ellipse(centre_x + 1.35 * radius + 0.42 - overhang, centre_y, 0.60, 0.85)
    scene.paint(front_wall, skin, slope, bulge=0.35, rounding=0.5, soft=0.03, gloss=0.15, vessels=0.15)
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


def _paint_canal_findings(scene: Scene, findings: Collection[str], centre: tuple[float, float], radius: float) -> None:
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
        pool = np.maximum(centre[1] + 0.36 + 0.04 * scene.mottle - scene.y, scene.ellipse(centre[0], centre[1] + 0.35, radius * 0.95, 0.6))
        paint_mucus(scene, pool, -0.35, "purulent-discharge", PUS)
    if "foreign-body" in findings:
        rng = scene.chance("foreign-body")
        bead = scene.ellipse(centre[0] - 0.45, centre[1] + rng.uniform(-0.1, 0.3), 0.17, 0.16)
        blue = (0.16, 0.36, 0.78)
        scene.paint(bead, blue, -0.15, bulge=0.35, rounding=0.16, gloss=1.2, vessels=0, shade=0.6, finding="foreign-body")
