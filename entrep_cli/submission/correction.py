"""A corrected copy of a submission, where every hint is certain.

    correction = correct_submission("theirs.zip", 1, queries=queries, classes={"nose-right": 0, ...})
    if correction.certain:
        write_corrected(correction, Path("theirs-fixed.zip"))

Certain is what leaves no doubt which answer is meant: how it is packed and encoded, paths, case, blanks
and extensions of names that can mean one file alone, keys that nobody asked for, numbers in other
forms, names of classes, lists of one. What is missing, unknown or contradicts itself is not guessed,
and then there is no copy at all: half corrected, it would be taken for whole.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrep_cli.data.tracks import track_of
from entrep_cli.errors import DataError, UsageError
from entrep_cli.submission.archive import Entry, Fault, bare_name, read_contents, whole
from entrep_cli.submission.checks import Names, class_named, entry_faults, integral, is_single, same_file
from entrep_cli.submission.tracks import packed_answers
from entrep_cli.workspace import write_bytes_atomic

# Faults of the packing that a new zip does not hint, for it is not known which JSON is meant.
_DOUBTS = frozenset({"several-json"})


@dataclass(frozen=True)
class Correction:
    """What can be corrected in one submission.

    Attributes:
        source: the file.
        member: how the JSON in the copy is called.
        answers: with every certain hint, of the copy or, where something stands in doubt, as far as they could be read.
        corrected: the faults that the copy has not.
        left: the faults whose hint is not certain.
        content: the zip of the copy, checked; None where something stands in doubt.
    """

    source: Path
    track: int
    member: str
    answers: dict[str, Any]
    corrected: tuple[Fault, ...]
    left: tuple[Fault, ...]
    content: bytes | None = None

    @property
    def certain(self) -> bool:
        """Whether there is something to hint, and every hint is certain."""
        return self.content is not None and bool(self.corrected)


def correct_submission(
    path: str | Path,
    track: int,
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    classes: Mapping[str, int] | None = None,
) -> Correction:
    """Hint the file at `path` in memory; arguments as for `check_submission`, and nothing is written.

    What the lists would tell is corrected only where they are given: without queries no key is dropped
    and no case restored.
    """
    path, known = Path(path), {"queries": queries, "gallery": gallery, "classes": classes}
    contents = read_contents(path)
    member = track_of(track).member
    if contents.entries is None:
        return Correction(path, track, member, {}, (), contents.faults)
    renamed, entries = correct_entries(track, contents.entries, **known)
    before = entry_faults(track, contents.entries, **known)
    doubts = [fault for fault in contents.faults if fault.kind in _DOUBTS]
    left = tuple(doubts + entry_faults(track, entries, **known))
    # A key that contradicts another by its path or case stays as it is, and so does its fault.
    still = {(fault.kind, fault.entry) for fault in left}
    corrected = [f for f in (*contents.faults, *before) if (f.kind, renamed.get(f.entry, f.entry) if f.entry else None) not in still]
    corrected = [fault for fault in corrected if fault not in doubts]
    answers = dict(entries)
    if left:
        return Correction(path, track, member, answers, tuple(corrected), left)
    name = bare_name(contents.member or "")
    if name.lower().endswith(".json") and name[:-5] and name.isprintable():
        member = name[:-5] + ".json"
    content = packed_answers(member, answers)
    again = read_contents(content)
    faults = again.faults or entry_faults(track, again.entries or (), **known)
    assert not faults and dict(again.entries or ()) == answers, faults
    return Correction(path, track, member, answers, tuple(corrected), (), content)


def write_corrected(correction: Correction, out: Path) -> None:
    """Write the copy to `out`.

    Raises:
        UsageError: as `check_out`, or `out` is there already and holds something else.
        DataError: there is no copy, for something stands in doubt.
    """
    check_out(out, correction.source)
    if correction.content is None:
        raise DataError(
            "The submission cannot be corrected for certain.", where=correction.source, faults=[f.message for f in correction.left]
        )
    if out.exists() and (not out.is_file() or out.stat().st_size != len(correction.content) or out.read_bytes() != correction.content):
        raise UsageError("There is such a file already, and it holds something else.", where=out, hint="name another file with --out")
    write_bytes_atomic(out, correction.content)


def check_out(out: Path, source: Path) -> None:
    """UsageError where `out` is no .zip or is the submission itself, under whatever name."""
    if out.suffix.lower() != ".zip":
        raise UsageError("A submission is a zip.", where=out, hint="let the name of --out end in .zip")
    if out.exists() and source.exists() and os.path.samefile(out, source):
        raise UsageError("The submission itself is never overwritten.", where=out, hint="name another file with --out")


def correct_entries(
    track: int,
    entries: Sequence[Entry],
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    classes: Mapping[str, int] | None = None,
) -> tuple[dict[str, str], list[Entry]]:
    """(key, value) pairs with every certain hint, and each key's new form.

    Pairs of one query are one pair where they agree; where they contradict each other all stay as they
    are, for `entry_faults` to tell.
    """
    names = None if gallery is None else Names(gallery)
    asked = None if queries is None else Names(queries)
    renamed = {key: _corrected_key(track, key, asked) for key, _ in entries}
    corrected = [
        (key, corrected_class(value, classes) if track == 1 else corrected_answer(value, names, renamed[key] if track == 2 else None))
        for key, value in entries
    ]
    # Entries that nobody asked for are dropped; those of one query belong together.
    groups: dict[str, list[Entry]] = {}
    for key, value in corrected:
        if asked is None or renamed[key] in asked.exact:
            groups.setdefault(renamed[key], []).append((key, value))
    kept: list[Entry] = []
    for query, pairs in groups.items():
        if len({whole(value) for _, value in pairs}) == 1:
            kept.append((query, pairs[0][1]))
        else:
            kept += pairs
            renamed.update((key, key) for key, _ in pairs)
    return renamed, kept


def _corrected_key(track: int, key: str, queries: Names | None) -> str:
    """The query that a key means; the key itself where there is none or several could be meant."""
    if queries is not None and key in queries.exact:
        return key
    bare = key if track == 3 else bare_name(key)
    if queries is None:
        return bare or key
    return queries.meant(bare) or key


def corrected_class(value: Any, classes: Mapping[str, int] | None) -> Any:
    """The class id that a value certainly means; else the value itself."""
    if is_single(value):
        (inner,) = value
        corrected = corrected_class(inner, classes)
        return corrected if type(corrected) is int else value
    id_ = integral(value)
    if id_ is None and isinstance(value, str):
        id_ = class_named(value, classes)
    return value if id_ is None else id_


def corrected_answer(value: Any, gallery: Names | None, query: str | None) -> Any:
    """The file that a value certainly means; else the value itself. `query` may not be answered by itself."""
    inner = value[0] if is_single(value) else value
    if not isinstance(inner, str):
        return value
    name = bare_name(inner)
    file = name if gallery is None else gallery.meant(name)
    # A list of one is unpacked also where its file stays at fault: that fault then stands alone.
    if not file or query is not None and same_file(file, query, gallery):
        return inner
    return file
