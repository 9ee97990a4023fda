"""The three tracks' files: queries in, submission and ranked list out.

    queries = read_queries("data/i2i.csv", 2, known_names=names_in_the_folder, warn=print)
    write_submission("runs/m/submissions/track2.zip", 2, {query: answer}, ranked)

The contest's query files have one column and no header; a submission is one zip with one flat JSON
at its root (challenge.md, Test inputs and Submission).
"""

from __future__ import annotations

import codecs
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from entrep_cli.data.texts import Lookup, casefold, has_control
from entrep_cli.data.tracks import track_of
from entrep_cli.errors import DataError, UsageError
from entrep_cli.submission.archive import bare_name, decode_utf8, read_contents, show
from entrep_cli.submission.checks import entry_faults
from entrep_cli.workspace import csv_text, write_bytes_atomic

Answer = int | str


def answer_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of images by the names that answers have for them, where a catalog has paths; without names of several classes.

    >>> answer_labels({"polyp/a.png": "polyp", "polyp/b.png": "polyp", "ulcer/b.png": "ulcer", "c.png": ""})
    {'a.png': 'polyp'}
    """
    classes: dict[str, set[str]] = {}
    for image, label in labels.items():
        if label:
            classes.setdefault(bare_name(image), set()).add(label)
    return {name: label for name, (label, *others) in classes.items() if not others}


@dataclass(frozen=True)
class Submission:
    """Somebody's answers: query to class id, class name or file name, in the order of the file."""

    path: Path
    member: str | None
    answers: dict[str, Answer]


# ---------------------------------------------------------------- queries

_HEADERS = frozenset(
    "image images img file files filename filenames file_name path image_path text texts query"
    " queries id name label class caption description answer".split()
)
_FILE_NAME = re.compile(r".+\.[A-Za-z0-9]{2,5}")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def read_queries(
    path: str | Path, track: int, *, known_names: Collection[str] | None = None, warn: Callable[[str], None] | None = None
) -> list[str]:
    """The queries of one track, verbatim and in order: they are the keys of the submission.

    A line is a query; one that begins with a quote is read as a quoted CSV field. A byte-order mark
    and CRLF line ends are dropped, and `warn` is called with a note. With `known_names` (the files in
    the image folder) a query of track 1 or 2 must be among them, exactly or as `resolve_names` matches it.

    Raises DataError with every faulty line: a header, a blank, doubled or unknown query, a path,
    a second column, a control character; or where the file cannot be read as UTF-8.
    """
    path, warn = Path(path), warn or (lambda note: None)
    files = track_of(track).asks_files
    lines = _lines(path, warn)
    queries = [_unquoted(line) for line in lines]
    names = frozenset(known_names or ()) if files else frozenset()
    resolved = resolve_names(queries, names)
    faults = dict(_duplicates(queries, files, names))
    for number, (line, query) in enumerate(zip(lines, queries, strict=True), 1):
        if number == 1 and query not in names and _is_header(query, queries[1:], files):
            faults[1] = "is a header; the contest's files have none: the first query would be lost"
        elif fault := _query_fault(line, query, files, names):
            faults[number] = fault
        elif files and known_names is not None and query not in resolved:
            faults.setdefault(number, "is not in the image folder")
    if faults:
        listed = [f"line {n}: {show(queries[n - 1])} {faults[n]}" for n in sorted(faults)]
        what = f"{len(faults)} of {len(lines)} lines in the query file are at fault."
        hint = "fix these lines: one query a line, verbatim, without a header"
        raise DataError(what, where=path, faults=listed, hint=hint)
    renamed = [(query, file) for query, file in resolved.items() if query != file]
    if renamed:
        query, file = renamed[0]
        warn(
            f"{len(renamed)} queries are spelt otherwise than their files, for example {show(query)}"
            f" for {show(file)}; the submission keeps the queries' spelling"
        )
    return queries


def resolve_names(names: Iterable[str], known_names: Collection[str]) -> dict[str, str]:
    """Each name with the known name it means: itself, else the only one that differs from it in
    case or unicode form. Names that mean none, or several, are left out.
    """
    lookup = Lookup((name, name) for name in known_names)
    return {name: known for name in names if (known := lookup.get(name)) is not None}


