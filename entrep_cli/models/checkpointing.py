"""Gradient checkpointing: the towers forget what their blocks made, and make it again for the gradients.

Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost* (arXiv 1604.06174), by the blocks of open_clip
and timm. Adapters and explicit attention inside a block are worked out again with it; dropout draws the same.
"""

from __future__ import annotations

from torch import nn

from entrep_cli.errors import UsageError


def set_checkpointing(model: nn.Module, tune: str) -> None:
    """Checkpoint the blocks of a timm model, or of both towers of an open_clip model, in training.

    Raises:
        UsageError: nothing in the blocks learns, or they cannot be checkpointed.
    """
    if tune == "head":
        raise UsageError("With tune = 'head' no gradient goes through the towers: there is nothing to checkpoint.", hint="leave it out")
    towers = [model.visual, model.text if hasattr(model, "text") else model.transformer] if hasattr(model, "visual") else [model]
    for tower in towers:
        # open_clip only warns where its timm tower cannot.
        blocks = getattr(tower, "trunk", tower)
        try:
            blocks.set_grad_checkpointing(True) if hasattr(blocks, "set_grad_checkpointing") else _of_transformer(blocks)
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise UsageError(
                f"The blocks of {type(blocks).__name__} cannot be checkpointed.", hint="--set checkpointing=false, and a smaller batch"
            ) from error


def _of_transformer(blocks: nn.Module) -> None:
    """open_clip's bare Transformer, which is the text tower of its older models, has a switch alone."""
    if not hasattr(blocks, "grad_checkpointing"):
        raise AttributeError(type(blocks).__name__)
    blocks.grad_checkpointing = True
