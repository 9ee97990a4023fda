"""Several runs on one split: scores with intervals, which of the differences are more than chance, and what each run costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split, read_catalog_and_split
from entrep_cli.errors import EntrepError, RunError, UsageError
from entrep_cli.evaluation.comparison import Compared, Difference, GroupTotals, compare
from entrep_cli.evaluation.metrics import CLASSIFICATION, TEXTS, headline_columns
from entrep_cli.evaluation.scored import QUERIES, SPLITS, check_trained_on, open_scored, texts_for
from entrep_cli.evaluation.subsets import COMPARED, score_subset, totals_of
from entrep_cli.methods import method_class
from entrep_cli.results import Result, Table
from entrep_cli.workspace import MANIFEST, Run, csv_text, find_run, open_run, runs_dir, write_json_atomic, write_text_atomic

LABELS = "abcdefghijklmnopqrstuvwxyz"  # what marks refer to runs by
ACCURACY, TEXT_RECALL = "accuracy", "text Recall@1, finding"
IMAGE_RECALL = ("image Recall@1, finding", "image Recall@1, class")  # the first that was scored: track 2 asks by finding
_TABLES = {CLASSIFICATION: "Classes", "class": "Images by class", "finding": "Images by finding", TEXTS: "Findings as texts"}
_SCORES_A_TABLE = 2  # more do not fit beside each other into 80 columns
_MOST_PAIRS = 10  # in a table of differences; among more, those that matter are lost


@dataclass(frozen=True)
class Contender:
    """One of the runs that are compared.

    Attributes:
        run: it.
        scores: by the name of the score.
        all_parameters: of the whole model, what it started from included; `megabytes`: what they take in memory.
    """

    run: Run
    scores: dict[str, GroupTotals]
    all_parameters: int
    megabytes: float

    @property
    def name(self) -> str:
        return self.run.reference

    @property
    def cost(self) -> dict[str, Any]:
        manifest = self.run.manifest
        return {
            "seconds": manifest["seconds"],
            "learned_parameters": manifest["parameters"],
            "parameters": self.all_parameters,
            "megabytes": round(self.megabytes, 1),
        }


@dataclass(frozen=True)
class Comparison(Result):
    """Runs compared by every score that at least one of them has.

    Attributes:
        contenders: the runs; marks of significance name them a, b, c, ... in this order.
        split, fold, mask_groups: what they were scored on, and how.
        level: level of significance.
        baseline: 0 if all runs are compared with the first only; None if each is compared with each.
        scores: the comparison of each score, by its name.
        notes: what a reader of the numbers must know.
        files: the files of the comparison.
    """

    contenders: list[Contender]
    split: str
    fold: int | None
    mask_groups: bool
    level: float
    baseline: int | None
    scores: dict[str, Compared]
    notes: list[str]
    files: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        return f"{len(self.contenders)} runs, split {self.split}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def n_pairs(self) -> int:
        n = len(self.contenders)
        return n * (n - 1) // 2 if self.baseline is None else n - 1

    def as_good(self, score: str) -> list[int]:
        """The places of the best run and of those that were compared with it and are not significantly worse."""
        best = self.scores[score].best
        undecided = [d for d in self.scores[score].differences if best in (d.first, d.second) and not d.significant]
        return sorted({best, *(i for d in undecided for i in (d.first, d.second))})

    @property
    def best_by_track(self) -> dict[int, str]:
        """The run to answer each track with, of the tracks that a run was scored for."""
        image_recall = next((score for score in IMAGE_RECALL if score in self.scores), IMAGE_RECALL[0])
        wanted = {1: ACCURACY, 2: image_recall, 3: TEXT_RECALL}
        return {track: self.contenders[self.scores[score].best].name for track, score in wanted.items() if score in self.scores}

    @property
    def undecided(self) -> list[str]:
        """The best run by accuracy and those that are not significantly worse."""
        return [self.contenders[i].name for i in self.as_good(ACCURACY)]

    @property
    def legend(self) -> str:
        """What the letters of `tables` mean."""
        marked = any(map(any, (compared.marks for compared in self.scores.values())))
        letters = (
            "A letter marks a run that this one is significantly better than" if marked else "No run is significantly better than another"
        )
        pairs = f"{self.n_pairs} pair{'s' * (self.n_pairs > 1)}"
        return f"{letters}: permutation test over groups, level {self.level:g}, Holm over {pairs} a score."

    def tables(self) -> list[Table]:
        """Scores with marks, cost, and the differences of the pairs."""
        runs = [f"{LABELS[i]} {contender.name}" for i, contender in enumerate(self.contenders)]
        tables = []
        for task, title in _TABLES.items():
            columns = {m.name: self.scores[column] for column, (_, m) in headline_columns([task]).items() if column in self.scores}
            of = "texts" if task == TEXTS else "images"
            for start in range(0, len(columns), _SCORES_A_TABLE):
                shown = dict(list(columns.items())[start : start + _SCORES_A_TABLE])
                first = next(iter(shown.values()))
                counts = f"{first.n_items} {of}" + ("" if task == TEXTS else f", {first.n_groups} groups")
                rows = [(run, *(_marked(compared, i) for compared in shown.values())) for i, run in enumerate(runs)]
                tables.append(Table(f"{title}: {self.title} ({counts})", ["run", *shown], rows))
        costs = [contender.cost for contender in self.contenders]
        cost = [(f"{c['learned_parameters']:,}", f"{c['parameters']:,}", f"{c['megabytes']:,.1f}", f"{c['seconds']:,.0f}") for c in costs]
        rows = [(run, *cells) for run, cells in zip(runs, cost)]
        tables.append(Table("Cost", ["run", "learned", "parameters", "MB", "s to train"], rows))
        return tables + [table for score, compared in self.scores.items() if (table := _differences(score, compared))]

    def to_dict(self) -> dict[str, Any]:
        names = [contender.name for contender in self.contenders]
        marks = {score: compared.marks for score, compared in self.scores.items()}
        runs = [
            {
                "label": LABELS[i],
                "run": contender.name,
                "cost": contender.cost,
                "scores": {
                    score: {**compared.scores[i].as_dict(), "better_than": [names[j] for j in marks[score][i]]}
                    for score, compared in self.scores.items()
                    if compared.scores[i]
                },
            }
            for i, contender in enumerate(self.contenders)
        ]
        comparisons = {
            score: {
                "items": compared.n_items,
                "groups": compared.n_groups,
                "pairs": [{"first": names[d.first], "second": names[d.second], **d.as_dict()} for d in compared.differences],
            }
            for score, compared in self.scores.items()
        }
        return {
            "title": self.title,
            "split": self.split,
            "fold": self.fold,
            "mask_groups": self.mask_groups,
            "level": self.level,
            "baseline": None if self.baseline is None else names[self.baseline],
            "notes": self.notes,
            "runs": runs,
            "comparisons": comparisons,
            **({"files": [str(file) for file in self.files]} if self.files else {}),
        }

    def csv(self) -> str:
        """A line for each score and pair."""
        rows = []
        of_pair = ["difference", "low", "high", "p", "p_holm", "significant", "p_bootstrap", "p_mcnemar", "only_first", "only_second"]
        for score, compared in self.scores.items():
            for d in compared.differences:
                cells = d.as_dict() | {"difference": d.value.value, "low": d.value.low, "high": d.value.high}
                first, second = (self.contenders[i].name for i in (d.first, d.second))
                values = [compared.scores[i].value for i in (d.first, d.second)] + [cells[column] for column in of_pair]
                rows.append([score, first, second, *(f"{x:.6g}" if isinstance(x, float) else "" if x is None else x for x in values)])
        return csv_text(["score", "first", "second", "score of first", "score of second", *of_pair], rows)

    def write(self, name: str) -> Comparison:
        """The same with its files, `runs/comparisons/NAME.json` and `.csv`."""
        folder = runs_dir() / "comparisons"
        table, document = folder / f"{name}.csv", folder / f"{name}.json"
        write_text_atomic(table, self.csv())
        write_json_atomic(document, self.to_dict())
        return replace(self, files=(document, table))


def _marked(compared: Compared, place: int) -> str:
    """A score with the letters of the runs that it is significantly better than."""
    return f"{compared.scores[place] or '-'} {''.join(LABELS[j] for j in compared.marks[place])}".rstrip()


def _differences(score: str, compared: Compared) -> Table | None:
    """The pairs of one score; of many the significant ones alone."""
    pairs = compared.differences
    shown = pairs if len(pairs) <= _MOST_PAIRS else [d for d in pairs if d.significant]
    left_out = f"; the other {n} pairs are not" if (n := len(pairs) - len(shown)) else ""
    title = f"Differences in {score}, paired, and their p-values; * is significant{left_out}"
    columns = ["", "difference", "swaps, Holm", "bootstrap", "McNemar", "alone right"]
    return Table(title, columns, [_difference_cells(d) for d in shown]) if shown else None


def _difference_cells(d: Difference) -> tuple[str, ...]:
    change = f"{d.value.value:+.3f} [{d.value.low:+.3f}, {d.value.high:+.3f}]"
    alone = "-" if d.only_first is None else f"{d.only_first} : {d.only_second}"
    mcnemar = "-" if d.p_mcnemar is None else _p(d.p_mcnemar)
    return f"{LABELS[d.first]} - {LABELS[d.second]}", change, _p(d.adjusted) + "*" * d.significant, _p(d.p_bootstrap), mcnemar, alone


def _p(value: float) -> str:
    return "n/a" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def compare_runs(
    names: Sequence[str],
    root: Path,
    *,
    split: str = "test",
    fold: int | None = None,
    mask_groups: bool = True,
    level: float = 0.05,
    baseline: str | None = None,
    device: str = "auto",
) -> Comparison:
    """Score runs on a split of the dataset they were trained on, and compare them by every score.

    Args:
        names: runs by name or folder, or patterns of names, as `named_runs` takes them.
        root: the dataset folder.
        split: `test`, `val` or `queries`.
        fold: another fold than that of the runs.
        level: of significance, between 0 and 1.
        baseline: the run that all others are compared with; it comes first, and need not be among `names`.

    Raises:
        UsageError: fewer than two runs, or more than 26.
        RunError: runs that cannot be compared, each with its fault.
    """
    if split not in SPLITS:
        raise UsageError(f"Runs cannot be compared on {split!r}.", hint=f"--split {', '.join(SPLITS)}")
    if not 0 < level < 1:
        raise UsageError(f"The level must lie between 0 and 1, not be {level}.", hint="--level 0.05")
    runs = named_runs(names if baseline is None else [str(open_run(baseline).folder), *names])
    place = None if baseline is None else 0
    check_comparable(runs, *read_catalog_and_split(root), split)
    contenders, notes = [], []
    for i, run in enumerate(runs, 1):
        console.say(f"Run {i} of {len(runs)}: {run.reference}")
        contender, more, scored_fold = _contender(run, root, split, fold, mask_groups, device)
        contenders.append(contender)
        notes += more
    columns = list(dict.fromkeys(score for contender in contenders for score in contender.scores))
    directions = {column: metric.higher_is_better for column, (_, metric) in headline_columns(COMPARED).items()}
    how = {"baseline": place, "level": level}
    scores = {c: compare([run.scores.get(c) for run in contenders], higher_is_better=directions[c], **how) for c in columns}
    compared = Comparison(contenders, split, scored_fold, mask_groups, level, place, scores, list(dict.fromkeys(notes)))
    compared.notes.extend(_limits(compared))
    return compared


def named_runs(names: Sequence[str]) -> list[Run]:
    """Runs by name, by folder or by pattern, each once; a pattern as in 'dinov2*' or 'ablations/mlcf/*' finds complete runs.

    Raises:
        UsageError: fewer than two, or more than 26. RunError: no such run, or half written; all of them.
    """
    named: dict[Path, Run] = {}
    errors: list[EntrepError] = []
    for name in names:
        try:
            for run in _matching(name) if set(name) & set("*?[") and not find_run(name) else [open_run(name)]:
                named.setdefault(run.folder.resolve(), run)
        except EntrepError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else _not_comparable(errors)
    if len(named) < 2:
        only = f"only {next(iter(named.values())).reference}" if named else "none"
        raise UsageError(f"Two or more runs can be compared; here is {only}.", hint="name another, or a pattern: entrep compare 'dinov2*'")
    if len(named) > len(LABELS):
        raise UsageError(f"{len(named)} runs are too many for one table.", hint=f"name at most {len(LABELS)}")
    return list(named.values())


def check_comparable(runs: Sequence[Run], catalog: Catalog, split: Split, scored: str) -> None:
    """RunError with every fault of every run: no classifier, other data, another split, other folds, other classes."""
    errors: list[EntrepError] = []
    sound = []
    for run in runs:
        try:
            method_class(run.manifest["method"])
            check_trained_on(run, catalog, split, scored)
            sound.append(run)
        except EntrepError as error:
            errors.append(error)
    folds = {run.reference: run.manifest["split"]["fold"] for run in sound}
    # The queries are nobody's fold.
    if scored != QUERIES and len(set(folds.values())) > 1:
        left_out = (f"Run {name!r} was trained with {'no fold' if k is None else f'fold {k}'} left out." for name, k in folds.items())
        errors += [RunError(what, hint="compare runs of one fold, or all on --split queries") for what in left_out]
    classes = {run.reference: [c["name"] for c in run.manifest["taxonomy"]["classes"]] for run in sound}
    if len(set(map(tuple, classes.values()))) > 1:
        differ = (f"Run {name!r} tells {len(of_run)} classes apart: {', '.join(of_run)}." for name, of_run in classes.items())
        errors += [RunError(what, hint="compare runs of the same classes") for what in differ]
    if errors:
        raise _not_comparable(errors)


def _contender(
    run: Run, root: Path, split: str, fold: int | None, mask_groups: bool, device: str
) -> tuple[Contender, list[str], int | None]:
    """A run as it is compared, its notes, and the fold that was scored; the model is let go."""
    scored = open_scored(str(run.folder), root, split, fold=fold, device=device)
    scores = score_subset(scored.images, scored.embeddings, mask_groups=mask_groups, texts=texts_for(scored.model, scored.images))
    tensors = list(scored.model.parameters())
    size = sum(t.numel() * t.element_size() for t in tensors) / 1e6
    return Contender(run, totals_of(scores), sum(t.numel() for t in tensors), size), list(scored.notes), scored.fold


def _matching(pattern: str) -> list[Run]:
    root = runs_dir()
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise UsageError(f"The pattern {pattern!r} leads out of the runs folder.", hint="quote names below it, as in 'dinov2*'")
    folders = sorted(path.parent for path in root.glob(f"{pattern}/{MANIFEST}"))
    runs = [Run(folder) for folder in folders if not any(name.startswith(".") for name in folder.relative_to(root).parts)]
    if not runs:
        raise RunError(f"No complete run is called {pattern!r}.", where=root, hint="name one that is complete, or train it")
    return runs


def _not_comparable(errors: Sequence[EntrepError]) -> RunError:
    faults = [" ".join([error.what, *error.faults]) for error in errors]
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    return RunError("These runs cannot be compared.", where=runs_dir(), faults=faults, hint="; ".join(hints))


def _limits(comparison: Comparison) -> list[str]:
    """What the numbers cannot say."""
    notes = []
    few = [name for name, compared in comparison.scores.items() if 2.0 ** (1 - compared.n_groups) * comparison.n_pairs > comparison.level]
    if few:
        pairs = f"{comparison.n_pairs} pair{'s' * (comparison.n_pairs > 1)}"
        short = "; ".join(f"{name} ({comparison.scores[name].n_groups} groups)" for name in few)
        notes.append(f"too few groups: with {pairs} no difference can be significant at {comparison.level:g} in {short}")
    elif min(compared.n_groups for compared in comparison.scores.values()) < 20:
        notes.append("under some 20 groups intervals are too narrow, and only large differences are detected")
    return notes
