"""What is wrong with a submission, before it is sent: every fault at once, each with its mend.

    report = check_submission("track1.zip", 1, queries=queries, classes={"nose-right": 0, ...})
    print("\\n".join(report.lines()))

The file is read by `archive`. Messages hold user strings through `repr`, so that no control
character reaches a terminal; what looks like rich markup or HTML stands in them as it is and is for
the caller to escape.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from entrep_cli.data.texts import fold, has_control
from entrep_cli.errors import UsageError
from entrep_cli.submission.archive import Entry, Fault, Pairs, bare_name, read_contents, show

Slugged = Iterator[tuple[str, str]]


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
    kinds = {bool: "boolean", int: "number", float: "float", list: "list", Pairs: "nested"}
    kind = kinds.get(type(value), "null")
    shown = f": {show(value)}" if kind in ("boolean", "number", "float") else ""
    return kind, f"the answer is of the wrong kind, {kind}{shown}; {wanted}"
