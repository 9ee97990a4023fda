"""Embeddings of a set of images by a run: computed once, written into the run, checked when read.

`<run>/embeddings/<set>/` holds `vectors.npy` (N, D) float32 unit rows, `probabilities.npy` (N, C)
float32, `items.csv` (one line an image) and, written last, `manifest.json` with their hashes and the
fingerprint of the model and of the pixels that went in. Paths, labels and groups are not in it: where
only they change, the list of images is written anew and the vectors stay.
"""

from __future__ import annotations

import csv
import errno
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from entrep_cli import console, processes
from entrep_cli.errors import RunError, UsageError
from entrep_cli.retrieval.pipeline import FP32, Stages, answers
from entrep_cli.workspace import METRICS, Run, atomic_path, file_sha256, fingerprint, write_csv_atomic, write_json_atomic

if TYPE_CHECKING:
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.methods.base import Model

_FILES = ("vectors.npy", "probabilities.npy", "items.csv")
_COUNTED = ("images", "sha256")  # of a manifest, what every writing works out anew
_COLUMNS = ("image", "path", "label", "group", "digest")


@dataclass(frozen=True)
class Items:
    """The images of a set, in order; arrays of text (N,). `label` and `group` may be ""."""

    image: np.ndarray
    path: np.ndarray
    label: np.ndarray
    group: np.ndarray
    digest: np.ndarray

    @classmethod
    def of(cls, **columns: Sequence[str]) -> Items:
        """Items from columns; those left out are empty."""
        n = len(columns["image"])
        return cls(*(np.array(columns.get(c, [""] * n), dtype=object) for c in _COLUMNS))

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: Sequence[int] | np.ndarray) -> Items:
        return Items(*(getattr(self, c)[rows] for c in _COLUMNS))

    def rows(self) -> list[tuple[str, ...]]:
        return list(zip(*(getattr(self, c) for c in _COLUMNS)))


class Rows:
    """Some rows of arrays (n_i, D), in order, without a copy of them.

    rows = Rows([train_vectors, test_vectors], np.array([0, 1, 5]))
    rows[:2]  # (2, D): the array's own memory where that is one piece, else a copy of these rows

    Slices, row numbers and masks select rows, and `np.asarray` copies all of them.

    Args:
        arrays: of one D and one type; memory maps are read where rows are asked for.
        numbers: (N,) int64, rising: which rows, counted through all arrays.
    """

    def __init__(self, arrays: Sequence[np.ndarray], numbers: np.ndarray) -> None:
        self.arrays, self.numbers = tuple(arrays), numbers
        self.starts = np.cumsum([0, *map(len, arrays)])
        self.shape, self.dtype, self.ndim = (len(numbers), *arrays[0].shape[1:]), arrays[0].dtype, arrays[0].ndim

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows) -> np.ndarray:
        asked = np.atleast_1d(self.numbers[rows])
        array_of = np.searchsorted(self.starts, asked, side="right") - 1
        if len(asked) and array_of[0] == array_of[-1] and (len(asked) == 1 or (np.diff(asked) == 1).all()):
            first = asked[0] - self.starts[array_of[0]]
            selected = self.arrays[array_of[0]][first : first + len(asked)]
        else:
            selected = np.empty((len(asked), *self.shape[1:]), self.dtype)
            for i in np.unique(array_of):
                selected[array_of == i] = self.arrays[i][asked[array_of == i] - self.starts[i]]
        return selected[0] if np.ndim(self.numbers[rows]) == 0 else selected

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self[:], dtype)


@dataclass(frozen=True)
class Embeddings:
    """A set of images, embedded and classified by a run.

    Attributes:
        items: the images.
        vectors: (N, D) float32 unit rows; a memory map, or `Rows` of several, where they come from disk.
        probabilities: (N, C) float32 over the run's classes, likewise.
    """

    items: Items
    vectors: np.ndarray | Rows
    probabilities: np.ndarray | Rows

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: Sequence[int] | np.ndarray) -> Embeddings:
        return Embeddings(self.items.take(rows), self.vectors[rows], self.probabilities[rows])

    def named(self, names: Sequence[str]) -> Embeddings:
        """The images of these names, in this order; KeyError where one is not in the set."""
        place = {name: i for i, name in enumerate(self.items.image)}
        return self.take([place[name] for name in names])

    @classmethod
    def joined(cls, sets: Sequence[Embeddings]) -> Embeddings:
        """Several sets as one; an image that comes again, of the same name and pixels, is left out.

        Vectors and probabilities stay where they are, as `Rows` of the sets.
        """
        items = Items(*(np.concatenate([getattr(s.items, c) for s in sets]) for c in _COLUMNS))
        first = {key: i for i, key in reversed(list(enumerate(zip(items.image, items.digest))))}
        if len(sets) == 1 and len(first) == len(items):
            return sets[0]
        numbers = np.array(sorted(first.values()), np.int64)
        return cls(items.take(numbers), Rows([s.vectors for s in sets], numbers), Rows([s.probabilities for s in sets], numbers))


