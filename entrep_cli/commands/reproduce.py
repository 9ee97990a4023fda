"""`entrep reproduce`: a paper from one command, its tables beside ours."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import Interrupted, RunError, UsageError, WeightsError
from entrep_cli.workspace import CONFIG, data_dir, new_run, open_run, runs_dir

PAPERS = {"foregut": "hybrid"}


def reproduce(
    paper: Annotated[str, typer.Argument(help="foregut: Fusion at the Foregut.")],
    data: options.Data = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Score this run, by name or folder, and train nothing.", show_default=False)
    ] = None,
    recipe: options.RecipeName = None,
    set_: options.Assignments = None,
    seed: options.RecipeSeed = None,
    on: options.On = "test",
    name: Annotated[
        str | None, typer.Option(help="The name of the run that is trained (default: the paper's).", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train it again.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> dict[str, Any]:
    """Example: entrep reproduce foregut --recipe foregut-tiny

    Do a paper's whole work on your data: split (80/10/10, where there is none yet), train, score, draw,
    and print its tables beside ours, each with its data and what counted as relevant. A run that is
    complete is scored again and not trained again; an interrupted one goes on. Where the published
    weights are not on this machine, the tables say "not run".
    """
    from entrep_cli.commands.options import say_catalog
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import make_split, read_split, split_path, write_split
    from entrep_cli.evaluation.scored import check_scored, scored_subset
    from entrep_cli.experiments.foregut import score_foregut
    from entrep_cli.methods import method_class
    from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe

    if paper not in PAPERS:
        raise UsageError(f"There is no paper {paper!r}.", hint=f"choose one of: {', '.join(PAPERS)}")
    method = PAPERS[paper]
    check_scored(on)
    if run is not None and (recipe or set_ or name or overwrite or seed is not None):
        raise UsageError("--run names a run that is there; the others say how to train one.", hint="give one or the other")
    root = data_dir(data)
    if split_path().is_file():
        from entrep_cli.data.splits import read_catalog_and_split

        catalog, split = read_catalog_and_split(root)
        say_catalog(catalog)
    else:
        catalog = Catalog.read(root)
        say_catalog(catalog)
        write_split(make_split(catalog), root)
        split = read_split(catalog)
        console.say(f"Split 80/10/10, seed 0, groups kept whole: {split_path()}")
    part = scored_subset(catalog, split, root, on)
    missing: WeightsError | None = None
    if run is not None:
        trained = open_run(run)
        if trained.manifest["method"] != method:
            raise UsageError(f"Run {trained.name!r} is one of {trained.manifest['method']}, not of {method}.", hint="name another --run")
    else:
        settings = build_recipe(
            method_class(method).Recipe,
            read_recipe(recipe or paper),
            parse_assignments(set_ or []),
            options.short_settings(backbone=None, weights=None, epochs=None, seed=seed),
        )
        try:
            trained = _trained(name or paper, catalog, split, settings, overwrite, device, precision)
        except WeightsError as error:
            trained, missing = None, error
    made = trained and (trained.manifest["split"]["fingerprint"], trained.manifest["data"]["catalog"])
    if made and made != (split.fingerprint, catalog.fingerprint):
        hint = "bring back the data and the split as they were then, or --overwrite"
        raise RunError(f"Run {trained.name!r} was trained on other labels or another split.", where=trained.folder, hint=hint)
    found = None if trained is None else score_foregut(trained, part, catalog, root, on, device=device)
    if found is not None:
        _show_ours(found, on, len(part))
    title = f"{', '.join(catalog.layouts)}, {on}: {len(part)} images"
    tables = _show_beside(paper, {} if found is None else found.tables, title)
    if missing is not None:
        console.warn(f"Nothing was trained: {missing.what} {missing.where or ''}", f"hint: {missing.hint}")
        console.say("To see it all on phantom data, from scratch and without weights: entrep reproduce foregut --recipe foregut-tiny")
    else:
        console.say(f"Written: {trained.path('paper', f'{on}.json')}" + (f", {found.figure}" if found.figure else ""))
        flags = options.flags(data=data, run=trained.reference)
        console.next_commands(f"entrep predict --track 1{flags}", f"entrep predict --track 2{flags}")
    return {
        "paper": paper,
        "run": trained and str(trained.folder),
        "on": on,
        "images": len(part),
        "ours": found and found.as_dict(),
        "tables": tables,
    }


def _trained(name: str, catalog, split, settings, overwrite: bool, device: str, precision: str):
    """The complete run of this name and these settings, trained where it is not there or not complete."""
    from entrep_cli.methods.runs import train_run
    from entrep_cli.recipes.recipe import recipe_toml
    from entrep_cli.workspace import Run

    there = Run(runs_dir() / name)
    if there.complete and not overwrite:
        if there.path(CONFIG).read_text("utf-8") != recipe_toml(settings):
            raise RunError(f"Run {name!r} has other settings.", where=there.folder, hint="choose another --name, or --overwrite")
        return there
    incomplete = there.folder.is_dir() and not there.complete
    run = new_run(settings.method, name, overwrite=overwrite, resume=incomplete and not overwrite)
    try:
        train_run(catalog, split, settings, run, device=device, precision=precision, resume=incomplete and not overwrite)
    except BaseException as error:
        run.remove_if_empty()
        if isinstance(error, KeyboardInterrupt):
            hint = "the same command goes on with it" + (", without --overwrite" if overwrite else "")
            raise Interrupted("Interrupted; what was trained is kept.", where=run.folder, hint=hint) from None
        raise
    return run


def _show_ours(found, on: str, n: int) -> None:
    from entrep_cli.methods.base import show_stages

    for level, scored in (("classes", found.classes), ("regions", found.regions)):
        console.table(
            f"Ours, {level}, {on} ({n} images), with 95% intervals over groups",
            ["model", "accuracy", "macro F1", "weighted F1"],
            [(name, s.accuracy, s.macro_f1, s.weighted_f1) for name, s in scored.items()],
        )
    console.table(
        "Hybrid less baseline, classes, paired",
        ["score", "difference"],
        [(name, value) for name, value in found.against_baseline.items()],
    )
    show_stages("Stages of the hybrid", found.stages)
    scores = {key: s for key, s in found.retrieval.retrieval.items() if s.scored.any()}
    names = dict.fromkeys(name for s in scores.values() for name in s.means)
    console.table(
        "Prototype embeddings, retrieval; class means region here, own group masked",
        ["", *names, "by chance"],
        [
            (key, *(s.means.get(name, "-") for name in names), found.retrieval.chance.get(key.split(",")[0], "-"))
            for key, s in scores.items()
        ],
    )


def _show_beside(paper: str, ours: dict[int, Any], where: str) -> list[dict[str, Any]]:
    from entrep_cli.reporting.published import published

    about = published(paper)
    told = []
    for table in about.tables:
        relevance = f"; relevance: {table.relevance}" if table.relevance else ""
        mine = f"ours on {where}" + (", relevance: region and finding, own group masked" if table.number == 10 else "")
        title = f"Table {table.number}: {table.title}. Paper: {table.data}{relevance}."
        title += f" {mine.capitalize()}." if table.number in ours else ""
        rows = table.beside(ours.get(table.number))
        console.table(title, table.headings, rows)
        told.append({"table": table.number, "title": title, "columns": table.headings, "rows": rows})
    for note in about.notes:
        console.say(f"Note: {note}")
    return told
