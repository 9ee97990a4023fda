"""What is on disk: where things are read and written, atomic writes, hashes, run folders.

All that is read comes from `data/` (`ENTREP_DATA`, `--data`), all that is written goes under
`runs/` (`ENTREP_RUNS`). A run folder is complete when it holds `run.json`, which is written last.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from entrep_cli.errors import DataError, RunError, UsageError

MANIFEST = "run.json"
CONFIG = "config.toml"
MODEL = "model.safetensors"
METRICS = "metrics.csv"
CHECKPOINT = "checkpoint.pt"
SPLIT = "split.json"
SCHEMA = 2  # of `run.json`: one more whenever commands need what older runs do not record


# ---------------------------------------------------------------- places


def data_dir(option: str | Path | None = None, *, of_split: bool = True) -> Path:
    """The dataset folder: the option, else `ENTREP_DATA`, else the one that was split, else `data`.

    Args:
        of_split: False leaves the dataset of the last split out, for a new split.

    Raises:
        DataError: there is no such folder.
    """
    folder = Path(option) if option else _default_data_dir(of_split)
    if not folder.is_dir():
        what = "The dataset folder is a file." if folder.exists() else "No dataset folder."
        raise DataError(
            what,
            where=folder,
            hint="name it with --data FOLDER or ENTREP_DATA; `entrep synth phantom` makes one to try",
        )
    return folder


def data_dir_exists() -> bool:
    """Whether the dataset folder stands where it is looked for without `--data`."""
    return _default_data_dir().is_dir()


def _default_data_dir(of_split: bool = True) -> Path:
    if named := os.environ.get("ENTREP_DATA"):
        return Path(named)
    if of_split:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return Path(json.loads((runs_dir() / SPLIT).read_text("utf-8"))["data"])
    return Path("data")


_runs: ContextVar[Path | None] = ContextVar("runs", default=None)


def runs_dir() -> Path:
    """Where everything is written: what `writing_to` names, else `ENTREP_RUNS`, else `runs`."""
    return _runs.get() or Path(os.environ.get("ENTREP_RUNS") or "runs")


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Inside the block everything is written to this folder."""
    token = _runs.set(folder)
    try:
        yield
    finally:
        _runs.reset(token)


def cache_dir(kind: str) -> Path:
    """A folder for what can be computed again; safe to delete at any time, made by the first write."""
    return runs_dir() / "cache" / kind


