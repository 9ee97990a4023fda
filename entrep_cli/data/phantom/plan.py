"""Which exams a phantom dataset holds, which frames they have, and which findings they show.

A synthetic test bench, not medicine; all of it is ours. Nothing is drawn or written here.
"""

from __future__ import annotations

import uuid
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from entrep_cli.data.phantom.findings import CONTEST_IMAGES, CONTRARY, FINDINGS, NORMAL, region_of
from entrep_cli.data.phantom.scene import generator


@dataclass(frozen=True)
class Frame:
    """One picture to be drawn, and all that the dataset's files say about it."""

    subset: str
    exam: int
    label: str
    findings: tuple[str, ...]
    name: str
    seed: tuple[int, int, int]

    @property
    def group(self) -> str:
        return f"exam-{self.exam:04d}"

    def text(self, language: str) -> str:
        """The description, its findings joined as in the contest's texts."""
        return ", ".join(getattr(FINDINGS[key], language) for key in self.findings)


def plan_frames(images: int, test_images: int, seed: int) -> list[Frame]:
    """All frames of `train` and `test`, exam by exam. An exam lies in one of them only."""
    rng = generator(seed, zlib.crc32(b"plan"))
    exams = [
        (subset, labels) for subset, total in (("train", images), ("test", test_images)) for labels in _exams(_class_counts(total), rng)
    ]
    rng.shuffle(exams)  # an exam's number tells neither its subset nor its region
    frames = []
    single: dict[tuple[str, str], tuple[str, ...]] = {}
    for exam, (subset, labels) in enumerate(exams):
        findings: dict[str, tuple[str, ...]] = {}
        for number, label in enumerate(labels):
            # Two sides are two organs; open and closed are one larynx.
            organ = label if label.endswith(("-left", "-right")) else region_of(label)
            if organ not in findings:
                # Every second patient has what the one before had: even few images make pairs.
                twin = single.pop((subset, organ), None)
                findings[organ] = twin or _draw_findings(region_of(label), rng)
                if not twin:
                    single[subset, organ] = findings[organ]
            name = f"{uuid.UUID(bytes=rng.bytes(16), version=4)}.png"
            frames.append(Frame(subset, exam, label, findings[organ], name, (seed, exam, number)))
    return frames


def _class_counts(total: int) -> dict[str, int]:
    """Images of each class: at least a handful of each, the rest in the contest's proportions."""
    least = min(4, total // len(CONTEST_IMAGES))
    spare = total - least * len(CONTEST_IMAGES)
    exact = {label: spare * images / sum(CONTEST_IMAGES.values()) for label, images in CONTEST_IMAGES.items()}
    counts = {label: least + int(exact[label]) for label in CONTEST_IMAGES}
    by_remainder = sorted(CONTEST_IMAGES, key=lambda label: int(exact[label]) - exact[label])
    for label in by_remainder[: total - sum(counts.values())]:
        counts[label] += 1
    return counts


def _exams(counts: dict[str, int], rng: np.random.Generator) -> list[list[str]]:
    """Classes of the frames of every exam: 1 to 4 frames of one region, at times of both sides."""
    exams: list[list[str]] = []
    for region in dict.fromkeys(map(region_of, counts)):
        left = Counter({label: n for label, n in counts.items() if region_of(label) == region})
        while left.total():
            frames: list[str] = []
            for _ in range(min(int(rng.integers(1, 5)), left.total())):
                stays = frames and left[frames[-1]] and rng.random() < 0.6
                label = frames[-1] if stays else str(rng.choice(list(left.elements())))
                left[label] -= 1
                frames.append(label)
            exams.append(frames)
    return exams


def _draw_findings(region: str, rng: np.random.Generator) -> tuple[str, ...]:
    """None (normal), one or two findings of a region, in the table's order."""
    keys = [key for key, finding in FINDINGS.items() if finding.region == region]
    count = rng.choice(3, p=(0.3, 0.45, 0.25))
    if count == 0:
        return (NORMAL,)
    drawn = {str(key) for key in rng.choice(keys, count, replace=False)}
    while drawn in CONTRARY:
        drawn = {str(key) for key in rng.choice(keys, count, replace=False)}
    return tuple(key for key in keys if key in drawn)
