"""`evaluate`: scores with intervals, of a run on a split or of a submission."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.api.common import check_class_aware, say_catalog, say_selection
from entrep_cli.errors import UsageError
from entrep_cli.workspace import MANIFEST, Run, data_dir, data_dir_exists, open_run, runs_dir

if TYPE_CHECKING:
    from entrep_cli.evaluation.evaluate import Evaluation


def evaluate(
    *,
    data: str | Path | None = None,
    run: str | None = None,
    split: str | None = None,
    fold: int | None = None,
    mask_groups: bool | None = None,
    submission: str | Path | None = None,
    truth: str | Path | None = None,
    track: int | None = None,
    class_aware: str = "off",
    class_weight: float | None = None,
    refine: str | None = None,
    tta: bool = False,
    device: str = "auto",
) -> Evaluation:
    """Score a run on a split, or a submission; numbers as JSON and the confusion matrix as PNG go into the run's `evaluation`.

    Args:
        data: the dataset folder.
        run: by name or folder, None for the one that completed last; of a submission of track 1 the run whose class ids it has.
        split: `train`, `val`, `test` (the default) or `queries`. fold: another fold than that of the run.
        mask_groups: whether frames of the query's group are left out of the answers; None is yes.
        submission, truth, track: score this zip or JSON against this truth file instead.
        class_aware: also score with `hard` or `soft`, with `class_weight`; None is what validation chooses.
        refine: also score with steps of `whiten,dba,qe,rerank`. tta: average over each image and its flip.
        device: where the model computes.

    Raises:
        UsageError: options that do not go together, or no such split.
        RunError: the run was trained on other data or another split. DataError: the truth or the submission cannot be used.
    """
    if submission is None:
        if truth is not None or track is not None:
            raise UsageError("--truth and --track go with --submission.", hint="add --submission FILE, or leave them out")
        check_class_aware(class_aware, class_weight)
        from entrep_cli.evaluation.evaluate import evaluate_scored
        from entrep_cli.evaluation.scored import open_scored
        from entrep_cli.evaluation.selection import select
        from entrep_cli.retrieval.refinement import parse_steps

        scored = open_scored(run, data_dir(data), split or "test", fold=fold, flip=tta, device=device)
        say_catalog(scored.catalog)
        dataset = (scored.catalog, scored.division)
        rule: dict[str, Any] = {"class_aware": class_aware, "class_weight": class_weight}
        selection = select(scored.run, scored.model, dataset, **rule, refine=parse_steps(refine), flip=tta)
        say_selection(selection)
        return _written(evaluate_scored(scored, selection, mask_groups=mask_groups is not False))
    ranked = "ranks anew, and a submission is ranked already."
    of_split = "is of a split, and a submission has its queries."
    for given, what in (
        (class_aware != "off" or class_weight is not None, f"--class-aware {ranked}"),
        (refine is not None, f"--refine {ranked}"),
        (tta, "--tta is for images, and a submission is answered already."),
    ):
        if given:
            raise UsageError(what, hint="leave it out; `entrep predict` has it too")
    if truth is None or track is None:
        raise UsageError("A submission needs its truth file and its track.", hint="--submission FILE --truth FILE --track N")
    for option, value in (("--split", split), ("--fold", fold), ("--mask-groups", mask_groups)):
        if value is not None:
            raise UsageError(f"{option} {of_split}", hint="leave it out")
    if run is not None and track != 1:
        raise UsageError("--run says what the class ids of track 1 mean, and these answers are images.", hint="leave it out")
    return _written(_of_submission(Path(submission), Path(truth), track, data, run))


def _of_submission(submission: Path, truth: Path, track: int, data: str | Path | None, run: str | None) -> Evaluation:
    from entrep_cli.data.layouts import known_images
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.data.tracks import track_of
    from entrep_cli.evaluation.evaluate import Evaluation
    from entrep_cli.submission.tracks import answer_labels, read_submission
    from entrep_cli.submission.truth import score_submission, truth_taxonomy

    title = f"{submission.name}, track {track}, {track_of(track).name}"
    answers = read_submission(submission)
    root = data_dir(data) if data is not None or data_dir_exists() else None
    known, taxonomy = known_images(root) if root is not None else ({}, None)
    labels = answer_labels(known)
    if root is not None and not labels:
        console.warn(f"{root} holds no labelled dataset; training images among the answers have no known class")
    holder = Run(submission.resolve().parent.parent)
    author = holder if (holder.folder / MANIFEST).is_file() else None
    # What the ids of track 1 mean the run says. The classes of images are the dataset's: a run may distinguish regions only.
    if track == 1 and (run is not None or author):
        taxonomy = Taxonomy.from_dict((open_run(run) if run else author or holder).manifest["taxonomy"])
    elif taxonomy is None:
        taxonomy = truth_taxonomy(truth, track)
        if track == 1:
            console.warn(f"class ids are taken from the truth itself ({taxonomy.name}); name the run or the dataset to be sure")
    scores = score_submission(answers, truth, track, taxonomy, labels, root)
    stem = (author.folder if author else runs_dir()) / "evaluation" / submission.stem
    return Evaluation(title, stem, taxonomy, scores, tuple(scores.notes), run=author)


def _written(evaluation: Evaluation) -> Evaluation:
    """The same with its confusion matrix drawn, and written."""
    classes = evaluation.scores.classification
    if classes is not None:
        from entrep_cli.reporting.drawing import confusion

        picture = evaluation.stem.with_name(f"{evaluation.stem.name}.png")
        evaluation = replace(evaluation, figure=confusion(classes.confusion, classes.class_names, evaluation.title).png(picture))
    evaluation.write()
    return evaluation
