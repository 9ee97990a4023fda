"""The `entrep` command: its sub-commands in panels, its global options, its one error funnel."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.core

from entrep_cli import console, processes
from entrep_cli.commands import (
    ablate,
    cache,
    compare,
    demo,
    doctor,
    embed,
    ensemble,
    evaluate,
    explain,
    export,
    index,
    predict,
    pretrain,
    report,
    reproduce,
    search,
    split,
    synth,
    train,
    validate,
    weights,
)
from entrep_cli.commands import app as search_page  # and the command line as a whole is `app`
from entrep_cli.commands import inspect as inspection  # the standard library's `inspect` is used here too
from entrep_cli.errors import EntrepError, Interrupted, UsageError
from entrep_cli.results import Result
from entrep_cli.version import __version__

Command = Callable[..., Result | dict[str, Any] | None]
# Panel -> commands, in the order of the work. Only light modules are imported above: every command
# imports what it needs when it runs, so that `entrep --help` stays fast.
PANELS: dict[str, list[tuple[Command, str]]] = {
    "Data": [
        (synth.synth, "Draw a phantom dataset to try things on: entrep synth phantom"),
        (inspection.inspect, "What is wrong with a dataset, before training: entrep inspect"),
        (split.split, "Divide the images into train, val and test: entrep split"),
    ],
    "Train": [
        (train.train, "Fit a method, leave a run: entrep train --recipe tiny"),
        (pretrain.pretrain, "Encoders from images without labels: entrep pretrain mics"),
        (ensemble.ensemble, "Runs that answer together: entrep ensemble clip-lora dinov2"),
        (ablate.ablate, "Which component of a paper helps: entrep ablate mlcf"),
        (reproduce.reproduce, "A paper's tables beside yours: entrep reproduce foregut"),
    ],
    "Retrieve": [
        (embed.embed, "Images to vectors: entrep embed"),
        (index.index, "Vectors to an index: entrep index"),
        (search.search, "Cases like an image or a finding: entrep search 'septal spur'"),
        (export.export, "The towers as ONNX, for other programs: entrep export"),
    ],
    "Submit": [
        (predict.predict, "A validated submission: entrep predict --track 2"),
        (validate.validate, "Check any submission: entrep validate FILE --track 2"),
        (evaluate.evaluate, "Scores with intervals: entrep evaluate"),
    ],
    "See": [
        (report.report, "A run as one page that opens anywhere: entrep report"),
        (explain.explain, "Where a model looks, as a picture: entrep explain IMAGE"),
        (compare.compare, "Which run is better, by more than chance: entrep compare 'dinov2*'"),
        (search_page.app, "Search in a browser, on this machine alone: entrep app"),
    ],
    "Machine": [
        (demo.demo, "The whole job on phantom data: entrep demo"),
        (doctor.doctor, "Will entrep work here, and how fast: entrep doctor"),
    ],
}
# Commands of two words: the first -> its panel, what its help says, and the second words. They come last in their panel.
GROUPS: dict[str, tuple[str, str, dict[str, tuple[Command, str]]]] = {
    "weights": (
        "Machine",
        "Pretrained weights, cached or not: entrep weights list",
        {
            "list": (weights.list_, "All that recipes need: entrep weights list"),
            "check": (weights.check, "Whole, and of their model: entrep weights check"),
            "fetch": (weights.fetch, "Download, verified: entrep weights fetch dinov2-s"),
        },
    ),
    "cache": (
        "Machine",
        "What can be computed again: entrep cache list",
        {
            "list": (cache.list_, "How much is cached, by kind: entrep cache list"),
            "clear": (cache.clear, "Free the disk of it: entrep cache clear"),
        },
    ),
}
_WRONG_USAGE = typer.BadParameter.__mro__[2]  # the base of typer's errors, which it does not name
GLOBAL_FLAGS = ("--json", "--quiet", "-q")


class _Help:
    """Help that leaves its 80 columns to the words: a flag has no type to show, and a number's range says enough."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if param.param_type_name == "option" and param.metavar is None:
                if param.is_flag:
                    param.metavar = ""
                elif getattr(param, "min", None) is not None:
                    param.metavar = "N"
        return params


