from __future__ import annotations

import re

import pytest

from entrep_cli.data.inspection import inspect_dataset
from entrep_cli.reporting.inspect_page import page, write_page
from tests.data.scenes import jpeg, scene
from tests.pages import Tags
from tests.tiny import write_json

HOSTILE = "<img src=x onerror=alert(1)> {{ 7*7 }} '\"[red]&.png"
CLASS = "<script>alert(1)</script>"


@pytest.fixture
def found(tmp_path):
    """Two classes of hostile names, with a near-duplicate and a dark image."""
    labels = {}
    (tmp_path / "data" / "imgs").mkdir(parents=True)
    images = {HOSTILE: scene(0), "a.png": jpeg(scene(0), 60), "b.png": scene(2).point(lambda v: v // 9)}
    images |= {f"{i}.png": scene(i) for i in range(3, 7)}
    for i, (name, image) in enumerate(images.items()):
        image.save(tmp_path / "data" / "imgs" / name)
        labels[name] = CLASS if i % 2 else "throat"
    write_json(tmp_path / "data" / "cls.json", labels)
    return inspect_dataset(tmp_path / "data")


def test_the_page_is_whole_and_asks_no_network(found, tmp_path):
    path = write_page(found, tmp_path / "page.html")
    text = path.read_text("utf-8")
    read = Tags(text)
    assert not read.open and {r.kind for r in found.remarks} >= {"near-duplicates", "quality: dark"}
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in read.tags}
    sources = [attributes["src"] for tag, attributes in read.tags if tag == "img"]
    assert len(sources) >= 5 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r'src="data:[^"]*"', "", text).replace(str(tmp_path), ""))
    assert "prefers-color-scheme: dark" in text and page(found) == text


def test_names_are_shown_and_never_live(found):
    text = page(found)
    tags = Tags(text).tags
    assert not any("onerror" in attributes for _, attributes in tags) and "<script" not in text and "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt; {{ 7*7 }}" in text and "&lt;script&gt;" in text


def test_private_shows_no_picture_and_no_name(found):
    text = page(found, private=True)
    assert "data:image" not in text and "onerror" not in text and "a.png" not in text and str(found.root) not in text
    assert re.search(r"image \d", text) and "near-duplicates" in text


def test_an_empty_folder_has_a_page_too(tmp_path):
    assert "Something must be corrected" in page(inspect_dataset(tmp_path))
