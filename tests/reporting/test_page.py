from __future__ import annotations

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.evaluation.selection import temperature_on
from entrep_cli.evaluation.subsets import TextQueries
from entrep_cli.reporting.page import report_page, script_json, write_report
from entrep_cli.reporting.report import content_of
from tests.browser import Browser, program
from tests.made_scored import make_scored
from tests.pages import Tags

NAMES = ["[red]<script>alert(1)</script>.png", "<img src=x onerror=alert(1)>.png", "\x1b[2J{{ 7*7 }}'\".png", "</script><b>.png"]
CLASSES = ["<script>alert(2)</script>", "[red]b & c[/red]", "a very long name of a class that no chart has room for"]
FINDINGS = ["</title><script>alert(3)</script>", "[link=x]{{ 7*7 }}\x1b[31m"]


def overlays(pixels, classes):
    return [Image.fromarray(255 - one.transpose(1, 2, 0)) for one in pixels], "Grad-CAM <b>"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    taxonomy = Taxonomy("<i>t</i>", tuple(ClassInfo(name, i, f"<u>region {i % 2}</u>") for i, name in enumerate(CLASSES)))
    folder = tmp_path_factory.mktemp("page")
    return make_scored(folder, per_class=8, classes=CLASSES, names=NAMES, findings=FINDINGS, taxonomy=taxonomy, skill=0.4)


def content(scored, **more):
    texts = TextQueries(FINDINGS, np.asarray(scored.embeddings.vectors)[:2])
    temperature = temperature_on(np.asarray(scored.embeddings.probabilities), scored.images.targets)
    stages = [{"by": "<b>all</b>", "stage": "", "images": 24, "share": 1.0, "right": None}]
    return content_of(scored, temperature=temperature, texts=texts, stages=stages, explain=overlays, flags=" --data 'my <data>'", **more)


@pytest.fixture(scope="module")
def page(scored):
    return report_page(content(scored))


def test_the_page_is_whole_asks_no_network_and_names_its_one_script(page):
    read = Tags(page)
    assert not read.open
    assert not {"link", "iframe", "object", "form", "base"} & {tag for tag, _ in read.tags}
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for tag, attributes in read.tags if tag == "img")
    assert all(attributes["href"].startswith("#") for tag, attributes in read.tags if "href" in attributes)
    assert not re.search(r"https?:|@import", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", page))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    (policy,) = [a["content"] for tag, a in read.tags if a.get("http-equiv") == "Content-Security-Policy"]
    hashed = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1 and f"script-src 'sha256-{hashed}'" in policy and policy.startswith("default-src 'none'")
    assert [a for tag, a in read.tags if tag == "script"] == [{"type": "application/json", "id": "map-data"}, {}]


def test_every_link_leads_to_a_place_and_no_place_is_named_twice(page):
    tags = Tags(page).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in tags if tag in ("a", "use")} <= set(ids)
    assert {i for _, a in tags for i in a.get("aria-labelledby", "").split()} <= set(ids)


def test_names_are_shown_and_never_live(page):
    tags = Tags(page).tags
    assert not any(key.startswith("on") for _, attributes in tags for key in attributes)
    assert not {"u", "i"} & {tag for tag, _ in tags} and "alert(1)</script>" not in page and "\x1b" not in page
    assert "[red]&lt;script&gt;alert(1)&lt;/script&gt;.png" in page and "{{ 7*7 }}" in page
    told = json.loads(re.search(r'id="map-data">(.*?)</script>', page, re.S)[1])
    assert told["names"][:2] == NAMES[:2] and told["classNames"] == CLASSES and len(told["x"]) == 24


def test_everything_asked_for_is_there(page):
    for heading in ("What was trained", "Confusion matrix", "At temperature", "Learning curves", "Stages", "Next"):
        assert f">{heading}" in page
    assert "best epoch: 2" in page and page.count('class="frame query"') >= 7 and "&lt;b&gt;" in page
    assert "--recipe" in page and "entrep predict --track 1" in page
    assert re.search(r"wrong; these \d+ were given with most confidence", page) and "(Grad-CAM" in page


def test_private_shows_no_picture_no_name_no_text_and_no_place(scored, page):
    text = report_page(content(scored, private=True))
    assert "data:image" not in text and "secret" not in text and str(scored.run.folder) not in text and "alert(1)" not in text
    assert "alert(3)" not in text and not any(name in text for name in scored.images.images)
    assert "secret" in page and "image 1" in text and ">hidden<" in text and "a file" in text and "text 1" in text
    assert not Tags(text).open


def test_a_page_without_epochs_findings_and_mistakes(tmp_path):
    scored = make_scored(tmp_path, per_class=1, classes=["a", "b"], skill=20, metrics="", method="prototype", manifest={"epoch": 0})
    text = report_page(content_of(scored))
    assert "has no curves" in text and "No answer is wrong" in text and "A map needs" in text
    assert "no validation images" in text and not Tags(text).open


def test_json_inside_a_script_cannot_end_it():
    text = script_json({"a": "</script><!--&\u2028"})
    assert not re.search("[<>&\u2028]", text) and json.loads(text) == {"a": "</script><!--&\u2028"}


@pytest.mark.skipif(program() is None, reason="no Chromium is installed here")
def test_in_a_browser(scored, page, tmp_path):
    path = write_report(content(scored), tmp_path / "[red]<script>.html")
    with Browser(program()) as browser:
        for width, dark in ((1280, False), (390, True)):
            browser.open(path, width=width, dark=dark)
            assert not browser.complaints
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value("[...document.images].every(i => !i.complete || i.naturalWidth > 0)")
            light = sum(map(int, re.findall(r"\d+", browser.value("getComputedStyle(document.body).backgroundColor"))[:3])) > 384
            assert light is not dark
        # The keyboard: to the map, from image to image, and away.
        browser.value("document.querySelector('.map-box').focus()")
        first = browser.value("document.querySelector('.words').textContent")
        seen = {first}
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
            browser.press(key)
            seen.add(browser.value("document.querySelector('.words').textContent"))
        assert len(seen) > 1 and all(one.split("\n")[1] in CLASSES for one in seen)
        assert browser.value("!document.querySelector('.tip').hidden && !document.querySelector('.thumb').hidden")
        browser.press("Escape")
        assert browser.value("document.querySelector('.tip').hidden")
        # The mouse: on the image of the most hostile name.
        browser.value("document.activeElement.blur()")
        browser.value("document.querySelectorAll('.map-box use')[0].scrollIntoView({block: 'center', behavior: 'instant'})")
        browser.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        middle = "(r => [r.x + r.width / 2, r.y + r.height / 2])"
        x, y = browser.value(f"{middle}(document.querySelectorAll('.map-box use')[0].getBoundingClientRect())")
        browser.point(x, y)
        assert browser.value("document.querySelector('.words').textContent") == f"{NAMES[0]}\n{CLASSES[0]}"
        colour = "getComputedStyle(document.querySelectorAll('.map-box use')[8]).fill"
        by_class = browser.value(colour)
        browser.value("document.getElementById('by-region').click()")
        assert browser.value(colour) != browser.value("getComputedStyle(document.querySelectorAll('.map-box use')[0]).fill")
        assert browser.value("getComputedStyle(document.querySelector('.of-classes')).display") == "none" and by_class
        browser.open(path, media="print", dark=True)
        assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not browser.complaints
