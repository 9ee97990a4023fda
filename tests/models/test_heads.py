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


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_logistic_head_is_scikit_learns(n_classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    torch.manual_seed(0)
    x, targets = torch.randn(60, 8) * torch.arange(1, 9) + 3, torch.arange(60) % n_classes
    x[:, 2] += 4 * targets
    head = Head(8, n_classes, HeadSettings(kind="logistic"))
    head.standardise(x)
    hidden = head.body(x)
    assert torch.allclose(hidden.mean(0), torch.zeros(8), atol=1e-5)
    assert torch.allclose(hidden.std(0, correction=0), torch.ones(8), atol=1e-4)
    weights = torch.rand(60)
    assert head.solve(hidden, targets, 0.1, weights)
    plain = StandardScaler().fit_transform(nn.functional.layer_norm(x, (8,)).double().numpy())
    wanted = LogisticRegression(C=0.1, max_iter=1000).fit(plain, targets.numpy(), weights.double().numpy())
    assert torch.allclose(head(x).softmax(1), torch.from_numpy(wanted.predict_proba(plain)).float(), atol=1e-3)


def test_a_class_without_targets_and_a_constant_dimension_do_no_harm():
    x = torch.randn(30, 4)
    head = Head(4, 3, HeadSettings(kind="logistic"))
    head.standardise(torch.zeros(30, 4))
    assert torch.equal(head.body(torch.zeros(2, 4)), torch.zeros(2, 4))
    head.standardise(x)
    head.solve(head.body(x), torch.arange(30) % 2 * 2, 1.0)  # classes 0 and 2
    assert head(x).softmax(1)[:, 1].max() == 0 and torch.isfinite(head(x)).all()


@pytest.mark.parametrize("bad", [{"c": ()}, {"c": (0.0,)}, {"kind": "svm"}])
def test_settings_that_do_not_hold(bad):
    with pytest.raises(ValueError):
        HeadSettings(**bad)
