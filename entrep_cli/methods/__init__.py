"""What `entrep train` offers: a table of methods, and the methods of other packages.

A new method is one file with one class, and one line in `METHODS`; or a package that declares the entry point
`entrep.methods`, whose name is the method's and whose value is the class. `ensemble` is in the table so that its
runs are read as any others, but it is made of runs and not trained. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from entrep_cli.errors import UsageError, first_line

if TYPE_CHECKING:
    from entrep_cli.methods.base import Method

# name -> module:class; modules are imported when a method is used, for they pull in torch
METHODS = {
    "clip-lora": "entrep_cli.methods.clip_lora:ClipLora",
    "dinov2": "entrep_cli.methods.dinov2:Dinov2",
    "ensemble": "entrep_cli.methods.ensemble:Ensemble",
    "hybrid": "entrep_cli.methods.hybrid:Hybrid",
    "mics": "entrep_cli.methods.mics:Mics",
    "prototype": "entrep_cli.methods.prototype:Prototype",
}
DEFAULT_METHOD = "clip-lora"  # one model for the three tracks
PRETRAINING = "mics-pretrain"  # in the place of a method in the runs of `entrep pretrain mics`: they answer nothing
GROUP = "entrep.methods"  # the entry points that other packages declare


def trainable() -> tuple[str, ...]:
    """The methods that `entrep train` takes: ours, then those of other packages."""
    return (*(name for name in METHODS if name != "ensemble"), *sorted(_plugins()))


def is_method(name: str) -> bool:
    """Whether runs can be of a method of this name."""
    return name in METHODS or name in _plugins()


def check_answers(name: str) -> None:
    """UsageError for what a run calls its method where it is a pre-training, which answers nothing."""
    if name == PRETRAINING:
        raise UsageError("A pre-training knows no classes and answers nothing.", hint="`entrep train mics --weights RUN` goes on from it")


def method_class(name: str) -> type[Method]:
    """The class of a method by name.

    Raises:
        UsageError: no such method, or one of another package that cannot be imported or is none.
    """
    check_answers(name)
    if name in METHODS:
        module, attribute = METHODS[name].split(":")
        return getattr(importlib.import_module(module), attribute)
    if name in _plugins():
        return _load(_plugins()[name])
    near = difflib.get_close_matches(name, [*METHODS, *_plugins()], 1)
    raise UsageError(
        f"No method named {name!r}.",
        hint=(f"did you mean {near[0]!r}? " if near else "") + f"choose one of: {', '.join(trainable())}",
    )


@functools.cache
def _plugins() -> dict[str, EntryPoint]:
    """The methods of other packages by name; a name of ours stays ours."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in METHODS}


def _load(point: EntryPoint) -> type[Method]:
    from entrep_cli.methods.base import Method

    package = point.dist.name if point.dist else "another package"
    try:
        loaded = point.load()
        if not (isinstance(loaded, type) and issubclass(loaded, Method)):
            raise TypeError(f"{point.value} is no subclass of entrep_cli.methods.base.Method")
    except Exception as error:  # whatever the import of somebody else's package may raise
        raise UsageError(
            f"The method {point.name!r} of the package {package} cannot be used: {first_line(error)}",
            where=point.value,
            hint=f"update or remove it: `pip uninstall {package}`",
        ) from error
    return loaded
