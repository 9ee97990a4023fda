"""Learning rates by stage, gradual unfreezing, and the training that uses them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from entrep_cli.errors import UsageError
from entrep_cli.training import loop
from entrep_cli.training.loop import LoopSettings, epoch_generator, fit
from entrep_cli.training.rates import LearningRate, gradual_unfreezing, learning_rates, parameter_groups, rate_factor
from entrep_cli.workspace import Run


def test_what_is_new_learns_at_once_and_fast_what_is_old_by_its_depth():
    names = ["blocks.0.w", "blocks.1.w", "blocks.2.w", "head.w"]
    found = learning_rates(names, names[:3], rate=1e-2, pretrained_rate=1e-3, decay=0.5, head_epochs=2, unfreeze_epochs=3)
    assert found == {
        names[0]: LearningRate(2.5e-4, 8),
        names[1]: LearningRate(5e-4, 5),
        names[2]: LearningRate(1e-3, 2),
        names[3]: LearningRate(1e-2, 0),
    }


def test_groups_hold_every_parameter_once_and_decay_matrices_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    rates = {name: LearningRate(0.1, int(name[0])) for name, _ in net.named_parameters()}
    groups = parameter_groups(net, rates, 0.3)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.3}
    assert sorted({g["frozen_epochs"] for g in groups}) == [0, 1, 2]


def test_rate_rises_then_falls_to_zero():
    rates = [rate_factor(step, 100, 0.1) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))
    assert math.isclose(rates[100], 0.0, abs_tol=1e-12)
    assert math.isclose(rates[55], 0.5, abs_tol=1e-12)


def test_what_begins_later_warms_up_under_the_same_cosine():
    late = [rate_factor(step, 100, 0.1, 40) for step in range(101)]
    whole = [rate_factor(step, 100, 0.1) for step in range(101)]
    assert not any(late[:40]) and late[40] == pytest.approx(whole[40] / 10) and late[44] == pytest.approx(whole[44] / 2)
    assert late[49:] == whole[49:]


class Net(nn.Module):
    """Two stages and a head, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.blocks[1](self.blocks[0](x).relu()).relu())


X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def train(run: Run, settings: LoopSettings, net: Net, *, resume=False, stop_after=None, seen=None):
    def losses(epoch):
        if stop_after is not None and epoch > stop_after:
            raise KeyboardInterrupt
        for pick in torch.randperm(32, generator=epoch_generator(1, epoch)).split(8):
            yield nn.functional.cross_entropy(net(X[pick]), Y[pick])

    def validate(net):
        if seen is not None:
            seen.append({name: p.detach().clone() for name, p in net.named_parameters()})
        return {"accuracy": float((net(X).argmax(1) == Y).float().mean())}

    pretrained = {name for name, _ in net.named_parameters() if name.startswith("blocks")}
    return fit(net, losses, 4, validate, settings, run, monitor="accuracy", seed=1, resume=resume, pretrained=pretrained)


PHASED = LoopSettings(epochs=5, patience=0, learning_rate=0.01, backbone_learning_rate=0.01, head_epochs=1, unfreeze_epochs=2, keep="last")


def test_stages_stand_still_until_their_phase(tmp_path):
    """Head from the start, the upper stage from epoch 2, the lower from epoch 4: also with weight decay, which would move them."""
    torch.manual_seed(0)
    net = Net()
    epochs = [{name: p.detach().clone() for name, p in net.named_parameters()}]
    train(Run(tmp_path), PHASED, net, seen=epochs)
    moved = {
        name: [not torch.equal(a[name], b[name]) for a, b in zip(epochs, epochs[1:])]
        for name in ("head.weight", "blocks.1.weight", "blocks.0.weight")
    }
    assert moved["head.weight"] == [True] * 5
    assert moved["blocks.1.weight"] == [False, True, True, True, True]
    assert moved["blocks.0.weight"] == [False, False, False, True, True]
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_training_in_phases_that_was_killed_ends_with_the_same_weights(tmp_path, monkeypatch, average):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    settings = PHASED.model_copy(update={"average": average})
    torch.manual_seed(0)
    whole, killed, resumed = Net(), Net(), Net()
    killed.load_state_dict(whole.state_dict())
    train(Run(tmp_path / "whole"), settings, whole)
    with pytest.raises(KeyboardInterrupt):
        train(Run(tmp_path / "cut"), settings, killed, stop_after=2)
    train(Run(tmp_path / "cut"), settings, resumed, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_an_epoch_that_is_cut_short_leaves_nothing_frozen():
    net = Net()
    rates = {name: LearningRate(1.0, name.startswith("blocks")) for name, _ in net.named_parameters()}
    inside = gradual_unfreezing(lambda epoch: iter([torch.zeros(())] * 2), net, rates)
    steps = inside(1)
    next(steps)
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2
    steps.close()
    assert all(p.requires_grad for p in net.parameters())


def test_a_training_in_which_nothing_would_learn_at_first_is_refused():
    net = Net()
    with pytest.raises(UsageError, match="no head"):
        gradual_unfreezing(lambda epoch: iter(()), net, {name: LearningRate(1.0, 1) for name, _ in net.named_parameters()})


def test_the_last_epoch_is_kept_where_it_is_asked_for(tmp_path):
    for keep, epoch in (("best", 1), ("last", 3)):
        net = Net()
        how = LoopSettings(epochs=3, patience=1 if keep == "last" else 0, learning_rate=0.0, backbone_learning_rate=0.0, keep=keep)
        found = train(Run(tmp_path / keep), how, net)
        assert found.epoch == epoch and found.epochs_run == 3  # equal scores: the first is the best; patience has no say over the last
