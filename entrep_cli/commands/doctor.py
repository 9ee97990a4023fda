"""`entrep doctor`: will entrep work on this machine?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options

_MARKS = {"ok": "ok", "warning": "WARNING", "fault": "FAULT"}


def doctor(
    self_test: Annotated[
        bool,
        typer.Option("--self-test/--no-self-test", help="Also draw, train, answer and validate a few phantom images, in under a minute."),
    ] = True,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep doctor

    Look at what entrep stands on: Python, packages, torch and torchvision as a pair, device and
    precision with the reason, threads, memory, disk, caches, weights; then do the main job in small.
    What can be corrected comes with a command. Exit code 1 where something is broken; a warning is no fault.
    """
    from entrep_cli.machine.doctor import examinations, examine

    looks = examinations(device=device, with_self_test=self_test, told=lambda step: console.say(f"Self-test: {step} ..."))
    findings = []
    for area, look in looks:
        if area != "self-test":
            console.say(f"Looking at {area} ...")
        findings += examine(area, look)
    console.table("This machine", ["", ""], [(f"{one.area}: {one.what}", _MARKS[one.level]) for one in findings])
    for one in findings:
        if one.level != "ok":
            console.warn(f"{one.area}: {one.what}")
    levels = [one.level for one in findings]
    console.next_commands(*dict.fromkeys(one.advice for one in findings if one.advice))
    return {
        "ok": "fault" not in levels,
        "faults": levels.count("fault"),
        "warnings": levels.count("warning"),
        "findings": [one.as_dict() for one in findings],
    }
