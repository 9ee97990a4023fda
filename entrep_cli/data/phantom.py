"""A procedural ENT endoscope: writes a synthetic dataset in the contest's layout, truth included.

    entrep synth data/phantom --images 700 --seed 0
    entrep synth data/phantom --images 60 --test-images 30     # a few seconds

A test bench, nothing else. It lets every command run, and be tested, without a patient's picture:
the sides are true mirror images, exams hold several frames, findings can be seen where their masks
say. The pictures are drawings (`phantom_anatomy`); a score on them proves nothing about patients.

All of it is ours; class shares and the vocabulary of the findings follow the ENTRep challenge.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from entrep_cli.data.phantom_anatomy import (
    EXTENT,
    GRID,
    Scene,
    draw_ear,
    draw_larynx,
    draw_nose,
    draw_throat,
)
from entrep_cli.errors import DataError, UsageError

Seed = int | Sequence[int]


class Finding(NamedTuple):
    """One thing to be seen, and its short clinical text in both languages."""

    region: str
    english: str
    vietnamese: str


_SHARES = {
    "nose-right": 325,
    "nose-left": 290,
    "ear-right": 156,
    "ear-left": 133,
    "vc-open": 159,
    "vc-closed": 147,
    "throat": 81,
}
"""Images of each class in the contest's training set: the phantom keeps the proportions."""

PHANTOM_CLASSES = tuple(_SHARES)

NORMAL = "normal"

FINDINGS = {
    NORMAL: Finding("any", "normal", "bình thường"),
    "septal-deviation": Finding("nose", "superior septal deviation", "vẹo vách ngăn phần cao"),
    "septal-spur": Finding("nose", "septal spur", "gai vách ngăn"),
    "turbinate-enlargement": Finding(
        "nose", "inferior turbinate enlargement", "cuốn mũi dưới quá phát"
    ),
    "pale-mucosa": Finding("nose", "pale oedematous nasal mucosa", "niêm mạc mũi phù nề nhợt màu"),
    "nasal-erythema": Finding("nose", "erythema of the nasal mucosa", "niêm mạc mũi sung huyết đỏ"),
    "watery-discharge": Finding(
        "nose", "watery discharge on the nasal floor", "dịch trong loãng ở sàn mũi"
    ),
    "whitish-mucus": Finding(
        "nose",
        "whitish mucus from the middle meatus to the nasopharynx",
        "dịch nhầy trắng từ khe giữa xuống vòm mũi họng",
    ),
    "nasal-polyp": Finding(
        "nose", "suspected polyp in the middle meatus", "nghi ngờ polyp khe giữa"
    ),
    "membrane-thickened": Finding("ear", "thickened tympanic membrane", "màng nhĩ dày"),
    "membrane-scar": Finding(
        "ear",
        "scar in the posteroinferior quadrant of the tympanic membrane",
        "sẹo màng nhĩ ở góc sau dưới",
    ),
    "canal-erythema": Finding("ear", "erythema of the ear canal", "ống tai ngoài sung huyết đỏ"),
    "cerumen": Finding("ear", "cerumen in the ear canal", "ráy tai trong ống tai ngoài"),
    "purulent-discharge": Finding(
        "ear", "purulent discharge in the ear canal", "dịch mủ trong ống tai ngoài"
    ),
    "foreign-body": Finding("ear", "foreign body in the ear canal", "dị vật ống tai ngoài"),
    "cord-oedema": Finding("vc", "oedema of both vocal cords", "phù nề hai dây thanh"),
    "cord-erythema": Finding("vc", "erythema of both vocal cords", "hai dây thanh sung huyết đỏ"),
    "arytenoid-oedema": Finding("vc", "oedema of the arytenoids", "phù nề sụn phễu hai bên"),
    "arytenoid-erythema": Finding(
        "vc",
        "erythema of the arytenoids and interarytenoid area",
        "sung huyết đỏ sụn phễu và vùng liên phễu",
    ),
    "posterior-commissure-hypertrophy": Finding(
        "vc", "posterior commissure hypertrophy", "quá phát mép sau"
    ),
    "endolaryngeal-mucus": Finding(
        "vc", "thick endolaryngeal mucus", "dịch nhầy đặc trong lòng thanh quản"
    ),
    "pyriform-mucus": Finding(
        "vc", "mucus in the pyriform sinuses", "ứ đọng dịch nhầy xoang lê hai bên"
    ),
    "omega-epiglottis": Finding("vc", "omega-shaped epiglottis", "nắp thanh môn hình omega"),
    "tonsillar-hypertrophy": Finding("throat", "tonsillar hypertrophy", "amidan quá phát"),
    "chronic-tonsillitis": Finding("throat", "chronic tonsillitis", "viêm amidan mạn tính"),
    "posterior-wall-mucus": Finding(
        "throat", "mucus on the posterior oropharyngeal wall", "dịch nhầy ở thành sau họng miệng"
    ),
    "posterior-wall-erythema": Finding(
        "throat",
        "erythema of the posterior oropharyngeal wall",
        "thành sau họng miệng sung huyết đỏ",
    ),
    "lingual-tonsillar-hypertrophy": Finding(
        "throat", "lingual tonsillar hypertrophy", "quá phát amidan đáy lưỡi"
    ),
}
"""Finding key to region, English and Vietnamese text; `normal` belongs to every region."""

