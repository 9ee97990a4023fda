"""The precision of a training: chosen with a reason, and what it changes."""

from __future__ import annotations

import pytest
import torch

from entrep_cli.errors import UsageError
from entrep_cli.models.device import autocast, choose_device, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected", "said"),
    [
        ({"avx512_bf16": True}, "bf16", "avx512_bf16"),
        ({"amx_bf16": False, "avx512_f": True}, "fp32", "no instructions"),
        ({}, "fp32", "no instructions"),
    ],
)
def test_on_a_cpu_its_instructions_decide_and_not_the_hour(monkeypatch, capabilities, expected, said):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    chosen, reason = choose_precision("auto", CPU)
    assert chosen == expected and said in reason


@pytest.mark.parametrize(("bf16", "capability", "expected"), [(True, (9, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 0), "fp32")])
def test_on_a_gpu_its_units_decide(monkeypatch, bf16, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda"))[0] == expected


def test_what_is_asked_for_is_taken_and_nonsense_refused():
    assert choose_precision("fp16", CPU) == ("fp16", "asked for")
    with pytest.raises(UsageError, match="fp64"):
        choose_precision("fp64", CPU)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_towers_compute_in_it(precision, dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_a_gpu_without_kernels_is_told_before_the_work_begins(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")

    def no_kernel(*_, device):
        raise RuntimeError("no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "ones", no_kernel)
    with pytest.raises(UsageError, match="'an old one' cannot be used: no kernel image") as caught:
        choose_device("auto")
    assert "--device cpu" in caught.value.hint
