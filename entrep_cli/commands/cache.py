"""`entrep cache`: what was kept to be faster the next time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.machine.caches import KINDS


def list_() -> dict[str, Any]:
    """Example: entrep cache list

    What lies under runs/cache, by kind: all of it can be computed again.
    """
    from entrep_cli.machine.caches import cache_kinds, cache_root

    kinds, root = cache_kinds(), cache_root()
    _tell_link(root)
    ages = ["-" if kind.oldest is None else f"{kind.oldest / 86400:.1f}" for kind in kinds]
    rows = [(kind.name, kind.files, _megabytes(kind.size), age, kind.about) for kind, age in zip(kinds, ages)]
    total = ("total", sum(kind.files for kind in kinds), _megabytes(sum(kind.size for kind in kinds)), "", "")
    console.table(f"Cache in {root}", ["kind", "files", "MB", "oldest, days", "what"], [*rows, total])
    if total[1]:
        console.next_commands("entrep cache clear", "entrep cache clear pixels --older-than 7")
    return {
        "folder": str(root),
        "kinds": [
            {"kind": kind.name, "files": kind.files, "bytes": kind.size, "oldest_seconds": kind.oldest, "link": kind.link} for kind in kinds
        ],
        "bytes": sum(kind.size for kind in kinds),
    }


def clear(
    kind: Annotated[str | None, typer.Argument(help=f"{', '.join(KINDS)} (default: all).", show_default=False)] = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", help="Only what was written so many days ago.", min=0, metavar="DAYS", show_default=False),
    ] = None,
) -> dict[str, Any]:
    """Example: entrep cache clear

    Free the disk of what can be computed again, and say how much that was. Safe beside a running
    training: what is being written, or was written in the last seconds, is left. Only files in
    runs/cache go, and no link is followed.
    """
    from entrep_cli.machine.caches import cache_root, clear_cache

    _tell_link(cache_root())
    cleared = clear_cache(kind, older_than=older_than)
    files, size, busy = (sum(getattr(one, part) for one in cleared.values()) for part in ("files", "size", "busy"))
    rows = [(name, one.files, _megabytes(one.size)) for name, one in cleared.items()]
    console.table(f"Freed in {cache_root()}", ["kind", "files", "MB"], [*rows, ("total", files, _megabytes(size))])
    if busy:
        console.say(f"{busy} files were left: they are being written, or were a moment ago.")
    faults = [fault for one in cleared.values() for fault in one.faults]
    for fault in faults:
        console.warn(f"not removed: {fault}")
    parts = {name: {"files": one.files, "bytes": one.size, "left": one.busy} for name, one in cleared.items()}
    return {"folder": str(cache_root()), "kinds": parts, "files": files, "bytes": size, "left": busy, "faults": faults, "ok": not faults}


def _tell_link(root: Any) -> None:
    if root.is_symlink():
        hint = "clear it there: ENTREP_RUNS names the folder that holds cache/"
        console.warn(f"{root} is a link to another place, and is left alone; {hint}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
