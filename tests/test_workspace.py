"""Places, atomic writes, and run folders that are whole or half."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from entrep_cli import workspace
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.workspace import (
    CHECKPOINT,
    CONFIG,
    MANIFEST,
    METRICS,
    MODEL,
    Run,
    atomic_path,
    data_dir,
    fingerprint,
    new_run,
    open_run,
    runs_dir,
    write_bytes_atomic,
    write_csv_atomic,
    write_json_atomic,
    write_text_atomic,
)


def train(name: str = "m", completed: str | None = None) -> Run:
    """A complete run."""
    run = new_run("dinov2", name)
    for file in (CONFIG, MODEL, METRICS):
        run.path(file).write_text(f"{name} {file}")
    run.mark_complete({"method": "dinov2"})
    if completed is not None:
        write_json_atomic(run.path(MANIFEST), run.manifest | {"completed": completed})
    return run


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- places


def test_where_data_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="No dataset folder") as error:
        data_dir()
    assert error.value.where == "data" and "`entrep synth phantom`" in error.value.hint  # in data/ it would be merged with what is there
    (tmp_path / "data").mkdir()
    (tmp_path / "mine").mkdir()
    assert data_dir() == Path("data")
    monkeypatch.setenv("ENTREP_DATA", "mine")
    assert data_dir() == Path("mine") and data_dir(Path("data")) == Path("data")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        data_dir(Path("file"))


def test_where_runs_are_written(monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", "elsewhere")
    assert runs_dir() == Path("elsewhere")
    monkeypatch.setenv("ENTREP_RUNS", "")
    assert runs_dir() == Path("runs")


# ---------------------------------------------------------------- writing


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text_atomic(path, "old\n")
    with pytest.raises(RuntimeError):
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert everything(tmp_path) == {"new/file.txt": b"old\n"}
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    write_bytes_atomic(path, b"\r\n")
    assert everything(tmp_path) == {"new/file.txt": b"\r\n"}
    write_csv_atomic(path, ["a", "b"], [(1, "x, y"), ("", 'ô "')])
    assert everything(tmp_path) == {"new/file.txt": 'a,b\n1,"x, y"\n,"ô """\n'.encode()}


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "f") as one, atomic_path(tmp_path / "f") as two:
        one.write_text("1"), two.write_text("2")
    assert everything(tmp_path) == {"f": b"1"}


def test_an_error_names_the_file_that_was_meant(tmp_path):
    """Neither the temporary name nor, of a full disk, none at all."""
    for raised in (OSError(28, "No space left on device"), PermissionError(13, "Permission denied")):
        with pytest.raises(OSError) as error:
            with atomic_path(tmp_path / "f") as temporary:
                raised.filename = None if raised.errno == 28 else str(temporary)
                raise raised
        assert error.value.filename == str(tmp_path / "f")
    with pytest.raises(FileNotFoundError) as error:
        with atomic_path(tmp_path / "f"):
            (tmp_path / "what is read").read_text()
    assert error.value.filename == str(tmp_path / "what is read")


def test_text_is_utf8_with_lf(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"ả": "\u2028"})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "ả": "\u2028"\n}\n'.encode()


def test_the_fingerprint_is_of_the_value():
    assert fingerprint({"a": 1, "b": [2.0, None]}) == fingerprint({"b": [2.0, None], "a": 1})
    values = [{}, [], None, "", 0, 0.5, [0], ["a", "b"], ["ab"], {"a": "b"}, "\udcff", "ả"]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert len(fingerprint({})) == 16


# ---------------------------------------------------------------- run folders


def test_a_run_is_complete_when_its_manifest_is_there():
    run = new_run("dinov2", "m")
    assert not run.complete and run.folder == runs_dir() / "m"
    with pytest.raises(RunError, match="not complete") as error:
        run.manifest  # noqa: B018
    assert "--resume" in error.value.hint
    run.path(MODEL).write_text("weights")
    run.mark_complete({"method": "dinov2"})
    assert run.complete and run.manifest["method"] == "dinov2" and list(run.manifest["files"]) == [MODEL]
    run.check_files()
    assert open_run("m") == run == open_run()


