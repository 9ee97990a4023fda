"""A batch shared by several processes, so that its step is that of one process with the whole batch.

Every process draws the same batch and the same random numbers, runs the towers on its own part of it, and
collects the embeddings of all (`gathered`). From there on all compute the same loss of the whole batch,
whatever it is: a contrast with every text, a mean with class weights. The gradients are averaged before the
step (`average_gradients`). Dropout alone differs: each process draws its own.
"""

from __future__ import annotations

import torch
from torch import nn

from entrep_cli import processes
from entrep_cli.errors import UsageError


def gathered(own: torch.Tensor, n: int) -> torch.Tensor:
    """(n, ...) rows of the whole batch from the rows of this process, `processes.part(n)` of them; differentiable."""
    return own if processes.size() == 1 else _Gathered.apply(own, n)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context, own: torch.Tensor, n: int) -> torch.Tensor:
        context.n = n
        size = processes.size()
        lengths = [n * (i + 1) // size - n * i // size for i in range(size)]
        padded = own.new_zeros(max(lengths), *own.shape[1:])
        padded[: len(own)] = own
        rows = [torch.empty_like(padded) for _ in range(size)]
        torch.distributed.all_gather(rows, padded, group=_group(own))
        return torch.cat([part[:length] for part, length in zip(rows, lengths)])

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        # The loss is the same everywhere, so the gradient of the own rows is at hand without another exchange.
        # The others give nothing to the towers' gradients of these rows: the average to come divides by their number.
        return gradient[processes.part(context.n)] * processes.size(), None


def average_gradients(model: nn.Module) -> None:
    """The mean over all processes of the gradients that learn, in place; one without a gradient counts as zero."""
    if processes.size() == 1:
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        return
    device = learning[0].device
    there = torch.tensor([p.grad is not None for p in learning], dtype=torch.uint8, device=device)
    torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MAX, group=_group(there))
    # A parameter that nobody has a gradient for keeps none: the optimizer then leaves it alone.
    used = [p for p, known in zip(learning, there.tolist()) if known]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in used])
    torch.distributed.all_reduce(flat, group=_group(flat))
    for parameter, mean in zip(used, (flat / processes.size()).split([p.numel() for p in used])):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype)


def same_start(model: nn.Module) -> None:
    """The weights of the main process in all processes, and a check that what follows can be shared.

    Raises:
        UsageError: a batch norm learns: its statistics are those of a part of a batch, and no longer of the batch.
    """
    if processes.size() == 1:
        return
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()):
        raise UsageError(
            "Batch norm learns from whole batches, and several processes each see a part of one.",
            hint="--set freeze_norm=true, a backbone without batch norm, or one process",
        )
    for value in [*model.parameters(), *model.buffers()]:
        torch.distributed.broadcast(value.detach(), src=0, group=_group(value))


def _group(tensor: torch.Tensor):
    own = processes.group()  # first, for it makes the other one too
    return torch.distributed.group.WORLD if tensor.is_cuda else own
