"""How fast each part of a pretrained network learns, and from which epoch on.

Fine-tuning is gentle with what is general and late with what is uncertain: a new head learns first, then
the network is thawed from its top downward, and its lower stages learn more slowly than its upper ones
(ULMFiT, Howard and Ruder 2018, sections 3.2 and 3.3; layer-wise decay as in BEiT, Bao et al. 2022). All of
it is read off the names of the parameters, so that it holds for timm's models, open_clip's and adapters.
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
class Pace:
    """How a parameter learns: its learning rate, and the epochs that go before it begins to."""

    rate: float
    waits: int = 0


def paces(
    names: Iterable[str],
    pretrained: Collection[str],
    *,
    rate: float,
    pretrained_rate: float,
    decay: float = 1.0,
    head_epochs: int = 0,
    thaw_epochs: int = 0,
) -> dict[str, Pace]:
    """The pace of every parameter.

    A pretrained parameter d stages below the top learns at `pretrained_rate` * decay ** d, after
    `head_epochs` + d * `thaw_epochs` epochs; one that is not pretrained at `rate`, from the start.

    Args:
        names: of the parameters, in the order in which the model has them.
        pretrained: those of `names` that come from pretrained weights or belong to them, as adapters do.
    """
    names = list(names)
    depths = depths_from_top([name for name in names if name in pretrained])
    return {
        name: Pace(pretrained_rate * decay ** depths[name], head_epochs + depths[name] * thaw_epochs) if name in depths else Pace(rate)
        for name in names
    }


def parameter_groups(model: nn.Module, pace_of: dict[str, Pace], weight_decay: float) -> list[dict]:
    """Parameters for an optimizer, by rate, beginning and decay; weight decay on matrices only.

    Each group has `waits`, as its `Pace`, beside what the optimizer reads.
    """
    groups: dict[tuple[float, int, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((pace_of[name].rate, pace_of[name].waits, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "waits": waits, "weight_decay": decay} for (rate, waits, decay), p in groups.items()]


def rate_factor(step: int, total: int, warmup: float, begins: int = 0) -> float:
    """Factor of a learning rate: a linear warm-up from the step at which it `begins`, under a half cosine to zero.

    The cosine is the same for all, over all steps after the first warm-up: what begins later ends together with the rest.
    """
    rise = max(1, round(warmup * total))
    risen = min(1.0, max(0, step - begins + 1) / rise)
    if step < rise:
        return risen
    return risen * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def thawing(losses: Losses, model: nn.Module, pace_of: dict[str, Pace]) -> Losses:
    """`losses` with every parameter frozen, inside an epoch, that still waits then: no gradient is worked out for it.

    Between epochs everything learns again, for a model is copied and checkpointed by what learns.

    Raises:
        UsageError: everything waits, and nothing would learn in the first epochs.
    """
    waiting = [(p, pace_of[name].waits) for name, p in model.named_parameters() if p.requires_grad and pace_of[name].waits]
    if not waiting:
        return losses
    if len(waiting) == sum(p.requires_grad for p in model.parameters()):
        raise UsageError("All that learns is pretrained: there is no head to learn first.", hint="--set train.head_epochs=0")

    def inside(epoch: int) -> Iterator[torch.Tensor]:
        frozen = [p for p, waits in waiting if epoch <= waits]
        for p in frozen:
            p.requires_grad_(False)
        try:
            yield from losses(epoch)
        finally:
            for p in frozen:
                p.requires_grad_(True)

    return inside