_CONTRARY = {frozenset(("pale-mucosa", "nasal-erythema"))}
"""Pairs that no patient shows at once."""

_DRAW = {
    "nose-right": draw_nose,
    "ear-right": draw_ear,
    "vc-open": partial(draw_larynx, is_open=True),
    "vc-closed": partial(draw_larynx, is_open=False),
    "throat": draw_throat,
}


# One frame ---------------------------------------------------------------------------------------


def draw_frame(
    label: str,
    findings: Sequence[str],
    exam_seed: Seed,
    frame_seed: Seed | None,
    size: tuple[int, int] = (640, 480),
) -> Image.Image:
    """One endoscopic picture, RGB, `size` (width, height); see `render`."""
    return render(label, findings, exam_seed, frame_seed, size)[0]


def render(
    label: str,
    findings: Sequence[str],
    exam_seed: Seed,
    frame_seed: Seed | None,
    size: tuple[int, int] = (640, 480),
) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """One endoscopic picture and where its findings are.

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
    optics = (
        Optics.steady(size) if frame_seed is None else Optics.draw(_generator(frame_seed), size)
    )
    # A left side is the right side's mirror image, the lamp excepted: it belongs to the endoscope.
    sign = -1 if label.endswith("-left") else 1
    lit = scene.lit((sign * optics.lamp[0], optics.lamp[1]))[:, ::sign]
    image = optics.photograph(lit)
    masks = {key: optics.project(mask[:, ::sign]) for key, mask in scene.masks.items()}
    return image, {key: mask for key, mask in masks.items() if mask.any()}


def finding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a mask, in pixels, the last two exclusive.

    >>> finding_box(np.eye(4, dtype=bool)[1:3])
    (1, 0, 3, 2)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def region_of(label: str) -> str:
    """Region of a phantom class: `nose-left` gives `nose`."""
    if label not in PHANTOM_CLASSES:
        raise ValueError(f"no phantom class {label!r}; there are {', '.join(PHANTOM_CLASSES)}")
    return label.split("-")[0]


def _scene(label: str, findings: Collection[str], exam_seed: Seed) -> Scene:
    """The drawing of an exam's anatomy; always the right side."""
    region = region_of(label)

    def chance(purpose: str) -> np.random.Generator:
        return _generator(exam_seed, zlib.crc32(purpose.encode()))

    patient = chance(region)
    scene = Scene(patient, chance)
    _DRAW[label.replace("-left", "-right")](scene, findings, patient)
    return scene


