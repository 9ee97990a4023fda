"""A tiny dataset in the contest's layout, and tiny CLIP models: small enough for a test, learnable all the same.

from tests.tiny import make_contest
made = make_contest(tmp_path / "data", per_class=4, groups=2, tests=2)
"""

from __future__ import annotations

import csv
import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# A CLIP of open_clip's own Transformers, and one with a convolutional tower of timm's.
CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
CONV_CLIP = {
    **CLIP,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
}
ENTREP = ("nose-right", "nose-left", "ear-right", "ear-left", "vc-open", "vc-closed", "throat")


@dataclass(frozen=True)
class Contest:
    """What was written.

    Attributes:
        root: the dataset folder; `train` and `test` lie in it.
        labels: class of each training image. test_labels: likewise.
        groups: group of each image of both parts; empty without groups.
    """

    root: Path
    labels: dict[str, str]
    test_labels: dict[str, str]
    groups: dict[str, str]

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def test(self) -> Path:
        return self.root / "test"

    def image(self, name: str) -> Path:
        """The file of an image of either part."""
        return (self.train if name in self.labels else self.test) / "imgs" / name


def make_contest(
    folder: Path,
    *,
    per_class: int | Mapping[str, int] = 4,
    classes: Sequence[str] = ENTREP,
    size: tuple[int, int] = (64, 48),
    groups: int = 0,
    tests: int = 0,
    seed: int = 0,
) -> Contest:
    """Write `train/` (imgs, cls.json, t2i.json, i2i.json) and, with `tests`, `test/` in the contest's layout.

    Every class has a colour of its own, and a bright half where its name ends in left or right; noise
    makes every image another one. Names look like `nose-left_003.png`, those of test images like
    `test_nose-left_000.png`.

    Args:
        per_class: training images of every class, or of each.
        size: width and height.
        groups: so many neighbouring images of a class are one group in `groups.csv`; 0 for no file.
        tests: test images of every class, with `cls.csv`, `i2i.csv`, `t2i.csv` (one column, no
            header) and `truth_cls.json`, `truth_i2i.json`, `truth_t2i.json`. The answer to an image
            query is the next test image of the class, to a text query the first.
        seed: of the noise.
    """
    counts = dict(per_class) if isinstance(per_class, Mapping) else dict.fromkeys(classes, per_class)
    labels = {f"{c}_{i:03}.png": c for c, n in counts.items() for i in range(n)}
    test_labels = {f"test_{c}_{i:03}.png": c for c in counts for i in range(tests)}
    made = Contest(folder, labels, test_labels, _groups(labels, groups) | _groups(test_labels, groups))
    for part, its in ((made.train, labels), (made.test, test_labels)):
        if not its:
            continue
        (part / "imgs").mkdir(parents=True)
        for name, label in its.items():
            draw(label, size, seed=zlib.crc32(f"{seed} {name}".encode())).save(part / "imgs" / name)
        if groups:
            with open(part / "groups.csv", "w", newline="") as file:
                csv.writer(file).writerows([("image", "group"), *((name, made.groups[name]) for name in its)])
    nearest = {label: [name for name in labels if labels[name] == label] for label in counts}
    write_json(made.train / "cls.json", labels)
    write_json(made.train / "t2i.json", {f"finding of {label}": names[0] for label, names in nearest.items()})
    pairs = [names[:2] for names in nearest.values() if len(names) > 1]
    write_json(made.train / "i2i.json", {a: b for pair in pairs for a, b in (pair, pair[::-1])})
    if tests:
        _write_queries(made)
    return made


def draw(label: str, size: tuple[int, int] = (64, 48), seed: int = 0) -> Image.Image:
    """One image of a class: its colour, a bright half for its side, noise."""
    rng = np.random.default_rng(seed)
    colour = np.random.default_rng(zlib.crc32(label.encode())).uniform(40, 160, 3)
    pixels = np.ones((size[1], size[0], 3)) * colour
    half = size[0] // 2
    if label.endswith("left"):
        pixels[:, :half] += 60
    if label.endswith("right"):
        pixels[:, half:] += 60
    return Image.fromarray((pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **more) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel whose data is junk: enough to know its size, nothing to decode."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def fit_method(kind, train, val, recipe, run, **more):
    """What `kind.fit` makes on the CPU: the model, and all that is said of it."""
    import torch

    from entrep_cli.methods.base import FitContext

    fitted = kind.fit(FitContext(train, val, recipe, run, torch.device("cpu"), **more))
    return fitted.model, fitted


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False))


def cache_files(cache: Path, repository: str, files: Mapping[str, str]) -> Path:
    """Put files (content by name) of a hub's repository where the hub's own cache would; the folder they lie in."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(snapshot.name)
    for name, content in files.items():
        (snapshot / name).write_text(content)
    return snapshot


def zipped(members: Mapping[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of members (content by name, which may hold anything)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name) if "\\" in name else name, data, method)
    return buffer.getvalue()


def patched_zip(content: bytes, *, flags: int = 0, size: int | None = None) -> bytes:
    """A zip with other flags or another unpacked size in both headers of its first member."""
    edited = bytearray(content)
    for magic, at_flags, at_size in ((b"PK\3\4", 6, 22), (b"PK\1\2", 8, 24)):
        start = edited.index(magic)
        edited[start + at_flags] |= flags
        if size is not None:
            struct.pack_into("<I", edited, start + at_size, size)
    return bytes(edited)


def traced_peak(call: Callable[..., Any], *arguments: object) -> tuple[Any, int]:
    """What a call returns, and the most bytes that Python held for it."""
    tracemalloc.start()
    try:
        return call(*arguments), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def answers(path: Path) -> dict[str, Any]:
    """What a submission zip answers."""
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.namelist()
        return json.loads(archive.read(member))


def lines(path: Path) -> list[str]:
    """The lines of a query file."""
    return path.read_text("utf-8").splitlines()


def _groups(labels: dict[str, str], size: int) -> dict[str, str]:
    if not size:
        return {}
    # The number at the end of a name counts within its class.
    return {name: f"{name[:-8]}-{int(name[-7:-4]) // size}" for name in labels}


def _write_queries(made: Contest) -> None:
    names = list(made.test_labels)
    of_class = {label: [n for n in names if made.test_labels[n] == label] for label in made.labels.values()}
    following = {n: same[(i + 1) % len(same)] for same in of_class.values() for i, n in enumerate(same) if len(same) > 1}
    texts = {f"finding of {label}": same[0] for label, same in of_class.items()}
    for track, truth in (("cls", made.test_labels), ("i2i", following), ("t2i", texts)):
        (made.test / f"{track}.csv").write_text("".join(f"{query}\n" for query in truth))
        write_json(made.test / f"truth_{track}.json", truth)