def check_flip(taxonomy: Taxonomy) -> None:
    """UsageError where a class has no known mirror, so that a flipped image may belong to no class."""
    unknown = [f"class {c.name}" for c in taxonomy.classes if c.mirror is None]
    if unknown:
        raise UsageError(
            f"--tta needs a mirror for every class; of {len(unknown)} the taxonomy knows none.",
            faults=unknown,
            hint="name them in taxonomy.toml (the mirror of a class without sides is that class), or leave out --tta",
        )


def embed_items(
    model: Model,
    items: Items,
    *,
    what: str = "images",
    flip: bool = False,
    any_engine: bool = True,
    batch_size: int | None = None,
    stages: Stages | None = None,
) -> Embeddings:
    """Decode, embed and classify images, a batch at a time (`pipeline.answers`).

    Args:
        flip: test-time augmentation: also look at each image flipped left to right. Its probabilities go to
            the mirror classes and are averaged with those of the image. Its embedding stands beside that of the
            image, each divided by sqrt(2), so that a cosine is the mean of image with image and flip with flip:
            to average the two embeddings instead would take a left ear for a right one (ours).
        any_engine: as for `embeddings_of`, of what the members of an ensemble have embedded.
        batch_size, stages: as for `pipeline.answers`.

    Raises:
        DataError: names every image that cannot be read. UsageError: as `check_flip`.
    """
    if flip:
        check_flip(model.taxonomy)
    (vectors, probabilities), *flipped = _views(model, items, what, flip, any_engine, batch_size, stages)
    for more, turned in flipped:
        vectors = np.concatenate([vectors, more], axis=1) / np.float32(2**0.5)
        probabilities = (probabilities + turned[:, model.taxonomy.mirrors]) / 2
    return Embeddings(items if processes.is_main() else items.take([]), vectors, probabilities)