class _Command(_Help, typer.core.TyperCommand):
    """Wrong usage names the option that is meant, where another command or program calls it otherwise."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        options = {name for param in self.params for name in param.opts}
        for typed in {"--part", "--on"}.intersection(arg.split("=")[0] for arg in args):
            if "--split" in options and typed not in options:
                raise UsageError(f"No option {typed}.", hint="--split names the images that are scored")
        rest = super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            hint = f"--run {shlex.quote(ctx.args[0])}" if "--run" in options else f"see `{ctx.command_path} --help`"
            raise UsageError(f"Unexpected argument {ctx.args[0]!r}.", hint=hint)
        return rest


class _Group(_Help, typer.core.TyperGroup): ...


app = typer.Typer(
    name="entrep",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        console.plain(f"entrep {__version__}")
        console.document({"version": __version__})
        raise typer.Exit()


@app.callback()
def _options(
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and warnings only.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """From a folder of ENT endoscopy images to validated challenge submissions.

    First example: entrep demo
    """
    # `main` has set the mode from the flags: an error in the command line itself must keep to it too.


def _register(function: Command, panel: str | None, short: str, group: typer.Typer | None = None, name: str | None = None) -> None:
    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        processes.check_distributed(function.__name__)
        result = function(*args, **kwargs)
        document = result.to_dict() if isinstance(result, Result) else result
        if document:
            console.document(document)
            if document.get("ok") is False:
                raise typer.Exit(1)

    # The lines of a docstring are not those of a terminal; its paragraphs are.
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in (inspect.getdoc(function) or "").split("\n\n"))
    settings = {"allow_extra_args": True}  # which `_Command` refuses
    (app if group is None else group).command(
        name, cls=_Command, help=text, short_help=short, rich_help_panel=panel, context_settings=settings
    )(command)


for _panel, _commands in PANELS.items():
    for _function, _short in _commands:
        _register(_function, _panel, _short)
for _first, (_panel, _help, _words) in GROUPS.items():
    # Without its second word a command is wrong usage, in --json too, where a help text would be no document.
    _group = typer.Typer(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
    for _second, (_function, _short) in _words.items():
        _register(_function, None, _short, _group, _second)
    _what, _example = _help.split(": ")
    app.add_typer(_group, name=_first, help=f"Example: {_example}\n\n{_what}.", short_help=_help, rich_help_panel=_panel)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 data or run at fault, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # `entrep split --json` means the same as `entrep --json split`; what follows `--` is no option.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [a for a in arguments[:end] if a in GLOBAL_FLAGS]
    arguments = flags + [a for i, a in enumerate(arguments) if i >= end or a not in GLOBAL_FLAGS]
    console.set_mode("json" if "--json" in flags else "quiet" if flags else "human")
    if not processes.is_main():
        console.set_mode("silent")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as `>&-` does
            setattr(sys, name, open(os.devnull, "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not end a command on an ASCII terminal
    with contextlib.suppress(ValueError):  # not in the main thread, where the caller decides
        signal.signal(signal.SIGTERM, _terminated)
    try:
        app(arguments, prog_name="entrep")
    except SystemExit as error:
        if error.code == 130:
            _fail(Interrupted("Interrupted. No partial files were left."))
        if isinstance(error.__context__, BrokenPipeError):  # `entrep ... | head -1`: nothing is at fault
            raise SystemExit(141) from None  # as of any tool that SIGPIPE ends
        # typer has shown a person what is wrong with the command line; a program reads it here.
        if isinstance(error.__context__, _WRONG_USAGE):
            console.document(_error_document(EntrepError(error.__context__.format_message(), hint="see the command's --help")))
        raise
    except Exception as error:
        if os.environ.get("ENTREP_DEBUG") == "1":
            raise
        _fail(_explained(error))


def _terminated(*_: object) -> None:
    """`kill` ends a command as an interrupt does: partial files are removed on the way out."""
    raise SystemExit(128 + signal.SIGTERM)


def _explained(error: Exception) -> EntrepError:
    """Any exception as what, where and hint."""
    if isinstance(error, EntrepError):
        return error
    if isinstance(error, OSError):
        return _from_os(error)
    # By its name, for torch may never have been imported.
    if type(error).__name__ == "OutOfMemoryError":
        hint = "smaller batches (train: --set train.batch_size=16, or --set checkpointing=true; embed: --batch-size 32), or --device cpu"
        return EntrepError("The GPU's memory is full.", hint=f"{hint}; `nvidia-smi` shows what else runs on it")
    if isinstance(error, MemoryError):
        return EntrepError("The memory is full.", hint="smaller batches (--set train.batch_size=8; embed: --batch-size 8)")
    return EntrepError(f"{type(error).__name__}: {error}", hint="this is a bug in entrep; ENTREP_DEBUG=1 shows where it happened")


def _fail(error: EntrepError) -> None:
    with contextlib.suppress(OSError):  # stdout itself may be what is full
        console.document(_error_document(error))
    console.error(str(error))
    raise SystemExit(error.exit_code)


def _error_document(error: EntrepError) -> dict[str, Any]:
    return {"ok": False, "error": {"what": error.what, "where": error.where, "hint": error.hint, "faults": list(error.faults)}}


def _from_os(error: OSError) -> EntrepError:
    """An error of the file system as a sentence and its hint."""
    hints = {
        errno.ENOSPC: ("The disk is full.", "free some space, or write elsewhere with ENTREP_RUNS=FOLDER; no partial files were left"),
        errno.EDQUOT: ("Your disk quota is used up.", "free some space, or write elsewhere with ENTREP_RUNS=FOLDER"),
        errno.EFBIG: (
            "The file is larger than is allowed here.",
            "raise the limit (`ulimit -f`), or write elsewhere with ENTREP_RUNS=FOLDER",
        ),
        errno.EROFS: ("The disk is read-only.", "write elsewhere with ENTREP_RUNS=FOLDER"),
        errno.EACCES: ("Permission denied.", "check who owns the file, or write elsewhere with ENTREP_RUNS=FOLDER"),
        errno.EEXIST: ("A file is in the way of a folder.", "name another folder with ENTREP_RUNS=FOLDER, or move the file"),
        errno.ENOTDIR: ("A file is in the way of a folder.", "name another folder with ENTREP_RUNS=FOLDER, or move the file"),
        errno.ENOENT: ("No such file or folder.", "check the path"),
    }
    what, hint = hints.get(error.errno or 0, (f"{error.strerror or error}.", None))
    return EntrepError(what, where=error.filename, hint=hint)
