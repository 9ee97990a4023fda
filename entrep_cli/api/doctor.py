"""`doctor`: will entrep work on this machine?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.results import Result, Table

if TYPE_CHECKING:
    from entrep_cli.machine.findings import Finding

_MARKS = {"ok": "ok", "warning": "WARNING", "fault": "FAULT"}


@dataclass(frozen=True)
class Diagnosis(Result):
    """The findings about a machine; each comes after those that it depends on."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken; a warning is no fault."""
        return all(finding.level != "fault" for finding in self.findings)

    @property
    def advice(self) -> list[str]:
        """Commands that fix what can be fixed."""
        return list(dict.fromkeys(finding.advice for finding in self.findings if finding.advice))

    def tables(self) -> list[Table]:
        return [Table("This machine", ["", ""], [(f"{one.area}: {one.what}", _MARKS[one.level]) for one in self.findings])]

    def to_dict(self) -> dict[str, Any]:
        levels = [finding.level for finding in self.findings]
        return {
            "ok": self.ok,
            "faults": levels.count("fault"),
            "warnings": levels.count("warning"),
            "findings": [finding.as_dict() for finding in self.findings],
        }


def doctor(*, self_test: bool = True, device: str = "auto") -> Diagnosis:
    """Examine Python, packages, device, memory, disk, caches and weights, then run the whole pipeline on a tiny dataset.

    Args:
        self_test: run that pipeline (synth, train, predict, validate); it takes less than a minute.
        device: where the model computes.
    """
    from entrep_cli.machine.doctor import examinations, examine

    findings: list[Finding] = []
    for area, look in examinations(device=device, with_self_test=self_test, on_step=lambda step: console.say(f"Self-test: {step} ...")):
        if area != "self-test":
            console.say(f"Looking at {area} ...")
        findings += examine(area, look)
    return Diagnosis(tuple(findings))
