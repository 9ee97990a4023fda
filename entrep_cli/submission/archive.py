"""Reading anybody's submission file without trusting it: a zip with one JSON, or that JSON bare.

The file is read in memory, under limits, and never unpacked to disk. What is wrong with it comes
back as faults, beside as much of its entries as could be read.
"""

from __future__ import annotations

import codecs
import io
import json
import re
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
# Below a mebibyte no ratio is a danger, and a small repetitive JSON may well shrink 200 times.
MAX_RATIO, RATIO_FREE_BYTES = 200, 2**20

_TOO_MUCH = f"more than {MAX_BYTES // 2**20} MiB; send the one JSON of answers only"
_PACK = "pack the .json alone: `zip -j OUT.zip FILE.json`"

Entry = tuple[str, Any]


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


def show(value: object) -> str:
    """`value` for a message: quoted, control characters escaped, long ones cut."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def bare_name(name: str) -> str:
    """The part of a file name behind the last separator, of either kind."""
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


class Pairs(list):
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
        value = json.loads(text, object_pairs_hook=Pairs)
    except (ValueError, RecursionError) as error:
        message = f"malformed JSON ({error}); write it with json.dump"
        raise _Stop("malformed-json", message) from error
    if not isinstance(value, Pairs):
        raise _Stop("not-an-object", 'the JSON is not an object; write {"query": answer, ...}')
    return tuple(value)
