"""What several verbs do alike: check options, say what was read, and leave a training that was interrupted in order."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from entrep_cli import console, processes
from entrep_cli.errors import Interrupted, UsageError
from entrep_cli.workspace import CHECKPOINT

if TYPE_CHECKING:
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.evaluation.selection import Selection
    from entrep_cli.workspace import Run


def check_class_aware(mode: str, weight: float | None) -> None:
    """UsageError for a class weight that nothing would use, or that is not finite; before anything heavy is imported."""
    if weight is None:
        return
    if mode != "soft":
        raise UsageError(f"--class-weight goes with --class-aware soft, not with {mode}.", hint="--class-aware soft, or leave it out")
    if not math.isfinite(weight):
        raise UsageError(f"The class weight must be a number, not {weight}.", hint="--class-weight 0.05")


def say_catalog(catalog: Catalog) -> None:
    """Name the dataset folder and what was read from it."""
    classes = f"{len(catalog.taxonomy)} classes in {len(catalog.taxonomy.regions)} regions"
    console.say(
        f"Dataset: {catalog.root}",
        f"Layout: {'; '.join(catalog.layouts)}. {len(catalog)} images, {len(catalog.labelled)} labelled.",
        f"Taxonomy: {catalog.taxonomy.name}, {classes}.",
        *(f"Note: {note}." for note in catalog.notes),
    )


def say_selection(selection: Selection) -> None:
    """How images are ranked and why, aloud."""
    for sentence in selection.sentences:
        console.say(sentence)
    for warning in selection.warnings:
        console.warn(warning)


@contextlib.contextmanager
def left_in_order(run: Run, training: str, command: str) -> Iterator[None]:
    """Around a training: one that stops before its first checkpoint leaves no folder, and an interrupted one names `command`.

    Raises:
        Interrupted: on Ctrl-C, where there is a checkpoint to resume from.
    """
    try:
        yield
    except BaseException as error:
        if processes.is_main():
            run.remove_if_empty()
        if isinstance(error, KeyboardInterrupt) and run.path(CHECKPOINT).is_file():
            what = f"Interrupted; the {training} is saved up to its last checkpoint."
            raise Interrupted(what, where=run.folder, hint=f"resume it with `{command}`") from None
        raise