def test_changed_and_missing_files_are_listed():
    run = train()
    run.path(METRICS).write_text("a plot was made")  # harmless
    run.check_files()
    run.path(MODEL).write_text("other")
    run.path(CONFIG).unlink()
    with pytest.raises(RunError) as error:
        run.check_files()
    assert sorted(error.value.faults) == [f"{CONFIG} is missing", f"{MODEL} was changed after training"]


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"files": 3}'])
def test_a_damaged_manifest(content):
    run = train()
    run.path(MANIFEST).write_text(content)
    for ask in (lambda: run.manifest, run.check_files, open_run, lambda: open_run("m")):
        with pytest.raises(RunError, match="damaged"):
            ask()
    # It does not stand in the way of the others.
    assert train("n") == open_run("n") == open_run()


@pytest.mark.parametrize(
    ("schema", "who", "method"), [(None, "an older", "train"), (1, "an older", "pretrain mics"), (3, "a newer", "ensemble")]
)
def test_a_manifest_of_another_schema(schema, who, method):
    run = train()
    name = {"train": "dinov2", "pretrain mics": "mics-pretrain"}.get(method, method)
    manifest = {key: value for key, value in run.manifest.items() if key != "schema"} | {"method": name}
    write_json_atomic(run.path(MANIFEST), manifest if schema is None else {**manifest, "schema": schema})
    for ask in (lambda: run.manifest, open_run):
        with pytest.raises(RunError, match=f"made by {who} entrep") as error:
            ask()
        assert f"entrep {method} " in error.value.hint and "--name m --overwrite" in error.value.hint


def test_a_manifest_that_changes_is_read_again(monkeypatch):
    run = train()
    before = run.manifest
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", lambda _: pytest.fail("parsed already"))
        assert run.manifest == before and Run(run.folder).manifest == before
    state = run.path(MANIFEST).stat()
    write_json_atomic(run.path(MANIFEST), {**before, "method": "dinov3"})  # of the same length
    os.utime(run.path(MANIFEST), ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run.manifest["method"] == "dinov3" and run.path(MANIFEST).stat().st_size == state.st_size


def test_names_of_runs():
    assert [new_run("dinov2", None).name for _ in range(3)] == ["dinov2", "dinov2-2", "dinov2-3"]
    for name in ("a", "A-1_b.c", "đường", "1+2"):
        assert new_run("dinov2", name).folder == runs_dir() / name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/tmp/x", "../x", "cache", "Cache", "split.csv", "split.json", ".hidden", "-rf", "a\nb", "a\0", "a b"]
)
@pytest.mark.parametrize("more", [{}, {"overwrite": True}, {"resume": True}])
def test_names_that_no_run_may_have(name, more):
    train()
    before = everything(runs_dir())
    with pytest.raises(UsageError):
        new_run("dinov2", name, **more)
    assert everything(runs_dir()) == before


def test_a_name_that_exists_is_refused():
    train()
    before = everything(runs_dir())
    with pytest.raises(RunError) as error:
        new_run("dinov2", "m")
    assert "--overwrite" in error.value.hint and "--resume" not in error.value.hint and everything(runs_dir()) == before
    new_run("dinov2", "half")
    with pytest.raises(RunError) as error:
        new_run("dinov2", "half")
    assert "--resume" in error.value.hint


def test_overwriting_keeps_the_old_run_until_the_new_one_is_complete():
    old = everything(train().folder)
    run = new_run("dinov2", "m", overwrite=True)
    assert everything(run.folder) == {}
    with pytest.raises(RunError, match="No trained run"):
        open_run()
    run.path(CONFIG).write_text("new")
    run.remove_if_empty()  # the weights were of another model, say
    assert everything(run.folder) == old and everything(runs_dir()).keys() == {f"m/{name}" for name in old}

    run = new_run("dinov2", "m", overwrite=True)
    run.path(CHECKPOINT).write_text("epoch 3")
    run.remove_if_empty()
    again = new_run("dinov2", "m", overwrite=True)
    assert everything(again.folder) == {}
    again.mark_complete({"method": "dinov2"})
    assert set(everything(runs_dir())) == {f"m/{MANIFEST}"}


def test_a_training_that_never_began_leaves_nothing():
    run = new_run("dinov2", None)
    run.path(CONFIG).write_text("x")
    run.remove_if_empty()
    assert not run.folder.exists()
    kept = train()
    kept.remove_if_empty()
    assert kept.complete


