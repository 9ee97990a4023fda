"""How many processors and how much memory this process may use: the machine's, or less where a container says so."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60  # cgroup v1 says "none" by a number of this order


def cgroup_processors(root: Path = Path("/")) -> float | None:
    """How many processors the container's quota allows; None without one. `root` is for tests."""
    found = []
    for folder in _cgroups(root, "cpu"):
        if (both := _words(folder / "cpu.max")) and len(both) == 2 and both[0] != "max":
            found.append(int(both[0]) / int(both[1]))
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            found.append(int(quota[0]) / int(period[0]))
    return min(found, default=None)


def cgroup_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the container may use; None without a limit. `root` is for tests."""
    limits = [
        int(words[0])
        for folder in _cgroups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (words := _words(folder / name)) and words[0] != "max"
    ]
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)


def allowed_processors() -> int:
    """How many processors this process may use at once: its affinity and the container's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_processors()
    return max(1, min(affinity, math.ceil(quota) if quota else affinity))


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be had without swapping, where the kernel says so."""
    return _meminfo(root, "MemAvailable:")


def total_memory(root: Path = Path("/")) -> int | None:
    """Bytes of the machine, where the kernel says so."""
    return _meminfo(root, "MemTotal:")


def _meminfo(root: Path, name: str) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, StopIteration, ValueError):
        return None


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders whose limits bind this process: its own cgroup and all above, of version 2 and of a controller of version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / (controller if controllers else "")
        below = Path(path.lstrip("/"))
        # In a container the path may be that of the host, of which only the top is mounted.
        yield from (mounted / part for part in (below, *below.parents) if ".." not in part.parts)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
