"""The order of the rooms and the absence of circles hold, and their contracts fail when they are broken."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import words

ROOT = Path(__file__).parent.parent
pytest.importorskip("importlinter")


def contracts(folder: Path) -> str:
    """What import-linter says of the package in a folder; its exit code is the last word."""
    command = (
        "import sys; sys.argv = ['lint-imports', '--no-logo', '--no-cache']; from importlinter.cli import lint_imports_command as c; c()"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)})
    return f"{done.stdout}{done.stderr}\nexit {done.returncode}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "entrep_cli", tmp_path / "entrep_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (None, "", r"2 kept, 0 broken(.|\n)*exit 0"),
        ("data/texts.py", "import entrep_cli.models.heads", r"entrep_cli\.data is not allowed to import entrep_cli\.models(.|\n)*exit 1"),
        ("errors.py", "def f():\n    from entrep_cli.app import main", r"is not allowed to import entrep_cli\.app(.|\n)*exit 1"),
        (
            "data/taxonomy.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from entrep_cli.data.catalog import Catalog",
            r"No cycles are allowed in entrep_cli\.data(.|\n)*exit 1",
        ),
    ],
)
def test_the_contracts_hold_and_fail_when_they_are_broken(copy, file, line, message):
    if file:
        path = copy / "entrep_cli" / file
        path.write_text(f"{path.read_text('utf-8')}\n{line}\n", "utf-8")
    assert re.search(message, contracts(copy))


def test_the_words_that_we_avoid_are_nowhere_a_user_reads():
    places = [
        ROOT / name for name in ("entrep_cli", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "docs", "benchmarks")
    ]
    assert not [
        f"{path.relative_to(ROOT)}:{line}: {text}" for place in places for path in words.files(place) for line, text in words.hits(path)
    ]


def test_the_words_are_noticed(tmp_path):
    (tmp_path / "a.md").write_text("a hint\nto mend it\n", "utf-8")
    (tmp_path / "b.py").write_text('"""Kept for itself."""\nprint("no run is there")\nx = "share"\n', "utf-8")
    assert [(line, text.split(":")[0]) for path in words.files(tmp_path) for line, text in words.hits(path)] == [(2, "mend"), (2, "there")]


def test_the_generated_reference_is_up_to_date():
    done = subprocess.run([sys.executable, "docs/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
