"""Python and the libraries: against what the package declares, and against what it was tested with."""

from __future__ import annotations

import contextlib
import importlib
import platform
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from entrep_cli.errors import first_line
from entrep_cli.machine.findings import Finding


@cache
def tested() -> dict[str, Any]:
    """{"python": ..., "packages": {name: version}} as tested."""
    return tomllib.loads(Path(__file__).with_name("tested.toml").read_text("utf-8"))


def examine_python() -> Iterator[Finding]:
    """Older than declared is a fault."""
    running, wanted = platform.python_version(), tested()["python"]
    details = {"version": running, "tested": wanted, "executable": sys.executable}
    if sys.version_info < (3, 11):  # noqa: UP036 - a checkout may be run without installation
        yield Finding("python", "fault", f"Python {running}; entrep needs 3.11 or newer.", "python3.11 -m venv .venv", details)
    else:
        note = "as tested" if running.startswith(f"{wanted}.") else f"tested with {wanted}"
        yield Finding("python", "ok", f"Python {running} ({note}).", None, details)


def examine_packages() -> Iterator[Finding]:
    """What is missing or outside the declared range is a fault, each; other versions than tested are one warning."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    try:
        declared = [Requirement(line) for line in metadata.requires("entrep") or ()]
    except metadata.PackageNotFoundError:
        yield Finding("packages", "warning", "entrep is not installed, so what it needs is not known.", "pip install --editable .")
        return
    needed = {canonicalize_name(one.name): one for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})}
    installed: dict[str, str] = {}
    for name, requirement in needed.items():
        range_ = shlex.quote(f"{requirement.name}{requirement.specifier}")
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("packages", "fault", f"{name} is not installed.", f"pip install {range_}")
            continue
        if not requirement.specifier.contains(installed[name], prereleases=True):
            what = f"{name} {installed[name]} is outside of what entrep works with ({requirement.specifier})."
            yield Finding("packages", "fault", what, f"pip install {range_}")
    for name in tested()["packages"]:  # what a dependency brings counts too
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed.setdefault(name, metadata.version(name))
    # The suffix of a build, as in 2.13.0+cpu, is no other version.
    other = {
        name: version
        for name, version in tested()["packages"].items()
        if name in installed and Version(installed[name]).public != Version(version).public
    }
    details = {"versions": installed, "tested": tested()["packages"]}
    if other:
        names = ", ".join(f"{name} {installed[name]} ({version})" for name, version in other.items())
        advice = "pip install " + " ".join(f"{name}=={version}" for name, version in other.items())
        what = f"{len(other)} of {len(installed)} packages have other versions than tested: {names}."
        yield Finding("packages", "warning", what, advice, details)
    else:
        yield Finding("packages", "ok", f"All {len(installed)} packages have the tested versions.", None, details)


def examine_torch_pair() -> Iterator[Finding]:
    """torch and torchvision belong together: the compiled operators of torchvision are built against one torch."""
    from entrep_cli.torchvision_ops import declare_missing_ops

    import torch
    from packaging.requirements import Requirement

    here = {name: metadata.version(name) for name in ("torch", "torchvision")}
    wanted = next((Requirement(line) for line in metadata.requires("torchvision") or () if Requirement(line).name == "torch"), None)
    fits = wanted is None or wanted.specifier.contains(here["torch"].split("+")[0], prereleases=True)
    pair = tested()["packages"]
    advice = f"pip install torch=={pair['torch']} torchvision=={pair['torchvision']}"
    corrected = declare_missing_ops()
    details: dict[str, Any] = {**here, "cuda": torch.version.cuda, "pair": fits, "corrected": corrected}
    both = f"torch {torch.__version__} with torchvision {here['torchvision']}"
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a broken extension raises anything
        yield Finding("torch", "fault", f"{both}: torchvision cannot be imported: {first_line(error)}", advice, details)
        return
    if not fits:
        yield Finding("torch", "warning", f"{both}: this torchvision was built for torch{wanted.specifier}.", advice, details)
    elif corrected:
        why = (
            "torchvision's compiled operators do not load beside this build of torch (of themselves they end in `operator "
            "torchvision::nms does not exist`); entrep needs none of them and has declared what the import wants"
        )
        yield Finding("torch", "ok", f"{both}, a pair: {why}.", None, details)
    else:
        yield Finding("torch", "ok", f"{both}, a pair.", None, details)
