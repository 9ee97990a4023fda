"""The training loop: warm-up and cosine, early stopping on validation, checkpoints, metrics.csv.

It knows nothing of methods: they hand in a model, one function that yields an epoch's losses and one
that computes validation scores. Everything random in an epoch is seeded by (seed, epoch), so a training
that resumes from a checkpoint ends with the same weights as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import nn

from entrep_cli import console, processes
from entrep_cli.errors import RunError
from entrep_cli.recipes.recipe import Section
from entrep_cli.training.gathering import average_gradients, same_start
from entrep_cli.training.rates import gradual_unfreezing, learning_rates, parameter_groups, rate_factor
from entrep_cli.workspace import CHECKPOINT, METRICS, Run, write_bytes_atomic, write_csv_atomic

CHECKPOINT_SECONDS = 10.0
Fraction = Annotated[float, Field(ge=0, le=1)]


class LoopSettings(Section):
    """How a model is fitted.

    Attributes:
        epochs: largest number of epochs.
        patience: stop after this many epochs without a better validation score; 0 never stops early.
        batch_size: images in a training batch.
        accumulate: batches whose gradients are summed for one step.
        learning_rate: peak learning rate of AdamW for new weights.
        backbone_learning_rate: peak learning rate of pretrained weights and of adapters.
        layer_decay: layer-wise decay: factor of `backbone_learning_rate` from each block or stage to the one below it.
        head_epochs: first epochs, in which pretrained weights are frozen and only new ones are trained.
        unfreeze_epochs: gradual unfreezing: epochs from each block or stage to the one below it; 0 unfreezes all at once.
        weight_decay: weight decay of AdamW, on weight matrices only.
        warmup: fraction of all steps in which the learning rate rises linearly; then it falls to zero as a cosine.
        label_smoothing: probability that is spread evenly over all classes in the target of the cross-entropy.
        balance: `oversample` draws every class equally often, `weights` weights the loss by class, `none` does neither.
        average: decay of the exponential moving average of the weights, which is validated and saved; 0 turns it off.
        keep: the epoch whose weights are saved: the `best` on validation or the `last`. `last` turns early stopping off.
            On a small validation set the best epoch is partly luck.
    """

    epochs: PositiveInt = 100
    patience: NonNegativeInt = 20
    batch_size: PositiveInt = 64
    accumulate: PositiveInt = 1
    learning_rate: NonNegativeFloat = 1e-3
    backbone_learning_rate: NonNegativeFloat = 1e-4
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    head_epochs: NonNegativeInt = 0
    unfreeze_epochs: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 1e-2
    warmup: Fraction = 0.05
    label_smoothing: Fraction = 0.0
    balance: Literal["oversample", "weights", "none"] = "oversample"
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class LoopResult:
    """The epoch whose weights are in the model, its validation scores, the cost, and how many parameters learned."""

    epoch: int
    scores: dict[str, float]
    epochs_run: int
    seconds: float
    parameters: int


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of one epoch's batches and augmentations, the same in all processes."""
    return torch.Generator().manual_seed(_epoch_seed(seed, epoch))


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed torch's global generator, from which dropout draws, differently in each process; `fit` does so before each epoch."""
    torch.manual_seed(_epoch_seed(seed, epoch) + (processes.rank() << 40))


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def fit(
    model: nn.Module,
    losses: Callable[[int], Iterator[torch.Tensor]],
    steps_per_epoch: int,
    validate: Callable[[nn.Module], dict[str, float]],
    settings: LoopSettings,
    run: Run,
    *,
    monitor: str,
    seed: int,
    resume: bool = False,
    pretrained: Collection[str] = (),
    precision: str = "fp32",
) -> LoopResult:
    """Fit the trainable parameters of `model` and leave the weights of the epoch in it that `settings.keep` names.

    Args:
        losses: given an epoch number, yields one loss a step; draws from `epoch_generator`, and dropout from what
            `seed_epoch` has seeded.
        validate: validation scores of a model; higher `monitor` is better, equal scores are decided by a lower `val_loss`.
        resume: go on from the checkpoint in the run folder, if it has one.
        pretrained: names of the parameters that learn at `backbone_learning_rate`.
        precision: in which `losses` computes (and `validate`, of clip-lora and dinov2); for `fp16` the loss is scaled,
            so that small gradients survive.

    In several processes `losses` computes the loss of the whole batch in each (`training.gathering`); the main one
    validates and writes.

    Raises:
        RunError: the loss is not finite, or a checkpoint does not belong to this training.
        UsageError: as `same_start`.
    """
    started = time.monotonic()
    model.train()
    same_start(model)
    if not pretrained and (settings.layer_decay != 1 or settings.head_epochs or settings.unfreeze_epochs):
        console.warn("layer_decay, head_epochs and unfreeze_epochs say how pretrained weights learn, and this training starts without any.")
    rates = learning_rates(
        [name for name, _ in model.named_parameters()],
        pretrained,
        rate=settings.learning_rate,
        pretrained_rate=settings.backbone_learning_rate,
        decay=settings.layer_decay,
        head_epochs=settings.head_epochs,
        unfreeze_epochs=settings.unfreeze_epochs,
    )
    losses = gradual_unfreezing(losses, model, rates)
    groups = parameter_groups(model, rates, settings.weight_decay)
    # Fused: the update takes much of a small head's step, and this makes the step a fifth faster.
    optimizer = torch.optim.AdamW(groups, fused=True)
    batches = max(steps_per_epoch, 1)
    steps_per_epoch = -(-steps_per_epoch // settings.accumulate)
    total_steps = max(1, settings.epochs * steps_per_epoch)
    first_steps = [group["frozen_epochs"] * steps_per_epoch for group in groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda step, first=first: rate_factor(step, total_steps, settings.warmup, first) for first in first_steps]
    )
    average = _Average(model, settings.average)
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=precision == "fp16")
    state: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best": {}, "best_weights": {}, "history": [], "seconds": 0.0}
    if resume and run.path(CHECKPOINT).is_file():
        state = _load_checkpoint(run, model, optimizer, schedule, average, scaler)
        console.say(f"Going on after epoch {state['epoch']}.")
    before = state["seconds"]  # of earlier sessions, which were interrupted
    saved = time.monotonic()

    with console.progress("Training", settings.epochs, "epochs") as advance:
        advance(state["epoch"])
        while not _ended(state, settings):
            epoch = state["epoch"] + 1
            model.train()
            total, n_batches = 0.0, 0
            optimizer.zero_grad(set_to_none=True)
            seed_epoch(seed, epoch)
            for loss in losses(epoch):
                if not torch.isfinite(loss):
                    raise RunError(
                        f"The loss became {loss.item()} in epoch {epoch}.",
                        where=run.folder,
                        hint="lower train.learning_rate (--set train.learning_rate=1e-4)",
                    )
                scaler.scale(loss / settings.accumulate).backward()
                total, n_batches = total + loss.item(), n_batches + 1
                if n_batches % settings.accumulate == 0:
                    _step(optimizer, scaler, schedule, average, model)
                if n_batches < batches:  # the last one is done with the validation
                    advance(1 / batches)
            if n_batches % settings.accumulate:
                _step(optimizer, scaler, schedule, average, model)  # the epoch's last, smaller sum
            with average.applied(model):
                model.eval()
                scores = processes.on_main(lambda: validate(model))
                if settings.keep == "last" or not state["best"] or _order(scores, monitor) > _order(state["best"], monitor):
                    state.update(best_epoch=epoch, best=scores, best_weights=_copy(model))
            row = {"epoch": epoch, "train_loss": total / max(n_batches, 1), **scores}
            state.update(epoch=epoch, history=[*state["history"], row], seconds=before + time.monotonic() - started)
            best = f"best {state['best'][monitor]:.3f} in epoch {state['best_epoch']}"
            advance(1 - min(n_batches, batches - 1) / batches, f"{monitor} {scores[monitor]:.3f}, {best}")
            if processes.is_main() and (_ended(state, settings) or time.monotonic() - saved > CHECKPOINT_SECONDS):
                _write_metrics(run, state["history"])
                _save_checkpoint(run, state, model, optimizer, schedule, average, scaler)
                saved = time.monotonic()
    model.load_state_dict(state["best_weights"], strict=False)
    model.eval()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return LoopResult(state["best_epoch"], state["best"], state["epoch"], state["seconds"], trained)


