"""`report`: a run as one page that opens anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.errors import UsageError
from entrep_cli.results import Result, Table
from entrep_cli.workspace import data_dir

if TYPE_CHECKING:
    from entrep_cli.evaluation.classification import ClassificationScores
    from entrep_cli.evaluation.scored import Scored
    from entrep_cli.reporting.content import Content


@dataclass(frozen=True)
class Report(Result):
    """A page that was written, its content, and the run and the split that it is about."""

    page: Path
    content: Content
    scored: Scored

    @property
    def classes(self) -> ClassificationScores:
        """Of the images; a run always has them."""
        assert self.content.scores.classification is not None
        return self.content.scores.classification

    def tables(self) -> list[Table]:
        classes, calibration = self.classes, self.content.calibration
        retrieval = {key: scores for key, scores in self.content.scores.retrieval.items() if scores.scored.any()}
        rows: list[tuple[str, object]] = [("accuracy", classes.accuracy), ("macro F1", classes.macro_f1)]
        rows += [(f"Recall@1, {key}", scores.means["recall@1"]) for key, scores in retrieval.items()]
        rows += [("calibration error", calibration.ece), ("wrong answers", self.content.mistakes.n)]
        return [Table(f"Report: {self.scored.title} ({len(self.scored.images)} images)", ["score", "value"], rows)]

    def to_dict(self) -> dict[str, Any]:
        content = self.content
        return {
            "run": self.scored.run.name,
            "split": content.split,
            "images": content.n_images,
            "page": str(self.page),
            "bytes": self.page.stat().st_size,
            "private": content.private,
            "accuracy": self.classes.accuracy.as_dict(),
            "macro_f1": self.classes.macro_f1.as_dict(),
            "calibration_error": content.calibration.ece.as_dict(),
            "temperature": content.calibration.temperature,
            "retrieval": {key: scores.as_dict() for key, scores in content.scores.retrieval.items()},
            "wrong": content.mistakes.n,
            "notes": list(content.notes),
        }


def report(
    *,
    data: str | Path | None = None,
    run: str | None = None,
    split: str = "test",
    fold: int | None = None,
    private: bool = False,
    top_k: int = 6,
    out: str | Path | None = None,
    device: str = "auto",
) -> Report:
    """Write one HTML page about a run on a split.

    Args:
        data: the dataset folder. run: by name or folder; None for the one that completed last.
        split: `test`, `val` or `queries`. fold: another fold than that of the run.
        private: no file names, texts, places or pictures. top_k: answers on a contact sheet.
        out: the page; None for `report.html` in the run. device: where the model computes.

    Raises:
        UsageError: no such split, or a page that is no HTML. RunError: the run was trained on other data or another split.
    """
    from entrep_cli.evaluation.scored import check_scored, open_scored
    from entrep_cli.reporting.page import write_report
    from entrep_cli.reporting.report import gather

    check_scored(split)
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"A report is a page, and {str(out)!r} is none.", hint="--out report.html")
    scored = open_scored(run, data_dir(data), split, fold=fold, device=device)
    content = gather(scored, private=private, top_k=top_k, flags=console.flags(data=data))
    return Report(write_report(content, scored.run.path("report.html") if out is None else Path(out)), content, scored)
