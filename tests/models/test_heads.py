"""The head of the Foregut paper, and the device that is chosen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from entrep_cli.errors import UsageError
from entrep_cli.models.device import choose_device
from entrep_cli.models.heads import Head, HeadSettings


def test_the_head_is_the_papers():
    """LayerNorm, dropout 0.3, 256, 128, GELU, classes (section 4.3.3)."""
    head = Head(768, 7, HeadSettings())
    kinds = [type(m) for m in head.body]
    assert kinds == [nn.LayerNorm, nn.Dropout, nn.Linear, nn.GELU, nn.Linear, nn.GELU]
    assert head.body[1].p == 0.3
    assert [m.out_features for m in head.body if isinstance(m, nn.Linear)] == [256, 128]
    n = sum(p.numel() for p in head.parameters())
    assert n == 2 * 768 + (768 * 256 + 256) + (256 * 128 + 128) + (128 * 7 + 7)


def test_linear_head_is_one_layer_on_normalised_features():
    head = Head(5, 3, HeadSettings(kind="linear"))
    x = torch.randn(4, 5)
    wanted = nn.functional.layer_norm(x, (5,)) @ head.output.weight.T + head.output.bias
    assert torch.allclose(head(x), wanted, atol=1e-6)


def test_device_says_why():
    device, reason = choose_device("auto")
    assert reason
    assert choose_device("cpu") == (torch.device("cpu"), "asked for")
    with pytest.raises(UsageError):
        choose_device("no-such-device")
