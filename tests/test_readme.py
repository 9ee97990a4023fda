"""The README's commands run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from entrep_cli import console as library
from entrep_cli.app import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_the_console_block_and_the_python_block_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENTREP_RUNS", raising=False)
    monkeypatch.delenv("ENTREP_DATA", raising=False)
    (console,) = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for line in console.strip().splitlines():
        program, *arguments = shlex.split(line)
        if program == "export":
            monkeypatch.setenv(*arguments[0].split("="))
            continue
        assert program == "entrep"
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        shown = capsys.readouterr()
        assert not ended.value.code, f"{line}\n{shown.err}"
    assert "macro F1" in shown.out
    library.set_mode("library")
    exec(python, {})
    shown = capsys.readouterr()
    assert "macro F1" in shown.out and "recall@1" in shown.out and not shown.err
    assert (tmp_path / "runs" / "try" / "from-python" / "submissions" / "track1.zip").is_file()


def test_every_command_is_in_the_table():
    from entrep_cli.app import GROUPS, PANELS

    for name in (*(function.__name__ for commands in PANELS.values() for function, _ in commands), *GROUPS):
        assert re.search(rf"`(entrep )?{name}\b", README), name


@pytest.mark.parametrize("path", ["README.md", "data/README.md", "Makefile", ".ci/run", "constraints.txt"])
def test_nothing_of_this_machine_is_named(path):
    text = (ROOT / path).read_text("utf-8")
    assert not re.search(r"/work/|/opt/|file://|index-url|\.library", text)
