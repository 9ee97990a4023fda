"""What lies in a folder, and the label files in it: names without regard to case, text, JSON, CSV.

Everything here is untrusted. Nothing is ever written, and every fault is a sentence with a name.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from entrep_cli.data.images import SUFFIXES
from entrep_cli.data.texts import Lookup, casefold, has_control
from entrep_cli.errors import DataError
from entrep_cli.workspace import runs_dir

DEPTH = 5  # archives unpack as `train/train/imgs`; deeper than this is not a dataset folder
JUNK = ("__MACOSX", "lost+found")

Tree = dict[Path, tuple[list[str], list[str]]]  # folder -> (sub-folder names, file names)


def scan(root: Path) -> Tree:
    """Folders below `root` with their sub-folders and files.

    Left out: hidden names and junk of archives, links back to a folder above, and the runs folder,
    whose tables and pictures are no data.

    Raises:
        DataError: `root` or a folder below it cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise DataError(f"The folder cannot be read: {error.strerror}.", where=error.filename) from error

    tree: Tree = {}
    above = {root: {os.path.realpath(root), os.path.realpath(runs_dir())}}
    for name, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        here = Path(name)
        inside = []
        if len(here.relative_to(root).parts) < DEPTH:
            for folder in sorted(folders):
                real = os.path.realpath(here / folder)
                if not folder.startswith(".") and folder not in JUNK and real not in above[here]:
                    inside.append(folder)
                    above[here / folder] = above[here] | {real}
        folders[:] = inside
        tree[here] = (inside, sorted(f for f in files if not f.startswith(".")))
    return tree


class Names:
    """The image files of one folder, by name without regard to case or unicode form."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self.folder = folder
        everything = sorted(files)
        self.files = [f for f in everything if f.lower().endswith(SUFFIXES)]
        self._images = Lookup((name, name) for name in self.files)
        self._others = {casefold(f) for f in everything}

    def find(self, name: str) -> Path | None:
        """The path of `name`: exact first, else the one file that means the same."""
        file = self._images.get(name)
        return None if file is None else self.folder / file

    def missing(self, name: str) -> str:
        """Why `find` has nothing: a phrase that goes on from the name."""
        if casefold(name) not in self._others:
            return f"which is not in {self.folder.name}/"
        if self._images.all(name):
            return f"which several files in {self.folder.name}/ could be"
        return f"which is no {', '.join(SUFFIXES)} file"

    def clashes(self) -> list[str]:
        """A fault for every two files that differ in case only: one of them is lost on some disks."""
        return [f"{' and '.join(names)} in {self.folder.name}/ differ only in case or unicode form" for names in self._images.clashes()]


def odd_names(names: Iterable[str]) -> list[str]:
    """A fault for every name or label that no CSV or submission can hold: control characters, no UTF-8."""
    odd = filter(has_control, dict.fromkeys(names))
    return [f"{name!r} holds a control character or is not UTF-8; rename it" for name in odd]


# ---------------------------------------------------------------- text, JSON, CSV


def read_text(path: Path) -> str:
    """A UTF-8 text file, a byte-order mark stripped; DataError that names the encoding it seems to be."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The file cannot be read: {error.strerror}.", where=path) from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("The file is UTF-16; UTF-8 is wanted.", where=path, hint="save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"The file is not UTF-8 (line {line}).", where=path, hint="save it as UTF-8") from error


Json = TypeVar("Json", dict, list)


def read_json(path: Path, kind: type[Json], faults: list[str]) -> Json:
    """An object or a list from a JSON file; empty, and a line in `faults`, where it is none.

    A key that stands twice with different values is a fault too.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table and table[key] != value:
                faults.append(f"{path.name}: {key!r} stands twice with different values")
            table[key] = value
        return table

    try:
        value = json.loads(read_text(path), object_pairs_hook=unique)
        if isinstance(value, kind):
            return value
        faults.append(f"{path.name}: not {'an object {...}' if kind is dict else 'a list [...]'}")
    except DataError as error:
        faults.append(f"{path.name}: {error.what}")
    except (ValueError, RecursionError) as error:
        faults.append(f"{path.name}: not valid JSON ({error})")
    return kind()


@dataclass(frozen=True)
class Table:
    """A CSV with a header.

    Attributes:
        columns: header names, lower case, without blanks around.
        rows: line number and cells by column; blank lines left out, cells without blanks around.
        faults: lines with more cells than the header, as an unquoted comma makes.
    """

    columns: tuple[str, ...] = ()
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_table(path: Path) -> Table:
    """Read a CSV, its delimiter (comma, semicolon, tab) as in the header; missing cells are "".

    Raises:
        DataError: not UTF-8, or quotes that do not close.
    """
    text = read_text(path)
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        table = Table(tuple(name.strip().casefold() for name in next(reader, [])))
        for cells in reader:
            if any(cell.strip() for cell in cells[len(table.columns) :]):
                cut = f"{len(cells)} cells under a header of {len(table.columns)}; quote texts with commas"
                table.faults.append(f"{path.name}, line {reader.line_num}: {cut}")
            elif any(cell.strip() for cell in cells):
                row = dict.fromkeys(table.columns, "")
                row.update((column, cell.strip()) for column, cell in zip(table.columns, cells))
                table.rows.append((reader.line_num, row))
    except csv.Error as error:
        raise DataError(f"The file is not valid CSV (line {reader.line_num}: {error}).", where=path) from error
    return table
