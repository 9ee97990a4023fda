"""`reproduce`: a paper from one command, its tables beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.api.common import say_catalog
from entrep_cli.errors import Interrupted, RunError, UsageError, WeightsError
from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe, recipe_toml, short_settings
from entrep_cli.results import Result, Table
from entrep_cli.workspace import CONFIG, Run, data_dir, new_run, open_run, runs_dir

if TYPE_CHECKING:
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import Split
    from entrep_cli.experiments.foregut import Foregut
    from entrep_cli.recipes.recipe import Recipe

PAPERS = {"foregut": "hybrid"}


@dataclass(frozen=True)
class Reproduction(Result):
    """The tables of a paper with our scores beside the published ones.

    Attributes:
        run: the run that was scored; None if its pretrained weights are missing, which `missing` names.
        split: the images that were scored.
        images: their number.
        layouts: layouts of the dataset.
        scores: our scores.
        notes: notes on the paper's tables.
    """

    paper: str
    run: Run | None
    split: str
    images: int
    layouts: tuple[str, ...]
    scores: Foregut | None
    notes: tuple[str, ...]
    missing: WeightsError | None = None

    @property
    def files(self) -> list[Path]:
        """The JSON document and the map."""
        if self.run is None or self.scores is None:
            return []
        return [self.run.path("paper", f"{self.split}.json"), *filter(None, [self.scores.figure])]

    def tables(self) -> list[Table]:
        own = [] if self.scores is None else self.scores.tables_of(self.split, self.images)
        return own + [Table(one["title"], one["columns"], one["rows"]) for one in self._beside()]

    def to_dict(self) -> dict[str, Any]:
        return {
            "paper": self.paper,
            "run": self.run and str(self.run.folder),
            "split": self.split,
            "images": self.images,
            "ours": self.scores and self.scores.as_dict(),
            "tables": self._beside(),
        }

    def _beside(self) -> list[dict[str, Any]]:
        """Every table of the paper, with ours in the next column; "not run" where nothing was scored."""
        from entrep_cli.reporting.published import published

        tables = []
        for table in published(self.paper).tables:
            ours = None if self.scores is None else self.scores.tables.get(table.number)
            title = f"Table {table.number}: {table.title}. Paper: {table.data}"
            title += f"; relevance: {table.relevance}." if table.relevance else "."
            if ours is not None:
                relevance = ", relevance: region and finding, the query's group masked" if table.number == 10 else ""
                title += f" Ours on {'; '.join(self.layouts)}, {self.split}: {self.images} images{relevance}."
            tables.append({"table": table.number, "title": title, "columns": table.headings, "rows": table.beside(ours)})
        return tables


def reproduce(
    paper: str,
    *,
    data: Path | str | None = None,
    run: str | None = None,
    recipe: str | None = None,
    set: Sequence[str] = (),
    seed: int | None = None,
    split: str = "test",
    name: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> Reproduction:
    """Split (80/10/10, if no split exists), train and score a paper's method, and compare the scores with its tables.

    A complete run is scored again but not trained again; an interrupted one is resumed.

    Args:
        paper: `foregut`, *Fusion at the Foregut*.
        data: the dataset folder.
        run: score this run, and train nothing.
        recipe, set, seed: the settings.
        split: the images that are scored.
        name: name of the run.
        overwrite: train the run again.

    Raises:
        UsageError: invalid arguments.
        RunError: the run has other settings, labels or another split.
        Interrupted: on Ctrl-C.
    """
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import make_split, read_catalog_and_split, read_split, split_path, write_split
    from entrep_cli.evaluation.scored import check_scored, scored_subset
    from entrep_cli.experiments.foregut import score_foregut
    from entrep_cli.methods import method_class
    from entrep_cli.reporting.published import published

    if paper not in PAPERS:
        raise UsageError(f"No paper named {paper!r}.", hint=f"choose one of: {', '.join(PAPERS)}")
    method = PAPERS[paper]
    check_scored(split)
    if run is not None and (recipe or set or name or overwrite or seed is not None):
        raise UsageError("--run names an existing run; the other options say how to train one.", hint="give one or the other")
    root = data_dir(None if data is None else Path(data))
    if split_path().is_file():
        catalog, division = read_catalog_and_split(root)
        say_catalog(catalog)
    else:
        catalog = Catalog.read(root)
        say_catalog(catalog)
        write_split(make_split(catalog), root)
        division = read_split(catalog)
        console.say(f"Split 80/10/10, seed 0, groups together: {split_path()}")
    images = scored_subset(catalog, division, root, split)
    trained: Run | None = None
    missing: WeightsError | None = None
    if run is not None:
        trained = open_run(run)
        if trained.manifest["method"] != method:
            raise UsageError(f"Run {trained.name!r} is one of {trained.manifest['method']}, not of {method}.", hint="name another --run")
    else:
        tables = read_recipe(recipe or paper), parse_assignments(set), short_settings(seed=seed)
        settings = build_recipe(method_class(method).Recipe, *tables)
        try:
            trained = _trained(name or paper, catalog, division, settings, overwrite, device, precision)
        except WeightsError as error:
            missing = error
    if trained is not None:
        made_from = (trained.manifest["split"]["fingerprint"], trained.manifest["data"]["catalog"])
        if made_from != (division.fingerprint, catalog.fingerprint):
            hint = "restore the data and the split of that time, or --overwrite"
            raise RunError(f"Run {trained.name!r} was trained on other labels or another split.", where=trained.folder, hint=hint)
    scores = None if trained is None else score_foregut(trained, images, catalog, root, split, device=device)
    notes = published(paper).notes
    return Reproduction(paper, trained, split, len(images), tuple(catalog.layouts), scores, notes, missing)


def _trained(name: str, catalog: Catalog, division: Split, settings: Recipe, overwrite: bool, device: str, precision: str) -> Run:
    """The complete run of this name and these settings; trained, or resumed, where it is not complete."""
    from entrep_cli.methods.runs import train_run

    run = Run(runs_dir() / name)
    if run.complete and not overwrite:
        if run.path(CONFIG).read_text("utf-8") != recipe_toml(settings):
            raise RunError(f"Run {name!r} has other settings.", where=run.folder, hint="choose another --name, or --overwrite")
        return run
    resume = run.folder.is_dir() and not run.complete and not overwrite
    run = new_run(settings.method, name, overwrite=overwrite, resume=resume)
    try:
        train_run(catalog, division, settings, run, device=device, precision=precision, resume=resume)
    except BaseException as error:
        run.remove_if_empty()
        if isinstance(error, KeyboardInterrupt):
            hint = "the same command resumes it" + (", without --overwrite" if overwrite else "")
            raise Interrupted("Interrupted; the completed trainings are saved.", where=run.folder, hint=hint) from None
        raise
    return run
