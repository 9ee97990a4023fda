"""`entrep predict`: a validated submission."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.api import common
from entrep_cli.commands import options
from entrep_cli.errors import DataError, UsageError
from entrep_cli.workspace import data_dir, data_dir_exists, open_run


def predict(
    track: Annotated[int, typer.Option(help="1 classification, 2 image-to-image, 3 text-to-image.")],
    data: options.Data = None,
    run: options.RunName = None,
    queries: Annotated[
        Path | None, typer.Option(help="A folder of images, or a query file (default: the dataset's test folder).", show_default=False)
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(help="Where tracks 2 and 3 search: queries, test (the default), train, all, or a folder.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Tracks 2 and 3: how many answers to a query (default: 10).", show_default=False)
    ] = None,
    tta: options.Tta = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Track 1: scores at the temperature that the run's validation images choose.")
    ] = False,
    mask_groups: options.MaskGroups = False,
    class_aware: options.ClassAware = "off",
    class_weight: options.ClassWeight = None,
    refine: options.Refine = None,
    template: options.Template = None,
    out: Annotated[Path | None, typer.Option(help="The zip to write (default: in the run folder).", show_default=False)] = None,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep predict --track 1

    Answer the queries of a track and write the submission zip, with the ranked answers as CSV beside
    it. What is written is checked by the same code as `entrep validate`. Answers come from the
    images, never from label files.
    """
    from entrep_cli.data.tracks import track_of
    from entrep_cli.retrieval.pipeline import check_template
    from entrep_cli.submission.checks import check_submission
    from entrep_cli.submission.tracks import write_submission

    name = track_of(track).name
    opened = open_run(run)
    reads, target = opened.manifest["reads_text"], opened.manifest["target"]
    if track == 3 and not reads:
        raise UsageError(
            f"Run {opened.name!r} cannot answer track 3: {opened.manifest['method']} has no text tower, or one that has learned nothing.",
            hint="train one that reads texts: `entrep train clip-lora`; from random weights with texts.contrast above 0",
        )
    if track == 1 and target != "class":
        raise UsageError(
            f"Run {opened.name!r} cannot answer track 1: it distinguishes regions, or the classes of one region ({target}).",
            hint="name a run that knows all classes",
        )
    if tta and track == 3:
        raise UsageError("--tta flips images, and a text may name a side; it is for tracks 1 and 2.", hint="leave it out")
    if calibrate and track != 1:
        raise UsageError("--calibrate is for class probabilities, the scores of track 1.", hint="leave it out")
    if mask_groups and track != 2:
        raise UsageError("--mask-groups masks the group of a query image in a gallery; it is for track 2.", hint="leave it out")
    if track == 1 and (gallery is not None or top_k is not None):
        option = "--gallery" if gallery is not None else "--top-k"
        raise UsageError(f"{option} is for what is searched, in tracks 2 and 3; track 1 answers with a class.", hint="leave it out")
    gallery, top_k = gallery or "test", top_k or 10
    if track == 1 and class_aware != "off":
        raise UsageError("--class-aware ranks a gallery; it is for tracks 2 and 3.", hint="leave it out")
    common.check_class_aware(class_aware, class_weight)
    if refine is not None and (track != 2 or class_aware != "off"):
        raise UsageError("--refine is for the image queries of track 2, by the cosine alone.", hint="leave it or --class-aware out")
    if template is not None and track != 3:
        raise UsageError(f"--template is for the texts of track 3; the queries of track {track} are images.", hint="leave it out")
    check_template(template)
    out = out or opened.path("submissions", f"track{track}.zip")
    if out.suffix.lower() != ".zip":
        raise UsageError(f"A submission is a zip, not {out.name!r}.", hint=f"--out {out.with_suffix('.zip')}")
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if not os.access(place, os.W_OK):
        raise UsageError("The submission may not be written there.", where=place, hint=f"write it elsewhere, as with --out {out.name}")
    # Queries of one's own need no dataset, unless its training images are the gallery.
    needed = queries is None or data is not None or gallery in ("train", "all") or data_dir_exists()
    root = data_dir(data) if needed else None
    from entrep_cli.evaluation.selection import select
    from entrep_cli.retrieval.embeddings import check_flip
    from entrep_cli.retrieval.refinement import parse_steps
    from entrep_cli.retrieval.sets import open_model
    from entrep_cli.submission.answers import answer_track

    model = open_model(opened, device)
    if tta:
        check_flip(model.taxonomy)
    rule_given = {"class_aware": class_aware, "class_weight": class_weight}
    selection = select(opened, model, data, temperature=calibrate, **rule_given, refine=parse_steps(refine), flip=tta)
    options.say_selection(selection)
    temperature, rule, tuned = selection.temperature, selection.rule, selection.refinement
    found = answer_track(
        opened,
        model,
        root,
        track,
        queries=queries,
        gallery=gallery,
        top_k=top_k,
        flip=tta,
        temperature=temperature.value if temperature else 1.0,
        mask_groups=mask_groups,
        rule=rule,
        refinement=None if tuned is None else tuned.value,
        template=template,
        warn=console.warn,
    )
    write_submission(out, track, found.answers, found.ranked)
    classes = {c.name: c.id for c in model.taxonomy.classes}
    report = check_submission(out, track, queries=found.queries, gallery=found.gallery, classes=classes)
    if not report.ok:
        raise DataError("The submission that was written is not valid.", where=out, faults=report.lines())

    rows = [("queries", len(found.queries)), ("validated", "yes"), ("submission", out), ("ranked answers", out.with_suffix(".csv"))]
    if track == 1:
        given = list(found.answers.values())
        rows[1:1] = [(f"answered {c.name} ({c.id})", given.count(c.id)) for c in model.taxonomy.classes]
    else:
        rows.insert(1, (f"gallery ({gallery})", len(found.gallery)))
    if class_aware != "off":
        rows.insert(2, ("class-aware", class_aware if class_aware == "hard" else f"soft, weight {rule.weight:g}"))
    if class_aware == "hard":
        rows.insert(3, ("no candidate of the class", found.fell_back))
    if template is not None:
        rows.insert(2, ("template", template))
    if temperature is not None:
        rows.insert(1, ("scores calibrated", str(temperature)))
    console.table(f"Track {track}, {name}, by run {opened.name}", ["", ""], rows)
    decided = _decided(model, found, out) if track == 1 else None
    truth = found.folder / track_of(track).truth_file
    able = [n for n, can in ((1, target == "class"), (2, True), (3, reads)) if can and (found.folder / track_of(n).query_file).is_file()]
    left = [n for n in able if n != track and not opened.path("submissions", f"track{n}.zip").exists()]
    more = options.flags(run=opened.reference, queries=None if queries is None else found.folder, data=data)
    console.next_commands(
        *([f"entrep evaluate{options.flags(data=data, submission=out, truth=truth, track=track)}"] if truth.is_file() else []),
        *(f"entrep predict --track {n}{more}" for n in left),
        f"# then upload {shlex.quote(str(out))}",
    )
    return {
        "run": opened.name,
        "track": track,
        "submission": str(out),
        "ranked": str(out.with_suffix(".csv")),
        "queries": len(found.queries),
        "gallery": None if track == 1 else gallery,
        "mask_groups": mask_groups,
        "class_aware": {**selection.class_aware, "fell_back": found.fell_back},
        "refined": None if tuned is None else tuned.as_dict(),
        "template": template,
        "tta": tta,
        "temperature": None if temperature is None else temperature.as_dict(),
        **({} if decided is None else {"stages": decided}),
        "validated": True,
    }


