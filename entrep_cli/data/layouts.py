"""How datasets lie on disk: the contest, the public release, class folders, a CSV.

Each reader returns a `Source`: rows (one a labelled or unlabelled image), faults that must be
mended, and notes to be said aloud. Nothing is decoded here, and nothing is ever written here.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from entrep_cli.data.images import SUFFIXES
from entrep_cli.errors import DataError

DEPTH = 5  # archives unpack as `train/train/imgs`; deeper than this is not a dataset folder
IMAGE_FOLDERS = ("imgs", "images", "Images")
QUERY_FILES = {1: "cls.csv", 2: "i2i.csv", 3: "t2i.csv"}
HELD_OUT = ("test", "val", "valid", "validation")
COLUMNS = {
    "image": ("image", "path", "file", "filename", "file_name", "image_path"),
    "label": ("label", "class", "classification", "category"),
    "group": ("group", "patient", "patient_id", "exam", "exam_id", "video"),
    "text_en": ("text_en", "text", "description_en", "descriptionen", "description", "caption"),
    "text_vi": ("text_vi", "description_vi"),
}


@dataclass
class Row:
    """One image as a source tells of it; `findings` are texts tied to this image alone."""

    image: str
    path: Path
    label: str = ""
    text_en: str = ""
    text_vi: str = ""
    group: str = ""
    findings: list[str] = field(default_factory=list)


@dataclass
class Source:
    """What one layout found in one folder."""

    layout: str
    folder: Path
    rows: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TestSet:
    """A folder of test images with the query files of some tracks.

    Attributes:
        images: path of each image by its name, verbatim.
        queries: the query file of each track that has one.
    """

    folder: Path
    images: dict[str, Path]
    queries: dict[int, Path]


class Names:
    """The image files of one folder, found by name without regard to case."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder = folder
        self.files = sorted(f for f in files if f.lower().endswith(SUFFIXES))
        self._exact = set(self.files)
        self._folded: dict[str, list[str]] = {}
        for name in self.files:
            self._folded.setdefault(name.casefold(), []).append(name)

    def find(self, name: str) -> Path | None:
        """The path of `name`: exact first, else the one file that differs in case only."""
        if name in self._exact:
            return self.folder / name
        same = self._folded.get(name.casefold(), [])
        return self.folder / same[0] if len(same) == 1 else None

    def clashes(self) -> list[str]:
        """A fault for every two files that differ in case only: one of them is lost on some disks."""
        return [
            f"{' and '.join(names)} in {self.folder.name}/ differ only in case"
            for names in self._folded.values()
            if len(names) > 1
        ]


Tree = dict[Path, tuple[list[str], list[str]]]  # folder -> (sub-folder names, file names)


def scan(root: Path) -> Tree:
    """Folders below `root` with their sub-folders and files, junk of archives and systems left out."""
    tree: Tree = {}
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        if len(here.relative_to(root).parts) >= DEPTH:
            folders.clear()
        tree[here] = (list(folders), sorted(f for f in files if not f.startswith(".")))
    return tree


def read_sources(root: Path) -> list[Source]:
    """Every labelled source below `root`, whatever its layout.

    Raises:
        DataError: nothing of a known layout is there.
    """
    tree = scan(root)
    taken: set[Path] = set()
    sources = []
    for folder, (_, files) in tree.items():
        readers = {"cls.json": _read_contest, "data.json": _read_release}
        for marker, reader in readers.items():
            if marker in files:
                names = _image_folder(tree, folder)
                taken.add(names.folder)
                sources.append(reader(folder, names, files))
    taken |= {_image_folder(tree, t).folder for t in tree if _is_test_folder(tree, t)}
    for folder, (_, files) in tree.items():
        for name in files:
            if name.lower().endswith(".csv") and (columns := _csv_columns(folder / name)):
                source = _read_csv(root, folder / name, columns, tree)
                taken |= {row.path.parent for row in source.rows}
                sources.append(source)
    sources += _read_class_folders(root, tree, taken)
    if not sources:
        images = sum(f.lower().endswith(SUFFIXES) for _, files in tree.values() for f in files)
        raise DataError(
            f"No dataset is to be found: {images} image{'s' * (images != 1)}, but no labels of a known layout.",
            where=root,
            faults=[
                "contest: cls.json beside imgs/",
                "public release: data.json beside images/",
                "class folders: one folder of images a class",
                "CSV: a header with the columns image and label",
            ],
            mend="name the folder that holds one of these with --data; `entrep synth data` makes one to try",
        )
    for source in sources:
        _apply_groups_file(source, root)
    return sources


def find_test_sets(root: Path) -> list[TestSet]:
    """Every folder below `root` that holds query files of the contest beside its images."""
    tree = scan(root)
    return [read_test_folder(folder, tree) for folder in tree if _is_test_folder(tree, folder)]


