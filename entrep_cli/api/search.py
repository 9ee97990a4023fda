"""`search`: the cases most like an image or a finding."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from entrep_cli import console
from entrep_cli.api.common import check_class_aware, say_selection
from entrep_cli.errors import UsageError
from entrep_cli.workspace import fingerprint, open_run

if TYPE_CHECKING:
    from entrep_cli.retrieval.search import SearchResult


def search(
    query: str | Path,
    *,
    run: str | None = None,
    top_k: int = 10,
    mask_groups: bool = False,
    class_aware: str = "off",
    class_weight: float | None = None,
    template: str | None = None,
    label: str | None = None,
    save: str | Path | None = None,
    sheet: bool = True,
    device: str = "auto",
) -> SearchResult:
    """The embedded images that are most similar to an image or a finding, best first, without the query itself and its exact copies.

    Args:
        query: an image file or, for a run that reads text, a finding.
        run: name or folder of a run; by default the one that completed last.
        top_k: number of results.
        mask_groups: leave out images of the query's group.
        class_aware: `off`, `hard` or `soft`; other than `off`, all images are ranked exactly.
        class_weight: weight of `class_aware`; by default the one that validation chooses.
        template: a sentence with `{}` around a text.
        label: the true class of the query; by default that of an embedded image with the same pixels, if any.
        save: the PNG to draw; by default one in the run's `searches`.
        sheet: whether a contact sheet is drawn.
        device: where the model computes.

    Raises:
        UsageError: options that cannot be combined, or a text for a run that reads none.
        RunError: no index, or one that is not up to date.
    """
    from entrep_cli.data.images import SUFFIXES, ImageError, raise_image_faults, read_image
    from entrep_cli.evaluation.selection import select
    from entrep_cli.retrieval import search as retrieval
    from entrep_cli.retrieval.pipeline import check_template

    query, save = str(query), None if save is None else Path(save)
    path, is_file = Path(query), _is_file(query)
    if save is not None and (save.suffix.lower() != ".png" or save.exists() and is_file and save.samefile(path)):
        raise UsageError(f"The sheet cannot be {str(save)!r}.", hint="name a new file that ends in .png with --save")
    if save is not None and not sheet:
        raise UsageError("--save names a sheet, and --no-sheet draws none.", hint="leave one of them out")
    check_class_aware(class_aware, class_weight)
    check_template(template)
    if template is not None and is_file:
        raise UsageError(f"--template is for text queries; {query!r} is a file.", hint="leave it out")
    if mask_groups and not is_file:
        raise UsageError(f"--mask-groups masks the group of a query image; {query!r} is no image file.", hint="leave it out")
    if not is_file and path.suffix.lower() in SUFFIXES:
        raise UsageError(f"No image {query!r}.", hint="name an image file, or write a finding as text")
    opened, by_class = open_run(run), class_aware != "off"
    if not is_file:
        retrieval.check_reads_texts(opened, query)
    finder = retrieval.open_finder(opened, device=device, exact=by_class)
    if is_file:
        try:
            asked = retrieval.image_query(finder, read_image(path), path.name)
        except ImageError as error:
            raise_image_faults([error], path.parent)
    else:
        asked = retrieval.text_query(finder, query, template, classes=by_class)
    if label is not None:
        asked = retrieval.labelled(finder, asked, label)
    selection = select(opened, finder.model, class_aware=class_aware, class_weight=class_weight)
    say_selection(selection)
    result = retrieval.find_cases(finder, replace(asked, source=query), top_k, rule=selection.rule, mask_group=mask_groups)
    if selection.class_weight is not None:
        result = replace(result, validation=selection.class_weight.as_dict())
    if result.taken_for:
        name, probability = result.taken_for
        console.say(f"Class-aware: the query is taken for {name} ({probability:.0%}).")
        if result.fell_back:
            console.warn(f"no image of the class {name} is left to answer; all classes were ranked")
    if not sheet:
        return result
    settings = [query, asked.digest, top_k, mask_groups, class_aware, selection.rule.weight, template, asked.label]
    place = save or opened.path("searches", f"{_plain(asked.name)}-{fingerprint(settings)[:8]}.png")
    try:
        _draw(result, path if is_file else None, place)
    except OSError as error:
        if save is not None:
            raise
        console.warn(f"no sheet was drawn: {error.strerror or error} ({place}); --save FILE draws it elsewhere")
        return result
    return replace(result, sheet=place)


def _plain(name: str) -> str:
    """Letters, digits and hyphens of a query's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem).strip("-")[:40] or "query"


def _draw(result: SearchResult, image: Path | None, place: Path) -> None:
    """The sheet of a query, its answers, and the images of its class that they miss."""
    from entrep_cli.reporting.contact_sheets import Tile, contact_sheet
    from entrep_cli.retrieval.search import MARKS

    tiles = [Tile(image, f"query\n{result.query.label}", "query")] if image else []
    for case in result.cases:
        mark = MARKS[case.hit]
        caption = f"{case.rank}. {case.label or case.image}\n{f'{mark}, ' if mark else ''}{case.score:.3f}"
        tiles.append(Tile(Path(case.path), caption, mark))
    tiles += [Tile(Path(case.path), f"{case.label}\ntruth, {case.score:.3f}", "truth") for case in result.missed]
    contact_sheet(result.title, tiles, place)


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # a text may be longer than any name of a file
        return False
