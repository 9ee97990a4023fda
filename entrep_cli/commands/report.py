"""`entrep report`: a run as one page that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import UsageError
from entrep_cli.workspace import data_dir


def report(
    data: options.Data = None,
    run: options.RunName = None,
    part: Annotated[str, typer.Option("--split", help="test or val of the split; queries: the test folder and its truth.")] = "test",
    fold: Annotated[int | None, typer.Option(help="Another fold than the run's own.", min=0, show_default=False)] = None,
    private: Annotated[bool, typer.Option("--private", help="Leave out file names, texts, places and pictures.")] = False,
    top_k: Annotated[int, typer.Option("--top-k", min=1, max=24, help="Answers on a contact sheet.")] = 6,
    out: Annotated[Path | None, typer.Option(help="The page to write (default: report.html in the run).", show_default=False)] = None,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep report

    Write one HTML page about a run: what was trained on what, scores with intervals, confusions,
    confidence, learning curves, a map of the embeddings, contact sheets, the worst mistakes. It holds
    all it shows, asks no network, and prints. Real pictures stand in it: --private makes one to pass on.
    """
    from entrep_cli.evaluation.scored import check_scored, open_scored
    from entrep_cli.reporting.page import write_report
    from entrep_cli.reporting.report import gather

    check_scored(part)
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"A report is a page, and {str(out)!r} is none.", hint="--out report.html")
    scored = open_scored(run, data_dir(data), part, fold=fold, device=device)
    content = gather(scored, private=private, top_k=top_k, flags=options.flags(data=data))
    path = write_report(content, out or scored.run.path("report.html"))
    s = content.scores.classification
    rows = [("accuracy", s.accuracy), ("macro F1", s.macro_f1)]
    rows += [(f"Recall@1, {key}", scores.means["recall@1"]) for key, scores in content.scores.retrieval.items() if scores.scored.any()]
    rows += [("calibration error", content.calibration.ece), ("wrong answers", content.mistakes.n)]
    console.table(f"Report: {scored.title} ({len(scored.images)} images)", ["score", "value"], rows)
    size = path.stat().st_size
    console.say(f"Page: {path} ({size / 1e6:.1f} MB)")
    console.next_commands(*content.next_commands)
    return {
        "run": scored.run.name,
        "part": content.split,
        "images": content.n_images,
        "page": str(path),
        "bytes": size,
        "private": private,
        "accuracy": s.accuracy.as_dict(),
        "macro_f1": s.macro_f1.as_dict(),
        "calibration_error": content.calibration.ece.as_dict(),
        "temperature": content.calibration.temperature,
        "retrieval": {key: scores.as_dict() for key, scores in content.scores.retrieval.items()},
        "wrong": content.mistakes.n,
        "notes": list(content.notes),
    }
