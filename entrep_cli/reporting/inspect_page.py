"""The page of an inspection: one HTML file with all in it, which opens anywhere and asks no network.

All names and texts are escaped by the template engine; pictures are scaled down and written into the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from entrep_cli.data.inspection import Inspection
from entrep_cli.data.remarks import Remark
from entrep_cli.reporting.pages import render
from entrep_cli.reporting.pictures import thumbnail
from entrep_cli.version import __version__
from entrep_cli.workspace import write_text_atomic

THUMBNAIL = 128  # pixels of the longer side; some 4 kB each
MAX_SETS = 24  # of pictures a remark
MAX_IMAGES = 12  # a set
MAX_LINES = 40  # of details a remark
_TABLES = {
    "classes": "Classes",
    "regions": "Regions",
    "texts": "Texts by language",
    "subsets": "Subsets",
    "sizes": "Sizes",
    "modes": "Modes",
}
_BANDS = (("must fix", "Must be corrected"), ("note", "To look at"))


def write_page(inspection: Inspection, path: Path, *, private: bool = False) -> Path:
    """Write the page of an inspection, replaced in one step.

    Args:
        private: no picture, name, text or place of the dataset; pictures are numbered.

    Returns:
        `path`.
    """
    write_text_atomic(path, page(inspection, private=private))
    return path


def page(inspection: Inspection, *, private: bool = False) -> str:
    """The page as HTML; for the arguments see `write_page`."""
    document = inspection.as_dict(private)
    picture_of = cache(lambda key: "" if private else thumbnail(inspection.pictures[key].path, THUMBNAIL))
    bands = [
        (title, [_section(remark, inspection, picture_of, private) for remark in inspection.remarks if remark.severity == severity])
        for severity, title in _BANDS
    ]
    counts = document["counts"]
    tables = {heading: counts[key] if key != "sizes" else _first(counts[key]) for key, heading in _TABLES.items() if counts.get(key)}
    return render(
        "inspect_page.html.j2",
        ok=inspection.ok,
        title="Inspection" if private else f"Inspection of {inspection.root.absolute().name}",
        place=document["data"],
        layouts=document["layouts"],
        taxonomy=inspection.taxonomy,
        counts=counts,
        groups=inspection.groups,
        tables=tables,
        bands=[(title, sections) for title, sections in bands if sections],
        private=private,
        version=__version__,
    )


def _section(remark: Remark, inspection: Inspection, picture_of: Callable[[str], str], private: bool) -> dict[str, Any]:
    names = inspection.names(private)
    table = inspection.suspects if remark.kind == "label suspects" else None
    suspects = {} if table is None else table.set_index("image").to_dict("index")

    def tile(key: str) -> dict[str, Any]:
        picture = inspection.pictures[key]
        label = picture.label or ("" if picture.is_test else "no label")
        if key in suspects:
            row = suspects[key]
            label = f"{row['label']} ({row['p_label']:.2f}), seems {row['suggested']} ({row['p_suggested']:.2f})"
        return {"name": names[key], "label": label, "is_test": private and picture.is_test, "source": picture_of(key)}

    # Single images stand in one row of tiles, as one set would.
    sets: Sequence[Sequence[str]] = remark.images
    if sets and all(len(those) == 1 for those in sets):
        sets = [[key for those in sets for key in those]]
    limit = MAX_SETS if len(sets) == 1 else MAX_IMAGES
    # A list of names repeats what stands under the pictures.
    lines = () if private or all(line in inspection.pictures for line in remark.details) and sets else remark.details
    return {
        "kind": remark.kind,
        "what": remark.what,
        "hint": remark.hint,
        "lines": lines[:MAX_LINES],
        "more_lines": max(len(lines) - MAX_LINES, 0),
        "sets": [{"tiles": [tile(key) for key in those[:limit]], "more": max(len(those) - limit, 0)} for those in sets[:MAX_SETS]],
        "more_sets": max(len(sets) - MAX_SETS, 0),
    }


def _first(table: dict[str, int], n: int = 8) -> dict[str, int]:
    """The first rows, and the others as one."""
    rows = list(table.items())
    return dict(rows[:n]) | ({"others": sum(count for _, count in rows[n:])} if len(rows) > n else {})
