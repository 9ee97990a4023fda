"""The loop on a problem small enough to know: learning, stopping, averaging, and going on after a kill."""

from __future__ import annotations

import csv

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from entrep_cli.errors import RunError
from entrep_cli.models.device import autocast
from entrep_cli.training import loop
from entrep_cli.training.loop import LoopSettings, epoch_generator, fit
from entrep_cli.workspace import CHECKPOINT, METRICS, Run

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.tensor([1.0, -2.0, 0.5, 0.0]) > 0).long()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))


def train(run: Run, settings: LoopSettings, net: nn.Module, *, resume=False, stop_after=None, scores=None, precision="fp32"):
    def losses(epoch):
        if stop_after is not None and epoch > stop_after:
            raise KeyboardInterrupt
        order = torch.randperm(len(X), generator=epoch_generator(1, epoch))
        for pick in order.split(16):
            with autocast(torch.device("cpu"), precision):
                logits = net(X[pick])
            yield nn.functional.cross_entropy(logits.float(), Y[pick])

    @torch.no_grad()
    def validate(net):
        logits = net(X)
        accuracy = float((logits.argmax(1) == Y).float().mean())
        value = accuracy if scores is None else scores.pop(0)
        return {"val_loss": float(nn.functional.cross_entropy(logits, Y)), "val_accuracy": value}

    return fit(net, losses, 4, validate, settings, run, monitor="val_accuracy", seed=1, resume=resume, precision=precision)


def state(net: nn.Module) -> list[torch.Tensor]:
    return list(net.state_dict().values())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(state(a), state(b)))


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def test_it_learns_and_writes_what_it_did(run):
    net = model()
    fitted = train(run, LoopSettings(epochs=30, learning_rate=0.05), net)
    assert fitted.scores["val_accuracy"] > 0.95
    with open(run.path(METRICS), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, fitted.epochs_run + 1))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


@pytest.mark.parametrize(("average", "precision"), [(0.0, "fp32"), (0.9, "fp32"), (0.0, "bf16"), (0.9, "fp16")])
def test_a_killed_training_ends_with_the_same_weights(run, tmp_path, monkeypatch, average, precision):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    settings = LoopSettings(epochs=8, patience=0, learning_rate=0.02, average=average)
    whole = model()
    expected = train(Run(tmp_path / "whole"), settings, whole, precision=precision)
    with pytest.raises(KeyboardInterrupt):
        train(run, settings, model(), stop_after=3, precision=precision)
    resumed = model()
    found = train(run, settings, resumed, resume=True, precision=precision)
    assert (found.epoch, found.scores) == (expected.epoch, expected.scores)
    assert same(whole, resumed)


def test_resuming_an_ended_training_changes_nothing(run):
    settings = LoopSettings(epochs=3, learning_rate=0.02)
    first, again = model(), model()
    train(run, settings, first)
    assert train(run, settings, again, resume=True).epochs_run == 3
    assert same(first, again)


def test_patience_stops_and_the_best_epoch_is_kept(run):
    net = model()
    scores = [0.5, 0.9, 0.6, 0.6, 0.6, 0.6]
    fitted = train(run, LoopSettings(epochs=6, patience=3), net, scores=scores)
    assert (fitted.epoch, fitted.epochs_run, fitted.scores["val_accuracy"]) == (2, 5, 0.9)
    # The weights left in the model are those of epoch 2, batch statistics included.
    two = model()
    train(Run(run.folder / "two"), LoopSettings(epochs=6, patience=1), two, scores=[0.5, 0.9, 0.1])
    assert same(net, two)


def test_equal_scores_are_decided_by_the_loss(run):
    net = model()
    fitted = train(run, LoopSettings(epochs=4, patience=0, learning_rate=0.01), net, scores=[0.5] * 4)
    assert fitted.epoch == 4  # the loss still falls


def test_the_average_is_the_one_worked_out_by_hand(run):
    """Weights averaged step by step with decay min(d, s / (s + 9)), from the weights before training."""
    net = model()
    wanted = [p.detach().clone() for p in net.parameters()]
    steps = []

    class Spy(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            super().step(*args, **kwargs)
            steps.append(1)
            decay = min(0.5, len(steps) / (len(steps) + 9))
            for mean, p in zip(wanted, net.parameters()):
                mean.lerp_(p.detach(), 1 - decay)

    original, torch.optim.AdamW = torch.optim.AdamW, Spy
    try:
        train(run, LoopSettings(epochs=1, average=0.5), net)
    finally:
        torch.optim.AdamW = original
    assert all(torch.allclose(a, p) for a, p in zip(wanted, net.parameters()))


def test_a_loss_that_is_not_finite_stops_with_a_mend(run):
    net = model()

    def losses(epoch):
        yield net(X).sum() * float("nan")

    with pytest.raises(RunError, match="nan") as caught:
        fit(net, losses, 1, lambda m: {"val_accuracy": 0.0}, LoopSettings(), run, monitor="val_accuracy", seed=0)
    assert "learning_rate" in caught.value.hint


def test_a_checkpoint_of_another_model_is_refused(run):
    train(run, LoopSettings(epochs=1), model())
    other = nn.Linear(4, 2)
    with pytest.raises(RunError, match="checkpoint"):
        fit(other, lambda e: iter(()), 1, lambda m: {}, LoopSettings(), run, monitor="x", seed=0, resume=True)
    run.path(CHECKPOINT).write_bytes(b"torn")
    with pytest.raises(RunError, match="checkpoint"):
        train(run, LoopSettings(epochs=1), model(), resume=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_learns_as_well_and_keeps_float32_weights(run, precision):
    net = model()
    fitted = train(run, LoopSettings(epochs=30, learning_rate=0.05), net, precision=precision)
    assert fitted.scores["val_accuracy"] > 0.95
    assert {value.dtype for value in net.parameters()} == {torch.float32}
    assert fitted.parameters == sum(p.numel() for p in net.parameters()) and fitted.seconds > 0


@pytest.mark.parametrize(
    "setting",
    [{"epochs": 0}, {"batch_size": 0}, {"accumulate": 0}, {"patience": -1}, {"learning_rate": -1e-3}, {"warmup": 2}]
    + [{"label_smoothing": 1.5}, {"average": 1.0}],
)
def test_settings_that_cannot_be_are_refused_at_once(setting):
    with pytest.raises(ValidationError):
        LoopSettings(**setting)
