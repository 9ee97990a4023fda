"""The files of a phantom dataset: pictures, labels, queries and truth in the contest's layout.

A synthetic test bench, not medicine; all of it is ours.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from entrep_cli.data.phantom.findings import FINDINGS, PHANTOM_CLASSES, region_of
from entrep_cli.data.phantom.frames import render
from entrep_cli.data.phantom.plan import Frame, plan_frames
from entrep_cli.errors import DataError, UsageError
from entrep_cli.workspace import write_csv_atomic

SUBSETS = ("train", "test")


def write_phantom(
    folder: Path,
    *,
    images: int = 700,
    test_images: int = 210,
    seed: int = 0,
    size: tuple[int, int] = (640, 480),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write a phantom dataset in the contest's layout, truth files included.

    The same arguments give the same bytes, whatever the number of workers. The folder appears
    whole or not at all.

    Args:
        folder: to be made; it may exist if it is empty.
        images: number of training images.
        test_images: number of test images, whose exams are other exams.
        seed: 0 or more.
        size: width and height of every image.
        workers: processes, all processors by default; 1 draws in this process.
        progress: called with (images written, images in all).

    Returns:
        `folder`, `seed`, and for `train` and `test` the number of `exams` and of `images` of every class.

    Raises:
        DataError: when the folder holds something already.
        UsageError: for a negative seed, or when one of the two would have no image of some class.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            "The folder for the phantom dataset is not empty.",
            where=folder,
            hint="name a new folder, or empty this one yourself: nothing is overwritten",
        )
    if min(images, test_images) < len(PHANTOM_CLASSES):
        raise UsageError(
            f"A phantom dataset of {images} + {test_images} images cannot show every class.",
            hint=f"ask for at least {len(PHANTOM_CLASSES)} training and {len(PHANTOM_CLASSES)} test images",
        )

    if seed < 0:
        raise UsageError(f"A seed is 0 or more, not {seed}.", hint="use --seed 0")

    frames = plan_frames(images, test_images, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        for subset in SUBSETS:
            (draft / subset / "imgs").mkdir(parents=True)
        _write_images(frames, draft, size, workers or os.cpu_count() or 1, progress)
        by_name = sorted(frames, key=lambda frame: frame.name)
        _write_train_files([frame for frame in by_name if frame.subset == "train"], draft / "train")
        _write_test_files([frame for frame in by_name if frame.subset == "test"], draft / "test")
        (draft / "README.txt").write_text(_README.format(seed=seed), "utf-8", newline="\n")
        if folder.exists():
            folder.rmdir()
        os.replace(draft, folder)
    except BaseException:  # an interrupt too: no partial dataset may be left
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
    exams = {subset: len({frame.exam for frame in frames if frame.subset == subset}) for subset in SUBSETS}
    counts = Counter((frame.subset, frame.label) for frame in frames)
    images = {subset: {label: counts[subset, label] for label in PHANTOM_CLASSES} for subset in SUBSETS}
    return {"folder": str(folder), "seed": seed, "exams": exams, "images": images}


def _write_images(
    frames: Sequence[Frame], folder: Path, size: tuple[int, int], workers: int, progress: Callable[[int, int], None] | None
) -> None:
    """Draw and write every frame; the order of writing does not matter to any byte."""

    def follow(written: Iterable[None]) -> None:
        for done, _ in enumerate(written, start=1):
            if progress:
                progress(done, len(frames))

    write = partial(_write_image, folder, size)
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


def _write_image(folder: Path, size: tuple[int, int], frame: Frame) -> None:
    image, _ = render(frame.label, frame.findings, frame.seed[:2], frame.seed, size)
    # Level 1 takes 12 ms instead of 41, for files 7% larger.
    image.save(folder / frame.subset / "imgs" / frame.name, compress_level=1)


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
    """Symmetric pairs of images of one region with a finding in common, from different exams.

    Each image stands in one pair at most; the side may differ, as in the contest's file.
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
    """For each image the one of its class from another exam with most findings in common, if any."""
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
    rows = ((frame.name, frame.group, frame.text("english"), frame.text("vietnamese")) for frame in frames)
    write_csv_atomic(path, ["image", "group", "text_en", "text_vi"], rows)
