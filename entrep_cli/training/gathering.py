"""One batch divided among several processes, so that its step is that of one process with the whole batch.

Every process draws the same batch and the same random numbers, runs the towers on its slice of it, and
collects the embeddings of all (`gathered`). From then on all compute the same loss of the whole batch,
whatever it is: a contrast with every text, a mean with class weights. The gradients are averaged before the
step (`average_gradients`). Dropout alone differs between processes.
"""

from __future__ import annotations

import torch
from torch import nn

from entrep_cli import processes
from entrep_cli.errors import UsageError


def gathered(rows: torch.Tensor, n: int) -> torch.Tensor:
    """(n, ...) rows of the whole batch from the rows of this process, its `processes.portion(n)`; differentiable."""
    return rows if processes.size() == 1 else _Gathered.apply(rows, n)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context, rows: torch.Tensor, n: int) -> torch.Tensor:
        context.n = n
        size = processes.size()
        lengths = [n * (i + 1) // size - n * i // size for i in range(size)]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        of_all = [torch.empty_like(padded) for _ in range(size)]
        torch.distributed.all_gather(of_all, padded, group=_group(rows))
        return torch.cat([received[:length] for received, length in zip(of_all, lengths)])

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        # The loss is the same everywhere, so this process knows the gradient of its rows without another exchange, which
        # torch.distributed.nn.functional.all_gather would do. The later average divides by the number of processes.
        return gradient[processes.portion(context.n)] * processes.size(), None


def average_gradients(model: nn.Module) -> None:
    """The mean over all processes of the gradients that learn, in place; one without a gradient counts as zero."""
    if processes.size() == 1:
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        return
    device = learning[0].device
    has_gradient = torch.tensor([p.grad is not None for p in learning], dtype=torch.uint8, device=device)
    torch.distributed.all_reduce(has_gradient, torch.distributed.ReduceOp.MAX, group=_group(has_gradient))
    # A parameter without a gradient in any process keeps none: the optimizer then leaves it unchanged.
    used = [p for p, known in zip(learning, has_gradient.tolist()) if known]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in used])
    torch.distributed.all_reduce(flat, group=_group(flat))
    for parameter, mean in zip(used, (flat / processes.size()).split([p.numel() for p in used])):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype)


def same_start(model: nn.Module) -> None:
    """The weights of the main process in all processes, and a check that several processes can train the model.

    Raises:
        UsageError: a batch norm learns: its statistics would be those of a slice of the batch.
    """
    if processes.size() == 1:
        return
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()):
        raise UsageError(
            "Batch norm learns from whole batches, and each of several processes has only a slice of one.",
            hint="--set freeze_norm=true, a backbone without batch norm, or one process",
        )
    for value in [*model.parameters(), *model.buffers()]:
        torch.distributed.broadcast(value.detach(), src=0, group=_group(value))


def _group(tensor: torch.Tensor):
    gloo = processes.group()  # first, because it creates the other one too
    return torch.distributed.group.WORLD if tensor.is_cuda else gloo
