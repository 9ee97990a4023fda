"""`entrep index`: a FAISS index over a run's embeddings."""

from __future__ import annotations

from typing import Any

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.workspace import open_run


def index(run: options.RunName = None) -> dict[str, Any]:
    """Example: entrep index

    Build the index that `entrep search` looks things up in, over all that was embedded with the run.
    """
    from entrep_cli.retrieval.search import build_run_index

    opened = open_run(run)
    manifest = build_run_index(opened)
    console.table(
        f"Index of run {opened.name}",
        ["sets", "images", "dimensions"],
        [(", ".join(manifest["sets"]), manifest["images"], manifest["dimensions"])],
    )
    console.next_commands(f"entrep search IMAGE{options.flags(run=opened.reference)}")
    return {"run": opened.name, "index": str(opened.path("index", "index.faiss")), **manifest}
