"""Where a model runs and in which precision it learns, each with the reason for the choice."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager

import torch

from entrep_cli.errors import UsageError, first_line


def choose_device(option: str = "auto") -> tuple[torch.device, str]:
    """The device for `auto` or a torch device string, and why it was chosen.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    if option == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"a GPU is there: {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "an Apple GPU is there"
        return torch.device("cpu"), f"no GPU is there; {torch.get_num_threads()} threads"
    try:
        device = torch.device(option)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"The device {option!r} cannot be used: {first_line(error)}", mend="--device auto, cpu or cuda"
        ) from error
    return device, "asked for"


PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WORTH_IT = 1.5  # a training step has more in it than products: less than this is lost in casts


def choose_precision(option: str, device: torch.device) -> tuple[str, str]:
    """`fp32`, `bf16` or `fp16` for a training on `device`, and why.

    Weights, their optimizer and what follows the towers stay in float32 in any case; the towers compute
    in the lower precision (autocast). `fp16` scales the loss.

    Raises:
        UsageError: no such precision.
    """
    if option not in PRECISIONS:
        raise UsageError(f"There is no precision {option!r}.", mend=f"--precision {', '.join(PRECISIONS)}")
    if option != "auto":
        return option, "asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in it"
        if torch.cuda.get_device_capability(device) >= (7, 0):
            return "fp16", "the GPU has tensor cores for it, and none for bf16"
        return "fp32", "the GPU has no tensor cores"
    if device.type != "cpu":
        return "fp32", f"others are not tried on {device.type}"
    ratio = _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)
    if ratio >= _WORTH_IT:
        return "bf16", f"measured: matrix products {ratio:.1f} times as fast as in fp32"
    return "fp32", f"measured: matrix products in bf16 are {ratio:.1f} times as fast"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The block in which the towers compute in `precision`; nothing changes for `fp32`."""
    return torch.autocast(device.type, _DTYPES.get(precision), enabled=precision in _DTYPES)


def _product_seconds(dtype: torch.dtype) -> float:
    """The best of several: other work on the machine makes a product slower, never faster."""
    a, b = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def make_deterministic() -> None:
    """Same command, same machine, CPU: same bytes. Slower kernels are taken where there is a choice."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
