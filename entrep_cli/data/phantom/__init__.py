"""A procedural ENT endoscope: writes a synthetic dataset in the contest's layout, truth included.

    entrep synth phantom --images 700 --seed 0
    entrep synth phantom --images 60 --test-images 30     # a few seconds

A synthetic test bench, not medicine. It lets every command run, and be tested, without a patient's
picture: the sides are true mirror images, exams hold several frames, findings can be seen where
their masks say. The pictures are drawings; a score on them proves nothing about patients.

All of it is ours; class shares and the vocabulary of the findings follow the ENTRep challenge.

The modules, each of which imports only from those before it:

    findings, seeds             the classes, what can be seen in them; a generator for every purpose
    scene, tissue               layers of lit tissue; the colours and fluids that organs share
    nose, ear, larynx, throat   an organ each
    optics                      camera, lamp and dirt
    frames                      one picture, and the masks of its findings
    plan, dataset               which exams and frames there are; their files
"""

from entrep_cli.data.phantom.dataset import write_phantom
from entrep_cli.data.phantom.findings import FINDINGS, PHANTOM_CLASSES, Finding, region_of
from entrep_cli.data.phantom.frames import draw_frame, finding_box, render

__all__ = [
    "FINDINGS",
    "PHANTOM_CLASSES",
    "Finding",
    "draw_frame",
    "finding_box",
    "region_of",
    "render",
    "write_phantom",
]
