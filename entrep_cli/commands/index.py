"""`entrep index`: a FAISS index over a run's embeddings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.workspace import open_run


def index(
    run: options.RunName = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="Keep it in Milvus: milvus (a file in the run), FILE.db, or a server as http://HOST:19530, whose token is "
            "$ENTREP_MILVUS_TOKEN (default: FAISS files in the run).",
            show_default=False,
        ),
    ] = None,
) -> dict[str, Any]:
    """Example: entrep index

    Build the index that `entrep search` looks things up in, over all that was embedded with the run. Up to
    a million images every one is compared; above, one cell of images in 16, and the share that is found is
    measured. With --store, `entrep search` and `entrep predict --gallery all` ask Milvus, for the same answers.
    """
    from entrep_cli.retrieval.index import build_run_index

    opened = open_run(run)
    manifest = build_run_index(opened, store)
    kind = {"exact": "FAISS, all compared", "cells": "FAISS, by cells", "milvus": "Milvus"}[manifest["kind"]]
    recall = {"recall@10": manifest["recall@10"]} if "recall@10" in manifest else {}
    console.table(
        f"Index of run {opened.name}",
        ["sets", "images", "dimensions", "kind", *recall],
        [(", ".join(manifest["sets"]), manifest["images"], manifest["dimensions"], kind, *recall.values())],
    )
    console.next_commands(f"entrep search IMAGE{options.flags(run=opened.reference)}")
    return {"run": opened.name, "index": str(opened.path("index")), **manifest}
