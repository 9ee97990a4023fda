"""`entrep compare`: runs side by side, and which of their differences are more than chance."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs by name or folder, or patterns of names: 'dinov2*'.")],
    data: options.Data = None,
    split: options.ScoredSplit = "test",
    fold: options.OtherFold = None,
    mask_groups: options.MaskGroups = True,
    baseline: Annotated[
        str | None, typer.Option(help="Compare all others with this run (default: each with each).", show_default=False)
    ] = None,
    level: Annotated[float, typer.Option(help="Significance level; intervals cover 1 minus this.")] = 0.05,
    name: Annotated[
        str | None, typer.Option(help="Of the JSON and CSV under runs/comparisons (default: the split's).", show_default=False)
    ] = None,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep compare dinov2 clip-lora

    Score runs on the same images, and test which are better than which by more than chance. A letter after
    a score marks a run that this one is significantly better than.

    What decides is a permutation test: the answers of two runs are swapped in whole groups, as frames of
    one exam are no independent witnesses. Its p-values are corrected for the number of pairs (Holm),
    score by score: choose beforehand which score counts. Beside it stand the paired bootstrap over groups
    and McNemar's test, which takes every frame for independent and so detects too much.

    It compares runs as they are, one seed each: how much the seed matters, `entrep ablate` shows.
    """
    result = entrep.compare(
        runs, data=data, split=split, fold=fold, mask_groups=mask_groups, baseline=baseline, level=level, name=name, device=device
    )
    console.show(result)
    console.plain(f"{result.legend}\n")
    for note in result.notes:
        console.warn(note)
    console.say(f"Written: {', '.join(map(str, result.files))}")
    place, again = console.flags(data=data), console.flags(fold=fold, baseline=baseline)
    commands = [f"entrep predict --track {track}{place}{console.flags(run=best)}" for track, best in result.best_by_track.items()]
    if split != "val":
        console.say(f"The best of several runs looks better on {split} than it is: choose on val.")
        commands.insert(0, f"entrep compare {shlex.join(c.name for c in result.contenders)}{place}{again} --split val")
    if len(result.undecided) > 1:
        commands.append(f"entrep ensemble {shlex.join(result.undecided)}{place}")
    console.next_commands(*commands, f"entrep report{console.flags(run=result.best_by_track[1])}{place}")
    return result