def read_test_folder(folder: Path, tree: Tree | None = None) -> TestSet:
    """A folder of images to answer for: with query files, or just images (each is a query then).

    Raises:
        DataError: no image in it, or names that differ only in case.
    """
    tree = tree or scan(folder)
    names = _image_folder(tree, folder)
    if not names.files:
        raise DataError("There are no images in the folder.", where=folder, mend="name a folder of images, or of imgs/ and its query files")
    if names.clashes():
        raise DataError("Image names clash.", where=folder, faults=names.clashes(), mend="rename one of each")
    files = tree[folder][1]
    queries = {track: folder / name for track, name in QUERY_FILES.items() if name in files}
    return TestSet(folder, {name: names.folder / name for name in names.files}, queries)


def read_text(path: Path) -> str:
    """A UTF-8 text file, a byte-order mark stripped; DataError that names the encoding it seems to be."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("The file is UTF-16; UTF-8 is wanted.", where=path, mend="save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"The file is not UTF-8 (line {line}).", where=path, mend="save it as UTF-8") from error


def read_json(path: Path, faults: list[str]) -> Any:
    """Parse a JSON file; broken syntax and keys that stand twice are added to `faults`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table and table[key] != value:
                faults.append(f"{path.name}: {key!r} stands twice with different values")
            table[key] = value
        return table

    try:
        return json.loads(read_text(path), object_pairs_hook=unique)
    except DataError as error:
        faults.append(f"{path.name}: {error.what}")
    except (ValueError, RecursionError) as error:
        faults.append(f"{path.name}: not valid JSON ({error})")
    return None


# ---------------------------------------------------------------- the four readers


def _read_contest(folder: Path, names: Names, files: list[str]) -> Source:
    source = Source("contest", folder, faults=names.clashes())

    def table(name: str) -> dict[str, str]:
        value = read_json(folder / name, source.faults) if name in files else {}
        if value is not None and not (
            isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        ):
            source.faults.append(f"{name}: not a flat object of texts")
            value = None
        return value or {}

    rows: dict[str, Row] = {}
    for name, label in table("cls.json").items():
        path = names.find(name)
        if path is None:
            source.faults.append(f"cls.json names {name}, which is not in {names.folder.name}/")
        elif path.name in rows:
            source.faults.append(f"cls.json names {path.name} twice, in different case")
        else:
            rows[path.name] = Row(path.name, path, label)
    unlabelled = [name for name in names.files if name not in rows]
    if unlabelled:
        source.notes.append(f"{len(unlabelled)} images in {names.folder.name}/ have no label in cls.json")
    rows.update({name: Row(name, names.folder / name) for name in unlabelled})

    strangers = set()
    for text, name in table("t2i.json").items():
        path = names.find(name)
        if path is None:
            strangers.add(name)
        else:
            rows[path.name].findings.append(text)
    for name, other in table("i2i.json").items():
        pair = [names.find(name), names.find(other)]
        strangers.update(n for n, path in zip((name, other), pair) if path is None)
        if None not in pair:
            key = "pair:" + "|".join(sorted(path.name for path in pair))
            for path in pair:
                if key not in rows[path.name].findings:
                    rows[path.name].findings.append(key)
    if strangers:
        source.notes.append(f"t2i.json and i2i.json name {len(strangers)} images that are not in {names.folder.name}/")
    source.rows = [rows[name] for name in sorted(rows)]
    return source


def _read_release(folder: Path, names: Names, files: list[str]) -> Source:
    source = Source("public release", folder, faults=names.clashes())
    entries = read_json(folder / "data.json", source.faults)
    if entries is not None and not isinstance(entries, list):
        source.faults.append("data.json: not a list of objects")
        entries = None
    seen = set()
    for i, entry in enumerate(entries or []):
        where = f"data.json, entry {i + 1}"
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("Path", "Classification")):
            source.faults.append(f"{where}: needs the texts Path and Classification")
            continue
        name = PurePosixPath(entry["Path"].replace("\\", "/")).name
        path = names.find(name)
        if path is None:
            source.faults.append(f"{where} names {name}, which is not in {names.folder.name}/")
        elif path.name in seen:
            source.faults.append(f"{where} names {path.name} a second time")
        else:
            seen.add(path.name)
            text = {key: str(entry.get(key) or "") for key in ("DescriptionEN", "Description")}
            source.rows.append(
                Row(path.name, path, entry["Classification"].strip(), text["DescriptionEN"], text["Description"])
            )
    return source


