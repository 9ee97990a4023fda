"""The images that something is scored on, and what a run makes of them."""

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
SPLITS = ("val", "test", QUERIES)  # what an experiment may be scored on: never what it has learned from


@dataclass(frozen=True)
class Scored:
    """A run, and what it makes of one split of its dataset.

    Attributes:
        division: of the images of the catalog. split: `train`, `val`, `test` or `queries`.
        fold: the fold held out for testing, None of a division without folds.
        images: those of the split, labelled in the classes of the model.
        embeddings: of these images, with probabilities, in the same order.
        notes: what a reader of the scores must know.
        flip: with test-time augmentation (`embed_items`).
    """

    run: Run
    model: Model
    catalog: Catalog
    division: Split
    split: str
    fold: int | None
    images: Catalog
    embeddings: Embeddings
    notes: tuple[str, ...] = ()
    flip: bool = False

    @property
    def title(self) -> str:
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"run {self.run.name}, split {self.split}{fold}{', with flips' if self.flip else ''}"

    @property
    def stem(self) -> Path:
        """Where scores of the split are written, without a suffix: `<run>/evaluation/<split>`."""
        name = self.split if self.fold == self.run.manifest["split"]["fold"] else f"{self.split}-fold-{self.fold}"
        return self.run.path("evaluation", f"{name}-tta" if self.flip else name)


def open_scored(
    run_name: str | None, root: Path, split: str, *, fold: int | None = None, flip: bool = False, device: str = "auto"
) -> Scored:
    """A run on a split of the dataset that it was trained on; the images are embedded where they are not yet.

    Args:
        run_name: as for `open_run`.
        split: `train`, `val`, `test` or `queries`.
        fold: another fold than that of the run, which the notes then say; the queries are of none.
        flip: test-time augmentation, as for `embed_items`.

    Raises:
        RunError: the run was trained on other data or another division, or its members have together learned from all
            folds; or the split is empty.
        UsageError: no such split, a fold of the queries, or a flip that is not known for every class.
    """
    if split not in ("train", *SPLITS):
        raise UsageError(f"No split {split!r}.", hint="--split train, val, test or queries")
    if split == QUERIES and fold is not None:
        raise UsageError("--fold chooses among the images of the split, and the queries are none of them.", hint="leave it out")
    run = open_run(run_name)
    catalog, division = read_catalog_and_split(root)
    check_trained_on(run, catalog, division, split)
    trained_fold = run.manifest["split"]["fold"]
    fold = trained_fold if fold is None else fold
    notes = []
    if fold != trained_fold:
        notes.append(f"run {run.name} was trained with fold {trained_fold} left out: it has learned from images of fold {fold}")
    model = open_model(run, device)
    images = in_classes_of(model, scored_subset(catalog, division, root, split, fold))
    if not len(images):
        raise _empty(split)
    embeddings = embedded_by(run, model, images, catalog, root, split, flip=flip)
    return Scored(run, model, catalog, division, split, fold, images, embeddings, tuple(notes), flip)


def check_trained_on(run: Run, catalog: Catalog, division: Split, split: str) -> None:
    """RunError where a run was trained on other data or another division, or has learned from the split; no model is loaded."""
    manifest = run.manifest
    if manifest["data"]["catalog"] != catalog.fingerprint:
        raise RunError(f"Run {run.name!r} was trained on other data.", where=run.folder, hint="name its dataset with --data")
    if manifest["split"]["fingerprint"] != division.fingerprint:
        raise RunError(
            f"Run {run.name!r} was trained on another split: its training images may be among the {split} images of this one.",
            where=run.folder,
            hint=f"make the same split again: `{split_command(manifest['split'], catalog.root)}`; or train again",
        )
    if learned_from_all_folds(run) and split != QUERIES:
        raise RunError(
            f"Run {run.name!r} cannot be scored on {split} images: every image of the split was learned from by some of its members.",
            where=run.folder,
            hint=f"--split {QUERIES} scores it on the test folder; {run.name}/cross-validation.json has the scores of each fold by "
            f"the run that left it out, and `--run {run.name}/fold-0` names one of these",
        )


def check_scored(split: str) -> None:
    """UsageError for a split on which nothing may be scored."""
    if split not in SPLITS:
        raise UsageError(f"Nothing can be scored on {split!r}.", hint=f"--split {', '.join(SPLITS)}")


def scored_subset(catalog: Catalog, division: Split, root: Path, split: str, fold: int | None = None) -> Catalog:
    """The images of `train`, `val` or `test`, or of `queries`: the dataset's test folder with its truth.

    Raises:
        RunError: there are none. DataError: no truth, or images that cannot be read.
    """
    if split == QUERIES:
        return labelled_test(only_test_set(root), catalog.taxonomy, root)
    images = catalog.subset(division.images(split, fold))
    if not len(images):
        raise _empty(split)
    return images


def embedded_by(run: Run, model: Model, images: Catalog, catalog: Catalog, root: Path, split: str, *, flip: bool = False) -> Embeddings:
    """The embeddings of scored images by a run, in their order."""
    if split != QUERIES:
        return subset_embeddings(run, model, images, catalog, flip=flip)
    test_set = only_test_set(root)
    return embeddings_of(run, set_name(test_set, root), folder_items(test_set, root), model, flip=flip).named(images.images)


def texts_for(model: Model, images: Catalog) -> TextQueries | None:
    """The findings of images as queries; None where they have none, or the model reads no texts."""
    texts = finding_texts(images) if model.reads_text else []
    return TextQueries(texts, text_vectors(model, texts)) if texts else None


def _empty(split: str) -> RunError:
    return RunError(f"The {split} split is empty.", hint="choose another --split, or split again")
