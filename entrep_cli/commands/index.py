"""`entrep index`: a FAISS index over a run's embeddings."""

from __future__ import annotations

from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def index(
    run: options.RunName = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="Put it into Milvus: milvus (a file in the run), FILE.db, or a server as http://HOST:19530, whose token is "
            "$ENTREP_MILVUS_TOKEN (default: FAISS files in the run).",
            show_default=False,
        ),
    ] = None,
) -> Result:
    """Example: entrep index

    Build the index that `entrep search` looks things up in, over all that was embedded with the run. Up to
    a million images every one is compared; above, one cell of images in 16, and the recall of that is
    measured. With --store, `entrep search` and `entrep predict --gallery all` ask Milvus, for the same answers.
    """
    result = entrep.index(run=run, store=store)
    console.show(result)
    console.next_commands(f"entrep search IMAGE{console.flags(run=result.run.reference)}")
    return result
