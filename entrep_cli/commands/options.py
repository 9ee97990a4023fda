"""Options that several commands share, with one wording each."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

Data = Annotated[
    Optional[Path],
    typer.Option(
        "--data", help="The dataset folder (default: $ENTREP_DATA, else that of the split, else data). It is only read.", show_default=False
    ),
]
RunName = Annotated[
    Optional[str],
    typer.Option("--run", help="A run by name or folder (default: the one that finished last).", show_default=False),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.", min=0)]
Groups = Annotated[
    str,
    typer.Option(help="Images that must stay together: auto (groups.csv, else the patient id in names), exam (likewise, by exam), none."),
]
MaskGroups = Annotated[
    bool, typer.Option("--mask-groups/--no-mask-groups", help="Whether frames of the query's own group are left out of the answers.")
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="How many answers to a query.")]


def flags(**given: object) -> str:
    """Options as they are typed, each after a blank: ` --data 'my data' --run dinov2`; without those that are None."""
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)