def _read_csv(root: Path, path: Path, columns: dict[str, str], tree: Tree) -> Source:
    source = Source("CSV", path)
    named: dict[Path, Names] = {}
    seen = set()
    for line, cells in enumerate(_csv_rows(path), start=2):
        name = (cells.get(columns["image"]) or "").strip().replace("\\", "/")
        label = (cells.get(columns["label"]) or "").strip()
        if not name and not label:
            continue
        relative = PurePosixPath(name)
        if not name or relative.is_absolute() or ".." in relative.parts:
            source.faults.append(f"{path.name}, line {line}: {name!r} is not a path inside the dataset folder")
            continue
        found = None
        for base in (path.parent, *(path.parent / f for f in IMAGE_FOLDERS)):
            parent = base.joinpath(*relative.parts[:-1])
            if parent in tree:
                names = named.setdefault(parent, Names(parent, tree[parent][1]))
                found = found or names.find(relative.name)
        if found is None:
            source.faults.append(f"{path.name}, line {line}: there is no image {name}")
        elif found in seen:
            source.faults.append(f"{path.name}, line {line}: {name} stands there a second time")
        else:
            seen.add(found)
            extra = {key: (cells.get(columns[key]) or "").strip() for key in ("group", "text_en", "text_vi") if key in columns}
            source.rows.append(Row(name, found, label, **extra))
    for names in named.values():
        source.faults += names.clashes()
    return source


def _read_class_folders(root: Path, tree: Tree, taken: set[Path]) -> Iterator[Source]:
    parents: dict[Path, list[Names]] = {}
    for folder, (_, files) in tree.items():
        names = Names(folder, files)
        if names.files and folder != root and not taken & {folder, *folder.parents}:
            parents.setdefault(folder.parent, []).append(names)
    sources = []
    trained = any(parent.name.lower() == "train" for parent in parents)
    for parent, classes in parents.items():
        if len(classes) == 1 and classes[0].folder.name in IMAGE_FOLDERS:
            continue  # one folder of images with no word on labels
        source = Source("class folders", parent)
        if trained and parent.name.lower() in HELD_OUT:
            source.notes.append(f"{parent.name}/ is left out of the training images, as train/ stands beside it")
        else:
            for names in classes:
                source.faults += names.clashes()
                source.rows += [
                    Row((names.folder / name).relative_to(root).as_posix(), names.folder / name, names.folder.name)
                    for name in names.files
                ]
        sources.append(source)
    return sources


# ---------------------------------------------------------------- parts of the readers


def _image_folder(tree: Tree, folder: Path) -> Names:
    """The images that belong to the label or query files of `folder`: its imgs/ or images/, or itself."""
    for name in IMAGE_FOLDERS:
        if folder / name in tree:
            return Names(folder / name, tree[folder / name][1])
    return Names(folder, tree[folder][1])


def _is_test_folder(tree: Tree, folder: Path) -> bool:
    return any(name in tree[folder][1] for name in QUERY_FILES.values()) and bool(_image_folder(tree, folder).files)


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    text = read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")


def _csv_columns(path: Path) -> dict[str, str] | None:
    """Which header stands for image, label, group and texts; None where it is no list of labels."""
    if path.name in (*QUERY_FILES.values(), "groups.csv"):
        return None
    try:
        header = _csv_rows(path).fieldnames or []
    except DataError:
        return None
    folded = {(name or "").strip().casefold(): name for name in header}
    columns = {
        key: next(folded[alias] for alias in aliases if alias in folded)
        for key, aliases in COLUMNS.items()
        if any(alias in folded for alias in aliases)
    }
    return columns if {"image", "label"} <= set(columns) else None


def _apply_groups_file(source: Source, root: Path) -> None:
    """Groups and texts from a `groups.csv` (image, group, and texts where it has them)."""
    folder = source.folder if source.folder.is_dir() else source.folder.parent
    path = next((f / "groups.csv" for f in (folder, root) if (f / "groups.csv").is_file()), None)
    if path is None:
        return
    try:
        rows = list(_csv_rows(path))
    except DataError as error:
        source.faults.append(f"groups.csv: {error.what}")
        return
    if not rows or not {"image", "group"} <= set(rows[0]):
        source.faults.append("groups.csv: needs a header with the columns image and group")
        return
    by_name = {row.image.casefold(): row for row in source.rows}
    by_name |= {row.path.name.casefold(): row for row in source.rows}
    unknown = 0
    for cells in rows:
        row = by_name.get((cells["image"] or "").strip().casefold())
        if row is None:
            unknown += 1
            continue
        row.group = (cells["group"] or "").strip() or row.group
        row.text_en = row.text_en or (cells.get("text_en") or cells.get("text") or "").strip()
        row.text_vi = row.text_vi or (cells.get("text_vi") or "").strip()
    source.notes.append(f"groups.csv gives the groups of {len(rows) - unknown} images")
    if unknown:
        source.notes.append(f"groups.csv names {unknown} images that are not there")
