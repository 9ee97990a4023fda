"""What is wrong with a submission, before it is sent: every fault at once, each with its hint.

    report = check_submission("track1.zip", 1, queries=queries, classes={"nose-right": 0, ...})
    print("\\n".join(report.lines()))

The file is read by `archive`. Messages hold user strings through `repr`, so that no control
character reaches a terminal; what looks like rich markup or HTML stands in them as it is and is for
the caller to escape.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from entrep_cli.data.texts import casefold, has_control
from entrep_cli.data.tracks import track_of
from entrep_cli.submission.archive import Entry, Fault, Pairs, bare_name, read_contents, show, whole

Slugged = tuple[str, str]  # the kind of a fault and its message
# What may stand in quotes where a number belongs: an integer, as a table of floats may write it too.
_NUMERIC = re.compile(r"\s*([+-]?\d{1,9})(?:\.0*)?\s*")


@dataclass(frozen=True)
class Expected:
    """What a submission is checked against; what is None is not checked.

    Attributes:
        queries: verbatim. gallery: the file names that may be answered (tracks 2 and 3).
        classes: class name to id (track 1).
    """

    queries: Collection[str] | None = None
    gallery: Collection[str] | None = None
    classes: Mapping[str, int] | None = None

    @cached_property
    def files(self) -> Names | None:
        """The gallery as `Names`."""
        return None if self.gallery is None else Names(self.gallery)


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
        return {**asdict(self), "ok": self.ok, "counts": self.counts(), "faults": plain_faults(self.faults)}


def plain_faults(faults: Iterable[Fault]) -> list[dict[str, Any]]:
    """Faults in plain JSON types, safe to encode as UTF-8; `kind` is the code."""
    listed = [asdict(fault) for fault in faults]
    for fault in listed:
        # A JSON may spell half a surrogate pair, which no UTF-8 text can hold.
        entry = fault["entry"]
        fault["entry"] = entry and entry.encode(errors="backslashreplace").decode()
    return listed


def check_submission(
    path: str | Path,
    track: int,
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    classes: Mapping[str, int] | None = None,
) -> Report:
    """Check the file at `path` against the contest's rules for track 1, 2 or 3.

    Lists as in `Expected`; what is not given is not checked, and the report says so. Everything wrong
    with the file is in the report; another track is a UsageError. Rules: challenge.md, Submission.
    """
    track_of(track)
    contents, expected = read_contents(path), Expected(queries, gallery, classes)
    if contents.entries is None:
        return Report(str(path), track, None, contents.faults, ("the entries, since they could not be read",))
    faults = (*contents.faults, *entry_faults(track, contents.entries, expected))
    needs = [(queries, "whether each query has an answer under its exact key (no list of queries)")]
    if track == 1:
        needs.append((classes, "whether the ids are those of classes (no table of classes)"))
    else:
        needs.append((gallery, "whether the answers are in the gallery (no list of its files)"))
    return Report(str(path), track, len(contents.entries), faults, tuple(what for given, what in needs if given is None))


# ---------------------------------------------------------------- texts

# Those of `data.images.SUFFIXES`, which would import numpy and Pillow.
_SUFFIX = re.compile(r"\.(png|jpe?g|bmp|tiff?|webp)\Z")


def _loose(text: str) -> str:
    # Zero-width characters go too: a byte-order mark read as text sticks to the first query.
    return " ".join("".join(c for c in casefold(text) if c.isprintable() or c.isspace()).split())


def _stem(text: str) -> str:
    return _SUFFIX.sub("", _loose(text)).rstrip()


_FORMS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("unicode", "unicode normal form", partial(unicodedata.normalize, "NFC")),
    ("case", "case", casefold),
    ("spacing", "blanks or invisible characters", _loose),
    ("suffix", "the file extension", _stem),
)


def difference(name: str, other: str) -> tuple[str, str]:
    """In what two names that mean the same differ: a slug and its words."""
    return next((slug, words) for slug, words, form in _FORMS if form(name) == form(other))


class Names:
    """A set of names, looked up by names that may be spelt otherwise."""

    def __init__(self, names: Iterable[str]) -> None:
        self.exact = frozenset(names)
        self._alike: dict[str, list[str]] = {}
        for name in sorted(self.exact):
            self._alike.setdefault(_stem(name), []).append(name)

    def alike(self, name: str) -> list[str]:
        """The name itself, else those that are `name` but for unicode form, else but for case, blanks, the extension."""
        if name in self.exact:
            return [name]
        alike = self._alike.get(_stem(name), ())
        by_form = ([other for other in alike if form(other) == form(name)] for _, _, form in _FORMS)
        return next(filter(None, by_form), [])

    def nearest(self, name: str) -> str | None:
        """The first of those alike."""
        return next(iter(self.alike(name)), None)

    def meant(self, name: str) -> str | None:
        """The only one alike; None where that is in doubt."""
        alike = self.alike(name)
        return alike[0] if len(alike) == 1 else None


# ---------------------------------------------------------------- the entries


def entry_faults(track: int, entries: Sequence[Entry], expected: Expected = Expected()) -> list[Fault]:
    """The faults of (key, value) pairs."""
    if not entries:
        return [Fault("empty", "the JSON holds no answer; write one for each query")]
    faults = list(_key_faults(track, entries, expected.queries))
    for key, value in entries:
        faults += [Fault(kind, f"{show(key)}: {message}", key) for kind, message in read_answer(track, key, value, expected)[1]]
    return faults


def _key_faults(track: int, entries: Sequence[Entry], queries: Collection[str] | None) -> Iterator[Fault]:
    answers: dict[str, list[Any]] = {}
    for key, value in entries:
        answers.setdefault(key, []).append(value)
    for key, values in answers.items():
        if len(values) > 1:
            different = {whole(value): show(value) for value in values}
            if len(different) == 1:
                yield Fault("duplicate-key", f"{show(key)} is a key {len(values)} times; keep one", key, len(values))
            else:
                listed = ", ".join(list(different.values())[:5]) + ", ..." * (len(different) > 5)
                message = f"{show(key)} is a key {len(values)} times with different answers, {listed}; keep the right one"
                yield Fault("contradicting-key", message, key, len(values))
    known = set(queries or ())
    unanswered, answered = Names(known.difference(answers)), Names(known.intersection(answers))
    meant: dict[str, list[str]] = {}
    for key in answers:
        if key in known:
            continue
        bare = key if track == 3 else bare_name(key)
        query = unanswered.nearest(bare)
        if query is not None or queries is None and bare != key:
            meant.setdefault(bare if query is None else query, []).append(key)
        hint = "remove it" if query is None else f"write {show(query)}"
        other = answered.nearest(bare) if query is None else None
        if other is not None:
            hint = f"{show(other)} has an answer already; remove it"
        if not key.strip():
            yield Fault("blank-key", f"{show(key)} is a blank key; remove it", key)
        elif has_control(key):
            message = f"the key {show(key)} holds a control character; {hint}"
            yield Fault("control-character", message, key)
        elif bare != key:
            hint = f"write {show(bare)}" if queries is None else hint
            yield Fault("path-key", f"the key {show(key)} is a path; {hint}", key)
        elif query is not None:
            slug, words = difference(key, query)
            message = f"the key {show(key)} differs from the query in {words}; {hint}"
            yield Fault(f"{slug}-key", message, key)
        elif queries is not None:
            yield Fault("extra-key", f"{show(key)} is not among the queries; {hint}", key)
    for query, keys in meant.items():
        if len(keys) > 1 or queries is None and query in answers:
            keys = ([query] if query in answers else []) + keys
            yield Fault("same-query", f"{', '.join(map(show, keys[:5]))} all mean {show(query)}; keep one", query, len(keys))
    for query in dict.fromkeys(queries or ()):
        if query not in answers and query not in meant:
            yield Fault("missing-key", f"{show(query)} has no answer; add one", query)


def integral(value: Any) -> int | None:
    """The integer that a float or a text certainly is: 4.0, "4" and "4.0" are 4; None for all others."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    number = _NUMERIC.fullmatch(value) if isinstance(value, str) else None
    return int(number[1]) if number else None


