"""`entrep split`: train, val and test, or folds."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import UsageError
from entrep_cli.workspace import data_dir


def split(
    data: options.Data = None,
    ratios: Annotated[str | None, typer.Option(help="Train, val and test; test may be 0 (default: 80/10/10).", show_default=False)] = None,
    folds: Annotated[int, typer.Option(help="Make this many folds instead (3 or more).", min=0)] = 0,
    seed: options.Seed = 0,
    groups: options.Groups = "auto",
    small_to_train: Annotated[
        bool, typer.Option("--small-to-train", help="Keep classes too small to divide in the training part.")
    ] = False,
) -> dict[str, Any]:
    """Example: entrep split --ratios 80/10/10

    Divide the labelled images, stratified by class. Frames of one group (exam, patient, video) never
    stand in two parts; with --groups auto nor do near-duplicates. Writes runs/split.csv; the same command
    gives the same bytes.
    """
    if folds and ratios is not None:
        raise UsageError("Folds are all of one size: --ratios are of train, val and test.", hint="give --folds or --ratios")
    ratios = "80/10/10" if ratios is None else ratios
    try:
        shares = [float(part) for part in ratios.replace(",", "/").split("/")]
    except ValueError:
        raise UsageError(f"--ratios {ratios!r} are not numbers.", hint="--ratios 80/10/10") from None
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import make_split, moved_by_near_duplicates, runs_left_behind, write_split

    root = data_dir(data, of_split=False)
    catalog = Catalog.read(root, groups=groups)
    options.say_catalog(catalog)
    settings = {"ratios": shares, "folds": folds, "seed": seed, "small_to_train": small_to_train}
    made = make_split(catalog, **settings)
    left, again = runs_left_behind(made)
    path = write_split(made, root)
    near = {**(made.near_duplicates or {}), **moved_by_near_duplicates(catalog, made, **settings)}
    options.say_near_duplicates(near)
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        console.warn(
            f"{len(left)} run{'s were' if len(left) > 1 else ' was'} trained on the split that was here ({shown}), and can be scored on it "
            f"alone. To have it back: `{again}`"
        )

    counts = made.counts(catalog)
    rows = [(name, *row.values(), sum(row.values())) for name, row in counts.items()]
    totals = [sum(column) for column in zip(*(row[1:] for row in rows))]
    n_groups = catalog.labelled.frame["group"].nunique()
    heads = [f"fold {part}" for part in made.parts] if folds else made.parts
    console.table(
        f"{len(catalog.labelled)} images in {n_groups} groups, divided into {path}",
        ["class", *heads, "total"],
        [*rows, ("total", *totals)],
    )
    console.next_commands(f"entrep train{options.flags(data=data, fold=0 if folds else None)}")
    return {
        "split": str(path),
        "layouts": catalog.layouts,
        "taxonomy": catalog.taxonomy.name,
        "images": len(catalog.labelled),
        "groups": n_groups,
        "seed": seed,
        "counts": counts,
        "catalog": catalog.fingerprint,
        **({"near_duplicates": near} if near else {}),
    }
