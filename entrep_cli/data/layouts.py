"""How datasets lie on disk: the contest, the public release, class folders, a CSV.

Each reader returns a `Source`: rows (one a labelled or unlabelled image), faults that must be
corrected, and notes to be said aloud. Nothing is decoded here, and nothing is ever written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from entrep_cli.data.files import Names, Table, Tree, read_json, read_table, scan
from entrep_cli.data.groups import GROUPS_FILE, read_groups_table
from entrep_cli.data.images import SUFFIXES
from entrep_cli.data.taxonomy import Taxonomy, choose_taxonomy
from entrep_cli.data.testsets import IMAGE_FOLDERS, QUERY_FILES, image_folder, is_test_folder
from entrep_cli.data.texts import Lookup, casefold
from entrep_cli.errors import DataError

HELD_OUT = ("test", "val", "valid", "validation")
CLASS_FOLDERS = "class folders"
# How class folders of two modalities end: white light, and the narrow-band images of the same names (MICS).
WHITE, NARROW = "_WLI", "_NBI"
COLUMNS = {
    "image": ("image", "path", "file", "filename", "file_name", "image_path"),
    "label": ("label", "class", "classification", "category"),
    "group": ("group", "patient", "patient_id", "exam", "exam_id", "video"),
    "text_en": ("text_en", "text", "description_en", "descriptionen", "description", "caption"),
    "text_vi": ("text_vi", "description_vi"),
}


@dataclass
class Row:
    """One image as a source lists it; `findings` are texts tied to this image alone."""

    image: str
    path: Path
    label: str = ""
    text_en: str = ""
    text_vi: str = ""
    group: str = ""
    findings: list[str] = field(default_factory=list)


@dataclass
class Source:
    """The images of one layout in one folder (or, of a CSV, in one file)."""

    layout: str
    folder: Path
    rows: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_sources(root: Path) -> list[Source]:
    """Every labelled source below `root`, whatever its layout.

    Raises:
        DataError: nothing of a known layout.
    """
    tree = scan(root)
    sources: list[Source] = []
    taken: set[Path] = set()  # folders whose images a source lists
    unread: list[Source] = []
    for folder, (_, files) in tree.items():
        for marker, reader, prefer in (
            ("cls.json", _read_contest, IMAGE_FOLDERS),
            ("data.json", _read_release, IMAGE_FOLDERS[::-1]),
        ):
            if marker in files:
                names = image_folder(tree, folder, prefer)
                taken.add(names.folder)
                sources.append(reader(folder, names, files))
    tests = {folder for folder in tree if is_test_folder(tree, folder)}
    taken |= {image_folder(tree, folder).folder for folder in tests}
    for folder, (_, files) in tree.items():
        if (tests - {root}) & {folder, *folder.parents}:
            continue  # a table of labels beside test queries is their truth
        for name in files:
            if name.lower().endswith(".csv") and name not in (*QUERY_FILES.values(), GROUPS_FILE):
                try:
                    table = read_table(folder / name)
                except DataError as error:
                    unread.append(Source("CSV", folder / name, faults=[error.what]))
                    continue
                columns = _label_columns(table)
                if columns:
                    sources.append(_read_csv(root, folder / name, table, columns, tree))
                    taken |= {row.path.parent for row in sources[-1].rows}
    sources += _read_class_folders(root, tree, taken, [source for source in sources if not _held_out(source, root)])
    if not sources:
        raise _no_dataset(root, tree, unread)
    sources += [source for source in unread if _may_be_labels(source.folder)]
    _leave_out_held_out(sources, root)
    for source in sources:
        _apply_groups_file(source, root)
    return sources


def taxonomy_of(root: Path, sources: Sequence[Source]) -> Taxonomy:
    """The classes of a dataset: as its `taxonomy.toml` says, else its label files, else its class folders.

    The name of a folder may say where images come from instead of what they show: beside label files it makes no class.

    Raises:
        DataError: a `taxonomy.toml` that does not hold.
    """
    listed = [source for source in sources if source.layout != CLASS_FOLDERS and _labels([source])] or sources
    return choose_taxonomy(_labels(listed), taxonomy_folder(root, listed))


def taxonomy_folder(root: Path, sources: Sequence[Source]) -> Path | None:
    """Where `taxonomy.toml` lies: in the dataset folder, else beside the labels; None where it has none."""
    places = (root, *(source.folder for source in sources))
    return next((place for place in places if (place / "taxonomy.toml").is_file()), None)


def known_images(root: Path) -> tuple[dict[str, str], Taxonomy | None]:
    """The label ("" where it has none) of each image of the label files by its name, and the classes.

    Without labels the classes are those of a `taxonomy.toml`, or None.

    Raises:
        DataError: a `taxonomy.toml` that does not hold.
    """
    try:
        sources = read_sources(root)
    except DataError:
        sources = []  # nothing but test images
    images = {row.image: row.label for source in sources for row in source.rows}
    known = any(images.values()) or taxonomy_folder(root, sources)
    return images, taxonomy_of(root, sources) if known else None


# ---------------------------------------------------------------- the four readers


def _read_contest(folder: Path, names: Names, files: list[str]) -> Source:
    source = Source("contest", folder, faults=names.clashes())

    def table(name: str) -> dict[str, str]:
        content = read_json(folder / name, dict, source.faults) if name in files else {}
        odd = {key: value for key, value in content.items() if not isinstance(value, str)}
        source.faults += [f"{name}: {key!r} stands for {value!r:.60}, not for a text" for key, value in odd.items()]
        return {key: value for key, value in content.items() if key not in odd}

    rows: dict[str, Row] = {}
    for name, label in table("cls.json").items():
        if path := _new_file(source, rows, names, name, "cls.json", "twice, in different case"):
            rows[path.name] = Row(path.name, path, label.strip())
    _add_unlabelled(source, rows, names, "cls.json")

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
    return source


def _read_release(folder: Path, names: Names, files: list[str]) -> Source:
    source = Source("public release", folder, faults=names.clashes())
    rows: dict[str, Row] = {}
    for i, entry in enumerate(read_json(folder / "data.json", list, source.faults), 1):
        where = f"data.json, entry {i}"
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("Path", "Classification")):
            source.faults.append(f"{where}: needs the texts Path and Classification")
            continue
        name = PurePosixPath(entry["Path"].replace("\\", "/")).name
        if path := _new_file(source, rows, names, name, where, "a second time"):
            english, vietnamese = (entry.get(key) or "" for key in ("DescriptionEN", "Description"))
            if not isinstance(english, str) or not isinstance(vietnamese, str):
                source.faults.append(f"{where}: a description is not a text")
                english = vietnamese = ""
            rows[path.name] = Row(path.name, path, entry["Classification"].strip(), english, vietnamese)
    _add_unlabelled(source, rows, names, "data.json")
    return source


def _read_csv(root: Path, path: Path, table: Table, columns: dict[str, str], tree: Tree) -> Source:
    source = Source("CSV", path, faults=list(table.faults))
    # Paths start at the CSV's folder, its image folder, or the dataset folder.
    bases = [base / sub for base in dict.fromkeys((path.parent, root)) for sub in ("", *IMAGE_FOLDERS)]
    places: dict[PurePosixPath, list[Names]] = {}
    listed: dict[Path, Names] = {}
    for line, cells in table.rows:
        row = {key: cells[column] for key, column in columns.items()}
        relative = PurePosixPath(row.pop("image").replace("\\", "/"))
        where = f"{path.name}, line {line}"
        if not relative.name or relative.is_absolute() or ".." in relative.parts:
            source.faults.append(f"{where}: {str(relative)!r} is no path inside the dataset folder")
            continue
        if relative.parent not in places:
            folders = (base / relative.parent for base in bases)
            places[relative.parent] = [Names(folder, tree[folder][1]) for folder in folders if folder in tree]
        file, names = next(((file, n) for n in places[relative.parent] if (file := n.find(relative.name))), (None, None))
        if file is None:
            source.faults.append(f"{where}: no image {str(relative)!r}")
        elif file in listed:
            source.faults.append(f"{where}: {str(relative)!r} is listed a second time")
        else:
            listed[file] = names
            source.rows.append(Row(str(relative), file, **row))
    for names in dict.fromkeys(listed.values()):
        source.faults += names.clashes()
    return source


def _read_class_folders(root: Path, tree: Tree, taken: set[Path], beside: Sequence[Source]) -> Iterable[Source]:
    """One class a folder; of `<class>_WLI/` and `<class>_NBI/` the white-light images are the rows.

    `data.modalities` looks up their partners. Narrow-band folders without any white light in
    the dataset are classes like others. Beside label files, the sources `beside`, a folder that is named after
    none of their classes is left out, and they note it.
    """
    sources: dict[Path, Source] = {}
    folders: list[Names] = []
    known = _known_classes(root, beside)
    strangers: list[Names] = []
    for folder, (_, files) in tree.items():
        names = Names(folder, files)
        # A folder called `test` or `images` says what its images are for, not what they show.
        is_class = folder != root and folder.name.lower() not in ("train", *HELD_OUT, *IMAGE_FOLDERS)
        if names.files and is_class and not taken & {folder, *folder.parents}:
            folders.append(names)
    modalities = {(n.folder.parent, *map(casefold, split_modality(n.folder.name))): n for n in folders}
    paired = any(ending == casefold(WHITE) for *_, ending in modalities)
    for names in folders:
        folder = names.folder
        label, ending = split_modality(folder.name) if paired else (folder.name, "")
        if known and label not in known:
            strangers.append(names)
            continue
        source = sources.setdefault(folder.parent, Source(CLASS_FOLDERS, folder.parent))
        source.faults += names.clashes()
        if ending == NARROW:
            if (folder.parent, casefold(label), casefold(WHITE)) not in modalities:
                source.faults.append(f"{folder.name}/ has no {label}{WHITE}/ beside it")
            continue
        source.rows += [Row((folder / name).relative_to(root).as_posix(), folder / name, label) for name in names.files]
        if ending == WHITE:
            _check_pairs(source, label, names, modalities.get((folder.parent, casefold(label), casefold(NARROW))))
    if strangers:
        places = [f"{names.folder.relative_to(root)}/" for names in strangers]
        shown = ", ".join(places[:3]) + (f" and {len(places) - 3} other folders" if len(places) > 3 else "")
        why = "named after no class of the label files"
        beside[0].notes.append(f"{_images(sum(len(names.files) for names in strangers))} in {shown} left out: {why}")
    return sources.values()


# ---------------------------------------------------------------- steps of the readers


def _label_columns(table: Table) -> dict[str, str]:
    """Which column stands for image, label, group and texts; empty where it is no list of labels."""
    columns = {
        key: next(alias for alias in aliases if alias in table.columns)
        for key, aliases in COLUMNS.items()
        if any(alias in table.columns for alias in aliases)
    }
    return columns if {"image", "label"} <= set(columns) else {}


def _may_be_labels(path: Path) -> bool:
    """Whether the header of a CSV that cannot be read names images and labels: whoever wrote it wants it read."""
    try:
        with open(path, "rb") as file:
            line = file.readline(10_000)
    except OSError:
        return True  # nobody knows
    # In UTF-16 a Latin letter is itself and a zero byte.
    text = line.replace(b"\0", b"").decode("ascii", "ignore").casefold()
    return bool(_label_columns(Table(tuple(name.strip("\"' ") for name in re.split(r"[,;\t]", text.strip())))))


def _labels(sources: Iterable[Source]) -> list[str]:
    return [row.label for source in sources for row in source.rows if row.label]


def _known_classes(root: Path, sources: Sequence[Source]) -> set[str]:
    """The classes of label files; empty where nothing has a label."""
    labels = set(_labels(sources))
    try:
        return set(taxonomy_of(root, sources).names) if labels else labels
    except DataError:  # of a taxonomy that does not hold; whoever reads it says so
        return labels


def _new_file(source: Source, rows: Mapping[str, Row], names: Names, name: str, where: str, again: str) -> Path | None:
    """The file that a label file names; None, and a fault, where the folder lacks it or a row has it."""
    path = names.find(name)
    if path is None:
        source.faults.append(f"{where} names {name!r}, {names.missing(name)}")
    elif path.name in rows:
        source.faults.append(f"{where} names {path.name!r} {again}")
    else:
        return path
    return None


def _add_unlabelled(source: Source, rows: dict[str, Row], names: Names, file: str) -> None:
    """The rows of a source: those a label file names, and the images beside it, in order of their names."""
    rows.update({name: Row(name, names.folder / name) for name in names.files if name not in rows})
    source.rows = [rows[name] for name in sorted(rows)]
    unlabelled = sum(not row.label for row in source.rows)
    if unlabelled:
        source.notes.append(f"{_images(unlabelled)} in {names.folder.name}/ without a label in {file}")


def split_modality(name: str) -> tuple[str, str]:
    """The class and the modality of a folder's name: `polyp_WLI` is ("polyp", WHITE), `polyp` ("polyp", "")."""
    ending = next((e for e in (WHITE, NARROW) if name[-len(e) :].upper() == e and len(name) > len(e)), "")
    return name[: len(name) - len(ending)], ending


