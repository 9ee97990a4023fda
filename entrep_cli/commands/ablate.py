"""`entrep ablate`: the components of a paper or of a recipe, one by one, in one table."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import Interrupted, UsageError
from entrep_cli.workspace import data_dir, runs_dir


def ablate(
    paper: Annotated[
        str, typer.Argument(help="mlcf: Multi-Level CLS Token Fusion. mics: pre-training, fusion, shift. best: factors of a recipe.")
    ],
    data: options.Data = None,
    recipe: options.RecipeName = None,
    set_: options.Assignments = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    epochs: options.Epochs = None,
    pretrain_epochs: Annotated[
        int | None, typer.Option(help="At most this many epochs of each pre-training of mics.", min=1, show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--rows", help="Only rows whose key (see --list) matches this, as 'all-*'; may be repeated.", show_default=False),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the rows, their keys and how many trainings they are, and stop.")] = False,
    seed: options.RecipeSeed = None,
    seeds: Annotated[int, typer.Option(help="Trainings a row; their scores are averaged.", min=1)] = 3,
    split: options.On = "test",
    fold: options.Fold = None,
    folds: Annotated[
        int | None, typer.Option(help="Leave out so many folds of the split in turn, each to be scored on.", min=1, show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder under runs/ablations (default: the paper's).", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again, and delete what was trained.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> dict[str, Any]:
    """Example: entrep ablate mlcf --recipe tiny --epochs 3 --seeds 1

    Train a recipe without its components, then with one after the other, each alike and with several
    seeds, and score all in one table. What is trained stays: the same command goes on where it was
    interrupted, and more --seeds, --folds or --rows add to it. With --folds nothing but training images is
    scored, each by models that left it out: so the test images choose nothing. What rows of mics
    start from is pre-trained once, for all of them.
    """
    from entrep_cli.experiments.ablation import ABLATIONS, run_ablation
    from entrep_cli.methods import method_class
    from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe

    if paper not in ABLATIONS:
        raise UsageError(f"No ablation {paper!r}.", hint=f"choose one of: {', '.join(ABLATIONS)}")
    if name is not None and not re.fullmatch(r"\w[\w.+-]*", name):
        raise UsageError(f"{name!r} cannot be the name of a folder.", hint="use letters, digits, - and _")
    ablation = ABLATIONS[paper]
    base = read_recipe(recipe or ablation.recipe)
    if base.get("method", ablation.method) != ablation.method:
        raise UsageError(f"The ablation {paper} is one of {ablation.method}, not of {base['method']}.", hint=f"--recipe {ablation.recipe}")
    short = options.short_settings(backbone=backbone, weights=weights, epochs=epochs, seed=seed)
    limit = {} if pretrain_epochs is None else {"pretraining": {"train": {"epochs": pretrain_epochs}}}
    settings = build_recipe(method_class(ablation.method).Recipe, base, parse_assignments(set_ or []), short, limit)
    rows = ablation.rows_of(settings)
    if only:
        known = [row.key for row in rows]
        named = [row for row in rows if any(fnmatchcase(row.key, pattern) for pattern in only)]
        refined = {row.against for row in named if row.refine}  # what they refine must be there
        rows = [row for row in rows if row in named or row.key in refined]
        if not rows:
            raise UsageError(f"No row is called {' or '.join(only)}.", hint=f"--rows with one of: {', '.join(known)}")
    if list_:
        return _show_rows(paper, rows, sum(not row.refine for row in rows) * seeds * (folds or 1))

    from entrep_cli.commands.options import say_catalog
    from entrep_cli.data.splits import read_catalog_and_split

    root = data_dir(data)
    catalog, division = read_catalog_and_split(root)
    say_catalog(catalog)
    folder = runs_dir() / "ablations" / (name or paper)
    how = {"seeds": seeds, "split": split, "device": device, "precision": precision}
    try:
        table = run_ablation(
            name or paper, catalog, division, rows, settings, root, fold=fold, folds=folds or 0, overwrite=overwrite, **how
        )
    except KeyboardInterrupt:
        hint = "the same command resumes it" + (", without --overwrite" if overwrite else "")
        raise Interrupted("Interrupted; the completed trainings are saved.", where=folder, hint=hint) from None
    console.show(table)
    console.say(f"Written: {folder / 'table.json'}, {folder / 'table.csv'}")
    console.next_commands(f"entrep evaluate{options.flags(data=data, run=table.rows[-1].runs[0].reference)}")
    return table.to_dict()


def _show_rows(paper: str, rows: list, n_trainings: int) -> dict[str, Any]:
    names = {row.key: row.name for row in rows}
    shown = [(row.key, row.name, names.get(row.against, "") if row.against else "") for row in rows]
    console.table(f"Rows of {paper}: {n_trainings} trainings", ["key", "row", "compared with"], shown)
    listed = [{"key": row.key, "name": row.name, "against": row.against} for row in rows]
    return {"ablation": paper, "trainings": n_trainings, "rows": listed}
