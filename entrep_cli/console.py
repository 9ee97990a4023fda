"""The one place that prints: data to stdout, everything else to stderr, in five modes.

library  nothing: from Python notes go to the logger `entrep_cli`, warnings to the `warnings` module
human    tables on stdout; notes, progress and next commands on stderr
json     one JSON document on stdout, warnings on stderr
quiet    tables on stdout, warnings on stderr
silent   errors alone: of a command in several processes one prints, the main one

Whatever comes from users (names, texts, labels) is printed without markup and with its control
characters made visible, so that no file name can colour or clear a terminal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from entrep_cli.results import Result

mode = "library"
_logger = logging.getLogger("entrep_cli")


class EntrepWarning(UserWarning):
    """What a command would print as a warning, for who calls entrep from Python."""


def set_mode(new: str) -> None:
    """`library`, `human`, `json`, `quiet` or `silent`, for the rest of the process."""
    global mode
    assert new in ("library", "human", "json", "quiet", "silent"), new
    mode = new


def visible(text: object) -> str:
    """`text` with control characters as escapes; line breaks stay where the caller split them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(*lines: str) -> None:
    """A note for a person, to stderr; nothing in the json and quiet modes."""
    if mode == "library":
        for line in filter(None, lines):
            _logger.info("%s", visible(line))
    if mode == "human":
        for line in lines:
            print("\n".join(map(visible, line.split("\n"))), file=sys.stderr, flush=True)


def warn(*lines: str) -> None:
    """A warning, to stderr, in every mode but silent."""
    if mode == "library":
        for line in lines:
            warnings.warn(visible(line), EntrepWarning, stacklevel=3)
        return
    for line in lines if mode != "silent" else ():
        _stderr().print(f"Warning: {visible(line)}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def error(text: str) -> None:
    """An error message of one or more lines, to stderr, in every mode."""
    first, *rest = (visible(line) for line in text.split("\n"))
    _stderr().print(f"Error: {first}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    for line in rest:
        print(line, file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: Sequence[str] = ()) -> None:
    """A plain table on stdout; the first column and those named by `left` are text, the others are aligned right."""
    if mode not in ("human", "quiet"):
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for i, column in enumerate(columns):
        drawn.add_column(Text(visible(column)), justify="left" if i == 0 or column in left else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(visible(_cell(value))) for value in row))
    # A pipe has no width: never fold there what a program or a log will read.
    width = None if sys.stdout.isatty() else 200
    out = Console(file=sys.stdout, width=width, highlight=False)
    out.print(Text(visible(title), style="bold"), soft_wrap=True)
    out.print(drawn)


def show(result: Result) -> None:
    """The tables of a result."""
    for one in result.tables():
        table(one.title, one.columns, one.rows, left=one.left)


def plain(text: str) -> None:
    """A text on stdout as it is, a file's content for example; nothing in the json and silent modes."""
    if mode in ("human", "quiet"):
        print(text, end="" if text.endswith("\n") else "\n", flush=True)


def document(value: dict[str, Any]) -> None:
    """The command's one JSON document, in json mode only."""
    if mode == "json":
        value = _with_null(value)
        # What the output's encoding cannot hold (half a surrogate pair of a file name, say) JSON can escape.
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
        try:
            text.encode(sys.stdout.encoding)
        except UnicodeEncodeError:
            text = json.dumps(value, indent=2, allow_nan=False)
        # JSON escapes ASCII controls alone; a terminal obeys others too, and some turn the direction of a line.
        print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text), flush=True)


def _with_null(value: Any) -> Any:
    """`value` with null for each number that is none: a mean of nothing is NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _with_null(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flags(**given: object) -> str:
    """Options as they are typed, each after a blank: ` --data 'my data' --run dinov2`; without those that are None."""
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)


def next_commands(*commands: str) -> None:
    """What to run next, ready to paste."""
    say("", "Next:", *(f"  {command}" for command in commands))


@contextlib.contextmanager
def progress(what: str, total: int, unit: str = "images") -> Iterator[Callable[..., None]]:
    """Yield `advance(n=1, note="")`; a bar with rate and time left on a terminal, a line now and then elsewhere.

    What takes long for each of its units may advance by a part of one; the last note stays.
    """
    if mode != "human" or total == 0:
        yield lambda n=1, note="": None
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=_stderr(), transient=True) as bar:
            task = bar.add_task(visible(what), total=total, rate="", note="")
            start, done, last_note = time.monotonic(), 0.0, ""

            def advance(n: float = 1, note: str = "") -> None:
                nonlocal done, last_note
                done, last_note = done + n, note or last_note
                # Beside a note there is no room for the rate in 80 columns; the time left stays.
                rate = "" if last_note else _rate(done, time.monotonic() - start, unit)
                bar.update(task, completed=_whole(done), rate=rate, note=visible(last_note))

            yield advance
    else:
        start = last = time.monotonic()
        done, last_note = 0.0, ""

        def advance(n: float = 1, note: str = "") -> None:
            nonlocal done, last, last_note
            done, last_note = done + n, note or last_note
            now = time.monotonic()
            if done and now - last >= 15:
                last = now
                left = f"{(total - done) * (now - start) / done:.0f} s left"
                say(", ".join(filter(None, [f"{what}: {int(_whole(done))}/{total}", _rate(done, now - start, unit), left, last_note])))

        yield advance


def _whole(done: float) -> float:
    """The sum of parts of a unit, which may miss a whole by a rounding error."""
    return round(done, 6)


def _rate(done: float, seconds: float, unit: str) -> str:
    rate = done / max(seconds, 1e-9)
    return f"{rate:.1f} {unit}/s" if rate >= 0.1 or not rate else f"{1 / rate:.0f} s each"


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _stderr():
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)
