"""Where a model runs and in which precision it learns, each with the reason for the choice."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch

from entrep_cli import processes
from entrep_cli.errors import UsageError, first_line
from entrep_cli.limits import allowed_processors


def choose_device(option: str = "auto") -> tuple[torch.device, str]:
    """The device for `auto` or a torch device string, and why it was chosen.

    Raises:
        UsageError: no such device, not on this machine, or a GPU that this build of torch has no kernels for.
    """
    _fit_threads()
    if option == "auto":
        if torch.cuda.is_available():
            device = _gpu_of_process(torch.device("cuda"))
            _try(device, torch.cuda.get_device_name(device))
            return device, f"a GPU is available: {torch.cuda.get_device_name(device)}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "an Apple GPU is available"
        return torch.device("cpu"), f"no GPU is available; {torch.get_num_threads()} threads"
    try:
        device = _gpu_of_process(torch.device(option))
    except RuntimeError as error:
        raise UsageError(f"The device {option!r} cannot be used: {first_line(error)}", hint="--device auto, cpu or cuda") from error
    _try(device, option)
    return device, "asked for"


def _try(device: torch.device, name: str) -> None:
    """Compute something: a GPU older than what torch was built for has memory, and fails at its first kernel."""
    try:
        torch.ones(1, device=device).add(1).item()
    except (RuntimeError, AssertionError) as error:
        hint = "--device cpu; another GPU (on Kaggle: T4 x2, not P100); or a torch that is built for this one"
        raise UsageError(f"The device {name!r} cannot be used: {first_line(error)}", hint=hint) from error


def _gpu_of_process(device: torch.device) -> torch.device:
    """With several processes on a machine, each takes the GPU of its local rank."""
    if device.type != "cuda" or device.index is not None or processes.size() == 1:
        return device
    device = torch.device("cuda", processes.local_rank())
    torch.cuda.set_device(device)
    return device


def _fit_threads() -> None:
    """No more threads than processors that may be used: torch counts those of the machine, whatever a container is allowed."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (allowed := allowed_processors()):
        torch.set_num_threads(allowed)


PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(option: str, device: torch.device) -> tuple[str, str]:
    """`fp32`, `bf16` or `fp16` for a training on `device`, and why.

    Weights, their optimizer and what follows the towers stay in float32 in any case; the towers compute
    in the lower precision (autocast). `fp16` scales the loss.

    Raises:
        UsageError: no such precision.
    """
    if option not in PRECISIONS:
        raise UsageError(f"Precision {option!r} does not exist.", hint=f"--precision {', '.join(PRECISIONS)}")
    if option != "auto":
        return option, "asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in it"
        if torch.cuda.get_device_capability(device) >= (7, 0):
            return "fp16", "the GPU has tensor cores for it, and none for bf16"
        return "fp32", "the GPU has no tensor cores"
    if device.type != "cpu":
        return "fp32", f"other precisions are not tested on {device.type}"
    units = _bf16_units()
    if units:
        return "bf16", f"the CPU computes in it: {', '.join(units)}"
    return "fp32", "the CPU has no instructions for bf16"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The block in which the towers compute in `precision`; nothing changes for `fp32`."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)


def _bf16_units() -> list[str]:
    """The CPU's instructions for bf16 products; with them a training step was 1.6 to 1.8 times as fast.

    They are looked up and not measured: a measurement depends on what else the machine does, and the same command must
    give the same bytes.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]


def make_deterministic() -> None:
    """Same command, same machine, CPU: same bytes. Deterministic kernels are taken where they exist, though slower."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