def _check_pairs(source: Source, label: str, white: Names, narrow: Names | None) -> None:
    """What a person should know of the two folders of a class; that no name is in both is a fault."""
    if narrow is None:
        source.notes.append(f"{_images(len(white.files))} in {white.folder.name}/ without a partner: no folder {label}{NARROW}/")
        return
    alone = [name for name in white.files if narrow.find(name) is None]
    left = [name for name in narrow.files if white.find(name) is None]
    if len(alone) == len(white.files):
        source.faults.append(f"{white.folder.name}/ and {narrow.folder.name}/ have no file name in common")
        return
    if alone:
        source.notes.append(f"{_images(len(alone))} in {white.folder.name}/ without a partner in {narrow.folder.name}/")
    if left:
        source.notes.append(f"{_images(len(left))} in {narrow.folder.name}/ without a white-light image in {white.folder.name}/, left out")


def _leave_out_held_out(sources: list[Source], root: Path) -> None:
    """Labelled images in test/ or val/ are not for training where others are."""
    held = [source for source in sources if _held_out(source, root)]
    for source in held if len(held) < len(sources) else ():
        source.notes = [f"{_images(len(source.rows))} in {source.folder.relative_to(root)} left out of the training images"]
        source.rows, source.faults = [], []


def _held_out(source: Source, root: Path) -> bool:
    return any(name.lower().removesuffix(".csv") in HELD_OUT for name in source.folder.relative_to(root).parts)


