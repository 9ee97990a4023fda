"""`predict`: a validated submission."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.api.common import check_class_aware, say_selection
from entrep_cli.errors import DataError, UsageError
from entrep_cli.methods import check_answers
from entrep_cli.results import Result, Table
from entrep_cli.workspace import Run, data_dir, data_dir_exists, open_run

if TYPE_CHECKING:
    import pandas as pd

    from entrep_cli.data.taxonomy import Taxonomy
    from entrep_cli.evaluation.selection import Selection
    from entrep_cli.methods.base import Model
    from entrep_cli.submission.answers import Answers


@dataclass(frozen=True)
class Prediction(Result):
    """A submission that was written and is valid.

    Attributes:
        answered: the queries, their answers, and all ranked answers. taxonomy: the classes of track 1.
        selection: how images were ranked, and the temperature of the scores.
        submission: the zip; the ranked answers lie beside it as CSV.
        settings: `gallery`, `mask_groups`, `template`, `tta`. stages: of a cascade: what decided how many queries.
    """

    run: Run
    track: int
    answered: Answers
    taxonomy: Taxonomy
    selection: Selection
    submission: Path
    settings: dict[str, Any]
    stages: list[dict[str, Any]] | None = None

    @property
    def ranked(self) -> Path:
        return self.submission.with_suffix(".csv")

    @property
    def truth(self) -> Path | None:
        """The truth file beside the queries; None where the folder has none."""
        from entrep_cli.data.tracks import track_of

        path = self.answered.folder / track_of(self.track).truth_file
        return path if path.is_file() else None

    @property
    def open_tracks(self) -> list[int]:
        """The other tracks that the folder asks, the run can answer, and no submission in the run answers yet."""
        from entrep_cli.data.tracks import track_of

        able = {1: self.run.manifest["target"] == "class", 2: True, 3: self.run.manifest["reads_text"]}
        asked = [n for n, can in able.items() if can and (self.answered.folder / track_of(n).query_file).is_file()]
        return [n for n in asked if n != self.track and not self.run.path("submissions", f"track{n}.zip").exists()]

    def tables(self) -> list[Table]:
        from entrep_cli.data.tracks import track_of
        from entrep_cli.methods.base import stage_table

        rule, given = self.selection.rule, list(self.answered.answers.values())
        rows: list[tuple[str, object]] = [("queries", len(self.answered.queries))]
        if self.selection.temperature is not None:
            rows.append(("scores calibrated", str(self.selection.temperature)))
        if self.track == 1:
            rows += [(f"answered {c.name} ({c.id})", given.count(c.id)) for c in self.taxonomy.classes]
        else:
            rows.append((f"gallery ({self.settings['gallery']})", len(self.answered.gallery or ())))
        if self.settings["template"] is not None:
            rows.append(("template", self.settings["template"]))
        if rule.mode != "off":
            rows.append(("class-aware", "hard" if rule.mode == "hard" else f"soft, weight {rule.weight:g}"))
        if rule.mode == "hard":
            rows.append(("no candidate of the class", self.answered.fell_back))
        rows += [("validated", "yes"), ("submission", self.submission), ("ranked answers", self.ranked)]
        tables = [Table(f"Track {self.track}, {track_of(self.track).name}, by run {self.run.name}", ["", "value"], rows)]
        if self.stages:
            marked = ", and how many are marked as out of distribution" if "marked" in self.stages[0] else ""
            tables.append(stage_table(f"What decided{marked}", self.stages))
        return tables

    def frame(self) -> pd.DataFrame:
        """All ranked answers: query, rank, answer, score."""
        import pandas as pd

        return pd.DataFrame(self.answered.ranked, columns=["query", "rank", "answer", "score"])

    def to_dict(self) -> dict[str, Any]:
        refinement, temperature = self.selection.refinement, self.selection.temperature
        return {
            "run": self.run.name,
            "track": self.track,
            "submission": str(self.submission),
            "ranked": str(self.ranked),
            "queries": len(self.answered.queries),
            "class_aware": {**self.selection.class_aware, "fell_back": self.answered.fell_back},
            "refined": None if refinement is None else refinement.as_dict(),
            "temperature": None if temperature is None else temperature.as_dict(),
            **self.settings,
            **({} if self.stages is None else {"stages": self.stages}),
            "validated": True,
        }


def predict(
    *,
    track: int,
    data: str | Path | None = None,
    run: str | None = None,
    queries: str | Path | None = None,
    gallery: str | None = None,
    top_k: int | None = None,
    tta: bool = False,
    calibrate: bool = False,
    mask_groups: bool = False,
    class_aware: str = "off",
    class_weight: float | None = None,
    refine: str | None = None,
    template: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Prediction:
    """Answer the queries of a track from the images, write the submission zip with the ranked answers beside it, and check it.

    Args:
        track: 1 classification, 2 image-to-image, 3 text-to-image. data: the dataset folder.
        run: by name or folder; None for the one that completed last.
        queries: a folder of images or a query file; None for the dataset's test folder.
        gallery: where tracks 2 and 3 search: `queries`, `test` (the default), `train`, `all`, or a folder.
        top_k: tracks 2 and 3: answers to a query, 10 by default.
        tta: average over each image and its flip. calibrate: track 1: scores at the temperature that validation chooses.
        mask_groups: track 2: images of the query's group are no answers.
        class_aware: `off`, `hard` or `soft`, with `class_weight`; None is what validation chooses.
        refine: track 2: steps of `whiten,dba,qe,rerank`. template: track 3: a sentence with `{}` around each text.
        out: the zip; None writes it into the run. device: where the model computes.

    Raises:
        UsageError: options that do not go together, or a track that the run cannot answer.
        DataError: lists all faults of the queries and the images.
    """
    from entrep_cli.data.tracks import track_of
    from entrep_cli.retrieval.pipeline import check_template
    from entrep_cli.submission.checks import check_submission
    from entrep_cli.submission.tracks import write_submission

    track_of(track)
    opened, queries = open_run(run), None if queries is None else Path(queries)
    _check_track(opened, track)
    leave = "leave it out"
    if tta and track == 3:
        raise UsageError("--tta flips images, and a text may name a side; it is for tracks 1 and 2.", hint=leave)
    if calibrate and track != 1:
        raise UsageError("--calibrate is for class probabilities, the scores of track 1.", hint=leave)
    if mask_groups and track != 2:
        raise UsageError("--mask-groups masks the group of a query image in a gallery; it is for track 2.", hint=leave)
    if track == 1 and (gallery is not None or top_k is not None):
        option = "--gallery" if gallery is not None else "--top-k"
        raise UsageError(f"{option} is for what is searched, in tracks 2 and 3; track 1 answers with a class.", hint=leave)
    if track == 1 and class_aware != "off":
        raise UsageError("--class-aware ranks a gallery; it is for tracks 2 and 3.", hint=leave)
    check_class_aware(class_aware, class_weight)
    if refine is not None and (track != 2 or class_aware != "off"):
        raise UsageError("--refine is for the image queries of track 2, by the cosine alone.", hint="leave it or --class-aware out")
    if template is not None and track != 3:
        raise UsageError(f"--template is for the texts of track 3; the queries of track {track} are images.", hint=leave)
    check_template(template)
    gallery, top_k = gallery or "test", top_k or 10
    out = _writable(opened.path("submissions", f"track{track}.zip") if out is None else Path(out))
    # Queries from elsewhere need no dataset, unless its training images are the gallery.
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
    rule: dict[str, Any] = {"class_aware": class_aware, "class_weight": class_weight, "refine": parse_steps(refine)}
    selection = select(opened, model, None if data is None else Path(data), temperature=calibrate, **rule, flip=tta)
    say_selection(selection)
    answered = answer_track(
        opened,
        model,
        root,
        track,
        queries=queries,
        gallery=gallery,
        top_k=top_k,
        flip=tta,
        temperature=selection.temperature.value if selection.temperature else 1.0,
        mask_groups=mask_groups,
        rule=selection.rule,
        refinement=None if selection.refinement is None else selection.refinement.value,
        template=template,
        warn=console.warn,
    )
    write_submission(out, track, answered.answers, answered.ranked)
    classes = {c.name: c.id for c in model.taxonomy.classes}
    report = check_submission(out, track, queries=answered.queries, gallery=answered.gallery, classes=classes)
    if not report.ok:
        raise DataError("The submission that was written is not valid.", where=out, faults=report.lines())
    settings = {"gallery": None if track == 1 else gallery, "mask_groups": mask_groups, "template": template, "tta": tta}
    stages = _stages(model, answered, out) if track == 1 else None
    return Prediction(opened, track, answered, model.taxonomy, selection, out, settings, stages)


def _check_track(run: Run, track: int) -> None:
    """UsageError where a run cannot answer a track, by what its manifest says."""
    check_answers(run.manifest["method"])
    if track == 3 and not run.manifest["reads_text"]:
        if "members" in run.manifest["weights"]:
            what = f"No member of run {run.name!r} reads texts and counts in its rankings, so it cannot answer track 3."
            raise UsageError(what, hint="make it anew with --weights equal and a run that reads texts")
        raise UsageError(
            f"Run {run.name!r} cannot answer track 3: {run.manifest['method']} has no text tower, or one that has learned nothing.",
            hint="train one that reads texts: `entrep train clip-lora`; from random weights with texts.contrast above 0",
        )
    if track == 1 and (target := run.manifest["target"]) != "class":
        raise UsageError(
            f"Run {run.name!r} cannot answer track 1: it distinguishes regions, or the classes of one region ({target}).",
            hint="name a run that knows all classes",
        )


def _writable(out: Path) -> Path:
    """The zip to write; UsageError where it is none or cannot be written."""
    if out.suffix.lower() != ".zip":
        raise UsageError(f"A submission is a zip, not {out.name!r}.", hint=f"--out {out.with_suffix('.zip')}")
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if not os.access(place, os.W_OK):
        raise UsageError(
            "The submission may not be written to that folder.", where=place, hint=f"write it elsewhere, as with --out {out.name}"
        )
    return out


def _stages(model: Model, answered: Answers, out: Path) -> list[dict[str, Any]] | None:
    """Which stage of a cascade decided how many queries, each query in a CSV beside the submission; None for a model of one stage."""
    from entrep_cli.data.testsets import read_test_folder
    from entrep_cli.retrieval.sets import folder_items
    from entrep_cli.submission.tracks import resolve_names
    from entrep_cli.workspace import write_csv_atomic

    items = folder_items(read_test_folder(answered.folder))
    place = {str(name): i for i, name in enumerate(items.image)}
    files = resolve_names(answered.queries, list(place))
    rows = [place[files[query]] for query in answered.queries]
    decisions = model.decide_images([Path(items.path[i]) for i in rows], [items.digest[i] for i in rows])
    if decisions is None:
        return None
    path = out.with_name(f"{out.stem}-stages.csv")
    columns = zip(answered.queries, decisions.stages.tolist(), decisions.confidences.tolist(), decisions.abstained.tolist())
    cells = ((query, stage, f"{confidence:.6f}", int(marked)) for query, stage, confidence, marked in columns)
    write_csv_atomic(path, ["query", "stage", "confidence", "out of distribution"], cells)
    console.say(f"Written: {path}")
    return model.stage_counts(decisions)