def _decided(model, found, out: Path) -> list[dict[str, Any]] | None:
    """Which stage of a cascade decided each query, as a table and as a CSV beside the submission; None for a model of one stage."""
    from entrep_cli.data.testsets import read_test_folder
    from entrep_cli.methods.base import show_stages
    from entrep_cli.retrieval.sets import folder_items
    from entrep_cli.submission.tracks import resolve_names
    from entrep_cli.workspace import write_csv_atomic

    items = folder_items(read_test_folder(found.folder))
    place = {str(name): i for i, name in enumerate(items.image)}
    files = resolve_names(found.queries, list(place))
    rows = [place[files[query]] for query in found.queries]
    decisions = model.decide_images([Path(items.path[i]) for i in rows], [items.digest[i] for i in rows])
    if decisions is None:
        return None
    stages = model.stage_counts(decisions)
    show_stages("What decided" + (", and how many are marked as out of distribution" if "marked" in stages[0] else ""), stages)
    path = out.with_name(f"{out.stem}-stages.csv")
    columns = (decisions.stages.tolist(), decisions.confidences.tolist(), decisions.abstained.tolist())
    rows = ((query, stage, f"{sure:.6f}", int(marked)) for query, stage, sure, marked in zip(found.queries, *columns))
    write_csv_atomic(path, ["query", "stage", "confidence", "out of distribution"], rows)
    console.say(f"Written: {path}")
    return stages