# ---------------------------------------------------------------- writing and hashing


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a unique temporary path beside `path`; it takes the name `path` if the block succeeds.

    A reader sees the old file or the new one, never a part; two writers never share a temp name. An
    error of the file system names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text_atomic(path: Path, content: str) -> None:
    """Write UTF-8 text with LF line ends, whole or not at all."""
    write_bytes_atomic(path, content.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A header and rows as CSV with LF line ends; cells are quoted where they need it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def write_csv_atomic(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a header and rows as UTF-8 CSV, whole or not at all."""
    write_text_atomic(path, csv_text(columns, rows))


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Sixteen hex digits that change whenever the JSON form of `value` does."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- runs


def trained_on(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The images that a run has learned from, by the fingerprints of catalog and split and by the fold; None where it does not say."""
    data, split = manifest.get("data", {}), manifest.get("split", {})
    return {"catalog": data.get("catalog"), "split": split.get("fingerprint"), "fold": split.get("fold")}


@dataclass(frozen=True)
class Run:
    """A folder under `runs/` that holds one trained model and all that was made with it."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def reference(self) -> str:
        """What `--run` and `--weights` take for it: its place below the runs folder, as in `hybrid/baseline`; elsewhere its folder."""
        folder, root = self.folder.resolve(), runs_dir().resolve()
        return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)

    @property
    def complete(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    @property
    def manifest(self) -> dict[str, Any]:
        """`run.json`, for reading alone; RunError where the run is incomplete, of another schema, or the file is damaged."""
        path = self.folder / MANIFEST
        if not path.is_file():
            raise RunError(
                f"Run {self.name!r} is not complete: its training did not end, {MANIFEST} is missing.",
                where=self.folder,
                hint=f"go on with `entrep train --name {self.name} --resume`, or start anew with --overwrite"
                if self.reference == self.name
                else "the command that began it (hybrid, ablate, reproduce) goes on with it",
            )
        try:
            state = path.stat()
            manifest = _read_manifest(path, state.st_mtime_ns, state.st_size, state.st_ino)
        except ValueError as error:
            raise RunError(f"The manifest of run {self.name!r} is damaged: {error}.", where=path, hint=self._again({})) from error
        if (schema := manifest.get("schema", 1)) != SCHEMA:
            raise RunError(
                f"Run {self.name!r} was made by {'an older' if schema < SCHEMA else 'a newer'} entrep: "
                f"its schema is {schema}, and this entrep reads {SCHEMA}.",
                where=path,
                hint=self._again(manifest),
            )
        return manifest

    def _again(self, manifest: Mapping[str, Any]) -> str:
        """How to make the run anew."""
        if self.reference != self.name:
            return "run the command again that made it (hybrid, ablate, reproduce), with --overwrite"
        if manifest.get("method") == "ensemble":
            return f"make it again with `entrep ensemble RUN RUN --name {self.name} --overwrite`"
        command = "pretrain mics" if manifest.get("method") == "mics-pretrain" else "train"
        return f"train it again with `entrep {command} --recipe {self.folder / CONFIG} --name {self.name} --overwrite`"

    def remove_if_empty(self) -> None:
        """Take away the folder of a training that ended before it wrote a checkpoint.

        The run that it was to replace comes back.
        """
        if not self.complete and not self.path(CHECKPOINT).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._replaced.is_dir():
                self._replaced.rename(self.folder)

    def mark_complete(self, manifest: Mapping[str, Any]) -> None:
        """Write `run.json`, with the hash of every file of the model: from now on the run is complete."""
        paths = (path for path in sorted(self.folder.iterdir()) if path.is_file() and path.suffix != ".tmp")
        files = {path.name: file_sha256(path) for path in paths if path.name not in (MANIFEST, CHECKPOINT)}
        completed = datetime.now(UTC).isoformat(timespec="microseconds")
        write_json_atomic(self.folder / MANIFEST, {**manifest, "schema": SCHEMA, "files": files, "completed": completed})
        shutil.rmtree(self._replaced, ignore_errors=True)

    @property
    def _replaced(self) -> Path:
        """Where the run of the same name waits until this one is complete."""
        return self.folder.with_name(f".{self.name}.replaced")

    def check_files(self) -> None:
        """RunError that names each file which is gone or is not the one the run was completed with."""
        faults = []
        for name, sha256 in self.manifest["files"].items():
            path = self.folder / name
            if not path.is_file():
                faults.append(f"{name} is missing")
            elif name != METRICS and file_sha256(path) != sha256:
                faults.append(f"{name} was changed after training")
        if faults:
            raise RunError(
                f"Run {self.name!r} is damaged.",
                where=self.folder,
                faults=faults,
                hint="copy the run folder again from where it was trained, or train it again",
            )


@functools.lru_cache(maxsize=256)
def _read_manifest(path: Path, mtime_ns: int, size: int, inode: int) -> dict[str, Any]:
    """A manifest, parsed once for each state of the file; ValueError where it is none."""
    manifest = json.loads(path.read_text("utf-8"))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("not an object with the files of a run")
    if not isinstance(manifest.get("schema", 1), int):
        raise ValueError("its schema is no number")
    return manifest


def new_run(method: str, name: str | None, *, overwrite: bool = False, resume: bool = False) -> Run:
    """The folder for a training: a fresh one, or with `resume` the one to go on with.

    Without a name the run is called after its method, numbered where that name is taken. A name that
    exists is refused unless `overwrite` (the old run is removed when the new one is complete) or
    `resume` is given. A folder that is neither empty nor a run is never touched.
    """
    root = runs_dir()
    if name is not None and (not _RUN_NAME.fullmatch(name) or name.lower() in _TAKEN):
        raise UsageError(f"{name!r} cannot be the name of a run.", hint="use letters, digits, - and _")
    if resume:
        candidates = [root / name] if name else sorted(_incomplete(root), key=lambda p: p.stat().st_mtime)
        if not candidates or not candidates[-1].is_dir():
            raise RunError("No incomplete run to resume.", where=root, hint="leave out --resume")
        run = Run(_own(candidates[-1]))
        if run.complete:
            raise RunError(
                f"Run {run.name!r} is complete: nothing to resume.",
                where=run.folder,
                hint=f"`entrep evaluate --run {run.name}`, or --overwrite to train it again",
            )
        return run
    if name is None:
        number = 1
        while not _made(folder := root / (method if number == 1 else f"{method}-{number}")):
            number += 1
        return Run(folder)
    folder = root / name
    if _made(folder):
        return Run(folder)
    run = Run(_own(folder))
    if not overwrite:
        raise RunError(
            f"A run named {name!r} exists already.",
            where=folder,
            hint="choose another --name, replace it with --overwrite" + ("" if run.complete else ", or go on with --resume"),
        )
    if run.complete:
        shutil.rmtree(run._replaced, ignore_errors=True)
        folder.rename(run._replaced)
    else:
        shutil.rmtree(folder)
    folder.mkdir()
    return run


def open_run(name: str | None = None) -> Run:
    """A complete run by name or path; without a name the one that completed last."""
    root = runs_dir()
    if name is None:
        complete = _complete(root)
        if not complete:
            raise RunError("No trained run yet.", where=root, hint="train one: `entrep train`")
        run = max(complete, key=lambda run: (_completed(run), run.name))
        run.manifest  # noqa: B018 - raises where not even the last one can be read
        return run
    if run := find_run(name):
        run.manifest  # noqa: B018 - raises where the run is half written
        return run
    names = sorted(run.name for run in _complete(root))
    hint = f"choose one of: {', '.join(names)}" if names else "train one: `entrep train`"
    # The folder of `entrep demo` holds a runs folder of that kind.
    if below := sorted(folder for folder in root.glob("*/runs") if name and (folder / name / MANIFEST).is_file()):
        hint = f"`export ENTREP_RUNS={shlex.quote(str(below[0]))}` for the one in {below[0]}"
    raise RunError(f"No run named {name!r}.", where=root, hint=hint)


def find_run(name: str) -> Run | None:
    """A run by name or path, whole or half written; None where there is none."""
    return next((Run(folder) for folder in (runs_dir() / name, Path(name)) if _is_run(folder)), None)


_RUN_NAME = re.compile(r"\w[\w.+-]*")
_TAKEN = ("ablations", "cache", "comparisons", "evaluation", "split.csv", "split.json")


def _is_run(folder: Path) -> bool:
    """Whether a folder bears the marks of a run, whole or half; a name alone says nothing."""
    return any((folder / file).is_file() for file in (MANIFEST, CONFIG, CHECKPOINT))


def _own(folder: Path) -> Path:
    """The folder, if it may be written to or replaced as a run."""
    if _is_run(folder) or folder.is_dir() and all(path.suffix == ".tmp" for path in folder.iterdir()):
        return folder
    raise RunError("What has this name is no run, and is left alone.", where=folder, hint="choose another --name")


def _made(folder: Path) -> bool:
    """Make the folder; False where the name is taken, perhaps by another training of this moment."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def complete_runs() -> list[Run]:
    """The complete runs in the runs folder, but for those whose manifest is damaged."""
    found = []
    for run in _complete(runs_dir()):
        with contextlib.suppress(RunError):
            run.manifest  # noqa: B018 - raises where it cannot be read
            found.append(run)
    return found


def _complete(root: Path) -> list[Run]:
    return [Run(path.parent) for path in root.glob(f"[!.]*/{MANIFEST}")]


def _completed(run: Run) -> str:
    """When it was completed; "", before all others, where its manifest is damaged."""
    try:
        return str(run.manifest.get("completed", ""))
    except RunError:
        return ""


def _incomplete(root: Path) -> list[Path]:
    return [path.parent for path in root.glob(f"*/{CHECKPOINT}") if not Run(path.parent).complete]