def _step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, schedule, average: _Average, model: nn.Module) -> None:
    average_gradients(model)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    average.update(model)
    optimizer.zero_grad(set_to_none=True)


def end_training(run: Run) -> None:
    """Remove the checkpoint of a training whose model is saved."""
    run.path(CHECKPOINT).unlink(missing_ok=True)


class _Average:
    """Exponential moving average of what training changes; with decay 0 just the weights themselves."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = _copy(model) if decay else {}
        self.steps = 0

    def update(self, model: nn.Module) -> None:
        if not self.decay:
            return
        self.steps += 1
        # A short training must not stay at its first weights: the decay grows to its value.
        decay = min(self.decay, self.steps / (self.steps + 9))
        for name, value in _trained(model):
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights, inside the block."""
        if not self.decay:
            yield
            return
        current = _copy(model)
        model.load_state_dict(self.weights, strict=False)
        try:
            yield
        finally:
            model.load_state_dict(current, strict=False)


def _trained(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a training changes: parameters that learn, and buffers such as batch statistics."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, value in model.state_dict().items():
        if name not in frozen:
            yield name, value.detach()


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in _trained(model)}


def _ended(state: dict[str, Any], settings: LoopSettings) -> bool:
    waited = state["epoch"] - state["best_epoch"]
    return state["epoch"] >= settings.epochs or bool(settings.patience and waited >= settings.patience)


