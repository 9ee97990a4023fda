"""What is wrong with a submission, before it is sent: every fault at once, each with its mend.

    report = check_submission("track1.zip", 1, queries=queries, classes={"nose-right": 0, ...})
    print("\\n".join(report.lines()))

Anybody's file is read in memory, under limits, and never unpacked to disk. Messages hold user
strings through `repr`, so that no control character reaches a terminal; what looks like rich markup
or HTML stands in them as it is and is for the caller to escape.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from entrep_cli.errors import UsageError

# A real submission (844 queries) has about 60 kB: two orders of magnitude of room, and still small
# against the memory of any machine that runs entrep.
MAX_BYTES = 16 * 2**20
MAX_MEMBERS = 100
# Below a mebibyte no ratio is a danger, and a small repetitive JSON may well shrink 200 times.
MAX_RATIO, RATIO_FREE_BYTES = 200, 2**20

_TOO_MUCH = f"more than {MAX_BYTES // 2**20} MiB; send the one JSON of answers only"
_PACK = "pack the .json alone: `zip -j OUT.zip FILE.json`"

Entry = tuple[str, Any]
Slugged = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Fault:
    """One fault: a slug for machines, a sentence that ends with the mend, and the entry concerned.

    `entry` is a key, an archive member or None (the whole file); `count` how often it occurs there.
    """

    kind: str
    message: str
    entry: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Contents:
    """What one file holds: its JSON's name and entries, None where they could not be read."""

    member: str | None
    entries: tuple[Entry, ...] | None
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Report:
    """All faults of one submission, and the checks that were skipped for want of a list."""

    path: str
    track: int
    n_entries: int | None
    faults: tuple[Fault, ...]
    skipped: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.faults

    def counts(self) -> dict[str, int]:
        """Number of faults by kind."""
        return dict(Counter(fault.kind for fault in self.faults))

    def lines(self, limit: int = 5) -> list[str]:
        """For the terminal: a summary, at most `limit` examples of each kind, what was skipped."""
        entries = "unreadable" if self.n_entries is None else self.n_entries
        faults = len(self.faults) or "none"
        lines = [f"{self.path!r}: track {self.track}, entries: {entries}, faults: {faults}"]
        for kind, count in self.counts().items():
            lines.append(f"{kind} ({count})")
            examples = [fault.message for fault in self.faults if fault.kind == kind][:limit]
            lines += [f"  - {message}" for message in examples]
            if count > limit:
                lines.append(f"  ... and {count - limit} more")
        return lines + [f"not checked: {what}" for what in self.skipped]

    def as_dict(self) -> dict[str, Any]:
        """The whole report in plain JSON types, safe to encode as UTF-8."""
        faults = [asdict(fault) for fault in self.faults]
        for fault in faults:
            # A JSON may spell half a surrogate pair, which no UTF-8 text can hold.
            entry = fault["entry"]
            fault["entry"] = entry and entry.encode(errors="backslashreplace").decode()
        return {**asdict(self), "ok": self.ok, "counts": self.counts(), "faults": faults}


def check_submission(
    path: str | Path,
    track: int,
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    classes: Mapping[str, int] | None = None,
) -> Report:
    """Check the file at `path` against the contest's rules for track 1, 2 or 3.

    `queries` are the queries, verbatim; `gallery` the file names that may be answered (tracks 2
    and 3); `classes` class name to id (track 1). What is not given is not checked, and the report
    says so. Everything wrong with the file is in the report; another track is a UsageError.
    Rules: challenge.md, Submission.
    """
    if track not in (1, 2, 3):
        raise UsageError(f"There is no track {track!r}.", mend="choose track 1, 2 or 3")
    contents = read_contents(path)
    if contents.entries is None:
        skipped = ("the entries, since they could not be read",)
        return Report(str(path), track, None, contents.faults, skipped)
    found = entry_faults(track, contents.entries, queries=queries, gallery=gallery, classes=classes)
    faults = (*contents.faults, *found)
    needs = [(queries, "whether each query has an answer under its exact key (no list of queries)")]
    if track == 1:
        needs.append((classes, "whether the ids are those of classes (no table of classes)"))
    else:
        needs.append((gallery, "whether the answers are in the gallery (no list of its files)"))
    skipped = tuple(what for given, what in needs if given is None)
    return Report(str(path), track, len(contents.entries), faults, skipped)


