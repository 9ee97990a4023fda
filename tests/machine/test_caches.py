"""The cache: what it holds, and that nothing else ever goes."""

from __future__ import annotations

import os
import time

import pytest

from entrep_cli.errors import UsageError
from entrep_cli.machine.caches import cache_kinds, cache_root, clear_cache, folder_size

DAY = 86400


def put(name: str, days: float, content: str = "12345", folder=None):
    path = (folder or cache_root()) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def test_kinds_with_their_sizes():
    assert cache_kinds() == [] and clear_cache() == {}
    put("pixels/a.npy", 3)
    put("pixels/b.npy", 1, "1")
    put("other/below/c", 2)
    found = {kind.name: (kind.files, kind.size, round(kind.oldest / DAY)) for kind in cache_kinds()}
    assert found == {"pixels": (2, 6, 3), "other": (1, 5, 2)}
    assert folder_size(cache_root()) == 11


def test_clearing_by_kind_and_age():
    kept = put("features/a.npz", 9)
    young, old = put("pixels/a.npy", 1), put("pixels/b.npy", 8)
    cleared = clear_cache("pixels", older_than=7)
    assert (cleared["pixels"].files, cleared["pixels"].size) == (1, 5) and list(cleared) == ["pixels"]
    assert young.exists() and kept.exists() and not old.exists()
    assert sum(one.files for one in clear_cache().values()) == 2
    assert young.parent.is_dir()  # somebody may be about to write there
    assert clear_cache("images") == {}  # a known kind of which nothing is there


@pytest.mark.parametrize("kind", ["..", "../x", "pixels/../..", "/", "nothing", "."])
def test_a_kind_is_a_name(kind):
    put("pixels/a.npy", 1)
    with pytest.raises(UsageError):
        clear_cache(kind)


def test_what_another_process_is_writing_is_left():
    writing = put("pixels/.a.npy.12-ab.tmp", 0.01)
    abandoned = put("pixels/.b.npy.12-ab.tmp", 1)
    just_written = put("pixels/c.npy", 0)
    cleared = clear_cache()["pixels"]
    assert (cleared.files, cleared.busy) == (1, 2)
    assert writing.exists() and just_written.exists() and not abandoned.exists()


def test_no_link_is_followed(tmp_path):
    outside = put("precious.txt", 9, folder=tmp_path / "outside")
    for name in ("pixels", "features"):
        (cache_root() / name).mkdir(parents=True)
    (cache_root() / "pixels" / "link").symlink_to(outside)
    (cache_root() / "features" / "folder").symlink_to(outside.parent)
    (cache_root() / "images").symlink_to(outside.parent)
    assert [kind.files for kind in cache_kinds()] == [0, 0, 0] and [kind.link for kind in cache_kinds()] == [False, True, False]
    clear_cache()
    assert outside.exists()


def test_a_cache_that_is_itself_a_link_is_left(tmp_path):
    outside = put("pixels/precious.npy", 9, folder=tmp_path / "outside")
    cache_root().parent.mkdir(parents=True)
    cache_root().symlink_to(tmp_path / "outside")
    assert cache_kinds() == [] and clear_cache() == {} and folder_size(cache_root()) == 0
    assert outside.exists()


def test_a_file_that_cannot_go_is_told(monkeypatch):
    put("pixels/a.npy", 1)

    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.unlink", refused)
    cleared = clear_cache()["pixels"]
    assert cleared.files == 0 and "a.npy: Permission denied" in cleared.faults[0]
