"""From image files to a model's answers in stages that overlap and are timed apart: reader, transform, model, writer.

Threads read and transform ahead while the model computes; of a set whose pixels are cached both are left out.
A batch is handed to the model before the answers of the one before are fetched, so that a GPU does not wait
for the copy. Several processes take turns by whole batches: each batch is the same whoever computes it.

The cut is clip-retrieval's (reader, mapper, writer; clip_inference/runner.py), the rest ours. Texts go to the model
all at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from entrep_cli import console, processes
from entrep_cli.data.pixels import cached_pixels, stream_pixels
from entrep_cli.data.texts import clean_text
from entrep_cli.errors import UsageError
from entrep_cli.limits import cgroup_memory, total_memory

if TYPE_CHECKING:
    import torch

    from entrep_cli.methods.base import Model

FP32 = "fp32"  # what computes unless a model says otherwise by its `engine`
GAP = "{}"
_GPU_BATCH = 256  # larger ones than the recipe's are not faster on a CPU, and are on a GPU
_SMALL_MEMORY, _SMALL_BATCH = 4e9, 8


@dataclass
class Stages:
    """Where the time of an embedding went.

    Attributes:
        reader, transform: seconds of work in `threads` threads beside the model: reading and decoding files, and
            bringing them to the model's square; none where the pixels were `cached`.
        model: seconds of the forward passes, the copies to the device and back included.
        writer: seconds of writing and hashing the arrays.
        waited: seconds in which the model had no pixels. elapsed: of the whole, until all is written.
        batch_size: images a batch. processes: how many divided the set; the seconds are the main one's.
    """

    images: int = 0
    reader: float = 0.0
    transform: float = 0.0
    model: float = 0.0
    writer: float = 0.0
    waited: float = 0.0
    elapsed: float = 0.0
    threads: int = 0
    batch_size: int = 0
    processes: int = 1
    cached: bool = False

    @property
    def bottleneck(self) -> str:
        """The stage that all others wait for."""
        if self.waited > self.model:
            return "reader" if self.reader >= self.transform else "transform"
        return "model" if self.model >= self.writer else "writer"

    def rows(self) -> list[tuple[str, str, str]]:
        """Stage, seconds of work, and their percentage of the elapsed time; those of threads may be more than the whole."""
        named = [(name, getattr(self, name)) for name in ("reader", "transform", "model", "writer")]
        return [(name, f"{seconds:.2f}", f"{seconds / max(self.elapsed, 1e-9):.0%}") for name, seconds in named]

    def as_dict(self) -> dict[str, Any]:
        rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()}
        return {**rounded, "bottleneck": self.bottleneck}


def answers(
    model: Model,
    paths: Sequence[str],
    digests: Sequence[str],
    *,
    what: str = "images",
    flip: bool = False,
    batch_size: int | None = None,
    stages: Stages | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Vectors (N, D) and probabilities (N, C), float32, of image files and, with `flip`, of the images flipped left to right.

    Of several processes the main one gets them; the others get arrays without rows.

    Args:
        digests: of the pixels; "" where they are not known, which are not cached.
        batch_size: images at a time; None for `choose_batch`'s.
        stages: gets where the time went.

    Raises:
        DataError: names every image that cannot be read.
    """
    import torch

    stages = Stages() if stages is None else stages
    started, device, size = perf_counter(), model.device, batch_size or choose_batch(model, None)[0]
    files, digests = [Path(path) for path in paths], list(digests)
    batches = [slice(first, min(first + size, len(files))) for first in range(0, len(files), size)][processes.rank() :: processes.size()]
    rows = [i for batch in batches for i in range(batch.start, batch.stop)]
    stages.images, stages.batch_size, stages.processes = len(files), size, processes.size()
    stages.cached = cached_pixels(files, digests, model.preprocess) is not None
    pixels = stream_pixels(files, digests, model.preprocess, rows=rows if processes.size() > 1 else None, spent=stages)
    answered: list[list[np.ndarray]] = []

    def fetch(values: list[torch.Tensor]) -> None:
        start = perf_counter()
        answered.append([value.float().cpu().numpy() for value in values])
        stages.model += perf_counter() - start

    with console.progress(f"Embedding {what}", len(rows)) as advance, torch.inference_mode():
        under_way: deque[list[torch.Tensor]] = deque()
        for batch in batches:
            start = perf_counter()
            together = np.stack(list(islice(pixels, batch.stop - batch.start)))
            stages.waited += perf_counter() - start
            start = perf_counter()
            on_device = _to_device(together, device)
            shown = [on_device, on_device.flip(-1)] if flip else [on_device]
            under_way.append([value for view in shown for value in model.answer(view)[:2]])
            stages.model += perf_counter() - start
            if len(under_way) > 1:
                fetch(under_way.popleft())
            advance(len(together))
        next(pixels, None)  # lets the stream come to its end, where it caches the pixels
        while under_way:
            fetch(under_way.popleft())
    gathered = processes.gather(answered)
    stages.elapsed += perf_counter() - started
    return [_joined(gathered, 2 * view, model) for view in range(1 + flip)]


