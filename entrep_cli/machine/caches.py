"""What lies under `runs/cache`: how much of each kind, and removing it.

All of it can be computed again. A training may be reading and writing it at this moment: files take
their names when they are whole and are read right after, so what is being written, or was written
seconds ago, is left.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from entrep_cli.errors import UsageError
from entrep_cli.workspace import runs_dir

KINDS = {
    "pixels": "decoded images of a set, by content and preprocessing",
    "features": "vectors of frozen backbones and towers",
    "images": "size and digest of images that were looked at",
    "measures": "thumbnails and quality of images that were inspected",
}
_FRESH = 10.0  # seconds in which the process that wrote a file may not have opened it yet
_ABANDONED = 3600.0  # a temporary file that nobody has written to for so long is of a process that was killed


@dataclass(frozen=True)
class CacheKind:
    """One kind of cached things, a folder under `runs/cache`.

    Attributes:
        files, size: how many, and their bytes. oldest: seconds since the first was last written; None without files.
        link: it is a link to another place, which is neither looked into nor cleared.
    """

    name: str
    files: int
    size: int
    oldest: float | None
    link: bool = False

    @property
    def about(self) -> str:
        return "a link, left alone" if self.link else KINDS.get(self.name, "")


@dataclass
class Cleared:
    """What `clear_cache` freed, and what it left: files too new to go (`busy`), and what could not be removed (`faults`)."""

    files: int = 0
    size: int = 0
    busy: int = 0
    faults: list[str] = field(default_factory=list)


def cache_root() -> Path:
    return runs_dir() / "cache"


def cache_kinds() -> list[CacheKind]:
    """Every kind that exists, by name."""
    kinds, now, root = [], time.time(), cache_root()
    for folder in sorted(root.iterdir()) if root.is_dir() and not root.is_symlink() else ():
        if folder.is_symlink():
            kinds.append(CacheKind(folder.name, 0, 0, None, link=True))
        elif folder.is_dir():
            files = [status for _, status in _files(folder)]
            oldest = max((now - status.st_mtime for status in files), default=None)
            kinds.append(CacheKind(folder.name, len(files), sum(status.st_size for status in files), oldest))
    return kinds


def clear_cache(kind: str | None = None, *, older_than: float | None = None) -> dict[str, Cleared]:
    """Remove cached files, by kind.

    Only files in folders of `runs/cache` go, never a folder (another process may be about to write in
    it), and no link is followed, not even `runs/cache` itself.

    Args:
        kind: one of them; None for all.
        older_than: days since a file was last written.

    Raises:
        UsageError: no such kind.
    """
    kinds = {existing.name: existing for existing in cache_kinds()}
    if kind is not None and kind not in kinds and kind not in KINDS:
        raise UsageError(f"No kind of cache {kind!r}.", hint=f"choose one of {', '.join(sorted({*kinds, *KINDS}))}")
    now = time.time()
    cleared = {}
    for name, existing in kinds.items():
        if existing.link or kind not in (None, name):
            continue
        result = cleared[name] = Cleared()
        for path, status in _files(cache_root() / name):
            age = now - status.st_mtime
            if older_than is not None and age < older_than * 86400:
                continue
            if age < (_ABANDONED if path.name.endswith(".tmp") else _FRESH):
                result.busy += 1
                continue
            try:
                path.unlink()
            except FileNotFoundError:
                continue  # another process was faster
            except OSError as error:  # in use, on Windows; or another user's
                result.faults.append(f"{path}: {error.strerror}")
                continue
            result.files += 1
            result.size += status.st_size
    return cleared


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder and below, each counted once; no link is followed."""
    return sum({(status.st_dev, status.st_ino): status.st_size for _, status in _files(folder)}.values())


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files below a folder that is no link; what vanishes meanwhile is left out."""
    if folder.is_symlink():
        return
    for place, _, names in os.walk(folder, followlinks=False):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield path, status
