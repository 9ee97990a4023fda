"""`entrep doctor`: will entrep work on this machine?"""

from __future__ import annotations

from typing import Annotated

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.results import Result


def doctor(
    self_test: Annotated[
        bool,
        typer.Option("--self-test/--no-self-test", help="Also draw, train, answer and validate a few phantom images, in under a minute."),
    ] = True,
    device: options.Device = "auto",
) -> Result:
    """Example: entrep doctor

    Look at what entrep stands on: Python, packages, torch and torchvision as a pair, device and
    precision with the reason, threads, memory, disk, caches, weights; then do the main job in small.
    What can be fixed comes with a command. Exit code 1 where something is broken; a warning is no fault.
    """
    result = entrep.doctor(self_test=self_test, device=device)
    console.show(result)
    for finding in result.findings:
        if finding.level != "ok":
            console.warn(f"{finding.area}: {finding.what}")
    console.next_commands(*result.advice)
    return result
