"""Where a model runs, with the reason for the choice."""

from __future__ import annotations

import os

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


def make_deterministic() -> None:
    """Same command, same machine, CPU: same bytes. Slower kernels are taken where there is a choice."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
