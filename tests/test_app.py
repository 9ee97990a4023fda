"""The command line itself: light start, help, exit codes, output modes, the error funnel."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest
import typer

from entrep_cli import app as app_module
from entrep_cli import console
from entrep_cli.app import PANELS, main

HEAVY = {"torch", "torchvision", "pandas", "timm", "faiss", "sklearn", "matplotlib", "numpy", "scipy", "PIL"}
COMMANDS = [function.__name__ for commands in PANELS.values() for function, _ in commands]


def run(*arguments: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "entrep_cli", *arguments], capture_output=True, text=True, **more)


def imported(*arguments: str) -> set[str]:
    """Top-level modules that a command line leaves imported."""
    code = f"import sys\nfrom entrep_cli.app import main\ntry:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass\nprint('|'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return {name.split(".")[0] for name in done.stderr.strip().splitlines()[-1].split("|")}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    assert not imported(*arguments) & HEAVY


def test_validate_needs_no_torch_nor_pandas(tmp_path):
    assert not imported("validate", str(tmp_path / "none.zip"), "--track", "1") & {"torch", "pandas", "timm", "faiss", "sklearn"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_begins_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    after_usage = text.split("Usage:", 1)[1].split("\n", 1)[1].strip()
    assert after_usage.startswith(f"Example: entrep {command}")


def test_wrong_usage_is_2():
    assert run("no-such-command").returncode == 2
    assert run("split", "--no-such-option").returncode == 2
    assert run("predict").returncode == 2


def test_version():
    assert run("--version").stdout.startswith("entrep 0.")


def test_an_error_says_what_where_and_the_mend(tmp_path):
    done = run("split", "--data", str(tmp_path / "nowhere"), env={"ENTREP_RUNS": str(tmp_path / "runs")})
    assert done.returncode == 1 and done.stdout == ""
    assert "There is no dataset folder" in done.stderr
    assert str(tmp_path / "nowhere") in done.stderr and "mend: " in done.stderr
    assert not (tmp_path / "runs").exists()


def test_json_errors_are_one_document(tmp_path):
    for arguments in (["--json", "split"], ["split", "--json"]):
        done = run(*arguments, "--data", str(tmp_path / "nowhere"))
        document = json.loads(done.stdout)
        assert done.returncode == 1 and document["ok"] is False
        assert document["error"]["where"] == str(tmp_path / "nowhere")


def failing(monkeypatch, capsys, error: BaseException, *flags: str) -> tuple[int, str, str]:
    """Exit code and output of a command that raises `error`."""

    def broken() -> dict:
        raise error

    monkeypatch.setattr(app_module, "app", typer.Typer(pretty_exceptions_enable=False))
    app_module.app.callback()(app_module._options)
    app_module._register(broken, "Data", "x")
    with pytest.raises(SystemExit) as ended:
        main([*flags, "broken"])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_a_full_disk_is_a_sentence(monkeypatch, capsys):
    code, _, err = failing(monkeypatch, capsys, OSError(errno.ENOSPC, "No space left on device", "runs/x"))
    assert code == 1 and "The disk is full" in err and "ENTREP_RUNS" in err


def test_interrupt_is_130(monkeypatch, capsys):
    for flags in ([], ["--json"]):
        code, out, err = failing(monkeypatch, capsys, KeyboardInterrupt(), *flags)
        assert code == 130 and "Interrupted" in err
        assert (json.loads(out)["ok"] is False) if flags else not out


def test_a_bug_names_itself(monkeypatch, capsys):
    code, out, err = failing(monkeypatch, capsys, ZeroDivisionError("division by zero"), "--json")
    assert code == 1 and "bug in entrep" in err
    assert json.loads(out)["error"]["what"] == "ZeroDivisionError: division by zero"
    assert "Traceback" not in err


def test_a_traceback_only_when_asked(monkeypatch, capsys):
    monkeypatch.setenv("ENTREP_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        failing(monkeypatch, capsys, ZeroDivisionError("x"))


def test_user_strings_are_shown_and_never_obeyed(capsys):
    console.set_mode("human")
    hostile = "[red]a[/red]\x1b[2J\x07<script>"
    console.say(hostile)
    console.warn(hostile)
    console.table(hostile, ["[bold]name"], [(hostile,)])
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "\x1b[2J" not in text and "\x07" not in text
        assert "[red]a[/red]\\x1b[2J\\x07<script>" in text
    assert "[bold]name" in captured.out


def test_quiet_and_json_say_nothing_but_results(capsys):
    for mode, out in (("quiet", True), ("json", False)):
        console.set_mode(mode)
        console.say("note")
        console.next_commands("entrep x")
        with console.progress("work", 2) as advance:
            advance(2)
        console.table("t", ["a"], [(1.0,)])
        captured = capsys.readouterr()
        assert captured.err == "" and ("1.000" in captured.out) == out
    console.set_mode("human")
