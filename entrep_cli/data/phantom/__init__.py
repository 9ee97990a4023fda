"""A procedural ENT endoscope: writes a synthetic dataset in the contest's layout, truth included.

    entrep synth phantom --images 700 --seed 0
    entrep synth phantom --images 60 --test-images 30     # a few seconds

A synthetic test bench, not medicine. It lets every command run, and be tested, without a patient's
picture: the sides are true mirror images, exams hold several frames, findings are visible where
their masks say. The pictures are drawings; a score on them proves nothing about patients.

All of it is ours; class frequencies and the vocabulary of the findings follow the ENTRep challenge.

The modules, each of which imports only from those before it:

    findings                    the classes, and what is visible in them
    scene                       layers of lit tissue, the fluids that organs have in common, random generators
    nose, ear, larynx, throat   an organ each
    optics                      camera, lamp and dirt
    frames                      one picture, and the masks of its findings
    plan, dataset               the exams and frames of a dataset; their files
"""

from entrep_cli.data.phantom.dataset import write_phantom
from entrep_cli.data.phantom.findings import FINDINGS, PHANTOM_CLASSES, Finding, region_of
from entrep_cli.data.phantom.frames import render

__all__ = ["FINDINGS", "PHANTOM_CLASSES", "Finding", "region_of", "render", "write_phantom"]