def _order(scores: dict[str, float], monitor: str) -> tuple[float, float]:
    return scores[monitor], -scores.get("val_loss", 0.0)


def _write_metrics(run: Run, history: list[dict[str, float]]) -> None:
    columns = list(history[0])
    rows = ([f"{v:.6g}" if isinstance(v, float) else v for v in (row.get(k, "") for k in columns)] for row in history)
    write_csv_atomic(run.path(METRICS), columns, rows)


def _save_checkpoint(run: Run, state, model, optimizer, schedule, average: _Average, scaler) -> None:
    content = io.BytesIO()  # torch hides a full disk behind another error; a plain write does not
    torch.save(
        {
            **state,
            "weights": _copy(model),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "average": average.weights,
            "average_steps": average.steps,
            "scaler": scaler.state_dict(),
        },
        content,
    )
    write_bytes_atomic(run.path(CHECKPOINT), content.getvalue())


def _load_checkpoint(run: Run, model, optimizer, schedule, average: _Average, scaler) -> dict[str, Any]:
    path = run.path(CHECKPOINT)
    try:
        # To the CPU: another machine, or another process of the same training, does not have the GPU it was saved from.
        state = torch.load(path, weights_only=True, map_location="cpu")
        if set(state["weights"]) != {name for name, _ in _trained(model)}:
            raise ValueError("it holds other parameters")
        model.load_state_dict(state.pop("weights"), strict=False)
        optimizer.load_state_dict(state.pop("optimizer"))
        schedule.load_state_dict(state.pop("schedule"))
        average.weights = {name: value.to(average.weights[name].device) for name, value in state.pop("average").items()}
        average.steps = state.pop("average_steps")
        scaler.load_state_dict(state.pop("scaler"))
    except Exception as error:  # a damaged file raises anything from KeyError to an unpickling error
        raise RunError(f"The checkpoint cannot be used: {error}", where=path, hint="start anew with --overwrite") from error
    return state
