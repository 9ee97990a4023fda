"""The part of a dataset that an experiment is scored on, and how a run sees it."""

from __future__ import annotations

from pathlib import Path

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.queries import only_test_set
from entrep_cli.data.splits import Split
from entrep_cli.errors import RunError, UsageError
from entrep_cli.methods import Model
from entrep_cli.retrieval.embeddings import Embeddings, embeddings_of
from entrep_cli.retrieval.sets import folder_items, part_embeddings, set_name
from entrep_cli.retrieval.text_queries import text_vectors
from entrep_cli.scoring.parts import TextQueries, finding_texts
from entrep_cli.submission.truth import labelled_test
from entrep_cli.workspace import Run

QUERIES = "queries"
PARTS = ("val", "test", QUERIES)  # what an experiment may be scored on: never what it has learned from


def check_scored(on: str) -> None:
    """UsageError where nothing may be scored on `on`."""
    if on not in PARTS:
        raise UsageError(f"There is nothing to score on called {on!r}.", mend=f"--on {', '.join(PARTS)}")


def scored_part(catalog: Catalog, split: Split, root: Path, on: str, fold: int | None = None) -> Catalog:
    """`train`, `val` or `test` of the split, or `queries`: the dataset's test folder with its truth.

    Raises:
        RunError: it is empty; DataError: no truth, or images that cannot be read.
    """
    if on == QUERIES:
        return labelled_test(only_test_set(root), catalog.taxonomy)
    part = catalog.subset(split.images(on, fold))
    if not len(part):
        raise RunError(f"The {on} part is empty.", mend="choose another, or split again")
    return part


def seen_by(run: Run, model: Model, part: Catalog, catalog: Catalog, root: Path, on: str) -> Embeddings:
    """The images of a scored part as a run sees them, in its order."""
    if on != QUERIES:
        return part_embeddings(run, model, part, catalog)
    test_set = only_test_set(root)
    return embeddings_of(run, set_name(test_set, root), folder_items(test_set), model).named(part.images)


def texts_for(model: Model, part: Catalog) -> TextQueries | None:
    """The findings of a part as queries; None where it has none, or the model reads no texts."""
    asked = finding_texts(part) if getattr(model, "has_text_tower", False) else []
    return TextQueries(asked, text_vectors(model, asked)) if asked else None
