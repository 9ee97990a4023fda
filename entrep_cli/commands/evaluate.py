"""`entrep evaluate`: scores with intervals, of a part of the split or of a submission."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import DataError, UsageError
from entrep_cli.workspace import MANIFEST, Run, data_dir, data_dir_exists, open_run, runs_dir, write_json_atomic

if TYPE_CHECKING:
    from entrep_cli.evaluation.intervals import Interval
    from entrep_cli.evaluation.scored import Scored
    from entrep_cli.evaluation.subsets import TextQueries
    from entrep_cli.retrieval.class_aware import ClassRule

RETRIEVALS_A_TABLE = 2  # more do not fit beside each other into 80 columns


def evaluate(
    data: options.Data = None,
    run: options.RunName = None,
    part: Annotated[
        str | None,
        typer.Option("--split", help="train, val or test (the default); queries: the test folder and its truth.", show_default=False),
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Another fold than the run's own.", min=0, show_default=False)] = None,
    mask_groups: Annotated[
        bool | None,
        typer.Option(
            "--mask-groups/--no-mask-groups",
            help="Whether frames of the query's own group are left out of the answers (default: yes).",
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

    Score a run on a part of the split: accuracy, F1, per class, Recall@1/5/10, MRR and mAP, with 95%
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
        for option, given in (("--split", part), ("--fold", fold), ("--mask-groups", mask_groups)):
            if given is not None:
                raise UsageError(f"{option} is of a part of the split, and a submission has its own queries.", hint="leave it out")
        if run is not None and track != 1:
            raise UsageError("--run tells what the class ids of track 1 mean, and these answers are images.", hint="leave it out")
        return _evaluate_submission(submission, truth, track, data, run)
    if truth is not None or track is not None:
        raise UsageError("--truth and --track go with --submission.", hint="add --submission FILE, or leave them out")
    options.check_class_aware(class_aware, class_weight)
    return _evaluate_part(part or "test", fold, mask_groups is not False, class_aware, class_weight, refine, tta, data, run, device)


def _evaluate_part(
    part: str,
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
    import torch

    from entrep_cli.evaluation.scored import open_scored
    from entrep_cli.evaluation.selection import select
    from entrep_cli.evaluation.subsets import finding_texts, score_subset
    from entrep_cli.methods.base import show_stages
    from entrep_cli.retrieval.refinement import parse_steps

    scored = open_scored(run_name, data_dir(data), part, fold=fold, flip=tta, device=device)
    options.say_catalog(scored.catalog)
    opened, model, images, seen, notes = scored.run, scored.model, scored.images, scored.seen, list(scored.notes)
    dataset, steps = (scored.catalog, scored.split), parse_steps(refine)
    selection = select(opened, model, dataset, class_aware=class_aware, class_weight=class_weight, refine=steps, flip=tta)
    options.say_selection(selection)
    rule, tuned = selection.rule, selection.refinement
    for chosen, name in ((selection.class_weight, "class weight"), (tuned, "refinement")):
        if chosen is not None and part == "val":
            notes.append(f"the {name} was chosen on the validation part itself: these scores with it are too good")
    texts = _text_queries(scored, finding_texts(images), rule, notes) if model.reads_text else None
    refinement = None if tuned is None else tuned.value
    scores = score_subset(images, seen, mask_groups=mask_groups, rule=rule, texts=texts, refinement=refinement)
    for queries, n in scores.fell_back.items():
        if n:
            notes.append(f"{rule}: {n} queries ({queries}) have no candidate of their predicted class; for them the whole part was ranked")
    title = scored.title
    more = {
        "mask_groups": mask_groups,
        "class_aware": {**selection.class_aware, "fell_back": scores.fell_back},
        **({} if tuned is None else {"refined": tuned.as_dict()}),
    }
    decisions = model.decide_images(images.paths, images.digests)
    if decisions is not None:
        more["stages"] = model.stage_counts(decisions, torch.from_numpy(images.targets))
        show_stages(f"What decided: {title}", more["stages"])
    more["calibration"], reliable = _calibration(scored, notes)
    found = (scores.classification, scores.retrieval)
    stem = scored.stem if mask_groups else scored.stem.with_name(f"{scored.stem.name}-unmasked")
    document = _show(title, stem, images.taxonomy, *found, mask_groups, notes, scores.chance, more, reliable)
    own = options.flags(run=opened.reference, data=data)
    page = options.flags(part=part if part in ("val", "queries") else None, fold=fold, data=data)
    console.next_commands(
        f"entrep report{options.flags(run=opened.reference)}{page}", f"entrep predict --track {1 if model.target == 'class' else 2}{own}"
    )
    return document


def _calibration(scored: Scored, notes: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Interval]]]:
    """ECE, NLL and Brier score of the part as it is and, where the run has a validation part, at the temperature of that.

    For JSON, with the bins of the reliability diagram, and as the columns of a table.
    """
    import numpy as np

    from entrep_cli.errors import RunError
    from entrep_cli.evaluation.calibration import calibration_sample, reliability, with_temperature
    from entrep_cli.evaluation.selection import select

    shares, targets, groups = np.asarray(scored.seen.probabilities), scored.images.targets, scored.images.groups
    kinds, temperature = {"as it is": shares}, None
    try:
        dataset = (scored.catalog, scored.split)
        temperature = select(scored.run, scored.model, dataset, temperature=True, flip=scored.flip).temperature
        kinds[f"at T = {temperature.value:.3f}"] = with_temperature(shares, temperature.value)
    except RunError as error:
        notes.append(error.what)
    if temperature is not None and scored.part == "val":
        notes.append("the temperature was fitted on the validation part itself: the scores with it are too good")
    columns = {name: calibration_sample(rows, targets, groups).intervals() for name, rows in kinds.items()}
    told = [
        {**{key: i.as_dict() for key, i in column.items()}, "bins": reliability(rows, targets).as_dict()["bins"]}
        for column, rows in zip(columns.values(), kinds.values())
    ]
    document = {"temperature": None if temperature is None else temperature.as_dict(), **dict(zip(("as_it_is", "calibrated"), told))}
    return document, columns


def _text_queries(scored: Scored, texts: list[str], rule: ClassRule, notes: list[str]) -> TextQueries | None:
    """The finding texts as queries; without their classes, and with a note, where the model cannot tell them."""
    from entrep_cli.evaluation.subsets import TextQueries
    from entrep_cli.retrieval.embeddings import texts_beside
    from entrep_cli.retrieval.pipeline import text_probabilities, text_vectors

    if not texts:
        return None
    try:
        classes = None if rule.mode == "off" else text_probabilities(scored.model, texts)
    except (DataError, UsageError) as error:
        classes = None
        notes.append(f"texts are not scored {rule}: {' '.join([error.what, *error.faults])}")
    return TextQueries(texts, texts_beside(text_vectors(scored.model, texts), scored.seen.vectors), classes)


def _evaluate_submission(submission: Path, truth: Path, track: int, data: Path | None, run_name: str | None) -> dict[str, Any]:
    from entrep_cli.data.layouts import known_images
    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.data.tracks import track_of
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
    document = _show(
        title, folder / "evaluation" / submission.stem, taxonomy, scores.classification, scores.retrieval, None, scores.notes, scores.chance
    )
    if folder == own.folder:
        console.next_commands(f"entrep report{options.flags(run=own.reference, data=data)}")
    return document


def _show(
    title: str,
    stem: Path,
    taxonomy,
    classification,
    retrieval: dict,
    mask_groups: bool | None,
    notes: list[str],
    chance: dict[str, float] | None = None,
    more: dict[str, Any] | None = None,
    calibration: dict[str, dict[str, Interval]] | None = None,
) -> dict[str, Any]:
    """All numbers as JSON and the confusion matrix as PNG, at `stem`; then tables."""
    document: dict[str, Any] = {"title": title, "notes": notes, **({"chance": chance} if chance else {}), **(more or {})}
    if classification is not None:
        from entrep_cli.reporting.drawing import confusion

        table = classification.as_dict()
        picture = confusion(classification.confusion, classification.class_names, title).png(stem.with_name(f"{stem.name}.png"))
        document |= {"classification": table, "figure": str(picture)}
    document["retrieval"] = {name: scores.as_dict() for name, scores in retrieval.items()}
    path = stem.with_name(f"{stem.name}.json")
    write_json_atomic(path, document)

    if classification is not None:
        console.table(
            f"Classification: {title} ({table['n_items']} images)",
            ["class", "precision", "recall", "F1", "images"],
            [tuple(row.values()) for row in table["per_class"]],
        )
        # Ids for the columns: names would not fit beside each other.
        ids = [str(c.id) for c in taxonomy.classes] + ["none"]
        console.table(
            "Confusion matrix (rows are the truth, columns the answered class ids)",
            ["", *ids[: classification.n_classes]],
            [(f"{name} ({id_})", *row) for name, id_, row in zip(classification.class_names, ids, table["confusion"])],
        )
        console.table(
            "Overall, with 95% intervals",
            ["score", "value"],
            [("accuracy", classification.accuracy), ("macro F1", classification.macro_f1), ("weighted F1", classification.weighted_f1)],
        )
    if calibration:
        first = next(iter(calibration.values()))
        console.table(
            f"Calibration (less is better): {title}",
            ["measure", *calibration],
            [(key, *(column[key] for column in calibration.values())) for key in first],
        )
    masked = "" if mask_groups is None else f" (own group {'masked' if mask_groups else 'not masked'})"
    names = list(retrieval)
    for start in range(0, len(names), RETRIEVALS_A_TABLE):
        shown = {name: retrieval[name] for name in names[start : start + RETRIEVALS_A_TABLE]}
        means = {name: scores.means for name, scores in shown.items()}
        scored = dict.fromkeys(key for values in means.values() for key, value in values.items() if value.value == value.value)
        console.table(
            f"Retrieval{masked}: {title}",
            ["relevance by", *means],
            [
                *((key, *(str(values.get(key, "-")) for values in means.values())) for key in scored),
                *([("recall@1 by chance", *(f"{chance[name]:.3f}" if name in chance else "-" for name in shown))] if chance else []),
                ("queries", *(int(scores.scored.sum()) for scores in shown.values())),
                ("left out, nothing relevant", *(scores.n_without_relevant for scores in shown.values())),
            ],
        )
    for note in notes:
        console.warn(note)
    console.say(f"Written: {path}" + (f", {document['figure']}" if "figure" in document else ""))
    return document
