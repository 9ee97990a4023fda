"""A corrected copy of a submission, where every mend is certain.

    mending = mend_submission("theirs.zip", 1, queries=queries, classes={"nose-right": 0, ...})
    if mending.certain:
        write_mended(mending, Path("theirs-fixed.zip"))

Certain is what leaves no doubt which answer is meant: how it is packed and encoded, paths, case, blanks
and extensions of names that can mean one file alone, keys that nobody asked for, numbers in other
forms, names of classes, lists of one. What is missing, unknown or contradicts itself is not guessed,
and then there is no copy at all: half mended, it would be taken for whole.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrep_cli.errors import DataError, UsageError
from entrep_cli.submission.archive import Entry, Fault, bare_name, read_contents, whole
from entrep_cli.submission.checks import Names, class_named, entry_faults, integral, is_single, same_file
from entrep_cli.submission.tracks import packed_answers, track_of
from entrep_cli.workspace import write_bytes_atomic

# Faults of the packing that a new zip does not mend, for it is not known which JSON is meant.
_DOUBTS = frozenset({"several-json"})


@dataclass(frozen=True)
class Mending:
    """What can be mended in one submission.

    Attributes:
        source: the file.
        member: how the JSON in the copy is called.
        answers: with every certain mend, of the copy or, where something stands in doubt, as far as they could be read.
        mended: the faults that the copy has not.
        left: the faults whose mend is not certain.
        content: the zip of the copy, checked; None where something stands in doubt.
    """

    source: Path
    track: int
    member: str
    answers: dict[str, Any]
    mended: tuple[Fault, ...]
    left: tuple[Fault, ...]
    content: bytes | None = None

    @property
    def certain(self) -> bool:
        """Whether there is something to mend, and every mend is certain."""
        return self.content is not None and bool(self.mended)


def mend_submission(
    path: str | Path,
    track: int,
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    classes: Mapping[str, int] | None = None,
) -> Mending:
    """Mend the file at `path` in memory; arguments as for `check_submission`, and nothing is written.

    What the lists would tell is mended only where they are given: without queries no key is dropped
    and no case restored.
    """
    path, known = Path(path), {"queries": queries, "gallery": gallery, "classes": classes}
    contents = read_contents(path)
    member = track_of(track).member
    if contents.entries is None:
        return Mending(path, track, member, {}, (), contents.faults)
    renamed, entries = mend_entries(track, contents.entries, **known)
    before = entry_faults(track, contents.entries, **known)
    doubts = [fault for fault in contents.faults if fault.kind in _DOUBTS]
    left = tuple(doubts + entry_faults(track, entries, **known))
    # A key that contradicts another by its path or case stays as it is, and so does its fault.
    still = {(fault.kind, fault.entry) for fault in left}
    mended = [f for f in (*contents.faults, *before) if (f.kind, renamed.get(f.entry, f.entry) if f.entry else None) not in still]
    mended = [fault for fault in mended if fault not in doubts]
    answers = dict(entries)
    if left:
        return Mending(path, track, member, answers, tuple(mended), left)
    name = bare_name(contents.member or "")
    if name.lower().endswith(".json") and name[:-5] and name.isprintable():
        member = name[:-5] + ".json"
    content = packed_answers(member, answers)
    again = read_contents(content)
    faults = again.faults or entry_faults(track, again.entries or (), **known)
    assert not faults and dict(again.entries or ()) == answers, faults
    return Mending(path, track, member, answers, tuple(mended), (), content)


def write_mended(mending: Mending, out: Path) -> None:
    """Write the copy to `out`.

    Raises:
        UsageError: as `check_out`, or `out` is there already and holds something else.
        DataError: there is no copy, for something stands in doubt.
    """
    check_out(out, mending.source)
    if mending.content is None:
        raise DataError("The submission cannot be mended for certain.", where=mending.source, faults=[f.message for f in mending.left])
    if out.exists() and (not out.is_file() or out.stat().st_size != len(mending.content) or out.read_bytes() != mending.content):
        raise UsageError("There is such a file already, and it holds something else.", where=out, mend="name another file with --out")
    write_bytes_atomic(out, mending.content)


def check_out(out: Path, source: Path) -> None:
    """UsageError where `out` is no .zip or is the submission itself, under whatever name."""
    if out.suffix.lower() != ".zip":
        raise UsageError("A submission is a zip.", where=out, mend="let the name of --out end in .zip")
    if out.exists() and source.exists() and os.path.samefile(out, source):
        raise UsageError("The submission itself is never overwritten.", where=out, mend="name another file with --out")


def mend_entries(
    track: int,
    entries: Sequence[Entry],
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    classes: Mapping[str, int] | None = None,
) -> tuple[dict[str, str], list[Entry]]:
    """(key, value) pairs with every certain mend, and each key's new form.

    Pairs of one query are one pair where they agree; where they contradict each other all stay as they
    are, for `entry_faults` to tell.
    """
    names = None if gallery is None else Names(gallery)
    asked = None if queries is None else Names(queries)
    renamed = {key: _mended_key(track, key, asked) for key, _ in entries}
    mended = [
        (key, mended_class(value, classes) if track == 1 else mended_answer(value, names, renamed[key] if track == 2 else None))
        for key, value in entries
    ]
    # Entries that nobody asked for are dropped; those of one query belong together.
    groups: dict[str, list[Entry]] = {}
    for key, value in mended:
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


def _mended_key(track: int, key: str, queries: Names | None) -> str:
    """The query that a key means; the key itself where there is none or several could be meant."""
    if queries is not None and key in queries.exact:
        return key
    bare = key if track == 3 else bare_name(key)
    if queries is None:
        return bare or key
    return queries.meant(bare) or key


def mended_class(value: Any, classes: Mapping[str, int] | None) -> Any:
    """The class id that a value certainly means; else the value itself."""
    if is_single(value):
        (inner,) = value
        mended = mended_class(inner, classes)
        return mended if type(mended) is int else value
    id_ = integral(value)
    if id_ is None and isinstance(value, str):
        id_ = class_named(value, classes)
    return value if id_ is None else id_


def mended_answer(value: Any, gallery: Names | None, query: str | None) -> Any:
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
