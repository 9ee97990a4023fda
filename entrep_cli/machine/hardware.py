"""Device, precision, threads, memory and disk: what is available, and what is little."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from entrep_cli.errors import EntrepError
from entrep_cli.limits import allowed_processors, available_memory, cgroup_memory, cgroup_processors
from entrep_cli.machine.findings import Finding

_LITTLE_DISK, _NO_DISK = 5e9, 0.5e9  # a run of CLIP with its checkpoint, embeddings and pixels has some 2 GB
_LITTLE_MEMORY = 3e9  # ViT-B/16 with LoRA, a batch of 32


def examine_device(option: str = "auto") -> Iterator[Finding]:
    """Where models will run, in which precision they will learn, and why, as `train` chooses them."""
    import torch

    from entrep_cli.models.device import choose_device, choose_precision

    try:
        device, reason = choose_device(option)
    except EntrepError as error:
        yield Finding("device", "fault", error.what, "entrep doctor --device auto", {"device": option})
        return
    details = {"device": str(device), "reason": reason}
    if device.type == "cpu" and option == "auto" and shutil.which("nvidia-smi"):
        build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}, which finds none"
        what = f"{device} ({reason}); but an NVIDIA driver is installed, and this torch is {build}."
        yield Finding("device", "warning", what, "nvidia-smi; pip install --force-reinstall torch torchvision", details)
    else:
        yield Finding("device", "ok", f"{device} ({reason}).", None, details)
    precision, reason = choose_precision("auto", device)
    yield Finding("precision", "ok", f"{precision} ({reason}).", None, {"precision": precision, "reason": reason})


def examine_threads() -> Iterator[Finding]:
    """More threads than processors that may be used wait for each other at every step."""
    import torch

    cores = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = cgroup_processors()
    allowed = allowed_processors()
    threads, setting = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    details = {"threads": threads, "cores": cores, "affinity": affinity, "quota": quota, "OMP_NUM_THREADS": setting}
    limits = [f"{cores} processors", *([f"{affinity} for this process"] if affinity < cores else [])]
    limits += [f"a quota of {quota:g}"] if quota and quota < affinity else []
    what = f"{threads} threads on {', '.join(limits)}" + (f", as OMP_NUM_THREADS={setting} says" if setting else "")
    if threads > allowed:
        yield Finding("threads", "warning", f"{what}: more than may run.", f"export OMP_NUM_THREADS={allowed}", details)
    elif threads < allowed and setting:
        yield Finding("threads", "ok", f"{what}; {allowed} may run.", None, details)
    else:
        yield Finding("threads", "ok", f"{what}.", None, details)


def examine_memory() -> Iterator[Finding]:
    """What is free, under the limit of the container if it has one; nothing where the system does not say."""
    free, limit = available_memory(), cgroup_memory()
    if free is None:
        return
    room = min(free, limit) if limit else free
    what = f"{room / 1e9:.1f} GB may be used" + (f" (the container's limit is {limit / 1e9:.1f} GB)" if limit else "")
    details = {"available": free, "limit": limit}
    if room < _LITTLE_MEMORY:
        yield Finding("memory", "warning", f"{what}: little for a ViT.", "entrep train --recipe mlcf --set train.batch_size=8", details)
    else:
        yield Finding("memory", "ok", f"{what}.", None, details)


def examine_disk(folder: Path, what_for: str, advice: str) -> Iterator[Finding]:
    """Room and permission at a folder, or at the nearest one above it that exists."""
    place = next((place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    what = f"{free / 1e9:,.1f} GB are free for {what_for} ({folder})"
    details = {"folder": str(folder), "free": free, "writable": os.access(place, os.W_OK)}
    if not place.is_dir() or not details["writable"]:
        yield Finding("disk", "fault", f"{what_for.capitalize()} cannot be written: {place} is no folder of yours.", advice, details)
    elif free < _LITTLE_DISK:
        yield Finding("disk", "fault" if free < _NO_DISK else "warning", f"{what}: little.", f"entrep cache clear; {advice}", details)
    else:
        yield Finding("disk", "ok", f"{what}.", None, details)
