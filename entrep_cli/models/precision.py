"""In which precision a trained model answers: its towers are cast once, all that follows them stays in float32.

Not by autocast, as in training: inside `inference_mode` it casts the weights again at every call, which on a CPU
is slower than float32 (benchmarks/attention.py).
"""

from __future__ import annotations

import torch
from torch import nn

from entrep_cli.errors import UsageError
from entrep_cli.models.backbones import Backbone
from entrep_cli.models.device import DTYPES, choose_precision
from entrep_cli.models.inputs import Normalise
from entrep_cli.models.towers import tower_of


def choose_inference_precision(option: str, device: torch.device, model: nn.Module) -> tuple[str, str]:
    """`fp32`, `bf16` or `fp16` for the towers of a model on its device, and why.

    `auto` takes a lower one for a ViT alone: in bf16 on a CPU with units for it ViT-B/16 was four times as fast, and its
    embeddings kept a cosine of 0.9999; MobileNetV2 1.4 times, of 0.9996 and less.

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
        return "fp32", f"of {chosen} convolutions gain little, and lose more than a ViT"
    if chosen == "fp16" and device.type == "cpu":
        raise UsageError("A CPU is not faster in fp16.", hint="--precision bf16 or auto")
    return chosen, reason


def precision_beside(kept: str | None, device: torch.device, model: nn.Module) -> tuple[str, str]:
    """The precision for images that are to be compared with those that a run has embedded in `kept`, and why.

    The same, so that an image answers alike whether it is embedded today or was last week; float32 where that is not
    what this device would choose; the choice of the device where nothing is embedded yet (`kept` is None).
    """
    if kept is None:
        return choose_inference_precision("auto", device, model)
    if kept not in DTYPES:
        return "fp32", "as the run's images were embedded"
    if choose_precision("auto", device)[0] == kept and model.low_precision:
        return kept, "as the run's images were embedded"
    return "fp32", f"the run's images were embedded in {kept}, which is not for this device"


def _is_vit(model: nn.Module) -> bool:
    tower = model.get_submodule(model.low_precision[0])
    return tower_of(tower.model if isinstance(tower, Backbone) else tower).is_vit


def lower(model: nn.Module, precision: str) -> None:
    """Cast the towers of a model (the modules that its `low_precision` names), in place; with `fp32` nothing changes.

    Pixels are normalised in float32 and cast after that.
    """
    if precision not in DTYPES:
        return
    dtype = DTYPES[precision]
    normalisers = [module for module in model.modules() if isinstance(module, Normalise)]
    statistics = [(module.shift, module.scale) for module in normalisers]
    for path in model.low_precision:
        model.get_submodule(path).to(dtype)
    for module, (shift, scale) in zip(normalisers, statistics):
        module.shift, module.scale = shift, scale
        module.register_forward_hook(lambda _module, _pixels, normalised: normalised.to(dtype))
    for module in model.modules():
        if isinstance(module, Backbone):
            module.register_forward_hook(lambda _module, _pixels, features: features.float())
    model.engine = precision
