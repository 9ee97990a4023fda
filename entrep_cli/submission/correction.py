"""A corrected copy of a submission, where every correction is certain.

    correction = correct_submission("theirs.zip", 1, queries=queries, classes={"nose-right": 0, ...})
    if correction.certain:
        write_corrected(correction, Path("theirs-fixed.zip"))

Certain is what leaves no doubt which answer is meant: how it is packed and encoded, paths, case, blanks
and extensions of names that can mean one file alone, keys that nobody asked for, numbers in other
forms, names of classes, lists of one. What is missing, unknown or contradicts itself is not guessed,
and then no copy is made at all: half corrected, it would be taken for whole.
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
from entrep_cli.submission.checks import Expected, Names, entry_faults, read_answer
from entrep_cli.submission.tracks import packed_answers
from entrep_cli.workspace import write_bytes_atomic

# Faults of the packing that a new zip does not correct, for it is not known which JSON is meant.
_DOUBTS = frozenset({"several-json"})


@dataclass(frozen=True)
class Correction:
    """What can be corrected in one submission.

    Attributes:
        source: the file.
        member: how the JSON in the copy is called.
        answers: with every certain correction: those of the copy or, in doubt, as far as they could be read.
        corrected: the faults that the copy has not.
        left: the faults that have no certain correction.
        content: the zip of the copy, checked; None where anything is in doubt.
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
        """Whether anything is to be corrected, and every correction is certain."""
        return self.content is not None and bool(self.corrected)


def correct_submission(
    path: str | Path,
    track: int,
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    classes: Mapping[str, int] | None = None,
) -> Correction:
    """Correct the file at `path` in memory; arguments as for `check_submission`, and nothing is written.

    What a list decides is corrected only where the list is given: without queries no key is dropped
    and no case restored.
    """
    path, expected = Path(path), Expected(queries, gallery, classes)
    contents, member = read_contents(path), track_of(track).member
    if contents.entries is None:
        return Correction(path, track, member, {}, (), contents.faults)
    renamed, entries = correct_entries(track, contents.entries, expected)
    doubts = [fault for fault in contents.faults if fault.kind in _DOUBTS]
    left = (*doubts, *entry_faults(track, entries, expected))
    # A key that contradicts another by its path or case stays as it is, and so does its fault.
    still = {(fault.kind, fault.entry) for fault in left}
    faults = [fault for fault in (*contents.faults, *entry_faults(track, contents.entries, expected)) if fault not in doubts]
    corrected = tuple(f for f in faults if (f.kind, renamed.get(f.entry, f.entry) if f.entry else None) not in still)
    answers = dict(entries)
    if left:
        return Correction(path, track, member, answers, corrected, left)
    name = bare_name(contents.member or "")
    if name.lower().endswith(".json") and name[:-5] and name.isprintable():
        member = name[:-5] + ".json"
    content = packed_answers(member, answers)
    again = read_contents(content)
    wrong = again.faults or entry_faults(track, again.entries or (), expected)
    assert not wrong and dict(again.entries or ()) == answers, wrong
    return Correction(path, track, member, answers, corrected, (), content)


def write_corrected(correction: Correction, out: Path) -> None:
    """Write the copy to `out`.

    Raises:
        UsageError: as `check_out`, or `out` exists and holds something else.
        DataError: no copy could be made, since something is in doubt.
    """
    check_out(out, correction.source)
    if correction.content is None:
        raise DataError(
            "The submission cannot be corrected for certain.", where=correction.source, faults=[f.message for f in correction.left]
        )
    if out.exists() and (not out.is_file() or out.stat().st_size != len(correction.content) or out.read_bytes() != correction.content):
        raise UsageError("The file exists already, and holds something else.", where=out, hint="name another file with --out")
    write_bytes_atomic(out, correction.content)


def check_out(out: Path, source: Path) -> None:
    """UsageError where `out` is no .zip or is the submission itself, under whatever name."""
    if out.suffix.lower() != ".zip":
        raise UsageError("A submission is a zip.", where=out, hint="let the name of --out end in .zip")
    if out.exists() and source.exists() and os.path.samefile(out, source):
        raise UsageError("The submission itself is never overwritten.", where=out, hint="name another file with --out")


def correct_entries(track: int, entries: Sequence[Entry], expected: Expected) -> tuple[dict[str, str], list[Entry]]:
    """Each key's corrected form, and the (key, value) pairs with every certain correction.

    Pairs of one query are one pair where they agree; where they contradict each other all stay as they
    are, for `entry_faults` to report.
    """
    asked = None if expected.queries is None else Names(expected.queries)
    renamed = {key: _corrected_key(track, key, asked) for key, _ in entries}
    # Entries that nobody asked for are dropped; those of one query belong together.
    groups: dict[str, list[Entry]] = {}
    for key, value in entries:
        if asked is None or renamed[key] in asked.exact:
            meant, _ = read_answer(track, renamed[key], value, expected)
            groups.setdefault(renamed[key], []).append((key, meant))
    pairs: list[Entry] = []
    for query, same in groups.items():
        if len({whole(value) for _, value in same}) == 1:
            pairs.append((query, same[0][1]))
        else:
            pairs += same
            renamed.update((key, key) for key, _ in same)
    return renamed, pairs


def _corrected_key(track: int, key: str, queries: Names | None) -> str:
    """The query that a key means; the key itself where it is none, or could be several."""
    if queries is not None and key in queries.exact:
        return key
    bare = key if track == 3 else bare_name(key)
    if queries is None:
        return bare or key
    return queries.meant(bare) or key
