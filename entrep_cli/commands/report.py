"""`entrep report`: a run as one page that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def report(
    data: options.Data = None,
    run: options.RunName = None,
    split: options.ScoredSplit = "test",
    fold: options.OtherFold = None,
    private: Annotated[bool, typer.Option("--private", help="Leave out file names, texts, places and pictures.")] = False,
    top_k: Annotated[int, typer.Option("--top-k", min=1, max=24, help="Answers on a contact sheet.")] = 6,
    out: Annotated[Path | None, typer.Option(help="The page to write (default: report.html in the run).", show_default=False)] = None,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep report

    Write one HTML page about a run: what was trained on what, scores with intervals, confusions,
    confidence, learning curves, a map of the embeddings, contact sheets, the worst mistakes. It holds
    all it shows, asks no network, and prints. It shows real pictures: --private makes one to pass on.
    """
    result = entrep.report(data=data, run=run, split=split, fold=fold, private=private, top_k=top_k, out=out, device=device)
    console.show(result)
    console.say(f"Page: {result.page} ({result.page.stat().st_size / 1e6:.1f} MB)")
    console.next_commands(*result.content.next_commands)
    return result
