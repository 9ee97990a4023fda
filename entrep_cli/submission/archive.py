"""Reading anybody's submission file without trusting it: a zip with one JSON, or that JSON bare.

The file is read in memory, under limits, and never unpacked to disk. What is wrong with it comes
back as faults, beside as much of its entries as could be read.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A real submission (844 queries) has about 60 kB: two orders of magnitude of room, and still small
# against the memory of any machine that runs entrep.
MAX_BYTES = 16 * 2**20
MAX_MEMBERS = 100
# Commas and brackets of the JSON text, counted before it is parsed: a parsed value takes far more memory than its text.
MAX_MARKS = 500_000
# Below a mebibyte no ratio is a danger, and a small repetitive JSON may well shrink 200 times.
MAX_RATIO, RATIO_FREE_BYTES = 200, 2**20

_TOO_MUCH = f"more than {MAX_BYTES // 2**20} MiB; send the one JSON of answers only"
_PACK = "pack the .json alone: `zip -j OUT.zip FILE.json`"
_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz")
_CENTRAL_ENTRY = b"PK\x01\x02"

Entry = tuple[str, Any]


@dataclass(frozen=True)
class Fault:
    """One fault: a slug for machines, a sentence that ends with the hint, and the entry concerned.

    `entry` is a key, an archive member or None (the whole file); `count` how often it occurs.
    """

    kind: str
    message: str
    entry: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Contents:
    """What one file holds: its JSON's name and entries, None where they could not be read.

    Faults beside entries are of the packing alone: a copy with the same entries need not have them (but "several-json").
    """

    member: str | None
    entries: tuple[Entry, ...] | None
    faults: tuple[Fault, ...]


def whole(value: object) -> str:
    """`value` as one text, control characters escaped: equal for equal answers, 1 and 1.0 and True apart."""
    try:
        return repr(value)
    except RecursionError:  # what the JSON parser takes may still be too deep to be shown
        return f"<{type(value).__name__} {id(value)}>"


def show(value: object) -> str:
    """`value` for a message: quoted, control characters escaped, long ones cut."""
    text = whole(value)
    return text if len(text) <= 80 else text[:77] + "..."


def bare_name(name: str) -> str:
    """A file name without its folders, behind the last separator of either kind."""
    return re.split(r"[/\\]", name)[-1]


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
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):  # reading a named pipe would wait for ever
            raise _Stop("unreadable", f"{show(str(path))} is no file; name a .zip file")
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
        start = data[:4096].decode(json.detect_encoding(data), "ignore")
        if start.removeprefix("\ufeff").lstrip()[:1] in ("{", "["):
            faults.append(Fault("bare-json", f"the file is bare JSON; {_PACK}"))
            return None, data
        raise _Stop("not-a-zip", f"the file is {'no zip archive' if data else 'empty'}; {_PACK}")
    # Before the table of members is read, for its count may be false: no member is without this mark.
    if data.count(_CENTRAL_ENTRY) > MAX_MEMBERS:
        raise _Stop("too-many-members", f"the archive has more than {MAX_MEMBERS} members; {_PACK}")
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
    root, nested = [], []
    for member in members:
        name = member.filename
        bare, is_json = bare_name(name), name.lower().endswith(".json")
        if "__MACOSX" in name or bare.startswith("._") or bare == ".DS_Store":
            faults.append(Fault("macos-junk", f"{show(name)} is macOS junk; {_PACK}", name))
        elif bare != name:
            faults.append(Fault("sub-folder", f"{show(name)} is or has a folder; {_PACK}", name))
            nested += [member] if is_json else []
        elif is_json:
            root.append(member)
            if not name.endswith(".json"):
                faults.append(Fault("member-name", f"{show(name)} does not end in .json; call it {show(name[:-5] + '.json')}", name))
        elif name.lower().endswith(_ARCHIVES):
            faults.append(Fault("nested-archive", f"{show(name)} is an archive in the archive, which is not opened; {_PACK}", name))
        else:
            faults.append(Fault("extra-member", f"{show(name)} is no .json; {_PACK}", name))
    candidates = root or nested
    if not candidates:
        raise _Stop("no-json", f"the archive holds no .json; {_PACK}")
    names = ", ".join(show(member.filename) for member in root + nested)
    if len(candidates) > 1:
        raise _Stop("several-json", f"the archive holds {names}; keep one")
    if len(root + nested) > 1:
        faults.append(Fault("several-json", f"the archive holds {names}; keep one"))
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


class Pairs(list):
    """The pairs of a JSON object, in order, repeated keys and all."""


def _entries(data: bytes, faults: list[Fault]) -> tuple[Entry, ...]:
    text = _text(data, faults)
    if sum(map(text.count, ",[{")) > MAX_MARKS:
        raise _Stop("too-many-values", f"the JSON holds more than {MAX_MARKS} values; write one answer for each query")
    try:
        value = json.loads(text, object_pairs_hook=Pairs)
    except (ValueError, RecursionError) as error:
        message = f"malformed JSON ({error}); write it with json.dump"
        raise _Stop("malformed-json", message) from error
    if not isinstance(value, Pairs):
        what = f"a list of {len(value)}" if isinstance(value, list) else "a single value"
        raise _Stop("not-an-object", f'the JSON is {what}, not an object; write {{"query": answer, ...}}')
    # `{"predictions": {...}}`: one entry that holds several is a wrapping, for no answer is an object.
    if len(value) == 1 and isinstance(value[0][1], Pairs) and len(value[0][1]) > 1:
        ((key, value),) = value
        faults.append(Fault("wrapped", f"all answers stand inside of {show(key)}; write them without it", key))
    return tuple(value)


def _text(data: bytes, faults: list[Fault]) -> str:
    """The text of the JSON: UTF-8, else what its first bytes say for certain."""
    if data.startswith(codecs.BOM_UTF8):
        message = "the JSON begins with a byte-order mark, which parsers refuse; save it without"
        faults.append(Fault("byte-order-mark", message))
    encoding = json.detect_encoding(data)
    if encoding.startswith("utf-8"):
        try:
            return decode_utf8(data.removeprefix(codecs.BOM_UTF8))
        except ValueError as error:
            raise _Stop("encoding", f"the JSON: {error}; save it as UTF-8") from error
    name = encoding[:6].upper()
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _Stop("encoding", f"the JSON is not UTF-8 and no whole {name}; save it as UTF-8") from error
    faults.append(Fault("encoding", f"the JSON is {name}, not UTF-8; save it as UTF-8"))
    return text
