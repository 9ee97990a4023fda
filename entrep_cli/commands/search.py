"""`entrep search`: the cases most like an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.workspace import data_dir, open_run


def search(
    query: Annotated[str, typer.Argument(help="An image file; with a text tower, also a finding such as 'a spur on the septum'.")],
    run: options.RunName = None,
    top_k: options.TopK = 10,
    mask_groups: options.MaskGroups = False,
    class_aware: options.ClassAware = "off",
    class_weight: options.ClassWeight = None,
    template: options.Template = None,
    save: Annotated[Optional[Path], typer.Option(help="Draw query and answers on a sheet (PNG).", show_default=False)] = None,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep search data/phantom/test/imgs/030bbe2f-2996-4f8d-90ad-d84f7a319be5.png

    Show the indexed images most like an image, best first. The image itself and its exact copies are
    never among the answers. With --class-aware all embedded images are ranked exactly, without the index.
    """
    import numpy as np

    from entrep_cli.data.catalog import name_group
    from entrep_cli.data.images import SUFFIXES, ImageError, pixel_digest, raise_image_faults, read_image
    from entrep_cli.data.splits import read_catalog_and_split
    from entrep_cli.errors import UsageError
    from entrep_cli.methods import WITH_TEXT
    from entrep_cli.methods.runs import load_model
    from entrep_cli.retrieval.embeddings import Items, embed_items
    from entrep_cli.retrieval.search import gallery_of, nearest, nearest_exactly, open_run_index
    from entrep_cli.retrieval.text_queries import check_template, templated, text_probabilities, text_vectors

    path, is_file = Path(query), _is_file(query)
    if save is not None and (save.suffix.lower() != ".png" or save.exists() and is_file and save.samefile(path)):
        raise UsageError(f"The sheet cannot be {str(save)!r}.", mend="name a new file that ends in .png with --save")
    options.check_class_aware(class_aware, class_weight)
    check_template(template)
    if template is not None and is_file:
        raise UsageError(f"--template is for text queries; {query!r} is a file.", mend="leave it out")
    if mask_groups and not is_file:
        raise UsageError(f"--mask-groups masks the group of a query image; {query!r} is no image file.", mend="leave it out")
    opened = open_run(run)
    by_class = class_aware != "off"
    index, gallery = (None, gallery_of(opened)) if by_class else open_run_index(opened)
    model = load_model(opened, device)
    group = ""
    if is_file:
        try:
            digest = pixel_digest(read_image(path))
        except ImageError as error:
            raise_image_faults([error], path.parent)
        seen = embed_items(model, Items.of(image=[path.name], path=[str(path)]), what="the query")
        vectors, classes = seen.vectors, seen.probabilities
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
        texts = templated([query], template)
        digest, vectors = "", text_vectors(model, texts)
        classes = text_probabilities(model, texts) if by_class else None
    rule, aware = options.class_rule(class_aware, class_weight, opened, model, lambda: read_catalog_and_split(data_dir()))
    if by_class:
        given = np.asarray(gallery.probabilities)
        found = nearest_exactly(gallery, vectors, top_k, digest=digest, group=group, bonus=rule.bonus(classes, given))
        seen_as = model.taxonomy.names[int(classes[0].argmax())]
        aware |= {"class": seen_as, "fell_back": int(rule.fell_back(found, classes, given).sum())}
        console.say(f"Class-aware: the query is taken for {seen_as} ({classes[0].max():.0%}).")
        if aware["fell_back"]:
            console.warn(f"no image of the class {seen_as} is left to answer; all classes were ranked")
    else:
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
        contact_sheet(path if is_file else None, query, cases, save)
    console.table(
        f"Nearest to {query} (run {opened.name}{f', {rule}' if by_class else ''})",
        ["image", "rank", "label", "score"],
        [(a["image"], a["rank"], a["label"] or "-", a["score"]) for a in answers],
    )
    if save is not None:
        console.say(f"Sheet: {save}")
    asked = {"run": opened.name, "query": query, "class_aware": aware, "template": template}
    return {**asked, "answers": answers, **({"sheet": str(save)} if save else {})}


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # a text may be longer than any name of a file
        return False
