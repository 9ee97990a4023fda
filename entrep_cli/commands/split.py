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
    ratios: Annotated[str, typer.Option(help="Train, val and test; test may be 0.")] = "80/10/10",
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
    try:
        shares = [float(part) for part in ratios.replace(",", "/").split("/")]
    except ValueError:
        raise UsageError(f"--ratios {ratios!r} are not numbers.", mend="--ratios 80/10/10") from None
    if groups not in ("auto", "exam", "none"):
        raise UsageError(f"There is no way {groups!r} to group images.", mend="--groups auto, exam or none")
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import make_split, moved_by_near_duplicates, write_split

    root = data_dir(data, of_split=False)
    catalog = Catalog.read(root, groups=groups)
    say_catalog(catalog)
    settings = {"ratios": shares, "folds": folds, "seed": seed, "small_to_train": small_to_train}
    made = make_split(catalog, **settings)
    path = write_split(made, root)
    near = {**(made.near_duplicates or {}), **moved_by_near_duplicates(catalog, made, **settings)}
    say_near_duplicates(near)

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


def say_near_duplicates(near: dict[str, Any]) -> None:
    """What near-duplicates did to the groups and to the parts, aloud."""
    if not near or not near["clusters"]:
        return
    found = f"Near-duplicates: {near['clusters']} clusters of {near['images']} images"
    if not near["joining_clusters"]:
        console.say(f"{found}, each within one group already.")
        return
    console.say(f"{found}; {near['joining_clusters']} of them ({near['joined_images']} images) joined groups that were apart.")
    if near.get("straddling"):
        console.say(
            f"Without that {near['straddling']} clusters ({near['straddling_images']} images) would stand in several parts; "
            f"{near['moved']} images stand in another part now."
        )


def say_catalog(catalog) -> None:
    """What was found in the dataset folder, aloud."""
    classes = f"{len(catalog.taxonomy)} classes in {len(catalog.taxonomy.regions)} regions"
    console.say(
        f"Found: {'; '.join(catalog.layouts)}. {len(catalog)} images, {len(catalog.labelled)} labelled.",
        f"Taxonomy: {catalog.taxonomy.name}, {classes}.",
        *(f"Note: {note}." for note in catalog.notes),
    )
