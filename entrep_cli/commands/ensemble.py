"""`entrep ensemble`: several runs that answer together, as one run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.workspace import data_dir, new_run


def ensemble(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more, of one dataset, split and fold.")],
    name: Annotated[str | None, typer.Option(help="The ensemble's name (default: ensemble).", show_default=False)] = None,
    weights: Annotated[
        str, typer.Option(help="validation: what it finds best; equal; or a number for each run, as in 0.5,0.3,0.2.")
    ] = "validation",
    data: options.Data = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")] = False,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep ensemble clip-lora dinov2

    Let runs answer together, as one run that every command takes: the weighted mean of their calibrated
    probabilities, and a ranking by the weighted mean of their similarities. Weights and temperatures are found
    on validation; the test part is not touched. The runs stay where they are and are needed further on.
    """
    from entrep_cli.commands.options import say_catalog
    from entrep_cli.data.splits import read_catalog_and_split
    from entrep_cli.errors import UsageError
    from entrep_cli.experiments.ensemble import SCORES, build, check_members, finish, parse_weights

    wanted = parse_weights(weights, len(runs))
    if name in runs:
        raise UsageError(f"{name!r} is one of the runs, and cannot be the ensemble's name.", hint="choose another --name")
    catalog, split = read_catalog_and_split(data_dir(data))
    say_catalog(catalog)
    members = check_members(runs, catalog, split, wanted)
    run = new_run("ensemble", name, overwrite=overwrite)
    try:
        built = build(members, catalog, split, wanted, device)
        finish(built, run, catalog, split)
    except BaseException:
        run.remove_if_empty()
        raise

    counts = built.model.weights
    columns = zip(built.names, counts.classes, counts.ranking, counts.temperatures)
    console.table(f"Members of {run.name} (weights: {weights})", ["run", "in classes", "in rankings", "temperature"], list(columns))
    for keys in (SCORES[:3], SCORES[3:]):
        if built.scores and keys[0] in built.scores[-1]:
            console.table(
                f"On validation ({len(built.val)} images), with 95% intervals",
                ["run", *keys],
                [(who, *(row[key] for key in keys)) for who, row in zip([*built.names, run.name], built.scores)],
            )
    if built.gains:
        console.table(
            "What the ensemble adds to its best member, on validation",
            ["score", "best member", "difference"],
            [(key, best, interval) for key, (best, interval) in built.gains.items()],
        )
        console.say("Weights and temperatures were chosen on these images; the test part tells what they are worth.")
    reading = [member for member, model in zip(built.names, built.model.members) if model.reads_text]
    if reading and not built.model.reads_text:
        console.warn(
            f"{', '.join(reading)} reads texts and has no weight in the rankings, so this ensemble cannot answer texts; "
            "--weights equal, or numbers of your own, change that"
        )
    place = options.flags(data=data, run=run.name)
    part = " --split queries" if split.folds and built.val is None else ""
    console.next_commands(f"entrep evaluate{place}{part}", f"entrep embed{place}", f"entrep predict --track 2{place}")
    return {"run": run.name, "folder": str(run.folder), **run.manifest}