def texts_beside(vectors: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(M, D) text rows as wide as (N, D) images, or (N, 2 D) with their flips, which a text that names a side is not about."""
    return np.pad(vectors, ((0, 0), (0, images.shape[1] - vectors.shape[1])))


def _views(
    model: Model, items: Items, what: str, flip: bool, any_engine: bool, batch_size: int | None, stages: Stages | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Vectors (N, D) and probabilities (N, C) of the images and, with `flip`, of the flipped images.

    Each member of an ensemble sees the images with the preprocessing it was trained with, or has embedded them already.
    """
    if not model.members:
        return answers(model, items.path, items.digest, what=what, flip=flip, batch_size=batch_size, stages=stages)
    import torch

    answered = []
    for member, run in zip(model.members, model.member_runs):
        embedded = None if flip else _embedded(run, member, items, any_engine)
        if embedded is None:
            answered.append(_views(member, items, f"{what} by {run.name}", flip, any_engine, batch_size, stages))
        else:
            answered.append([(embedded.vectors, embedded.probabilities)])
    combined = [model.combine([tuple(torch.from_numpy(np.array(a)) for a in view) for view in views]) for views in zip(*answered)]
    return [(vectors.numpy(), probabilities.numpy()) for vectors, probabilities, _ in combined]


def _embedded(run: Run, model: Model, items: Items, any_engine: bool) -> Embeddings | None:
    """These images out of whatever set a run has embedded them in, by name and pixels; None where no set has all of them.

    Args:
        any_engine: as for `embeddings_of`.
    """
    if not all(items.digest):
        return None
    for name in embedded_sets(run):
        engine = embedding_engine(run, name)
        if not any_engine and engine != model.engine:
            continue
        try:
            embedded = read_embeddings(run, name)
        except RunError:  # damaged: computed, as if it did not exist
            continue
        row_of = {key: i for i, key in enumerate(zip(embedded.items.image, embedded.items.digest))}
        rows = [row_of.get(key, -1) for key in zip(items.image, items.digest)]
        if min(rows) >= 0 and set_fingerprint(run, name) == _fingerprint(run, embedded.items, model, False, engine):
            return embedded.take(rows)
    return None


def embeddings_of(
    run: Run,
    name: str,
    items: Items,
    model: Model,
    *,
    flip: bool = False,
    any_engine: bool = True,
    batch_size: int | None = None,
    stages: Stages | None = None,
) -> Embeddings:
    """The embeddings of a set: read from the run where they are of the same images and model, else computed and written.

    Those with `flip` are another set, NAME-flip. Of several processes the main one writes, and gets those that were
    computed. In a folder that may not be written to nothing is stored, with a warning.

    Args:
        any_engine: whether what was computed by another engine or in another precision than the model's will do.
        batch_size, stages: as for `pipeline.answers`; the stages stay empty where nothing is computed.
    """
    what, name = name, f"{name}-flip" if flip else name
    folder = run.path("embeddings", name)
    engine = model.engine
    manifest = processes.broadcast(_manifest(folder))
    for known in dict.fromkeys([engine, _engine(manifest)] if any_engine else [engine]):
        if manifest.get("fingerprint") != _fingerprint(run, items, model, flip, known):
            continue
        embeddings = read_embeddings(run, name)
        if embeddings.items.rows() != items.rows() and processes.is_main():
            _store(folder, items, {}, {key: value for key, value in manifest.items() if key not in _COUNTED})
        return replace(embeddings, items=items)
    stages = Stages() if stages is None else stages
    embeddings = embed_items(model, items, what=f"{what} images", flip=flip, any_engine=any_engine, batch_size=batch_size, stages=stages)
    if processes.is_main():
        arrays = {"vectors.npy": embeddings.vectors, "probabilities.npy": embeddings.probabilities}
        wanted = _fingerprint(run, items, model, flip, engine)
        _store(folder, items, arrays, {"fingerprint": wanted, "engine": engine, "flip": flip}, stages)
    return embeddings


def embedded_sets(run: Run) -> list[str]:
    """Names of the sets that are embedded whole; not those of test-time augmentation, whose vectors are of both views."""
    folders = [path.parent for path in run.path("embeddings").glob("*/manifest.json")]
    return sorted(folder.name for folder in folders if not _manifest(folder).get("flip"))


def embedding_engine(run: Run, name: str) -> str:
    """What computed a set: a precision of torch, perhaps compiled, or an exported model."""
    return _engine(_manifest(run.path("embeddings", name)))


def set_fingerprint(run: Run, name: str) -> str:
    """Changes with the model and with the images of a set; "" where it is not embedded whole."""
    return str(_manifest(run.path("embeddings", name)).get("fingerprint", ""))


def read_embeddings(run: Run, name: str) -> Embeddings:
    """Read a set back; RunError where it is missing, half written or damaged."""
    folder = run.path("embeddings", name)
    hint = f"`entrep embed --run {shlex.quote(run.reference)}`"
    if not (folder / "manifest.json").is_file():
        raise RunError(f"Run {run.name!r} has no embeddings of {name!r}.", where=folder, hint=hint)
    manifest = _manifest(folder)
    faults = [
        f"{file} is {'changed' if (folder / file).is_file() else 'missing'}"
        for file in _FILES
        if not (folder / file).is_file() or file_sha256(folder / file) != manifest.get("sha256", {}).get(file)
    ]
    if faults:
        raise RunError(f"The embeddings of {name!r} are damaged.", where=folder, faults=faults, hint=f"delete the folder, then {hint}")
    with open(folder / "items.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    items = Items.of(**{c: [row[c] for row in rows] for c in _COLUMNS})
    vectors, probabilities = (np.load(folder / file, mmap_mode="r", allow_pickle=False) for file in _FILES[:2])
    return Embeddings(items, vectors, probabilities)


def _store(folder: Path, items: Items, arrays: dict[str, np.ndarray], about: dict[str, Any], stages: Stages | None = None) -> None:
    """Write the list of images and the arrays that are new, with a warning where that is not permitted.

    Meanwhile the set has no manifest and so does not count.

    Args:
        about: what the manifest holds beside the number of images and the hashes.
        stages: gets how long it took; the manifest does not, so that the bytes of a set are the same every time.
    """
    started = perf_counter()
    try:
        (folder / "manifest.json").unlink(missing_ok=True)
        for file, array in arrays.items():
            with atomic_path(folder / file) as temporary, open(temporary, "wb") as content:
                np.save(content, array.astype(np.float32, copy=False), allow_pickle=False)
        write_csv_atomic(folder / "items.csv", _COLUMNS, items.rows())
        hashes = {file: file_sha256(folder / file) for file in _FILES}
        if stages is not None:
            stages.writer = perf_counter() - started
            stages.elapsed += stages.writer
        write_json_atomic(folder / "manifest.json", {**about, "images": len(items), "sha256": hashes})
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        lost = "the embeddings are" if arrays else "the list of images is"
        console.warn(f"{lost} not stored, and made again each time: {folder} may not be written to ({error.strerror})")


def _manifest(folder: Path) -> dict:
    """The manifest of a set; {} where it is missing or damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _engine(manifest: dict[str, Any]) -> str:
    """What computed a set."""
    return str(manifest.get("engine", FP32))


def _fingerprint(run: Run, items: Items, model: Model, flip: bool, engine: str) -> str:
    """Of the run's model and settings, by their hashes, of the names and pixels of the images, and of what computes."""
    pixels = list(zip(items.image, items.digest))
    return fingerprint([*model_key(run, model), flip, pixels, *([] if engine == FP32 else [engine])])


def model_key(run: Run, model: Model) -> list[Any]:
    """Changes with the files of a run's model, its classes and its preprocessing; not with the log of its training."""
    manifest = run.manifest
    hashes = {name: sha256 for name, sha256 in manifest["files"].items() if name != METRICS}
    return [hashes, manifest.get("taxonomy"), [model.preprocess.fingerprint, model.preprocess.as_dict()]]
