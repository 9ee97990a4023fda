"""`entrep search`: the cases most like an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.workspace import open_run


def search(
    query: Annotated[str, typer.Argument(help="An image file; with a text tower, also a finding such as 'a spur on the septum'.")],
    run: options.RunName = None,
    top_k: options.TopK = 10,
    mask_groups: options.MaskGroups = False,
    save: Annotated[Optional[Path], typer.Option(help="Draw query and answers on a sheet (PNG).", show_default=False)] = None,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep search data/phantom/test/imgs/030bbe2f-2996-4f8d-90ad-d84f7a319be5.png

    Show the indexed images most like an image, best first. The image itself and its exact copies are
    never among the answers.
    """
    from entrep_cli.data.catalog import name_group
    from entrep_cli.data.images import SUFFIXES, ImageError, pixel_digest, raise_image_faults, read_image
    from entrep_cli.errors import UsageError
    from entrep_cli.methods import WITH_TEXT
    from entrep_cli.methods.runs import load_model
    from entrep_cli.retrieval.embeddings import Items, embed_items
    from entrep_cli.retrieval.search import nearest, open_run_index

    path = Path(query)
    if save is not None and (save.suffix.lower() != ".png" or save.exists() and path.exists() and save.samefile(path)):
        raise UsageError(f"The sheet cannot be {str(save)!r}.", mend="name a new file that ends in .png with --save")
    opened = open_run(run)
    index, gallery = open_run_index(opened)
    model = load_model(opened, device)
    group = ""
    if path.is_file():
        try:
            digest = pixel_digest(read_image(path))
        except ImageError as error:
            raise_image_faults([error], path.parent)
        vectors = embed_items(model, Items.of(image=[path.name], path=[str(path)]), what="the query").vectors
        known = gallery.items.group[gallery.items.digest == digest]
        if mask_groups:
            group = str(known[0]) if len(known) else name_group(path.name, "auto")
    elif path.suffix.lower() in SUFFIXES:
        raise UsageError(f"There is no image {query!r}.", mend="name an image file, or write a finding as text")
    elif opened.manifest["method"] not in WITH_TEXT:
        raise UsageError(
            f"There is no image {query!r}, and {opened.manifest['method']} cannot search by text.",
            mend=f"name an image file, or train a method with a text tower: `entrep train {WITH_TEXT[0]}`",
        )
    else:
        digest, vectors = "", model.embed_texts([query]).cpu().numpy()
    found = nearest(index, gallery, vectors, top_k, digest=digest, group=group)
    answers = [
        {"rank": place, "image": str(gallery.items.image[row]), "label": str(gallery.items.label[row]), "score": float(score)}
        for place, (row, score) in enumerate(zip(found.indices[0], found.scores[0]), 1)
    ]
    if save is not None:
        from entrep_cli.report.figures import contact_sheet

        cases = [
            (Path(gallery.items.path[row]), f"{a['rank']}. {a['label'] or a['image']}  {a['score']:.2f}")
            for row, a in zip(found.indices[0], answers)
        ]
        contact_sheet(path if path.is_file() else None, query, cases, save)
    console.table(
        f"Nearest to {query} (run {opened.name})",
        ["image", "rank", "label", "score"],
        [(a["image"], a["rank"], a["label"] or "-", a["score"]) for a in answers],
    )
    if save is not None:
        console.say(f"Sheet: {save}")
    return {"run": opened.name, "query": query, "answers": answers, **({"sheet": str(save)} if save else {})}