@pytest.mark.parametrize("more", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_that_is_no_run_is_never_touched(more):
    (runs_dir() / "demo" / "data").mkdir(parents=True)
    (runs_dir() / "demo" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is no run"):
        new_run("dinov2", "demo", **more)
    assert everything(runs_dir()) == {"demo/notes.txt": b"mine"}
    # What a training leaves that was killed before its first write is as good as nothing.
    half = new_run("dinov2", "half")
    half.path(".config.toml.123-ab.tmp").write_text("ha")
    assert everything(new_run("dinov2", "half", overwrite=True).folder) == {}


def test_trainings_that_begin_at_the_same_moment(monkeypatch):
    """The folder is made in one step: who comes second takes the next name."""
    mkdir = Path.mkdir

    def beaten(self, *arguments, **more):
        if self.name == "dinov2":
            mkdir(self, exist_ok=True)  # another process, just now
        mkdir(self, *arguments, **more)

    runs_dir().mkdir(parents=True)
    monkeypatch.setattr(Path, "mkdir", beaten)
    assert new_run("dinov2", None).name == "dinov2-2"


def test_every_file_of_the_model_is_hashed():
    run = new_run("clip-lora", "m")
    for file in (CONFIG, MODEL, METRICS, "clip.json", CHECKPOINT, ".model.safetensors.1-ab.tmp"):
        run.path(file).write_text(file)
    run.mark_complete({})
    assert set(run.manifest["files"]) == {CONFIG, MODEL, METRICS, "clip.json"}
    run.path("clip.json").write_text("other")
    with pytest.raises(RunError) as error:
        run.check_files()
    assert error.value.faults == ("clip.json was changed after training",)


def test_resuming():
    with pytest.raises(RunError, match="No incomplete run"):
        new_run("dinov2", None, resume=True)
    train("done")
    half = new_run("dinov2", "half")
    half.path(CHECKPOINT).touch()
    assert new_run("dinov2", None, resume=True) == half == new_run("dinov2", "half", resume=True)
    with pytest.raises(RunError, match="is complete"):
        new_run("dinov2", "done", resume=True)
    with pytest.raises(RunError, match="No incomplete run"):
        new_run("dinov2", "none", resume=True)


def test_the_run_that_finished_last_is_meant_where_none_is_named():
    train("b", "2026-01-02"), train("a", "2026-01-03"), train("c", "2026-01-01")
    (runs_dir() / "cache").mkdir()
    new_run("dinov2", "half")
    assert open_run().name == "a"


def test_opening_by_name_or_by_folder(tmp_path, monkeypatch):
    run = train()
    assert open_run(str(run.folder)) == run
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError) as error:
        open_run("other")  # a folder, but no run
    assert error.value.what == "No run named 'other'." and error.value.hint == "choose one of: m"
    for name in ("", ".", "..", "none"):
        with pytest.raises(RunError, match="No run named"):
            open_run(name)
    (runs_dir() / "demo" / "runs" / "deep").mkdir(parents=True)
    (runs_dir() / "demo" / "runs" / "deep" / "run.json").touch()
    with pytest.raises(RunError) as error:
        open_run("deep")
    assert error.value.hint == f"`export ENTREP_RUNS={runs_dir() / 'demo' / 'runs'}` for the one in {runs_dir() / 'demo' / 'runs'}"
    half = new_run("dinov2", "half")
    half.path(CONFIG).touch()
    with pytest.raises(RunError, match="not complete"):
        open_run("half")


def test_a_full_disk_leaves_no_half_manifest(monkeypatch):
    run = new_run("dinov2", "m")
    run.path(MODEL).write_text("weights")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(workspace.os, "replace", full)
        with pytest.raises(OSError):
            run.mark_complete({})
    assert set(everything(run.folder)) == {MODEL} and not run.complete


def test_a_run_is_referred_to_by_its_place_below_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    assert Run(tmp_path / "runs" / "hybrid" / "baseline").reference == "hybrid/baseline"
    assert Run(tmp_path / "runs" / "dinov2").reference == "dinov2"
    assert Run(tmp_path / "elsewhere").reference == str(tmp_path / "elsewhere")
