"""The precision of inference: the towers of a trained model are cast once, all that follows them stays in float32.

Not by autocast, as in training: inside `inference_mode` it casts the weights again at every call, which on a CPU
is slower than float32 (benchmarks/attention.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from entrep_cli.errors import UsageError
from entrep_cli.models.backbones import Backbone
from entrep_cli.models.device import DTYPES, choose_precision
from entrep_cli.models.inputs import Normalise
from entrep_cli.models.towers import tower_of


class Lowered(Protocol):
    """What is asked of a model here: `methods.base.Model`, an `nn.Module`, has it."""

    recipe: Any
    low_precision: Sequence[str]
    engine: str

    def get_submodule(self, target: str) -> nn.Module: ...

    def modules(self) -> Iterator[nn.Module]: ...


def choose_inference_precision(option: str, device: torch.device, model: Lowered) -> tuple[str, str]:
    """`fp32`, `bf16` or `fp16` for the towers of a model on its device, and why.

    `auto` takes a lower one for a ViT alone: in bf16 on a CPU with units for it ViT-B/16 was four times as fast, and its
    embeddings had a cosine of 0.9999 to those in fp32; MobileNetV2 1.4 times, 0.9996 and less.

    Raises:
        UsageError: no such precision, or one that the model or the device does not answer in.
    """
    chosen, reason = choose_precision(option, device)
    if chosen == "fp32":
        return chosen, reason
    if not model.low_precision:
        if option == "auto":
            return "fp32", f"{model.recipe.method} answers in it alone"
        raise UsageError(f"{model.recipe.method} answers in fp32 alone.", hint="--precision auto")
    if option == "auto" and not _is_vit(model):
        return "fp32", f"in {chosen} convolutions gain little, and lose more than a ViT"
    if chosen == "fp16" and device.type == "cpu":
        raise UsageError("A CPU is not faster in fp16.", hint="--precision bf16 or auto")
    return chosen, reason


def precision_beside(embedded_in: str | None, device: torch.device, model: Lowered) -> tuple[str, str]:
    """The precision for images that are to be compared with those that a run has already embedded, and why.

    The same, so that an image has one embedding whenever it is computed; float32 where that is not what this device
    would choose; the choice of the device where nothing is embedded yet (`embedded_in` is None).
    """
    if embedded_in is None:
        return choose_inference_precision("auto", device, model)
    if embedded_in not in DTYPES:
        return "fp32", "as the run's images were embedded"
    if choose_precision("auto", device)[0] == embedded_in and model.low_precision:
        return embedded_in, "as the run's images were embedded"
    return "fp32", f"the run's images were embedded in {embedded_in}, which is not for this device"


def _is_vit(model: Lowered) -> bool:
    tower = model.get_submodule(model.low_precision[0])
    return tower_of(tower.model if isinstance(tower, Backbone) else tower).is_vit


def lower(model: Lowered, precision: str) -> None:
    """Cast the towers of a model (the modules that its `low_precision` names), in place; with `fp32` nothing changes.

    Pixels are normalised in float32 and cast after that; what a `Backbone` gives is float32.
    """
    if precision not in DTYPES:
        return
    dtype = DTYPES[precision]
    normalisers = [module for module in model.modules() if isinstance(module, Normalise)]
    statistics = [(module.shift, module.scale) for module in normalisers]
    for path in model.low_precision:
        model.get_submodule(path).to(dtype)
    for module, (shift, scale) in zip(normalisers, statistics):
        module.shift, module.scale, module.output = shift, scale, dtype
    model.engine = precision
