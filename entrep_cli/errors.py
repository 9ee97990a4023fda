"""The errors a user can meet: each says what is wrong, where, and what to do about it.

Raise one of these for anything that is the user's data, run or command line; an assert or a bare
exception means a bug in entrep. `app.main` turns them into a message and an exit code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


class EntrepError(Exception):
    """Base of all errors shown to a user.

    Args:
        what: one sentence on what is wrong.
        where: the file, folder or option at fault.
        hint: what to do about it, best as a command.
        faults: every single fault found, one line each; all are kept, the screen shows all of them.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        hint: str | None = None,
        faults: Iterable[str] = (),
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        self.faults: Sequence[str] = tuple(faults)

    def __str__(self) -> str:
        lines = [self.what, *(f"  - {fault}" for fault in self.faults)]
        if self.where:
            lines.append(f"where: {self.where}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


def first_line(error: BaseException) -> str:
    """What a library's exception says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class DataError(EntrepError):
    """The dataset, a submission or a truth file is at fault."""


def together(errors: Sequence[DataError]) -> DataError:
    """Several errors as one that lists the faults of all; a single one as it is."""
    if len(errors) == 1:
        return errors[0]
    faults = [f"{error.where}: {fault}" for error in errors for fault in error.faults or [error.what]]
    return DataError(f"The data have {len(faults)} faults.", faults=faults, hint=errors[0].hint)


class RunError(EntrepError):
    """A run folder, its weights, or a split is missing, half written or does not fit."""


class WeightsError(RunError):
    """Weights are missing, unreadable or belong to another model."""


class UsageError(EntrepError):
    """The command line or the recipe asks for something that does not exist."""

    exit_code = 2


class Interrupted(EntrepError):
    """The user stopped the command."""

    exit_code = 130