def _apply_groups_file(source: Source, root: Path) -> None:
    """Groups and texts from a `groups.csv` (image, group, and texts where it has them)."""
    folder = source.folder if source.folder.is_dir() else source.folder.parent
    place = next((f for f in (folder, root) if (f / GROUPS_FILE).is_file()), None)
    if place is None or not source.rows:
        return
    try:
        table = read_groups_table(place)
    except DataError as error:
        source.faults.append(f"{GROUPS_FILE}: {error.what}")
        return
    source.faults += table.faults
    lookup = Lookup((row.image, row) for row in source.rows)
    for row in source.rows:
        lookup.add_alias(row.path.name, row)
    given: dict[str, str] = {}
    unknown = 0
    for line, cells in table.rows:
        rows = lookup.all(cells["image"])
        unknown += not rows
        if len(rows) > 1:
            source.faults.append(f"groups.csv, line {line}: {cells['image']!r} could be {rows[0].image} or {rows[1].image}; write the path")
        elif rows and given.setdefault(rows[0].image, cells["group"]) != cells["group"]:
            source.faults.append(f"groups.csv, line {line}: {cells['image']!r} stands twice, in different groups")
        elif rows:
            row = rows[0]
            row.group = cells["group"] or row.group
            row.text_en = row.text_en or cells.get("text_en") or cells.get("text", "")
            row.text_vi = row.text_vi or cells.get("text_vi", "")
    grouped = sum(bool(group) for group in given.values())
    source.notes.append(f"groups.csv gives the groups of {grouped} of {_images(len(source.rows))}")
    if unknown:
        source.notes.append(f"groups.csv names {_images(unknown)} that this source does not have")


def _no_dataset(root: Path, tree: Tree, unread: Sequence[Source]) -> DataError:
    images = sum(f.lower().endswith(SUFFIXES) for _, files in tree.values() for f in files)
    hint = "name the folder that holds one of these with --data; `entrep synth phantom` makes one to try"
    above = root.absolute().parent
    if any((above / name).is_file() for name in ("cls.json", "data.json")):
        hint = f"the folder above has labels: --data {above}"
    return DataError(
        f"No dataset: {_images(images)}, but no labels of a known layout.",
        where=root,
        faults=[
            "contest: cls.json beside imgs/",
            "public release: data.json beside images/",
            f"class folders: one folder of images a class, or two, <class>{WHITE}/ and <class>{NARROW}/",
            "CSV: a header with the columns image and label",
            *(f"could not be read: {source.folder.relative_to(root)}: {fault}" for source in unread for fault in source.faults),
        ],
        hint=hint,
    )


def _images(n: int) -> str:
    return f"{n} image{'s' * (n != 1)}"
