"""Several runs on one part: scores with intervals, which of the differences are more than chance, and what each run costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import Split, read_catalog_and_split
from entrep_cli.errors import EntrepError, RunError, UsageError
from entrep_cli.evaluation.comparison import Compared, GroupTotals, compare
from entrep_cli.evaluation.scored import PARTS, QUERIES, check_trained_on, open_scored, texts_for
from entrep_cli.evaluation.subsets import score_subset, totals_of
from entrep_cli.methods import method_class
from entrep_cli.workspace import MANIFEST, Run, csv_text, find_run, open_run, runs_dir, write_json_atomic, write_text_atomic

LABELS = "abcdefghijklmnopqrstuvwxyz"  # what marks refer to runs by
ACCURACY, TEXT_RECALL = "accuracy", "text Recall@1, finding"
IMAGE_RECALL = ("image Recall@1, finding", "image Recall@1, class")  # the first that there is: track 2 asks by finding


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
class Comparison:
    """Runs compared by every score that one of them has.

    Attributes:
        contenders: the runs, which marks call a, b, c, ... in this order.
        part, fold, mask_groups: what they were scored on, and how.
        level: of significance.
        baseline: 0 where all are compared with the first alone; None where each is with each.
        scores: by the name of the score.
        notes: what a reader must know.
    """

    contenders: list[Contender]
    part: str
    fold: int | None
    mask_groups: bool
    level: float
    baseline: int | None
    scores: dict[str, Compared]
    notes: list[str]

    @property
    def title(self) -> str:
        return f"{len(self.contenders)} runs, part {self.part}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def n_pairs(self) -> int:
        n = len(self.contenders)
        return n * (n - 1) // 2 if self.baseline is None else n - 1

    def best(self, score: str) -> int:
        """The place of the run with the highest score; of equal ones the first."""
        intervals = self.scores[score].scores
        return max((i for i, interval in enumerate(intervals) if interval), key=lambda i: intervals[i].value)

    def as_good(self, score: str) -> list[int]:
        """The places of the best run and of those that were compared with it and are not significantly worse."""
        best = self.best(score)
        undecided = [d for d in self.scores[score].differences if best in (d.first, d.second) and not d.significant]
        return sorted({best, *(i for d in undecided for i in (d.first, d.second))})

    def as_dict(self) -> dict[str, Any]:
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
            "part": self.part,
            "fold": self.fold,
            "mask_groups": self.mask_groups,
            "level": self.level,
            "baseline": None if self.baseline is None else names[self.baseline],
            "notes": self.notes,
            "runs": runs,
            "comparisons": comparisons,
        }

    def csv(self) -> str:
        """A line for each score and pair."""
        rows = []
        of_pair = ["difference", "low", "high", "p", "p_holm", "significant", "p_bootstrap", "p_mcnemar", "only_first", "only_second"]
        for score, compared in self.scores.items():
            for d in compared.differences:
                told = d.as_dict()
                told |= {"difference": d.value.value, "low": told["difference"]["low"], "high": told["difference"]["high"]}
                first, second = (self.contenders[i].name for i in (d.first, d.second))
                values = [compared.scores[i].value for i in (d.first, d.second)] + [told[column] for column in of_pair]
                rows.append([score, first, second, *(f"{x:.6g}" if isinstance(x, float) else "" if x is None else x for x in values)])
        return csv_text(["score", "first", "second", "score of first", "score of second", *of_pair], rows)

    def write(self, name: str) -> tuple[Path, Path]:
        """`runs/comparisons/NAME.json` and `.csv`."""
        folder = runs_dir() / "comparisons"
        table, document = folder / f"{name}.csv", folder / f"{name}.json"
        write_text_atomic(table, self.csv())
        write_json_atomic(document, self.as_dict())
        return document, table


def compare_runs(
    names: Sequence[str],
    root: Path,
    *,
    part: str = "test",
    fold: int | None = None,
    mask_groups: bool = True,
    level: float = 0.05,
    baseline: str | None = None,
    device: str = "auto",
) -> Comparison:
    """Score runs on a part of the dataset they were trained on, and compare them by every score.

    Args:
        names: runs by name or folder, or patterns of names, as `named_runs` takes them.
        root: the dataset folder.
        part: `test` or `val` of the split, or `queries`.
        fold: another fold than the runs' own.
        level: of significance, between 0 and 1.
        baseline: the run that all others are compared with; it comes first, and need not be among `names`.

    Raises:
        UsageError: fewer than two runs, or more than there are letters.
        RunError: runs that cannot be compared, each with its fault.
    """
    if part not in PARTS:
        raise UsageError(f"Runs cannot be compared on {part!r}.", hint=f"--split {', '.join(PARTS)}")
    if not 0 < level < 1:
        raise UsageError(f"The level must lie between 0 and 1, not be {level}.", hint="--level 0.05")
    runs = named_runs(names if baseline is None else [str(open_run(baseline).folder), *names])
    place = None if baseline is None else 0
    check_comparable(runs, *read_catalog_and_split(root), part)
    contenders, notes = [], []
    for i, run in enumerate(runs, 1):
        console.say(f"Run {i} of {len(runs)}: {run.reference}")
        contender, told, fold_of_part = _contender(run, root, part, fold, mask_groups, device)
        contenders.append(contender)
        notes += told
    columns = list(dict.fromkeys(score for contender in contenders for score in contender.scores))
    scores = {c: compare([contender.scores.get(c) for contender in contenders], baseline=place, level=level) for c in columns}
    found = Comparison(contenders, part, fold_of_part, mask_groups, level, place, scores, list(dict.fromkeys(notes)))
    found.notes.extend(_limits(found))
    return found


def named_runs(names: Sequence[str]) -> list[Run]:
    """Runs by name, by folder or by pattern, each once; a pattern as in 'dinov2*' or 'ablations/mlcf/*' finds complete runs.

    Raises:
        UsageError: fewer than two, or more than 26. RunError: there is no such run, or it is half written; all of them.
    """
    found: dict[Path, Run] = {}
    errors: list[EntrepError] = []
    for name in names:
        try:
            for run in _matching(name) if set(name) & set("*?[") and not find_run(name) else [open_run(name)]:
                found.setdefault(run.folder.resolve(), run)
        except EntrepError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else _not_comparable(errors)
    if len(found) < 2:
        only = f"only {next(iter(found.values())).reference}" if found else "none"
        raise UsageError(f"Two or more runs can be compared; here is {only}.", hint="name another, or a pattern: entrep compare 'dinov2*'")
    if len(found) > len(LABELS):
        raise UsageError(f"{len(found)} runs are too many for one table.", hint=f"name at most {len(LABELS)}")
    return list(found.values())


def check_comparable(runs: Sequence[Run], catalog: Catalog, split: Split, part: str) -> None:
    """RunError with every fault of every run: no classifier, other data, another split, other folds, other classes."""
    errors: list[EntrepError] = []
    sound = []
    for run in runs:
        try:
            method_class(run.manifest["method"])
            check_trained_on(run, catalog, split, part)
            sound.append(run)
        except EntrepError as error:
            errors.append(error)
    folds = {run.reference: run.manifest["split"]["fold"] for run in sound}
    # The queries are nobody's fold.
    if part != QUERIES and len(set(folds.values())) > 1:
        left_out = (f"Run {name!r} was trained with {'no fold' if k is None else f'fold {k}'} left out." for name, k in folds.items())
        errors += [RunError(what, hint="compare runs of one fold, or all on --split queries") for what in left_out]
    classes = {run.reference: [c["name"] for c in run.manifest["taxonomy"]["classes"]] for run in sound}
    if len(set(map(tuple, classes.values()))) > 1:
        told = (f"Run {name!r} tells {len(of_run)} classes apart: {', '.join(of_run)}." for name, of_run in classes.items())
        errors += [RunError(what, hint="compare runs of the same classes") for what in told]
    if errors:
        raise _not_comparable(errors)


def _contender(
    run: Run, root: Path, part: str, fold: int | None, mask_groups: bool, device: str
) -> tuple[Contender, list[str], int | None]:
    """A run as it is compared, what must be told of it, and the fold of the part; the model is let go."""
    scored = open_scored(str(run.folder), root, part, fold=fold, device=device)
    scores = score_subset(scored.images, scored.seen, mask_groups=mask_groups, texts=texts_for(scored.model, scored.images))
    tensors = list(scored.model.parameters())
    size = sum(t.numel() * t.element_size() for t in tensors) / 1e6
    return Contender(run, totals_of(scores), sum(t.numel() for t in tensors), size), list(scored.notes), scored.fold


def _matching(pattern: str) -> list[Run]:
    root = runs_dir()
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise UsageError(f"The pattern {pattern!r} leads out of the runs folder.", hint="quote names below it, as in 'dinov2*'")
    folders = sorted(path.parent for path in root.glob(f"{pattern}/{MANIFEST}"))
    runs = [Run(folder) for folder in folders if not any(part.startswith(".") for part in folder.relative_to(root).parts)]
    if not runs:
        raise RunError(f"No complete run is called {pattern!r}.", where=root, hint="name one that is there, or train it")
    return runs


def _not_comparable(errors: Sequence[EntrepError]) -> RunError:
    faults = [" ".join([error.what, *error.faults]) for error in errors]
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    return RunError("These runs cannot be compared.", where=runs_dir(), faults=faults, hint="; ".join(hints))


def _limits(found: Comparison) -> list[str]:
    """What the numbers cannot say."""
    notes = []
    few = [name for name, compared in found.scores.items() if 2.0 ** (1 - compared.n_groups) * found.n_pairs > found.level]
    if few:
        pairs = f"{found.n_pairs} pair{'s' * (found.n_pairs > 1)}"
        told = "; ".join(f"{name} ({found.scores[name].n_groups} groups)" for name in few)
        notes.append(f"too few groups: with {pairs} no difference can be significant at {found.level:g} in {told}")
    elif min(compared.n_groups for compared in found.scores.values()) < 20:
        notes.append("under some 20 groups intervals are too narrow, and only large differences are found")
    return notes