def class_named(name: str, classes: Mapping[str, int] | None) -> int | None:
    """The id of a class by its name, without regard to case; None where it is none or several could be meant."""
    wanted = casefold(name.strip())
    ids = {id_ for class_name, id_ in (classes or {}).items() if casefold(class_name) == wanted}
    return ids.pop() if len(ids) == 1 else None


def read_answer(track: int, query: str, value: Any, expected: Expected) -> tuple[Any, list[Slugged]]:
    """The answer that a value certainly means, else the value itself; and what is wrong with it as it stands."""
    if track == 1:
        return _read_class(value, expected.classes)
    return _read_file(value, expected.files, query if track == 2 else None)


def _read_class(value: Any, classes: Mapping[str, int] | None) -> tuple[Any, list[Slugged]]:
    if is_single(value):
        meant, faults = _read_class(value[0], classes)
        alone = ("list", f"the answer is a list of one; write {show(value[0])} alone")
        return (meant if type(meant) is int else value), [alone, *faults]
    listed = f": {', '.join(map(str, classes.values()))}" if classes else ""
    wanted = f"write a class id, an integer{listed}"
    id_ = value if type(value) is int else integral(value)
    if id_ is not None:
        faults = []
        if isinstance(value, str):
            faults.append(("numeric-string", f"the id {show(value)} stands in quotes; write {id_}"))
        elif isinstance(value, float):
            faults.append(("float", f"the id {value} is a float; write {id_}"))
        if classes is not None and id_ not in classes.values():
            faults.append(("class-range", f"{show(id_)} is not the id of a class; {wanted}"))
        return id_, faults
    if not isinstance(value, str):
        return value, [_wrong_type(value, wanted)]
    id_ = class_named(value, classes)
    hint = wanted if id_ is None else f"write {id_}"
    return value if id_ is None else id_, [("class-string", f"{show(value)} stands where a class id belongs; {hint}")]


