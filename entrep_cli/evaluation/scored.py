"""The part of a dataset that an experiment is scored on, and how a run sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split, read_catalog_and_split, split_command
from entrep_cli.data.testsets import only_test_set
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation.selection import learned_from_all_folds
from entrep_cli.evaluation.subsets import TextQueries, finding_texts
from entrep_cli.evaluation.truth import labelled_test
from entrep_cli.methods.base import Model, in_classes_of
from entrep_cli.retrieval.embeddings import Embeddings, embeddings_of
from entrep_cli.retrieval.pipeline import text_vectors
from entrep_cli.retrieval.sets import folder_items, open_model, set_name, subset_embeddings
from entrep_cli.workspace import Run, open_run

QUERIES = "queries"
PARTS = ("val", "test", QUERIES)  # what an experiment may be scored on: never what it has learned from


@dataclass(frozen=True)
class Scored:
    """A run and a part of its dataset, as the run sees it.

    Attributes:
        part: `train`, `val`, `test` or `queries`; `fold`: the fold kept for testing, None of a split into parts.
        images: the part, labelled in the classes of the model.
        seen: its embeddings and probabilities, in the same order.
        notes: what a reader of its scores must know.
        flip: seen with test-time augmentation (`embed_items`).
    """

    run: Run
    model: Model
    catalog: Catalog
    split: Split
    part: str
    fold: int | None
    images: Catalog
    seen: Embeddings
    notes: tuple[str, ...] = ()
    flip: bool = False

    @property
    def title(self) -> str:
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"run {self.run.name}, part {self.part}{fold}{', with flips' if self.flip else ''}"

    @property
    def stem(self) -> Path:
        """Where what is made of the part is written, without a suffix: `<run>/evaluation/<part>`."""
        own = self.run.manifest["split"]["fold"]
        name = self.part if self.fold == own else f"{self.part}-fold-{self.fold}"
        return self.run.path("evaluation", f"{name}-tta" if self.flip else name)


def open_scored(
    run_name: str | None, root: Path, part: str, *, fold: int | None = None, flip: bool = False, device: str = "auto"
) -> Scored:
    """A run on a part of the dataset that it was trained on; the images are embedded where they are not yet.

    Args:
        run_name: as for `open_run`.
        part: `train`, `val`, `test` of the split, or `queries`.
        fold: another fold than the run's own, which is told in the notes; the queries are of none.
        flip: test-time augmentation, as for `embed_items`.

    Raises:
        RunError: the run was trained on other data or another split, or among its folds has learned from all
            parts; or the part is empty.
        UsageError: no such part, a fold of the queries, or a flip that is not known for every class.
    """
    if part not in ("train", *PARTS):
        raise UsageError(f"There is no part {part!r}.", hint="--split train, val, test or queries")
    if part == QUERIES and fold is not None:
        raise UsageError("--fold chooses among the images of the split, and the queries are none of them.", hint="leave it out")
    run = open_run(run_name)
    catalog, split = read_catalog_and_split(root)
    check_trained_on(run, catalog, split, part)
    own_fold = run.manifest["split"]["fold"]
    fold = own_fold if fold is None else fold
    notes = []
    if fold != own_fold:
        notes.append(f"run {run.name} was trained with fold {own_fold} left out: it has learned from images of fold {fold}")
    model = open_model(run, device)
    images = in_classes_of(model, scored_subset(catalog, split, root, part, fold))
    if not len(images):
        raise RunError(f"The {part} part is empty.", hint="choose another --split, or split again")
    seen = seen_by(run, model, images, catalog, root, part, flip=flip)
    return Scored(run, model, catalog, split, part, fold, images, seen, tuple(notes), flip)


def check_trained_on(run: Run, catalog: Catalog, split: Split, part: str) -> None:
    """RunError where a run was trained on other data or by another split, or has learned from the part; no model is loaded."""
    manifest = run.manifest
    if manifest["data"]["catalog"] != catalog.fingerprint:
        raise RunError(f"Run {run.name!r} was trained on other data.", where=run.folder, hint="name its dataset with --data")
    if manifest["split"]["fingerprint"] != split.fingerprint:
        raise RunError(
            f"Run {run.name!r} was trained on another split: its training images may stand in the {part} part of this one.",
            where=run.folder,
            hint=f"make the same split again: `{split_command(manifest['split'], catalog.root)}`; or train again",
        )
    if learned_from_all_folds(run) and part != QUERIES:
        raise RunError(
            f"Run {run.name!r} cannot be scored on the {part} part: every image of the split was learned from by some of its members.",
            where=run.folder,
            hint=f"--split {QUERIES} scores it on the test folder; {run.name}/cross-validation.json has what each fold's own run "
            f"made of the fold it had not seen, and `--run {run.name}/fold-0` names one of these",
        )


def check_scored(on: str) -> None:
    """UsageError where nothing may be scored on `on`."""
    if on not in PARTS:
        raise UsageError(f"There is nothing to score on called {on!r}.", hint=f"--split {', '.join(PARTS)}")


def scored_subset(catalog: Catalog, split: Split, root: Path, on: str, fold: int | None = None) -> Catalog:
    """`train`, `val` or `test` of the split, or `queries`: the dataset's test folder with its truth.

    Raises:
        RunError: it is empty; DataError: no truth, or images that cannot be read.
    """
    if on == QUERIES:
        return labelled_test(only_test_set(root), catalog.taxonomy, root)
    part = catalog.subset(split.images(on, fold))
    if not len(part):
        raise RunError(f"The {on} part is empty.", hint="choose another, or split again")
    return part


def seen_by(run: Run, model: Model, part: Catalog, catalog: Catalog, root: Path, on: str, *, flip: bool = False) -> Embeddings:
    """The images of a scored part as a run sees them, in its order."""
    if on != QUERIES:
        return subset_embeddings(run, model, part, catalog, flip=flip)
    test_set = only_test_set(root)
    return embeddings_of(run, set_name(test_set, root), folder_items(test_set, root), model, flip=flip).named(part.images)


def texts_for(model: Model, part: Catalog) -> TextQueries | None:
    """The findings of a part as queries; None where it has none, or the model reads no texts."""
    asked = finding_texts(part) if model.reads_text else []
    return TextQueries(asked, text_vectors(model, asked)) if asked else None
