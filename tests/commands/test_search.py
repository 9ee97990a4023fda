"""`entrep search` and `entrep app` end to end: the sheet, hits and misses, the table of a terminal, the page of a run."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import threading
import urllib.request
from pathlib import Path

import pytest

from entrep_cli.data.images import read_image


def train_image(phantom: Path, number: int = 0) -> tuple[Path, str]:
    """An image of the training folder and its label."""
    labels = json.loads((phantom / "train" / "cls.json").read_text())
    name = sorted(labels)[number]
    return phantom / "train" / "imgs" / name, labels[name]


def test_an_embedded_image_knows_its_class_and_its_sheet_is_drawn(trained, phantom, entrep):
    query, label = train_image(phantom)
    done = entrep("search", query, "--top-k", 6, "--json")
    labels = json.loads((phantom / "train" / "cls.json").read_text())
    assert done.code == 0 and done.json["label"] == label
    for answer in done.json["answers"]:
        assert answer["hit"] == (labels[answer["image"]] == label if answer["image"] in labels else None)
    sheet = Path(done.json["sheet"])
    assert sheet.parent == trained / "dinov2" / "searches" and read_image(sheet).width > 800
    assert entrep("search", query, "--top-k", 6, "--json").json["sheet"] == str(sheet)  # the same search, the same file
    assert entrep("search", query, "--top-k", 5, "--json").json["sheet"] != str(sheet)


def test_the_class_may_be_told_and_the_sheet_left_out(trained, phantom, entrep):
    query = sorted((phantom / "test" / "imgs").iterdir())[0]
    plain = entrep("search", query, "--no-sheet", "--json").json
    assert plain["label"] is None and {a["hit"] for a in plain["answers"]} == {None} and "sheet" not in plain
    told = entrep("search", query, "--no-sheet", "--label", "throat", "--json").json
    assert [a["hit"] for a in told["answers"]] == [a["label"] == "throat" if a["label"] else None for a in told["answers"]]
    assert not (trained / "dinov2" / "searches").exists()
    done = entrep("search", query, "--label", "nose")
    assert done.code == 2 and "nose-right" in done.err
    assert entrep("search", query, "--no-sheet", "--save", "x.png").code == 2


def test_a_run_that_cannot_be_written_to_is_searched_all_the_same(trained, phantom, entrep):
    (trained / "dinov2" / "searches").write_text("a file is in the way")
    done = entrep("search", train_image(phantom)[0])
    assert done.code == 0 and "no sheet was drawn" in done.err and "--save FILE" in done.err


def test_a_hostile_name_fits_a_terminal_of_80_columns(trained, phantom, entrep, tmp_path, monkeypatch):
    query = tmp_path / ("[red]<script>alert(1)</script>" + "long-" * 30 + ".png")
    query.parent.mkdir(parents=True)
    shutil.copy(train_image(phantom)[0], query)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    done = entrep("search", query)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.out)
    table = shown.split("rank", 1)[1].splitlines()
    assert done.code == 0 and "script>long-" in shown and max(map(len, table)) <= 80 and re.search(r" 10 .*\d\.\d{3} ", shown)
    (sheet,) = (trained / "dinov2" / "searches").iterdir()
    assert re.fullmatch(r"[A-Za-z0-9-]+\.png", sheet.name)


def test_the_page_of_a_run(trained, phantom, entrep, monkeypatch):
    """The server itself runs in a thread; Ctrl-C, as uvicorn passes it on, ends the command with 130."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `app` is not installed")
    pages, run = [], uvicorn.Server.run

    def ask_and_stop(server, sockets):
        thread = threading.Thread(target=run, args=(server, sockets))
        thread.start()
        base = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        for path in ("/", "/search?row=60&k=5", "/search?row=60&k=5&rule=soft"):
            with urllib.request.urlopen(base + path) as answer:
                pages.append(answer.read().decode())
        server.should_exit = True
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", ask_and_stop)
    done = entrep("app", "--port", 0, "--no-open")
    assert done.code == 130 and re.match(r"http://127\.0\.0\.1:\d+/ +\(run dinov2, 154 images", done.out) and "Interrupted" in done.err
    answers = [len(re.findall(r'class="card(?: hit| miss)?"', page)) for page in pages]
    assert answers == [24, 5, 5]
    assert "Labelled <b>" in pages[1] and "The run takes it for" in pages[1] and "Ranked by class too (soft, weight " in pages[2]
    done = entrep("app", "--port", 0, "--no-open", "--json")
    assert done.code == 130 and done.json["run"] == "dinov2" and done.json["url"].startswith("http://127.0.0.1:")


def test_the_page_wants_a_fresh_index_and_its_libraries(trained, entrep, monkeypatch):
    shutil.rmtree(trained / "dinov2" / "index")
    done = entrep("app", "--port", 0, "--no-open")
    assert done.code == 1 and "`entrep index --run dinov2`" in done.err
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name in ("starlette", "uvicorn") else found(name, *more))
    done = entrep("app", "--port", 0, "--no-open", "--json")
    assert done.code == 2 and done.json["error"]["what"] == "The search page needs starlette and uvicorn."
    assert "pip install '.[app]'" in done.json["error"]["hint"]