def _lines(path: Path, warn: Callable[[str], None]) -> list[str]:
    try:
        data = path.read_bytes()
        text = decode_utf8(data.removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        what = f"The query file cannot be read ({error.strerror})."
        raise DataError(what, where=path, hint="name another file with --queries") from error
    except ValueError as error:
        what = f"The query file is not UTF-8: {error}."
        raise DataError(what, where=path, hint="save the file as UTF-8") from error
    if data.startswith(codecs.BOM_UTF8):
        warn(f"{path.name} begins with a byte-order mark, which does not belong to the first query")
    if not text:
        hint = "write one query a line, or name another file with --queries"
        raise DataError("The query file is empty.", where=path, hint=hint)
    if "\r\n" in text:
        warn(f"{path.name} has Windows line ends (CRLF), which do not belong to the queries")
    # Not splitlines(): it breaks at form feeds, U+2028 and the like too, and so hides them.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _unquoted(line: str) -> str:
    quoted = _QUOTED.fullmatch(line)
    return quoted[1].replace('""', '"') if quoted else line


def _is_header(first: str, others: list[str], files: bool) -> bool:
    if not all(word.strip() in _HEADERS for word in first.casefold().split(",")):
        return False
    return not files or not others or any(_FILE_NAME.fullmatch(other) for other in others)


def _duplicates(queries: list[str], files: bool, names: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line numbers of queries that stood before; file names may not even differ in case only."""
    first: dict[str, int] = {}
    for number, query in enumerate(queries, 1):
        line = first.setdefault(casefold(query) if files else query, number)
        other = queries[line - 1]
        # Where both spellings are on disk, they are two images.
        if line < number and (query == other or not {query, other} <= names):
            but = "" if query == other else ", but for case or unicode form"
            yield number, f"stands already in line {line}{but}"


def _query_fault(line: str, query: str, files: bool, names: frozenset[str]) -> str | None:
    """What is wrong with one query by itself; the message goes on from the query."""
    if not query.strip():
        return "is a blank line; remove it"
    if line.startswith('"') and line == query:
        return 'begins with a quote but is no quoted field; write "..." with inner quotes doubled'
    if has_control(query):
        return "holds a control character; remove it"
    if not files or query in names:
        return None
    if bare_name(query) != query:
        return f"is a path; write {show(bare_name(query))}"
    # A comma may be part of a name, but not behind what is a whole file name already.
    name, comma, _ = query.partition(",")
    if comma and line == query and _FILE_NAME.fullmatch(name):
        return f"has a second column; write {show(name)}"
    return None


# ---------------------------------------------------------------- submissions


def write_submission(
    path: str | Path, track: int, answers: Mapping[str, Answer], ranked: Iterable[tuple[str, int, Answer, float]]
) -> tuple[Path, Path]:
    """Write the zip at `path` and beside it the ranked CSV; returns both paths.

    The zip holds one JSON with `answers` in the order given, the CSV `ranked` as query, rank,
    answer, score with six decimals. Same answers, same bytes. What was packed is read back and
    checked before anything is written, and the zip comes last: it exists only when both do.

    Raises DataError where an answer cannot be one (a boolean, a path, the query itself, ...) or a
    score is not finite, and UsageError where `path` is not called .zip or the CSV would replace a
    file that is no ranked list.
    """
    path, member = Path(path), track_of(track).member
    table_path = path.with_suffix(".csv")
    if path.suffix.lower() != ".zip":
        raise UsageError("A submission is a zip.", where=path, hint="let its name end in .zip")
    if table_path.exists() and not _is_ranked_csv(table_path):
        # `--out data/i2i.zip` must not cost anybody the contest's i2i.csv.
        what = "The ranked list would replace a file that is none."
        raise UsageError(what, where=table_path, hint="give the zip another name")
    try:
        packed, table = packed_answers(member, answers), csv_text(_RANKED_HEADER, _ranked_rows(ranked)).encode()
    except (TypeError, ValueError) as error:
        hint = "write query texts or names to class ids (track 1) or file names"
        raise DataError(f"The answers cannot be written: {error}.", where=path, hint=hint) from error
    contents = read_contents(packed)
    faults = contents.faults or entry_faults(track, contents.entries or ())
    if faults:
        lines = [fault.message for fault in faults]
        hint = "fix the names of the queries and images named above"
        raise DataError("The answers make no valid submission.", where=path, faults=lines, hint=hint)
    write_bytes_atomic(table_path, table)
    write_bytes_atomic(path, packed)
    return path, table_path


def packed_answers(member: str, answers: Mapping[str, Answer]) -> bytes:
    """The bytes of a submission's zip; same answers, same bytes. ValueError or TypeError where JSON has no such answers."""
    text = json.dumps(dict(answers), ensure_ascii=False, indent=2, default=_plain_int)
    return _zipped(member, text.encode() + b"\n")


def _plain_int(value: object) -> int:
    """For json.dumps: numpy's integers are Integral, its booleans and floats are not."""
    if isinstance(value, Integral):
        return int(value)
    raise TypeError(f"{show(value)} is no class id and no file name")


def _zipped(member: str, data: bytes) -> bytes:
    # A fixed date and system, so that the same answers give the same bytes at any time.
    info = zipfile.ZipInfo(member, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system, info.external_attr = 3, 0o644 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, data)
    return buffer.getvalue()


_RANKED_HEADER = ["query", "rank", "answer", "score"]


def _ranked_rows(ranked: Iterable[tuple[str, int, Answer, float]]) -> Iterator[tuple[str, int, Answer, str]]:
    for query, rank, answer, score in ranked:
        if not math.isfinite(score):
            raise ValueError(f"the score of {show(answer)} for {show(query)} is {score}")
        yield query, rank, answer, f"{score:.6f}"


def _is_ranked_csv(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline(80).strip() == ",".join(_RANKED_HEADER).encode()


def read_submission(path: str | Path) -> Submission:
    """The answers in a zip or a bare JSON, for scoring; read under the same limits as in `checks`.

    Raises DataError with every fault that leaves in doubt what is answered: of the archive, the
    JSON, a doubled key, an answer that is neither text nor integer.
    """
    path = Path(path)
    contents = read_contents(path)
    faults = [fault.message for fault in contents.faults if fault.kind != "bare-json"]
    answers: dict[str, Answer] = {}
    for query, answer in contents.entries or ():
        if query in answers:
            faults.append(f"{show(query)} is a key more than once; keep one")
        if type(answer) not in (int, str):
            faults.append(f"{show(query)}: the answer is neither text nor integer; write one")
        answers[query] = answer
    if not answers and not faults:
        faults.append("the JSON holds no answer")
    if faults:
        hint = "see every fault with `entrep validate FILE --track N`"
        raise DataError("The submission cannot be read.", where=path, faults=faults, hint=hint)
    return Submission(path, contents.member, answers)
