"""One command in several processes, as `accelerate launch` or `torchrun` starts them: their ranks, and the exchange of values.

In one process nothing here does anything, and torch is not imported. In several the first one (rank 0) is
the main process: it alone writes, prints and validates. The work is divided among all. Where one fails, the launcher
ends the others.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from entrep_cli.errors import UsageError
from entrep_cli.workspace import Run

T = TypeVar("T")
DISTRIBUTED = ("train", "embed")  # the commands that several processes can run together
# Of torchrun, which `accelerate launch` uses as well, of Open MPI, and of Intel's and MVAPICH's MPI.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_TIMEOUT = timedelta(hours=12)  # the others wait for the main process, which may decode or validate for long


def size() -> int:
    """The number of processes."""
    return max(1, _number(_SIZES, 1))


def rank() -> int:
    """The number of this process, from 0; that of the main process is 0."""
    return _number(_RANKS, 0) if size() > 1 else 0


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU."""
    return _number(_LOCAL_RANKS, rank()) if size() > 1 else 0


def is_main() -> bool:
    return rank() == 0


def check_distributed(command: str) -> None:
    """UsageError where several processes run a command that only one can run."""
    if size() > 1 and command not in DISTRIBUTED:
        raise UsageError(
            f"`entrep {command}` runs in one process, and {size()} were started.",
            hint=f"run it without a launcher; several processes can run {' and '.join(DISTRIBUTED)}",
        )


def portion(n: int) -> slice:
    """The items of this process among n in a row; those of all processes, in the order of their ranks, are the n."""
    return slice(n * rank() // size(), n * (rank() + 1) // size())


def broadcast(value: T) -> T:
    """The value that the main process has, in all processes."""
    if size() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, group=group())
    return box[0]


def on_main(function: Callable[[], T]) -> T:
    """The value of `function` in the main process, in all processes; the others do not call it, and wait."""
    return broadcast(function() if is_main() else None)


def gather(value: T) -> list[T] | None:
    """The values of all processes by rank, in the main process; None in the others."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] | None = [None] * size() if is_main() else None
    dist.gather_object(value, values, dst=0, group=group())
    return values


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The block runs in the main process, then in the others, which read what it has put into the cache."""
    if not is_main():
        broadcast(None)
    yield
    if is_main():
        broadcast(None)


@contextlib.contextmanager
def private_copy(run: Run) -> Iterator[Run]:
    """The run in the main process; in the others a copy that is deleted after the block, so that only one process writes into the run."""
    if is_main():
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="entrep-") as scratch:
        copy = Run(Path(scratch) / run.name)
        if run.folder.is_dir():
            shutil.copytree(run.folder, copy.folder, ignore=shutil.ignore_patterns("*.tmp"))
        copy.folder.mkdir(exist_ok=True)
        yield copy


@functools.cache
def group() -> Any:
    """The processes as a group that exchanges objects and CPU tensors (gloo); on GPUs torch's default group (NCCL) exists beside it."""
    import entrep_cli.torchvision_ops  # noqa: F401 - before accelerate imports torchvision

    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    if not dist.is_initialized():
        PartialState(cpu=not torch.cuda.is_available())
        atexit.register(dist.destroy_process_group)
    return dist.new_group(backend="gloo", timeout=_TIMEOUT)


def _number(names: tuple[str, ...], otherwise: int) -> int:
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdigit()), otherwise)
