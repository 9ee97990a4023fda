"""`entrep validate`: is a submission what the contest takes?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.workspace import data_dir, data_dir_exists


def validate(
    file: Annotated[Path, typer.Argument(help="A zip, or the JSON in it.")],
    track: Annotated[int, typer.Option(help="1 classification, 2 image-to-image, 3 text-to-image.")],
    queries: Annotated[
        Optional[Path],
        typer.Option(help="The query file, or the folder that holds it (default: the dataset's test folder).", show_default=False),
    ] = None,
    data: options.Data = None,
    limit: Annotated[int, typer.Option(help="How many examples of each fault to show.", min=1)] = 5,
) -> dict[str, Any]:
    """Example: entrep validate runs/clip-lora/submissions/track1.zip --track 1

    Check anybody's submission and list every fault with its mend. Nothing is extracted or executed.
    Exit code 1 where there is a fault.
    """
    from entrep_cli.data.layouts import find_test_sets
    from entrep_cli.data.queries import known_images, lies_alone, named_test_set
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.submission.checks import check_submission
    from entrep_cli.submission.tracks import read_queries, track_of

    wanted = track_of(track)
    root = data_dir(data) if data is not None or queries is None and data_dir_exists() else None
    tests = find_test_sets(root) if root else []
    file_named = queries is not None and queries.is_file()
    if file_named and lies_alone(queries):
        test_set = None
    else:
        test_set = named_test_set(queries) if queries else tests[0] if len(tests) == 1 else None
    path = queries if file_named else test_set.queries.get(track) if test_set else None
    asked = read_queries(path, track, known_names=test_set.images if test_set else None, warn=console.warn) if path else None
    known, taxonomy = known_images(root) if root is not None else ({}, None)
    # Which gallery the boards search is not stated: any image of the dataset may be answered.
    gallery = set(known).union(*(t.images for t in tests), test_set.images if test_set else ()) or None
    taxonomy = taxonomy or Taxonomy.entrep()
    classes = {c.name: c.id for c in taxonomy.classes}
    report = check_submission(file, track, queries=asked, gallery=gallery, classes=classes)
    console.table(
        f"Track {track}, {wanted.name}",
        ["", ""],
        [
            ("file", file),
            ("checked against", root or queries or f"no dataset; the classes of {taxonomy.name}"),
            ("entries", "unreadable" if report.n_entries is None else report.n_entries),
            ("faults", len(report.faults)),
            ("valid", "yes" if report.ok else "NO"),
        ],
    )
    for line in report.lines(limit)[1:]:
        console.warn(line)
    return {**report.as_dict(), "ok": report.ok}
