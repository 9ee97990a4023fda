"""One picture of the phantom, and where its findings are.

A synthetic test bench, not medicine; all of it is ours.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
from PIL import Image

from entrep_cli.data.phantom.ear import draw_ear
from entrep_cli.data.phantom.findings import FINDINGS, region_of
from entrep_cli.data.phantom.larynx import draw_larynx
from entrep_cli.data.phantom.nose import draw_nose
from entrep_cli.data.phantom.optics import Optics
from entrep_cli.data.phantom.scene import Scene, Seed, generator
from entrep_cli.data.phantom.throat import draw_throat

_DRAW = {
    "nose-right": draw_nose,
    "ear-right": draw_ear,
    "vc-open": partial(draw_larynx, is_open=True),
    "vc-closed": partial(draw_larynx, is_open=False),
    "throat": draw_throat,
}


def render(
    label: str, findings: Sequence[str], exam_seed: Seed, frame_seed: Seed | None, size: tuple[int, int] = (640, 480)
) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """Draw one endoscopic picture.

    Args:
        label: one of `PHANTOM_CLASSES`.
        findings: keys of `FINDINGS` of this label's region; none means normal.
        exam_seed: fixes the patient. A left and a right side under one seed are mirror images.
        frame_seed: fixes light, camera, blur and dirt. None: a centred, clean, sharp frame.
        size: width and height in pixels.

    Returns:
        The RGB picture, and for every visible finding but `normal` a boolean mask (height, width),
        inside the view.

    Raises:
        ValueError: for a label or a finding that does not exist or does not belong to the region.
    """
    region = region_of(label)
    for finding in findings:
        if finding not in FINDINGS or FINDINGS[finding].region not in (region, "any"):
            raise ValueError(f"no finding {finding!r} in region {region!r}")

    scene = _scene(label, findings, exam_seed)
    optics = Optics.steady(size) if frame_seed is None else Optics.draw(generator(frame_seed), size)
    # A left side is the right side's mirror image, the lamp excepted: it belongs to the endoscope.
    sign = -1 if label.endswith("-left") else 1
    lit = scene.lit((sign * optics.lamp[0], optics.lamp[1]))[:, ::sign]
    image = optics.photograph(lit)
    masks = {key: optics.project(mask[:, ::sign]) for key, mask in scene.masks.items()}
    return image, {key: mask for key, mask in masks.items() if mask.any()}


def _scene(label: str, findings: Collection[str], exam_seed: Seed) -> Scene:
    """The drawing of an exam's anatomy; always the right side."""
    region = region_of(label)

    def chance(purpose: str) -> np.random.Generator:
        return generator(exam_seed, zlib.crc32(purpose.encode()))

    patient = chance(region)
    scene = Scene(patient, chance)
    _DRAW[label.replace("-left", "-right")](scene, findings, patient)
    return scene
