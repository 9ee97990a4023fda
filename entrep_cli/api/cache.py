"""`cache_list`, `cache_clear`: what is cached under `runs/cache`, and freeing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.results import Result, Table

if TYPE_CHECKING:
    from entrep_cli.machine.caches import CacheKind, Cleared


@dataclass(frozen=True)
class CacheList(Result):
    """The cached files by kind: their number, size and age."""

    folder: Path
    kinds: tuple[CacheKind, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(kind.size for kind in self.kinds)

    def tables(self) -> list[Table]:
        ages = ["-" if kind.oldest is None else f"{kind.oldest / 86400:.1f}" for kind in self.kinds]
        rows = [(kind.name, kind.files, _megabytes(kind.size), age, kind.about) for kind, age in zip(self.kinds, ages)]
        total = ("total", sum(kind.files for kind in self.kinds), _megabytes(self.size), "", "")
        return [Table(f"Cache in {self.folder}", ["kind", "files", "MB", "oldest, days", "what"], [*rows, total])]

    def to_dict(self) -> dict[str, Any]:
        kinds = [{"kind": k.name, "files": k.files, "bytes": k.size, "oldest_seconds": k.oldest, "link": k.link} for k in self.kinds]
        return {"folder": str(self.folder), "kinds": kinds, "bytes": self.size}


@dataclass(frozen=True)
class CacheCleared(Result):
    """What was removed, by kind: files and bytes, files left because they are in use, and errors."""

    folder: Path
    kinds: dict[str, Cleared]

    @property
    def n_files(self) -> int:
        return sum(kind.files for kind in self.kinds.values())

    @property
    def size(self) -> int:
        return sum(kind.size for kind in self.kinds.values())

    @property
    def left(self) -> int:
        return sum(kind.busy for kind in self.kinds.values())

    @property
    def faults(self) -> list[str]:
        return [fault for kind in self.kinds.values() for fault in kind.faults]

    def tables(self) -> list[Table]:
        rows = [(name, kind.files, _megabytes(kind.size)) for name, kind in self.kinds.items()]
        return [Table(f"Freed in {self.folder}", ["kind", "files", "MB"], [*rows, ("total", self.n_files, _megabytes(self.size))])]

    def to_dict(self) -> dict[str, Any]:
        kinds = {name: {"files": kind.files, "bytes": kind.size, "left": kind.busy} for name, kind in self.kinds.items()}
        faults = self.faults
        return {
            "folder": str(self.folder),
            "kinds": kinds,
            "files": self.n_files,
            "bytes": self.size,
            "left": self.left,
            "faults": faults,
            "ok": not faults,
        }


def cache_list() -> CacheList:
    """The files under `runs/cache`, by kind. All of them can be computed again."""
    from entrep_cli.machine.caches import cache_kinds

    return CacheList(_root(), tuple(cache_kinds()))


def cache_clear(kind: str | None = None, *, older_than: float | None = None) -> CacheCleared:
    """Remove cached files, except those that are being written or were written in the last seconds.

    Args:
        kind: one kind; all by default.
        older_than: only files older than this many days.

    Raises:
        UsageError: no such kind.
    """
    from entrep_cli.machine.caches import clear_cache

    return CacheCleared(_root(), clear_cache(kind, older_than=older_than))


def _root() -> Path:
    from entrep_cli.machine.caches import cache_root

    root = cache_root()
    if root.is_symlink():
        hint = "clear it at its target: ENTREP_RUNS names the folder that holds cache/"
        console.warn(f"{root} is a link to another place, and is left alone; {hint}")
    return root


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
