"""The command line itself: light start, help, exit codes, output modes, the error funnel."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time

import pytest
import typer

from entrep_cli import app as app_module
from entrep_cli import console
from entrep_cli.app import GROUPS, PANELS, main

HEAVY = {"torch", "torchvision", "pandas", "timm", "faiss", "sklearn", "matplotlib", "numpy", "scipy", "PIL"}
COMMANDS = [function.__name__ for commands in PANELS.values() for function, _ in commands]
COMMANDS += [f"{first} {second}" for first, (_, _, words) in GROUPS.items() for second in words]


def run(*arguments: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "entrep_cli", *arguments], capture_output=True, text=True, **more)


@pytest.fixture
def here(capfd):
    """The same in this process, many times as fast."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return subprocess.CompletedProcess(arguments, ended.value.code or 0, *capfd.readouterr())

    return run


def imported(*arguments: str) -> set[str]:
    """Top-level modules that a command line leaves imported."""
    code = f"""
import sys
from entrep_cli.app import main
try:
    main({list(arguments)!r})
except SystemExit:
    pass
print("|".join(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return {name.split(".")[0] for name in done.stderr.strip().splitlines()[-1].split("|")}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["weights", "fetch", "--help"], ["cache", "list"]])
def test_help_imports_nothing_heavy(arguments):
    assert not imported(*arguments) & HEAVY


def test_validate_needs_no_torch_nor_pandas(tmp_path):
    assert not imported("validate", str(tmp_path / "none.zip"), "--track", "1") & {"torch", "pandas", "timm", "faiss", "sklearn"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_begins_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    after_usage = text.split("Usage:", 1)[1].split("\n", 1)[1].strip()
    assert after_usage.startswith(f"Example: entrep {command}")


def test_wrong_usage_is_2(here):
    assert run("no-such-command").returncode == 2
    assert here("split", "--no-such-option").returncode == 2
    assert here("predict").returncode == 2


def test_version():
    assert run("--version").stdout.startswith("entrep 0.")


def test_an_error_says_what_where_and_the_mend(tmp_path):
    done = run("split", "--data", str(tmp_path / "nowhere"), env={"ENTREP_RUNS": str(tmp_path / "runs")})
    assert done.returncode == 1 and done.stdout == ""
    assert "No dataset folder" in done.stderr
    assert str(tmp_path / "nowhere") in done.stderr and "hint: " in done.stderr
    assert not (tmp_path / "runs").exists()


def test_json_knows_no_nan(capfd):
    console.set_mode("json")
    console.document({"mean": float("nan"), "of": [(1.5, float("-inf")), {"n": 0, "ok": True}]})
    assert json.loads(capfd.readouterr().out, parse_constant=pytest.fail) == {"mean": None, "of": [[1.5, None], {"n": 0, "ok": True}]}


def test_json_errors_are_one_document(here, tmp_path):
    for arguments in (["--json", "split"], ["split", "--json"]):
        done = here(*arguments, "--data", str(tmp_path / "nowhere"))
        document = json.loads(done.stdout)
        assert done.returncode == 1 and document["ok"] is False
        assert document["error"]["where"] == str(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "arguments",
    [["predict"], ["split", "--no-such-option"], ["no-such-command"], ["synth", "x", "--images", "two"], [], ["weights"], ["cache", "x"]],
)
def test_json_is_one_document_where_the_command_line_is_wrong(here, arguments):
    done = here("--json", *arguments)
    document = json.loads(done.stdout)
    assert done.returncode == 2 and document["ok"] is False and document["error"]["what"]
    assert json.loads(here("--json", "--version").stdout)["version"]


def test_what_follows_two_dashes_is_no_option(here, tmp_path):
    done = here("split", "--data", str(tmp_path), "--", "--json")
    assert done.returncode == 2 and done.stdout == "" and "--json" in done.stderr


def test_a_reader_that_goes_away_is_no_fault(tmp_path):
    """`entrep ... | head -1` ends as any other tool, without a word on stderr."""
    line = [sys.executable, "-m", "entrep_cli", "--json", "--version"]
    done = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout.close()
    assert done.wait() == 141 and done.stderr.read() == b""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_the_terminal_cannot_write(tmp_path, encoding):
    name = str(tmp_path / "ả\udcff")
    for flags in ([], ["--json"]):
        done = run(*flags, "split", "--data", name, env={"ENTREP_RUNS": str(tmp_path), "PYTHONIOENCODING": encoding})
        assert done.returncode == 1 and "Traceback" not in done.stderr and "No dataset folder" in done.stderr
    if encoding == "ascii":
        assert json.loads(done.stdout)["error"]["where"] == name


def test_kill_takes_away_what_was_begun(tmp_path):
    line = [sys.executable, "-m", "entrep_cli", "synth", str(tmp_path / "data"), "--images", "400"]
    drawing = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".data*/*/imgs/*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    drawing.terminate()
    assert drawing.wait(30) == 143 and list(tmp_path.iterdir()) == []


def test_help_is_set_in_paragraphs(capsys):
    """The line ends of a docstring are no line ends of a terminal."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "the model, its settings and its learning curve." in text


def test_progress_fits_beside_a_note(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress("Training", 4, "epochs") as advance:
        now[0] = 20
        advance(1, "val 0.5")
        now[0] = 21
        advance(1, "val 0.6")
    assert capsys.readouterr().err == "Training: 1/4, 20 s each, 60 s left, val 0.5\n"


def test_progress_counts_parts_of_what_takes_long(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress("Training", 2, "epochs") as advance:
        for _ in range(10):
            now[0] += 10
            advance(0.1)
        now[0] += 20
        advance(0.5, "val 0.5")
        now[0] += 20
        advance(0.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Training: 0/2, 100 s each, 180 s left" and lines[4] == "Training: 1/2, 100 s each, 100 s left"
    assert lines[5] == "Training: 1/2, 80 s each, 40 s left, val 0.5" and lines[6].endswith("s left, val 0.5")


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


def test_full_memory_is_no_bug_and_names_the_way_out(monkeypatch, capsys):
    class OutOfMemoryError(RuntimeError):  # torch's own, by its name
        pass

    for error, said in ((OutOfMemoryError("CUDA out of memory. Tried to ..."), "train.batch_size"), (MemoryError(), "--batch-size 8")):
        code, _, err = failing(monkeypatch, capsys, error)
        assert code == 1 and "memory is full" in err and said in err and "bug" not in err


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


def test_the_examples_of_the_helps_are_what_the_others_make():
    """A finding that `entrep search` looks up in its help is one that `entrep synth` draws."""
    from entrep_cli.commands.search import search
    from entrep_cli.data.phantom.plan import plan_frames

    query = search.__doc__.splitlines()[0].split(maxsplit=3)[-1].strip("'")
    assert any(query in frame.text("english") for frame in plan_frames(700, 210, 0))


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_pasted_whole_from_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    example = next(i for i, line in enumerate(lines) if line.startswith("Example: "))
    assert lines[example + 1] == ""


def test_help_leaves_room_for_words_at_80_columns(capsys, monkeypatch):
    """With a column for `<bool>` and `<int range>` the words of `predict` stood in 17 of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("predict", "search", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert "<bool>" not in text and "range>" not in text and "N [x>=1]" in text or command == "evaluate"
        line = next(line for line in text.splitlines() if "--run " in line)
        assert len(line.strip(" │")) - len("--run") > 20 and line.split("<str>")[1].strip(" │").startswith("A run by name or folder")