def _read_file(value: Any, gallery: Names | None, query: str | None) -> tuple[Any, list[Slugged]]:
    """`query` is given in track 2, where it is a file that may not answer itself."""
    answer = value[0] if is_single(value) else value
    faults = [("list", f"the answer is a list of one; write {show(answer)} alone")] if answer is not value else []
    if not isinstance(answer, str):
        return value, [*faults, _wrong_type(answer, "write one file name")]
    name = bare_name(answer)
    certain = name if gallery is None else gallery.meant(name)
    # A list of one is unpacked even where its file is at fault: that fault then stands alone.
    meant = answer if not certain or query is not None and same_file(certain, query, gallery) else certain
    if not answer.strip():
        return meant, [*faults, ("blank-answer", "the answer is blank; write a file name")]
    file = None if gallery is None else gallery.nearest(name)
    control = has_control(answer)
    if control:
        hint = "remove it" if file is None else f"write {show(file)}"
        faults.append(("control-character", f"the answer {show(answer)} holds a control character; {hint}"))
        name = file or name
    elif name != answer:
        faults.append(("path-answer", f"the answer {show(answer)} is a path; write {show(name)}"))
    if query is not None and any(same_file(n, bare_name(query), gallery) for n in (name, file) if n is not None):
        faults.append(("self-answer", f"the answer {show(name)} is the query itself; write another file"))
    elif gallery is not None and name not in gallery.exact and not has_control(name):
        if file is None:
            faults.append(("unknown-answer", f"{show(name)} is not in the gallery; write one of its files"))
        else:
            slug, words = difference(name, file)
            faults.append((f"{slug}-answer", f"the answer {show(name)} differs from a file in {words}; write {show(file)}"))
    return meant, faults


def is_single(value: Any) -> bool:
    """Whether a list holds one plain value, which is then what was meant."""
    return type(value) is list and len(value) == 1 and not isinstance(value[0], list)


def same_file(name: str, query: str, gallery: Names | None) -> bool:
    """Whether an answer is the image of the query.

    Lists and disks spell names in different case, so one image can hide behind two spellings; two
    files that differ in nothing else are two only in a gallery that holds both.
    """
    both_exist = gallery is not None and name in gallery.exact and query in gallery.exact
    return name == query if both_exist else casefold(name) == casefold(query)


def _wrong_type(value: Any, wanted: str) -> Slugged:
    if isinstance(value, float) and not math.isfinite(value):
        return "not-finite", f"{value} is no number in JSON; {wanted}"
    kinds = {bool: "boolean", int: "number", float: "float", list: "list", Pairs: "nested"}
    kind = kinds.get(type(value), "null")
    if kind == "list":
        return kind, f"the answer is a list of {len(value)}; {wanted}"
    shown = f": {show(value)}" if kind in ("boolean", "number", "float") else ""
    return kind, f"the answer is of the wrong kind, {kind}{shown}; {wanted}"