def check_template(template: str | None) -> None:
    """UsageError where a template does not have exactly one `{}`; None is no template."""
    if template is not None and template.count(GAP) != 1:
        raise UsageError(
            f"A template has one {GAP} where the text goes; {template!r} has {template.count(GAP)}.",
            hint=f"--template 'an endoscopic image showing {GAP}'",
        )


def templated(texts: Sequence[str], template: str | None) -> list[str]:
    """What is embedded for each text: the template with the text in its gap, or the text itself.

    >>> templated(["a {spur}"], "an image of {}")
    ['an image of a {spur}']
    """
    check_template(template)
    # A text may hold braces itself, so it is set in and never formatted. An empty one stays empty, to be refused.
    return list(texts) if template is None else [template.replace(GAP, text) if clean_text(text) else text for text in texts]


def text_vectors(model: Model, texts: Sequence[str]) -> np.ndarray:
    """(M, D) float32 unit rows; UsageError where the model has no text tower."""
    return model.embed_texts(texts).float().cpu().numpy()


def text_probabilities(model: Model, texts: Sequence[str]) -> np.ndarray:
    """(M, C) float32 class probabilities of texts; UsageError where the model has no text tower, DataError where a class has no prompt."""
    return model.classify_texts(texts).float().cpu().numpy()


def choose_batch(model: Model, option: int | None) -> tuple[int, str]:
    """How many images at a time, and why. The same on the same machine: what is free at the moment does not count.

    Raises:
        UsageError: the model does not run on its device even with a few images.
    """
    if option is not None:
        return option, "asked for"
    recipe = model.batch_size
    device = model.device
    if device.type == "cuda":
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
        size = fitting_batch(_memory_of_an_image(model, device), total)
        return size, f"half of the GPU's {total / 1e9:.0f} GB hold it"
    memory = _memory_limit()
    if memory and memory < _SMALL_MEMORY and recipe > _SMALL_BATCH:
        return _SMALL_BATCH, f"the machine has {memory / 1e9:.1f} GB of memory"
    return recipe, "the recipe's; a larger one is not faster on a CPU"


def fitting_batch(image: float, total: float) -> int:
    """The largest power of two, up to 256, of images of so many bytes that half of `total` bytes holds; at least 1."""
    size = _GPU_BATCH
    while size > 1 and size * image > total / 2:
        size //= 2
    return size


def _to_device(batch: np.ndarray, device: torch.device) -> torch.Tensor:
    import torch

    pixels = torch.from_numpy(batch)
    # From pinned memory the copy runs beside what the GPU still computes.
    return pixels.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else pixels.to(device)


def _joined(gathered: list[list[list[np.ndarray]]] | None, first: int, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The batches of all processes, which took turns, in the order of the images."""
    batches = [answered[turn] for turn in range(len(gathered[0])) for answered in gathered if turn < len(answered)] if gathered else []
    if not batches:
        return np.zeros((0, 1), np.float32), np.zeros((0, len(model.taxonomy)), np.float32)
    vectors, probabilities = (np.concatenate([batch[first + i] for batch in batches]) for i in (0, 1))
    return vectors, probabilities


def _memory_of_an_image(model: Model, device: torch.device) -> float:
    """Bytes on the GPU that one more image in a batch takes."""
    import torch

    side, few = model.preprocess.size, 8
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        model.answer(torch.zeros(few, 3, side, side, dtype=torch.uint8, device=device))
    return (torch.cuda.max_memory_allocated(device) - before) / few


def _memory_limit() -> int | None:
    """Bytes of memory of the machine, or that the container may use."""
    return min((limit for limit in (cgroup_memory(), total_memory()) if limit), default=None)
