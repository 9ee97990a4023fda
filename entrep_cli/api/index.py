"""`index`: a FAISS or Milvus index over a run's embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from entrep_cli.results import Result, Table
from entrep_cli.workspace import Run, open_run

_KINDS = {"exact": "FAISS, all compared", "cells": "FAISS, by cells", "milvus": "Milvus"}


@dataclass(frozen=True)
class RunIndex(Result):
    """The index of a run, as its manifest describes it."""

    run: Run
    manifest: dict[str, Any]

    def tables(self) -> list[Table]:
        made = self.manifest
        recall = {"recall@10": made["recall@10"]} if "recall@10" in made else {}
        columns = ["sets", "images", "dimensions", "kind", *recall]
        row = (", ".join(made["sets"]), made["images"], made["dimensions"], _KINDS[made["kind"]], *recall.values())
        return [Table(f"Index of run {self.run.name}", columns, [row])]

    def to_dict(self) -> dict[str, Any]:
        return {"run": self.run.name, "index": str(self.run.path("index")), **self.manifest}


def index(*, run: str | None = None, store: str | None = None) -> RunIndex:
    """Build the index that `search` uses, over all embeddings of a run.

    Args:
        run: name or folder of a run; by default the one that completed last.
        store: `milvus`, `FILE.db` or `http://HOST:19530`; by default FAISS files in the run.

    Raises:
        UsageError: no such store.
        RunError: the run has no embeddings, or the store does not answer.
    """
    from entrep_cli.retrieval.index import build_run_index

    opened = open_run(run)
    return RunIndex(opened, build_run_index(opened, store))
