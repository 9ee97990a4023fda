"""`entrep search`: the cases most like an image."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.api import common
from entrep_cli.commands import options
from entrep_cli.workspace import fingerprint, open_run

if TYPE_CHECKING:
    from entrep_cli.retrieval.search import SearchResult


def search(
    query: Annotated[str, typer.Argument(help="An image file; with a text tower, also a finding such as 'a spur on the septum'.")],
    run: options.RunName = None,
    top_k: options.TopK = 10,
    mask_groups: options.MaskGroups = False,
    class_aware: options.ClassAware = "off",
    class_weight: options.ClassWeight = None,
    template: options.Template = None,
    label: Annotated[
        str | None,
        typer.Option(help="The query's true class, to tell hits from misses (default: its label, if it is embedded).", show_default=False),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Draw query and answers on this sheet, a PNG (default: one in the run's searches).", show_default=False),
    ] = None,
    sheet: Annotated[bool, typer.Option("--sheet/--no-sheet", help="Whether a sheet is drawn.")] = True,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep search 'septal spur'

    Show the embedded images most like an image or a finding, best first, as a table and on a sheet. For an
    image, name its file: entrep search some/image.png. It and its exact copies are never among the answers.
    Where its class is known, hits and misses are marked. With --class-aware all embedded images are ranked
    exactly, without the index.
    """
    from entrep_cli.data.images import SUFFIXES, ImageError, raise_image_faults, read_image
    from entrep_cli.errors import UsageError
    from entrep_cli.evaluation.selection import select
    from entrep_cli.retrieval import search as retrieval
    from entrep_cli.retrieval.pipeline import check_template

    path, is_file = Path(query), _is_file(query)
    if save is not None and (save.suffix.lower() != ".png" or save.exists() and is_file and save.samefile(path)):
        raise UsageError(f"The sheet cannot be {str(save)!r}.", hint="name a new file that ends in .png with --save")
    if save is not None and not sheet:
        raise UsageError("--save names a sheet, and --no-sheet draws none.", hint="leave one of them out")
    common.check_class_aware(class_aware, class_weight)
    check_template(template)
    if template is not None and is_file:
        raise UsageError(f"--template is for text queries; {query!r} is a file.", hint="leave it out")
    if mask_groups and not is_file:
        raise UsageError(f"--mask-groups masks the group of a query image; {query!r} is no image file.", hint="leave it out")
    if not is_file and path.suffix.lower() in SUFFIXES:
        raise UsageError(f"No image {query!r}.", hint="name an image file, or write a finding as text")
    opened = open_run(run)
    if not is_file:
        retrieval.check_reads_texts(opened, query)
    finder = retrieval.open_finder(opened, device=device, exact=class_aware != "off")
    if is_file:
        try:
            asked = retrieval.image_query(finder, read_image(path), path.name)
        except ImageError as error:
            raise_image_faults([error], path.parent)
    else:
        asked = retrieval.text_query(finder, query, template, classes=class_aware != "off")
    if label is not None:
        asked = retrieval.labelled(finder, asked, label)
    selection = select(opened, finder.model, class_aware=class_aware, class_weight=class_weight)
    options.say_selection(selection)
    result = retrieval.find_cases(finder, replace(asked, source=query), top_k, rule=selection.rule, mask_group=mask_groups)
    if selection.class_weight is not None:
        result = replace(result, validation=selection.class_weight.as_dict())
    if result.taken_for:
        name, probability = result.taken_for
        console.say(f"Class-aware: the query is taken for {name} ({probability:.0%}).")
        if result.fell_back:
            console.warn(f"no image of the class {name} is left to answer; all classes were ranked")
    console.show(result)
    if sheet:
        settings = [query, asked.digest, top_k, mask_groups, class_aware, selection.rule.weight, template, asked.label]
        result = replace(result, sheet=_draw(result, path if is_file else None, save, opened.path("searches"), settings))
    return result.to_dict()


def _draw(result: SearchResult, image: Path | None, save: Path | None, folder: Path, settings: list[Any]) -> Path | None:
    """The sheet, where it was asked for or under a name that the query and its settings make; None where that folder is not ours."""
    from entrep_cli.reporting.contact_sheets import Tile, contact_sheet
    from entrep_cli.retrieval import search as retrieval

    tiles = [Tile(image, f"query\n{result.query.label}", "query")] if image else []
    for case in result.cases:
        mark = retrieval.MARKS[case.hit]
        told = f"{mark}, " if mark else ""
        tiles.append(Tile(Path(case.path), f"{case.rank}. {case.label or case.image}\n{told}{case.score:.3f}", mark))
    tiles += [Tile(Path(case.path), f"{case.label}\ntruth, {case.score:.3f}", "truth") for case in result.missed]
    plain = re.sub(r"[^A-Za-z0-9]+", "-", Path(result.query.name).stem).strip("-")[:40] or "query"
    place = save or folder / f"{plain}-{fingerprint(settings)[:8]}.png"
    try:
        contact_sheet(result.title, tiles, place)
    except OSError as error:
        if save is not None:
            raise
        console.warn(f"no sheet was drawn: {error.strerror or error} ({place}); --save FILE draws it elsewhere")
        return None
    console.say(f"Sheet: {place}")
    return place


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # a text may be longer than any name of a file
        return False
