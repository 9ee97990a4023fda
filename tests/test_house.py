"""The contracts of imports fail when they are broken; the words and the reference are as they should be."""

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


BREAKS = {
    "data/texts.py": "import entrep_cli.models.heads",
    "errors.py": "def f():\n    from entrep_cli.app import main",
    "data/taxonomy.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from entrep_cli.data.catalog import Catalog",
}


def test_the_contracts_fail_when_they_are_broken(tmp_path):
    """Upward, upward inside a function, and in a circle for a type hint alone. That they hold is what `make lint` checks."""
    shutil.copytree(ROOT / "entrep_cli", tmp_path / "entrep_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    for file, line in BREAKS.items():
        path = tmp_path / "entrep_cli" / file
        path.write_text(f"{path.read_text('utf-8')}\n{line}\n", "utf-8")
    answer = contracts(tmp_path)
    assert "0 kept, 2 broken" in answer and answer.endswith("exit 1")
    assert "entrep_cli.data is not allowed to import entrep_cli.models" in answer
    assert re.search(r"entrep_cli\.errors is not allowed to import .*entrep_cli\.app|entrep_cli\.errors -> entrep_cli\.app", answer)
    assert "No cycles are allowed in entrep_cli.data" in answer


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
