"""Learning rates by layer and gradual unfreezing of a pretrained network.

A new head learns first, then the network is unfrozen from its top downward, and its lower stages learn more slowly
than its upper ones (ULMFiT, Howard and Ruder 2018, sections 3.2 and 3.3; layer-wise learning-rate decay as in BEiT,
Bao et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from entrep_cli.errors import UsageError
from entrep_cli.models.towers import depths_from_top

Losses = Callable[[int], Iterator[torch.Tensor]]  # given an epoch, a loss a step


@dataclass(frozen=True)
class LearningRate:
    """Of a parameter: its highest rate, and for how many epochs it stays frozen first."""

    rate: float
    frozen_epochs: int = 0


def learning_rates(
    names: Iterable[str],
    pretrained: Collection[str],
    *,
    rate: float,
    pretrained_rate: float,
    decay: float = 1.0,
    head_epochs: int = 0,
    unfreeze_epochs: int = 0,
) -> dict[str, LearningRate]:
    """The learning rate of every parameter.

    A pretrained parameter d stages below the top learns at `pretrained_rate` * decay ** d, after
    `head_epochs` + d * `unfreeze_epochs` epochs; one that is not pretrained at `rate`, from the start.

    Args:
        names: of the parameters, in the order in which the model has them.
        pretrained: those of `names` that come from pretrained weights or belong to them, as adapters do.
    """
    names = list(names)
    rates = {name: LearningRate(rate) for name in names}
    for name, depth in depths_from_top([name for name in names if name in pretrained]).items():
        rates[name] = LearningRate(pretrained_rate * decay**depth, head_epochs + depth * unfreeze_epochs)
    return rates


def parameter_groups(model: nn.Module, rates: dict[str, LearningRate], weight_decay: float) -> list[dict]:
    """Parameters for an optimizer, by rate, frozen epochs and decay; weight decay on matrices only.

    Each group has `frozen_epochs` beside what the optimizer reads.
    """
    groups: dict[tuple[LearningRate, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((rates[name], weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": rate.rate, "frozen_epochs": rate.frozen_epochs, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def rate_factor(step: int, total: int, warmup: float, first: int = 0) -> float:
    """Factor of a learning rate: a linear warm-up from step `first` on, under a half cosine to zero.

    The cosine is the same for all, over all steps after the first warm-up: what starts later ends together with the rest.
    """
    rise = max(1, round(warmup * total))
    risen = min(1.0, max(0, step - first + 1) / rise)
    if step < rise:
        return risen
    return risen * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def gradual_unfreezing(losses: Losses, model: nn.Module, rates: dict[str, LearningRate]) -> Losses:
    """`losses` with the parameters frozen that do not learn yet, inside an epoch: no gradient is computed for them.

    Between epochs everything learns again, for a model is copied and checkpointed by what learns.

    Raises:
        UsageError: everything is frozen at first, and nothing would learn.
    """
    late = [(p, rates[name].frozen_epochs) for name, p in model.named_parameters() if p.requires_grad and rates[name].frozen_epochs]
    if not late:
        return losses
    if len(late) == sum(p.requires_grad for p in model.parameters()):
        raise UsageError("All that learns is pretrained: no head can learn first.", hint="--set train.head_epochs=0")

    def inside(epoch: int) -> Iterator[torch.Tensor]:
        frozen = [p for p, frozen_epochs in late if epoch <= frozen_epochs]
        for p in frozen:
            p.requires_grad_(False)
        try:
            yield from losses(epoch)
        finally:
            for p in frozen:
                p.requires_grad_(True)

    return inside
