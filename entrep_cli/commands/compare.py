"""`entrep compare`: runs side by side, and which of their differences are more than chance."""

from __future__ import annotations

import math
import re
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import UsageError
from entrep_cli.workspace import data_dir

if TYPE_CHECKING:
    from entrep_cli.evaluation.comparison import Difference
    from entrep_cli.experiments.comparison import Comparison

# Scores that fit beside each other into 80 columns.
_TABLES = {
    "Classes": {"accuracy": "accuracy", "macro F1": "macro F1"},
    "Images by class": {"Recall@1": "image Recall@1, class", "MRR": "image MRR, class"},
    "Images by finding": {"Recall@1": "image Recall@1, finding", "MRR": "image MRR, finding"},
    "Findings as texts": {"Recall@1": "text Recall@1, finding"},
}
_MOST_PAIRS = 10  # in a table of differences; among more, those that matter are lost


def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs by name or folder, or patterns of names: 'dinov2*'.")],
    data: options.Data = None,
    part: Annotated[str, typer.Option("--split", help="test or val; queries: the test folder and its truth.")] = "test",
    fold: Annotated[int | None, typer.Option(help="Another fold than the runs' own.", min=0, show_default=False)] = None,
    mask_groups: options.MaskGroups = True,
    baseline: Annotated[
        str | None, typer.Option(help="Compare all others with this run (default: each with each).", show_default=False)
    ] = None,
    level: Annotated[float, typer.Option(help="Significance level; intervals cover 1 minus this.")] = 0.05,
    name: Annotated[
        str | None, typer.Option(help="Of the JSON and CSV under runs/comparisons (default: the part's).", show_default=False)
    ] = None,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep compare dinov2 clip-lora

    Score runs on the same images, and tell which are better than which by more than chance. A letter after
    a score marks a run that this one is significantly better than.

    What decides is a permutation test: the answers of two runs are swapped in whole groups, as frames of
    one exam are no independent witnesses. Its p-values are corrected for the number of pairs (Holm),
    score by score: choose beforehand which score counts. Beside it stand the paired bootstrap over groups
    and McNemar's test, which takes every frame for independent and so finds too much.

    It compares runs as they are, one seed each: how much the seed matters, `entrep ablate` shows.
    """
    if name is not None and not re.fullmatch(r"\w[\w.+-]*", name):
        raise UsageError(f"{name!r} cannot be the name of a file.", hint="use letters, digits, - and _")

    from entrep_cli.experiments.comparison import compare_runs

    root = data_dir(data)
    how = {"part": part, "fold": fold, "mask_groups": mask_groups, "level": level, "baseline": baseline, "device": device}
    found = compare_runs(names, root, **how)
    document, table = found.write(name or part)
    _show(found)
    for note in found.notes:
        console.warn(note)
    console.say(f"Written: {document}, {table}")
    if part != "val":
        console.say(f"The best of several runs looks better on {part} than it is: choose on val.")
    console.next_commands(*_next(found, options.flags(data=data), options.flags(fold=fold, baseline=baseline)))
    return found.as_dict() | {"files": [str(document), str(table)]}


def _show(found: Comparison) -> None:
    """Scores with marks, cost, and the differences of the pairs."""
    from entrep_cli.experiments.comparison import LABELS

    runs = [f"{LABELS[i]} {contender.name}" for i, contender in enumerate(found.contenders)]
    marked = False
    for title, columns in _TABLES.items():
        shown = {heading: found.scores[score] for heading, score in columns.items() if score in found.scores}
        if not shown:
            continue
        rows = []
        for i, run in enumerate(runs):
            marks = ["".join(LABELS[j] for j in compared.marks[i]) for compared in shown.values()]
            rows.append((run, *(f"{compared.scores[i] or '-'} {mark}".rstrip() for compared, mark in zip(shown.values(), marks))))
            marked = marked or any(marks)
        first = next(iter(shown.values()))
        of = "texts" if title == "Findings as texts" else f"images, {first.n_groups} groups"
        console.table(f"{title}: {found.title} ({first.n_items} {of})", ["run", *shown], rows)
    letters = "A letter marks a run that this one is significantly better than" if marked else "No run is significantly better than another"
    pairs = f"{found.n_pairs} pair{'s' * (found.n_pairs > 1)}"
    console.plain(f"{letters}: permutation test over groups, level {found.level:g}, Holm over {pairs} a score.\n")
    costs = [contender.cost for contender in found.contenders]
    cost = [(f"{c['learned_parameters']:,}", f"{c['parameters']:,}", f"{c['megabytes']:,.1f}", f"{c['seconds']:,.0f}") for c in costs]
    console.table("Cost", ["run", "learned", "parameters", "MB", "s to train"], [(run, *told) for run, told in zip(runs, cost)])
    for score, compared in found.scores.items():
        all_pairs = compared.differences
        differences = all_pairs if len(all_pairs) <= _MOST_PAIRS else [d for d in all_pairs if d.significant]
        if not differences:
            continue
        left_out = f"; the other {n} pairs are not" if (n := len(all_pairs) - len(differences)) else ""
        console.table(
            f"Differences in {score}, paired, and their p-values; * is significant{left_out}",
            ["", "difference", "swaps, Holm", "bootstrap", "McNemar", "alone right"],
            [(f"{LABELS[d.first]} - {LABELS[d.second]}", *_told(d)) for d in differences],
        )


def _told(d: Difference) -> tuple[str, ...]:
    alone = "-" if d.only_first is None else f"{d.only_first} : {d.only_second}"
    change = f"{d.value.value:+.3f} [{d.value.low:+.3f}, {d.value.high:+.3f}]"
    return change, _p(d.adjusted) + "*" * d.significant, _p(d.p_bootstrap), "-" if d.p_mcnemar is None else _p(d.p_mcnemar), alone


def _p(value: float) -> str:
    return "n/a" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _next(found: Comparison, data: str, more: str) -> list[str]:
    """Choose without the test part; then submit, join and look at what is best here.

    Args:
        data, more: options as they are typed, of all commands and of another comparison.
    """
    from entrep_cli.experiments.comparison import ACCURACY, IMAGE_RECALL, TEXT_RECALL

    def named(places: list[int]) -> str:
        return " ".join(shlex.quote(found.contenders[i].name) for i in places)

    commands = []
    if found.part != "val":
        commands.append(f"entrep compare {named(list(range(len(found.contenders))))}{data}{more} --split val")
    image_recall = next((score for score in IMAGE_RECALL if score in found.scores), None)
    for track, score in ((1, ACCURACY), (2, image_recall), (3, TEXT_RECALL)):
        if score in found.scores:
            commands.append(f"entrep predict --track {track}{data} --run {named([found.best(score)])}")
    as_good = found.as_good(ACCURACY)
    if len(as_good) > 1:
        commands.append(f"entrep ensemble {named(as_good)}{data}")
    commands.append(f"entrep report {named([found.best(ACCURACY)])}{data}")
    return commands