# ---------------------------------------------------------------- texts


def show(value: object) -> str:
    """`value` for a message: quoted, control characters escaped, long ones cut."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def bare_name(name: str) -> str:
    """The part of a file name behind the last separator, of either kind."""
    return re.split(r"[/\\]", name)[-1]


def has_control(text: str) -> bool:
    """Whether `text` holds a control character, a line separator or half of a surrogate pair."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in text)


def decode_utf8(data: bytes) -> str:
    """The text of UTF-8 bytes; ValueError says, for people, why they are none."""
    if b"\0" in data or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("the text is UTF-16 or binary, not UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        what = f"line {line}: byte 0x{byte:02x} is not UTF-8, perhaps Latin-1"
        raise ValueError(what) from error


def fold(text: str) -> str:
    """`text` without its differences of case and unicode normal form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _loose(text: str) -> str:
    # Zero-width characters go too: a byte-order mark read as text sticks to the first query.
    seen = "".join(c if c.isprintable() or c.isspace() else "" for c in fold(text))
    return " ".join(seen.split())


_FORMS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("unicode", "unicode normal form", partial(unicodedata.normalize, "NFC")),
    ("case", "case", fold),
    ("spacing", "blanks or invisible characters", _loose),
)


def difference(name: str, other: str) -> tuple[str, str]:
    """In what two names that mean the same differ: a slug and its words."""
    return next((slug, words) for slug, words, form in _FORMS if form(name) == form(other))


class Names:
    """A set of names that also finds a name written otherwise."""

    def __init__(self, names: Iterable[str]) -> None:
        self.exact = frozenset(names)
        self._alike: dict[str, list[str]] = {}
        for name in sorted(self.exact):
            self._alike.setdefault(_loose(name), []).append(name)

    def nearest(self, name: str) -> str | None:
        """The name itself, else one that is `name` but for unicode form, case or blanks."""
        if name in self.exact:
            return name
        alike = self._alike.get(_loose(name), ())
        found = (other for _, _, form in _FORMS for other in alike if form(other) == form(name))
        return next(found, None)


# ---------------------------------------------------------------- the file


class _Stop(Exception):
    """A fault behind which nothing can be read."""

    def __init__(self, kind: str, message: str, entry: str | None = None) -> None:
        super().__init__(message)
        self.fault = Fault(kind, message, entry)


def read_contents(source: str | Path | bytes) -> Contents:
    """Read a submission (a path, or its bytes) without trusting it; never raises for its content.

    A bare JSON is read too, with the fault "bare-json".
    """
    faults: list[Fault] = []
    try:
        data = source if isinstance(source, bytes) else _file_bytes(Path(source))
        member, text = _json_bytes(data, faults)
        return Contents(member, _entries(text, faults), tuple(faults))
    except _Stop as stop:
        return Contents(None, None, (*faults, stop.fault))


def _file_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _Stop("too-big", f"the file has {_TOO_MUCH}")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        raise _Stop("unreadable", f"{show(str(path))}: {reason}; name a .zip file") from error


def _json_bytes(data: bytes, faults: list[Fault]) -> tuple[str | None, bytes]:
    """Name and bytes of the JSON inside."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        if data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
            faults.append(Fault("bare-json", f"the file is bare JSON; {_PACK}"))
            return None, data
        raise _Stop("not-a-zip", f"the file is {'no zip archive' if data else 'empty'}; {_PACK}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            member = _the_json(archive.infolist(), faults)
            _refuse_danger(member)
            # No more is inflated than is declared and asked for; a false size fails the CRC.
            with archive.open(member) as file:
                return member.filename, file.read(member.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise _Stop("unreadable", f"the archive is damaged ({error}); {_PACK}") from error


def _the_json(members: Sequence[zipfile.ZipInfo], faults: list[Fault]) -> zipfile.ZipInfo:
    """The JSON to check: the one at the root, else the only one in a folder."""
    if len(members) > MAX_MEMBERS:
        raise _Stop("too-many-members", f"the archive has {len(members)} members; {_PACK}")
    root, nested = [], []
    for member in members:
        name = member.filename
        bare, is_json = bare_name(name), name.endswith(".json")
        if "__MACOSX" in name or bare.startswith("._") or bare == ".DS_Store":
            faults.append(Fault("macos-junk", f"{show(name)} is macOS junk; {_PACK}", name))
        elif bare != name:
            faults.append(Fault("sub-folder", f"{show(name)} is or has a folder; {_PACK}", name))
            nested += [member] if is_json else []
        elif is_json:
            root.append(member)
        else:
            faults.append(Fault("extra-member", f"{show(name)} is no .json; {_PACK}", name))
    candidates = root or nested
    if not candidates:
        raise _Stop("no-json", f"the archive holds no .json; {_PACK}")
    if len(candidates) > 1:
        names = ", ".join(show(member.filename) for member in candidates)
        raise _Stop("several-json", f"the archive holds {names}; keep one")
    return candidates[0]


def _refuse_danger(member: zipfile.ZipInfo) -> None:
    name, size = member.filename, member.file_size
    if member.flag_bits & 1:
        raise _Stop("encrypted", f"{show(name)} is encrypted; zip it without a password", name)
    # zipfile inflates bzip2 and LZMA without a bound.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Stop("compression", f"{show(name)} is not packed with deflate; {_PACK}", name)
    if size > RATIO_FREE_BYTES and size > MAX_RATIO * member.compress_size:
        raise _Stop("zip-bomb", f"{show(name)} grows over {MAX_RATIO} times; {_PACK}", name)
    if size > MAX_BYTES:
        raise _Stop("too-big", f"{show(name)} has {_TOO_MUCH}", name)


class _Object(list):
    """The pairs of a JSON object, in order, repeated keys and all."""


def _entries(data: bytes, faults: list[Fault]) -> tuple[Entry, ...]:
    if data.startswith(codecs.BOM_UTF8):
        message = "the JSON begins with a byte-order mark, which parsers refuse; save it without"
        faults.append(Fault("byte-order-mark", message))
    try:
        text = decode_utf8(data.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise _Stop("encoding", f"the JSON: {error}; save it as UTF-8") from error
    try:
        value = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        message = f"malformed JSON ({error}); write it with json.dump"
        raise _Stop("malformed-json", message) from error
    if not isinstance(value, _Object):
        raise _Stop("not-an-object", 'the JSON is not an object; write {"query": answer, ...}')
    return tuple(value)


# ---------------------------------------------------------------- the entries


def entry_faults(
    track: int,
    entries: Sequence[Entry],
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    classes: Mapping[str, int] | None = None,
) -> list[Fault]:
    """The faults of (key, value) pairs; arguments as for `check_submission`."""
    if not entries:
        return [Fault("empty", "there is no answer in the JSON; write one for each query")]
    faults = list(_key_faults(track, Counter(key for key, _ in entries), queries))
    names = None if gallery is None else Names(gallery)
    for key, value in entries:
        if track == 1:
            found = _class_faults(value, classes)
        else:
            found = _answer_faults(value, names, key if track == 2 else None)
        faults += [Fault(kind, f"{show(key)}: {message}", key) for kind, message in found]
    return faults


def _key_faults(track: int, keys: Counter[str], queries: Collection[str] | None) -> Iterator[Fault]:
    for key, count in keys.items():
        if count > 1:
            message = f"{show(key)} is a key {count} times; keep one"
            yield Fault("duplicate-key", message, key, count)
    unanswered = Names(query for query in queries or () if query not in keys)
    known, meant = set(queries or ()), set()
    for key in keys:
        if key in known:
            continue
        bare = key if track == 3 else bare_name(key)
        query = unanswered.nearest(bare)
        meant.add(query)
        mend = "remove it" if query is None else f"write {show(query)}"
        if not key.strip():
            yield Fault("blank-key", f"{show(key)} is a blank key; remove it", key)
        elif has_control(key):
            message = f"the key {show(key)} holds a control character; {mend}"
            yield Fault("control-character", message, key)
        elif bare != key:
            mend = f"write {show(bare)}" if queries is None else mend
            yield Fault("path-key", f"the key {show(key)} is a path; {mend}", key)
        elif query is not None:
            slug, words = difference(key, query)
            message = f"the key {show(key)} differs from the query in {words}; {mend}"
            yield Fault(f"{slug}-key", message, key)
        elif queries is not None:
            yield Fault("extra-key", f"{show(key)} is not among the queries; remove it", key)
    for query in dict.fromkeys(queries or ()):
        if query not in keys and query not in meant:
            yield Fault("missing-key", f"{show(query)} has no answer; add one", query)


def _class_faults(value: Any, classes: Mapping[str, int] | None) -> Slugged:
    ids = {fold(name): id_ for name, id_ in (classes or {}).items()}
    listed = f": {', '.join(map(str, classes.values()))}" if classes else ""
    wanted = f"write a class id, an integer{listed}"
    if isinstance(value, str):
        if value.strip().isdecimal():
            yield "numeric-string", f"the id {show(value)} stands in quotes; write {value.strip()}"
        else:
            id_ = ids.get(fold(value.strip()))
            mend = wanted if id_ is None else f"write {id_}"
            yield "class-string", f"{show(value)} stands where a class id belongs; {mend}"
    elif type(value) is not int:
        yield _wrong_type(value, wanted)
    elif classes is not None and value not in classes.values():
        yield "class-range", f"{show(value)} is not the id of a class; {wanted}"


def _answer_faults(value: Any, gallery: Names | None, query: str | None) -> Slugged:
    """`query` is given in track 2, where it is a file that may not answer itself."""
    if not isinstance(value, str):
        yield _wrong_type(value, "write one file name")
        return
    if not value.strip():
        yield "blank-answer", "the answer is blank; write a file name"
        return
    if has_control(value):
        yield "control-character", f"the answer {show(value)} holds a control character; remove it"
        return
    name = bare_name(value)
    if name != value:
        yield "path-answer", f"the answer {show(value)} is a path; write {show(name)}"
    if query is not None and _same_file(name, bare_name(query), gallery):
        yield "self-answer", f"the answer {show(name)} is the query itself; write another file"
    elif gallery is not None and name not in gallery.exact:
        file = gallery.nearest(name)
        if file is None:
            yield "unknown-answer", f"{show(name)} is not in the gallery; write one of its files"
        else:
            slug, words = difference(name, file)
            what = f"the answer {show(name)} differs from a file in {words}"
            yield f"{slug}-answer", f"{what}; write {show(file)}"


def _same_file(name: str, query: str, gallery: Names | None) -> bool:
    # Lists and disks spell names in different case, so one image can hide behind two spellings;
    # two files that differ in nothing else are told apart only by a gallery that holds both.
    both_exist = gallery is not None and name in gallery.exact and query in gallery.exact
    return name == query if both_exist else fold(name) == fold(query)


def _wrong_type(value: Any, wanted: str) -> tuple[str, str]:
    if isinstance(value, float) and not math.isfinite(value):
        return "not-finite", f"{value} is no number in JSON; {wanted}"
    kinds = {bool: "boolean", int: "number", float: "float", list: "list", _Object: "nested"}
    kind = kinds.get(type(value), "null")
    shown = f": {show(value)}" if kind in ("boolean", "number", "float") else ""
    return kind, f"the answer is of the wrong kind, {kind}{shown}; {wanted}"
