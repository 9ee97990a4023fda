"""The Python API: what a function returns is what `--json` prints, and nothing else is printed."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys

import pytest

import entrep_cli
from entrep_cli import console

# Command line -> the same in Python. The run `dinov2` has a twin, which completed at the same time.
SAME = {
    "index --run dinov2": lambda **_: entrep_cli.index(run="dinov2"),
    "embed --run dinov2 --precision fp32": lambda **_: entrep_cli.embed(run="dinov2", precision="fp32"),
    "compare dinov2 twin --split queries --no-mask-groups": lambda **_: entrep_cli.compare(
        ["dinov2", "twin"], split="queries", mask_groups=False
    ),
    "predict --run dinov2 --track 2 --gallery all --class-aware hard": lambda **_: entrep_cli.predict(
        run="dinov2", track=2, gallery="all", class_aware="hard"
    ),
    "validate {runs}/dinov2/submissions/track1.zip --track 1 --run dinov2": lambda runs, **_: entrep_cli.validate(
        runs / "dinov2" / "submissions" / "track1.zip", track=1, run="dinov2"
    ),
    "search {image} --run dinov2 --top-k 3": lambda image, **_: entrep_cli.search(image, run="dinov2", top_k=3),
    "explain {image} --run dinov2 --class throat": lambda image, **_: entrep_cli.explain([image], run="dinov2", class_="throat"),
    "evaluate --run dinov2 --split val": lambda **_: entrep_cli.evaluate(run="dinov2", split="val"),
    "evaluate --submission {runs}/dinov2/submissions/track1.zip --truth {truth} --track 1": lambda runs, truth, **_: entrep_cli.evaluate(
        submission=runs / "dinov2" / "submissions" / "track1.zip", truth=truth, track=1
    ),
    "report --run dinov2 --split queries": lambda **_: entrep_cli.report(run="dinov2", split="queries"),
}

VERBS = [name for name in entrep_cli.__all__ if name != "__version__"]


@pytest.mark.parametrize("line", SAME)
def test_python_returns_what_json_prints(trained, phantom, entrep, capfd, line):
    """In JSON a NaN is null."""
    shutil.copytree(trained / "dinov2", trained / "twin")
    places = {"runs": trained, "image": sorted((phantom / "test" / "imgs").iterdir())[0], "truth": phantom / "test" / "truth_cls.json"}
    if "submission" in line:
        entrep_cli.predict(run="dinov2", track=1)
    printed = entrep(*line.format(**places).split(), "--json").json
    console.set_mode("library")
    capfd.readouterr()
    result = SAME[line](**places)
    assert json.loads(json.dumps(console._with_null(result.to_dict()))) == printed
    assert capfd.readouterr() == ("", "")
    assert len(result.frame()) and result.to_latex().startswith("% ")


def test_importing_it_imports_nothing_heavy_and_every_function_is_listed():
    code = "import sys, entrep_cli; print(*dir(entrep_cli)); print(*sys.modules)"
    listed, modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(entrep_cli.__all__) <= set(listed.split())
    assert not {"torch", "pandas", "numpy", "typer", "rich"} & set(modules.split())
    assert all(getattr(entrep_cli, name).__name__ == name for name in VERBS)
    with pytest.raises(AttributeError, match="no_such_verb"):
        entrep_cli.no_such_verb  # noqa: B018


def test_keywords_are_the_options_of_the_commands():
    from entrep_cli.app import GROUPS, PANELS

    shown = {
        "validate": {"limit"},
        "ablate": {"list"},
        "pretrain": {"show_recipe"},
        "train": {"show_recipe"},
    }  # options of what is shown, not of what is computed
    commands = {function.__name__: function for rows in PANELS.values() for function, _ in rows}
    commands |= {f"{first}_{second}": function for first, (_, _, words) in GROUPS.items() for second, (function, _) in words.items()}
    for name in (verb for verb in VERBS if not verb.endswith(("_recipe", "_rows"))):  # what `--show-recipe` and `--list` print
        options = {parameter.rstrip("_") for parameter in inspect.signature(commands[name]).parameters}
        keywords = {parameter.rstrip("_") for parameter in inspect.signature(getattr(entrep_cli, name)).parameters}
        assert keywords == options - shown.get(name, set()), name