def _generator(*keys: Seed) -> np.random.Generator:
    """A generator of its own for every tuple of seeds."""
    flat = [int(part) for key in keys for part in np.ravel(key)]
    return np.random.default_rng(np.random.SeedSequence(flat))


@dataclass(frozen=True)
class Optics:
    """Camera, lamp and dirt of one frame: all that changes while the patient stays the same.

    `turn` in radians, `shift` and `lamp` in radii of the view, `centre` and `radius` in pixels.
    """

    size: tuple[int, int]
    centre: tuple[float, float]
    radius: float
    turn: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    lamp: tuple[float, float] = (0.0, 0.0)
    exposure: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0
    noise: float = 0.0
    rim: float = 2.0
    notch: float | None = None
    dirt: np.random.Generator | None = None

    @classmethod
    def steady(cls, size: tuple[int, int]) -> Optics:
        """Centred, sharp and clean."""
        width, height = size
        return cls(size, ((width - 1) / 2, (height - 1) / 2), 0.47 * min(size))

    @classmethod
    def draw(cls, rng: np.random.Generator, size: tuple[int, int]) -> Optics:
        """A frame as a moving hand takes it."""
        width, height = size
        uniform = rng.uniform
        return cls(
            size=size,
            centre=(width * (0.5 + uniform(-0.03, 0.03)), height * (0.5 + uniform(-0.02, 0.02))),
            radius=min(size) * uniform(0.44, 0.485),
            turn=np.deg2rad(uniform(-12, 12)),
            zoom=uniform(0.94, 1.12),
            shift=(uniform(-0.07, 0.07), uniform(-0.07, 0.07)),
            lamp=(uniform(-0.25, 0.25), uniform(-0.25, 0.25)),
            exposure=uniform(0.82, 1.35),
            tint=(1 + uniform(-0.05, 0.07), 1 + uniform(-0.04, 0.04), 1 + uniform(-0.10, 0.08)),
            blur=max(0.0, uniform(-0.8, 1.1)),
            noise=uniform(1.0, 5.0),
            rim=uniform(1.0, 6.0),
            notch=uniform(0, 2 * np.pi) if rng.random() < 0.4 else None,
            dirt=rng,
        )

    def photograph(self, lit: np.ndarray) -> Image.Image:
        """The lit drawing (GRID, GRID, 3) as an RGB picture of `size`, black outside the view."""
        exposed = self.exposure * lit * np.array(self.tint, np.float32)
        # A soft shoulder, as a video processor has: only mirrors burn out.
        toned = 255 * (1 - np.exp(-2.0 * np.clip(exposed, 0, None) ** 1.25))
        drawing = Image.fromarray(toned.astype(np.uint8))
        if self.dirt:
            self._soil(drawing)
        if self.blur:
            drawing = drawing.filter(ImageFilter.GaussianBlur(self.blur))
        pixels = np.asarray(self._warp(drawing, Image.Resampling.BICUBIC), np.float32)
        if self.noise:
            grain = self.dirt.standard_normal(pixels.shape[:2], dtype=np.float32)
            pixels = pixels + self.noise * grain[..., None]
        pixels = pixels * self._view()[..., None]
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def project(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the drawing (GRID, GRID) as a boolean mask (height, width) inside the view."""
        warped = self._warp(Image.fromarray(mask.astype(np.uint8)), Image.Resampling.NEAREST)
        return np.asarray(warped, bool) & (self._distance() < self.radius)

    def _warp(self, drawing: Image.Image, resample: Image.Resampling) -> Image.Image:
        """Look at the drawing through this camera."""
        # From output pixel to drawing pixel: Pillow samples at pixel centres, hence the halves.
        step = (GRID - 1) / (2 * EXTENT) / (self.radius * self.zoom)
        cos, sin = step * np.cos(self.turn), step * np.sin(self.turn)
        middle = (GRID - 1) / 2 + 0.5
        x, y = self.centre[0] + 0.5, self.centre[1] + 0.5
        offset = [middle + shift * (GRID - 1) / (2 * EXTENT) for shift in self.shift]
        affine = (
            cos, sin, offset[0] - cos * x - sin * y,
            -sin, cos, offset[1] + sin * x - cos * y,
        )  # fmt: skip
        return drawing.transform(self.size, Image.Transform.AFFINE, affine, resample)

    def _distance(self) -> np.ndarray:
        """Distance of every pixel to the centre of the view (height, width), in pixels."""
        width, height = self.size
        x = np.arange(width, dtype=np.float32) - np.float32(self.centre[0])
        y = np.arange(height, dtype=np.float32) - np.float32(self.centre[1])
        return np.sqrt(x * x + y[:, None] * y[:, None])

    def _view(self) -> np.ndarray:
        """Light that reaches each pixel (height, width): the round view, darker to its rim."""
        distance = self._distance()
        view = np.clip((self.radius - distance) / self.rim + 0.5, 0, 1)
        view *= 1 - 0.35 * np.minimum(distance / self.radius, 1) ** 3
        if self.notch is not None:
            x = self.centre[0] + self.radius * np.cos(self.notch)
            y = self.centre[1] + self.radius * np.sin(self.notch)
            corner = Image.new("L", self.size, 1)
            ImageDraw.Draw(corner).regular_polygon((x, y, 0.05 * self.radius), 3, fill=0)
            view *= np.asarray(corner)
        return view

    def _soil(self, drawing: Image.Image) -> None:
        """A few specks and droplets on the lens, drawn into the drawing."""
        rng, pen = self.dirt, ImageDraw.Draw(drawing, "RGBA")
        spot = partial(rng.uniform, 0.15 * GRID, 0.85 * GRID)
        for _ in range(rng.integers(0, 7)):
            x, y, r = spot(), spot(), rng.uniform(0.6, 2.4)
            fill = (25, 12, 10, 150) if rng.random() < 0.5 else (255, 250, 245, 130)
            pen.ellipse((x - r, y - 0.8 * r, x + r, y + 0.8 * r), fill=fill)
        for _ in range(rng.integers(0, 4)):
            x, y, r = spot(), spot(), rng.uniform(2, 6)
            ring, glint = (255, 245, 240, 120), (255, 255, 255, 210)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 235, 30), outline=ring)
            pen.ellipse((x - 0.6 * r, y - 0.6 * r, x - 0.2 * r, y - 0.2 * r), fill=glint)


# The dataset -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One picture to be drawn, and all that the dataset's files say about it."""

    part: str
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


def write_phantom(
    folder: Path,
    *,
    images: int = 700,
    test_images: int = 210,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write a phantom dataset in the contest's layout, truth files included.

    The same arguments give the same bytes, whatever the number of workers. The folder appears
    whole or not at all.

    Args:
        folder: to be made; it may exist if it is empty.
        images: of the training part.
        test_images: of the test part, whose exams are other exams.
        seed: 0 or more.
        workers: processes, all processors by default; 1 draws in this process.
        progress: called with (images written, images in all).

    Returns:
        `folder`, `seed`, and by part the number of `exams` and of `images` of every class.

    Raises:
        DataError: when the folder holds something already.
        UsageError: for a negative seed, or when a part would have no image of some class.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            "The folder for the phantom dataset is not empty.",
            where=folder,
            mend="name a new folder, or empty this one yourself: nothing is overwritten",
        )
    if min(images, test_images) < len(PHANTOM_CLASSES):
        raise UsageError(
            f"A phantom dataset of {images} + {test_images} images cannot show every class.",
            mend=f"ask for at least {len(PHANTOM_CLASSES)} images in each part",
        )

    if seed < 0:
        raise UsageError(f"A seed is 0 or more, not {seed}.", mend="use --seed 0")

    frames = _plan(images, test_images, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        for part in ("train", "test"):
            (draft / part / "imgs").mkdir(parents=True)
        _write_images(frames, draft, workers or os.cpu_count() or 1, progress)
        by_name = sorted(frames, key=lambda frame: frame.name)
        _write_train_files([frame for frame in by_name if frame.part == "train"], draft / "train")
        _write_test_files([frame for frame in by_name if frame.part == "test"], draft / "test")
        (draft / "README.txt").write_text(_README.format(seed=seed), "utf-8", newline="\n")
        if folder.exists():
            folder.rmdir()
        os.replace(draft, folder)
    except BaseException:  # an interrupt too: half a dataset must not stay behind
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return _summary(frames, folder, seed)


_README = """\
Phantom data: drawings, not pictures of patients.

Made by `entrep synth` with seed {seed}. A test bench for the toolkit only: it proves that commands
run and that their numbers add up. No score on it says anything about real endoscopy.

train/ and test/ follow the layout of the ENTRep challenge; test/truth_*.json are the answers and
groups.csv names the exam and the findings of every image.
"""


def _summary(frames: Sequence[Frame], folder: Path, seed: int) -> dict:
    parts = {part: [frame for frame in frames if frame.part == part] for part in ("train", "test")}
    images = {part: Counter(frame.label for frame in parts[part]) for part in parts}
    return {
        "folder": str(folder),
        "seed": seed,
        "exams": {part: len({frame.exam for frame in parts[part]}) for part in parts},
        "images": {
            part: {label: images[part][label] for label in PHANTOM_CLASSES} for part in parts
        },
    }


def _plan(images: int, test_images: int, seed: int) -> list[Frame]:
    """All frames of both parts, exam by exam. An exam lies in one part only."""
    rng = _generator(seed, zlib.crc32(b"plan"))
    exams = [
        (part, labels)
        for part, total in (("train", images), ("test", test_images))
        for labels in _exams(_class_counts(total), rng)
    ]
    rng.shuffle(exams)  # an exam's number tells neither its part nor its region
    frames = []
    single: dict[tuple[str, str], tuple[str, ...]] = {}
    for exam, (part, labels) in enumerate(exams):
        findings: dict[str, tuple[str, ...]] = {}
        for number, label in enumerate(labels):
            # Two sides are two organs; open and closed are one larynx.
            organ = label if label.endswith(("-left", "-right")) else region_of(label)
            if organ not in findings:
                # Every second patient has what the one before had: even few images make pairs.
                twin = single.pop((part, organ), None)
                findings[organ] = twin or _draw_findings(region_of(label), rng)
                if not twin:
                    single[part, organ] = findings[organ]
            name = f"{uuid.UUID(bytes=rng.bytes(16), version=4)}.png"
            frames.append(Frame(part, exam, label, findings[organ], name, (seed, exam, number)))
    return frames


def _class_counts(total: int) -> dict[str, int]:
    """Images of each class: a handful for everyone, the rest by the contest's shares."""
    least = min(4, total // len(_SHARES))
    spare = total - least * len(_SHARES)
    exact = {label: spare * share / sum(_SHARES.values()) for label, share in _SHARES.items()}
    counts = {label: least + int(exact[label]) for label in _SHARES}
    by_remainder = sorted(_SHARES, key=lambda label: int(exact[label]) - exact[label])
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
    while drawn in _CONTRARY:
        drawn = {str(key) for key in rng.choice(keys, count, replace=False)}
    return tuple(key for key in keys if key in drawn)


def _write_images(
    frames: Sequence[Frame],
    folder: Path,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Draw and write every frame; the order of writing does not matter to any byte."""

    def follow(written: Iterable[None]) -> None:
        for done, _ in enumerate(written, start=1):
            if progress:
                progress(done, len(frames))

    write = partial(_write_image, folder)
    if workers == 1:
        follow(map(write, frames))
        return
    # Workers ignore an interrupt: this process hears it and stops them in order.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=quiet) as pool:
        try:
            follow(pool.map(write, frames, chunksize=4))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_image(folder: Path, frame: Frame) -> None:
    image = draw_frame(frame.label, frame.findings, frame.seed[:2], frame.seed)
    # Level 1 takes 12 ms instead of 41, for files 7% larger.
    image.save(folder / frame.part / "imgs" / frame.name, compress_level=1)


def _write_train_files(frames: Sequence[Frame], folder: Path) -> None:
    _write_json(folder / "cls.json", {frame.name: frame.label for frame in frames})
    texts = {FINDINGS[key].english: name for key, name in _examples(frames).items()}
    _write_json(folder / "t2i.json", texts)
    _write_json(folder / "i2i.json", _pairs(frames))
    _write_groups(folder / "groups.csv", frames)


def _write_test_files(frames: Sequence[Frame], folder: Path) -> None:
    answers = _answers(frames)
    texts = {}
    for number, (key, name) in enumerate(_examples(frames).items()):
        texts[FINDINGS[key].english] = name
        if number % 4 == 0:  # a few queries in Vietnamese, as the contest has them
            texts[FINDINGS[key].vietnamese] = name
    _write_column(folder / "cls.csv", (frame.name for frame in frames))
    _write_column(folder / "i2i.csv", answers)
    _write_column(folder / "t2i.csv", texts)
    _write_json(folder / "truth_cls.json", {frame.name: frame.label for frame in frames})
    _write_json(folder / "truth_i2i.json", answers)
    _write_json(folder / "truth_t2i.json", texts)
    _write_groups(folder / "groups.csv", frames)


def _examples(frames: Sequence[Frame]) -> dict[str, str]:
    """One image of every finding that the frames show, in the table's order."""
    first: dict[str, str] = {}
    for frame in frames:
        for key in frame.findings:
            first.setdefault(key, frame.name)
    return {key: first[key] for key in FINDINGS if key in first}


def _pairs(frames: Sequence[Frame]) -> dict[str, str]:
    """Symmetric pairs of images of one region that share a finding, from different exams.

    Each image stands in one pair at most; the side may differ, as in the contest's own file.
    """
    pairs: dict[str, str] = {}
    shelves = defaultdict(list)
    for frame in frames:
        for key in frame.findings:
            shelves[region_of(frame.label), key].append(frame)
    for shelf in sorted(shelves.values(), key=len):  # the rarest finding chooses first
        while free := [frame for frame in shelf if frame.name not in pairs]:
            one = free[0]
            other = next((frame for frame in free if frame.exam != one.exam), None)
            if other is None:
                break
            pairs |= {one.name: other.name, other.name: one.name}
    return dict(sorted(pairs.items()))


def _answers(frames: Sequence[Frame]) -> dict[str, str]:
    """For each image the one of its class from another exam that shares most findings, if any."""
    answers = {}
    for query in frames:
        ranks = [
            # Among equals the next by name, and names are random: so the answers spread.
            (-len(set(frame.findings) & set(query.findings)), frame.name < query.name, frame.name)
            for frame in frames
            if frame.label == query.label and frame.exam != query.exam
        ]
        if ranks and min(ranks)[0] < 0:
            answers[query.name] = min(ranks)[-1]
    return answers


def _write_json(path: Path, content: dict[str, str]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def _write_column(path: Path, values: Iterable[str]) -> None:
    """One column, no header, LF: the contest's form of a query list."""
    path.write_text("".join(f"{value}\n" for value in values), encoding="utf-8", newline="\n")


def _write_groups(path: Path, frames: Sequence[Frame]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "group", "text_en", "text_vi"))
        for frame in frames:
            texts = frame.text("english"), frame.text("vietnamese")
            table.writerow((frame.name, frame.group, *texts))
