"""`entrep embed`: images to unit vectors, kept in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.workspace import data_dir, open_run


def embed(
    data: options.Data = None,
    run: options.RunName = None,
    folder: Annotated[
        Optional[list[Path]], typer.Option("--folder", help="Another folder of images to embed; may be repeated.", show_default=False)
    ] = None,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep embed

    Embed the dataset's training images and its test folder with a run: float32 unit vectors and
    class probabilities, under runs/NAME/embeddings. What is there already, of the same images and
    model, is kept.
    """
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.layouts import find_test_sets, read_test_folder
    from entrep_cli.errors import DataError, together
    from entrep_cli.methods.runs import load_model
    from entrep_cli.retrieval.embeddings import embeddings_of
    from entrep_cli.retrieval.sets import TRAIN, catalog_items, folder_items, set_name

    root, opened = data_dir(data), open_run(run)
    missing = [str(place) for place in folder or () if not place.is_dir()]
    if missing:
        raise DataError("There is no such folder to embed.", faults=missing, mend="name folders of images with --folder")
    sets, faulty = {}, []
    try:
        sets[TRAIN] = catalog_items(Catalog.read(root))
    except DataError as error:
        faulty.append(error)
    for test_set in [*find_test_sets(root), *map(read_test_folder, folder or ())]:
        try:
            sets[set_name(test_set, root)] = folder_items(test_set)
        except DataError as error:
            faulty.append(error)
    if faulty:
        raise together(faulty)
    model = load_model(opened, device)
    done = {name: embeddings_of(opened, name, items, model) for name, items in sets.items()}
    rows = [(name, len(e), e.vectors.shape[1]) for name, e in done.items()]
    console.table(f"Embeddings of run {opened.name}", ["set", "images", "dimensions"], rows)
    console.next_commands(f"entrep index{options.flags(run=opened.reference)}")
    return {
        "run": opened.name,
        "sets": {name: {"images": n, "dimensions": d, "folder": str(opened.path("embeddings", name))} for name, n, d in rows},
    }
