"""`entrep index --store`: search and predict answer from Milvus as they do without."""

from __future__ import annotations

import json

from entrep_cli.retrieval.stores import MilvusStore
from tests.commands.conftest import quiet


def test_search_and_predict_answer_the_same(trained, phantom, entrep, monkeypatch):
    run, image = trained / "dinov2", sorted((phantom / "test" / "imgs").iterdir())[0]
    asked = []
    search = MilvusStore.search
    monkeypatch.setattr(MilvusStore, "search", lambda *arguments: asked.append(arguments[3]) or search(*arguments))

    def answers() -> list:
        lines = [
            entrep("search", "--no-sheet", image, *options, "--json").json["answers"] for options in (["--mask-groups"], ["--top-k", 500])
        ]
        for option in ("--mask-groups", "--no-mask-groups"):
            quiet("predict", "--track", 2, "--gallery", "all", option)
            lines.append((run / "submissions" / "track2.csv").read_text())
        return lines

    before = answers()
    assert not asked
    made = entrep("index", "--store", "milvus", "--json").json
    assert made["kind"] == "milvus" and not list((run / "index").glob("*.faiss"))
    assert answers() == before
    assert len(asked) > 70 and {"image", "digest", "group"} in [set(own) for own in asked]

    quiet("index")
    n_asked = len(asked)
    assert answers() == before and len(asked) == n_asked
    assert "store" not in json.loads((run / "index" / "manifest.json").read_text())


def test_a_store_that_is_not_to_be_had_is_one_message(trained, entrep):
    manifest = trained / "dinov2" / "index" / "manifest.json"
    before = manifest.read_bytes()
    ended = entrep("index", "--store", "http://127.0.0.1:9")
    assert ended.code == 1 and "does not answer" in ended.err and "Traceback" not in ended.err
    assert manifest.read_bytes() == before  # the index that was there still serves
    ended = entrep("index", "--store", "http://user:secret@127.0.0.1:9")
    assert ended.code == 2 and "secret" not in ended.err
