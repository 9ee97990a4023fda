"""`entrep evaluate`: scores with intervals, of a split or of a submission."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.api import common
from entrep_cli.commands import options
from entrep_cli.errors import UsageError
from entrep_cli.workspace import MANIFEST, Run, data_dir, data_dir_exists, open_run, runs_dir

if TYPE_CHECKING:
    from entrep_cli.evaluation.evaluate import Evaluation


def evaluate(
    data: options.Data = None,
    run: options.RunName = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="train, val or test (the default); queries: the test folder and its truth.", show_default=False),
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Another fold than that of the run.", min=0, show_default=False)] = None,
    mask_groups: Annotated[
        bool | None,
        typer.Option(
            "--mask-groups/--no-mask-groups",
            help="Whether frames of the query's group are left out of the answers (default: yes).",
            show_default=False,
        ),
    ] = None,
    submission: Annotated[Path | None, typer.Option(help="Score this zip or JSON instead.", show_default=False)] = None,
    truth: Annotated[Path | None, typer.Option(help="The truth file of the submission.", show_default=False)] = None,
    track: Annotated[int | None, typer.Option(help="The track of the submission.", show_default=False)] = None,
    class_aware: options.ClassAware = "off",
    class_weight: options.ClassWeight = None,
    refine: options.Refine = None,
    tta: options.Tta = False,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep evaluate --split test

    Score a run on a split: accuracy, F1, per class, Recall@1/5/10, MRR and mAP, with 95%
    bootstrap intervals over groups; and how far its probabilities can be trusted, as they are and at the
    temperature that validation chooses. With --class-aware or --refine, retrieval is scored without it and
    with it. Or score a submission:
    entrep evaluate --submission track1.zip --truth truth_cls.json --track 1
    """
    if submission is not None:
        if class_aware != "off" or class_weight is not None:
            raise UsageError(
                "--class-aware ranks anew, and a submission is ranked already.", hint="leave it out; `entrep predict` has it too"
            )
        if refine is not None:
            raise UsageError("--refine ranks anew, and a submission is ranked already.", hint="leave it out; `entrep predict` has it too")
        if tta:
            raise UsageError("--tta is for images, and a submission is answered already.", hint="leave it out; `entrep predict` has it")
        if truth is None or track is None:
            raise UsageError("A submission needs its truth file and its track.", hint="--submission FILE --truth FILE --track N")
        for option, given in (("--split", split), ("--fold", fold), ("--mask-groups", mask_groups)):
            if given is not None:
                raise UsageError(f"{option} chooses images of the dataset, and a submission has other queries.", hint="leave it out")
        if run is not None and track != 1:
            raise UsageError("--run tells what the class ids of track 1 mean, and these answers are images.", hint="leave it out")
        return _evaluate_submission(submission, truth, track, data, run)
    if truth is not None or track is not None:
        raise UsageError("--truth and --track go with --submission.", hint="add --submission FILE, or leave them out")
    common.check_class_aware(class_aware, class_weight)
    return _evaluate_run(split or "test", fold, mask_groups is not False, class_aware, class_weight, refine, tta, data, run, device)


def _evaluate_run(
    split: str,
    fold: int | None,
    mask_groups: bool,
    class_aware: str,
    class_weight: float | None,
    refine: str | None,
    tta: bool,
    data: Path | None,
    run_name: str | None,
    device: str,
) -> dict[str, Any]:
    from entrep_cli.evaluation.evaluate import evaluate_scored
    from entrep_cli.evaluation.scored import open_scored
    from entrep_cli.evaluation.selection import select
    from entrep_cli.retrieval.refinement import parse_steps

    scored = open_scored(run_name, data_dir(data), split, fold=fold, flip=tta, device=device)
    common.say_catalog(scored.catalog)
    run, model, dataset, steps = scored.run, scored.model, (scored.catalog, scored.division), parse_steps(refine)
    selection = select(run, model, dataset, class_aware=class_aware, class_weight=class_weight, refine=steps, flip=tta)
    common.say_selection(selection)
    document = _shown(evaluate_scored(scored, selection, mask_groups=mask_groups))
    own = console.flags(run=run.reference, data=data)
    page = console.flags(run=run.reference, split=split if split in ("val", "queries") else None, fold=fold, data=data)
    console.next_commands(f"entrep report{page}", f"entrep predict --track {1 if model.target == 'class' else 2}{own}")
    return document


def _evaluate_submission(submission: Path, truth: Path, track: int, data: Path | None, run_name: str | None) -> dict[str, Any]:
    from entrep_cli.data.layouts import known_images
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.data.tracks import track_of
    from entrep_cli.evaluation.evaluate import Evaluation
    from entrep_cli.submission.tracks import answer_labels, read_submission
    from entrep_cli.submission.truth import score_submission, truth_taxonomy

    name = track_of(track).name
    read = read_submission(submission)
    root = data_dir(data) if data is not None or data_dir_exists() else None
    known, taxonomy = known_images(root) if root is not None else ({}, None)
    labels = answer_labels(known)
    if root is not None and not labels:
        console.warn(f"{root} holds no labelled dataset; training images among the answers have no known class")
    own = Run(submission.resolve().parent.parent)
    # What the ids of track 1 mean the run says. The classes of images are the dataset's: a run may tell only regions apart.
    if track == 1 and (run_name is not None or (own.folder / MANIFEST).is_file()):
        taxonomy = Taxonomy.from_dict((open_run(run_name) if run_name else own).manifest["taxonomy"])
    elif taxonomy is None:
        taxonomy = truth_taxonomy(truth, track)
        if track == 1:
            console.warn(f"class ids are taken from the truth itself ({taxonomy.name}); name the run or the dataset to be sure")
    scores = score_submission(read, truth, track, taxonomy, labels, root)
    folder = own.folder if (own.folder / MANIFEST).is_file() else runs_dir()
    title = f"{submission.name}, track {track}, {name}"
    document = _shown(Evaluation(title, folder / "evaluation" / submission.stem, taxonomy, scores, tuple(scores.notes)))
    if folder == own.folder:
        console.next_commands(f"entrep report{console.flags(run=own.reference, data=data)}")
    return document


def _shown(evaluation: Evaluation) -> dict[str, Any]:
    """Write the numbers as JSON and the confusion matrix as PNG; then show them."""
    classes = evaluation.scores.classification
    if classes is not None:
        from entrep_cli.reporting.drawing import confusion

        drawn = confusion(classes.confusion, classes.class_names, evaluation.title)
        evaluation = replace(evaluation, figure=drawn.png(evaluation.stem.with_name(f"{evaluation.stem.name}.png")))
    path = evaluation.write()
    console.show(evaluation)
    for note in evaluation.notes:
        console.warn(note)
    console.say(f"Written: {path}" + (f", {evaluation.figure}" if evaluation.figure else ""))
    return evaluation.to_dict()
