"""The search page, asked over a real socket: pages, pictures, uploads, refusals; in a real browser where there is one."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import pytest

from entrep_cli.data.images import read_image
from entrep_cli.errors import DataError, RunError, UsageError
from tests.finders import HOSTILE, HOSTILE_LABEL, make_finder
from tests.tiny import draw, encoded, png_header

for needed in ("starlette", "uvicorn", "python_multipart"):
    pytest.importorskip(needed, reason="the extra `app` is not installed")

from entrep_cli.web.guard import MAX_BODY, POLICY  # noqa: E402 - only where the extra is installed
from entrep_cli.web.serve import address, listen, server_of  # noqa: E402
from entrep_cli.web.site import PER_PAGE, UPLOADS, Settings, Site  # noqa: E402


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Served:
    """A site on a port of its own; `ask("/search?row=1")`."""

    def __init__(self, site: Site) -> None:
        self.site, self.socket = site, listen(0)
        self.port = self.socket.getsockname()[1]
        self.server = server_of(site, self.socket)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()

    def ask(self, path: str, body: bytes | None = None, method: str = "", **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method or ("GET" if body is None else "POST"), path, body, {"Host": f"127.0.0.1:{self.port}", **sent})
        answer = connection.getresponse()
        got = Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        connection.close()
        return got

    def send(self, content: bytes, name: str = "frame.png", to: str = "/upload", **headers: str) -> Answer:
        return self.ask(to, multipart(content, name), Content_Type="multipart/form-data; boundary=xx", **headers)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.socket.close()


def multipart(content: bytes, name: str, field: str = "image") -> bytes:
    quoted = name.replace('"', "%22")
    head = f'--xx\r\nContent-Disposition: form-data; name="{field}"; filename="{quoted}"\r\nContent-Type: image/png\r\n\r\n'
    return head.encode() + content + b"\r\n--xx--\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    finder = make_finder(tmp_path_factory.mktemp("gallery"), per_class=10)
    served = Served(Site(finder, class_weight=0.05))
    yield served
    served.close()


def row_of(served: Served, image: str) -> int:
    return list(served.site.finder.gallery.items.image).index(image)


# ---------------------------------------------------------------- pages


def test_the_start_shows_the_gallery_a_page_at_a_time(served):
    first, second = served.ask("/"), served.ask("/?page=2")
    assert first.status == second.status == 200
    shown = [re.findall(r'src="/image/(\d+)"', page.text) for page in (first, second)]
    assert len(shown[0]) == PER_PAGE and sorted(map(int, shown[0] + shown[1])) == list(range(32))
    one = served.ask(f"/?{urllib.parse.urlencode({'label': 'throat'})}")
    assert {served.site.finder.gallery.items.label[int(row)] for row in re.findall(r'src="/image/(\d+)"', one.text)} == {"throat"}
    assert served.ask("/?page=9").status == 400 and served.ask("/?page=x").status == 400


def test_an_image_of_the_gallery_finds_its_neighbours(served):
    row = row_of(served, "1-4.png")
    page = served.ask(f"/search?row={row}&k=5").text
    assert page.count('class="card') == 5 and page.count('class="card hit"') == 5 and "5 of its class" in page
    assert "Labelled <b>throat</b>" in page and "The run takes it for" in page and "Relevance is by class" in page
    assert f'href="/search?row={row}' not in page  # the query is not among its answers
    masked = served.ask(f"/search?row={row}&k=100&mask=1").text
    assert "group g1-2" in served.ask(f"/search?row={row}&k=100").text and "group g1-2" not in masked
    assert "/search?row=" in masked and "&amp;mask=1" in masked  # the next search keeps the settings


def test_misses_and_what_was_missed_are_shown(served):
    items = served.site.finder.gallery.items
    row, other = row_of(served, "1-6.png"), row_of(served, "0-6.png")
    items.label[[row, other]] = items.label[[other, row]]
    try:
        page = served.ask(f"/search?row={row}&k=4").text
        assert page.count('class="card miss"') == 4 and page.count('class="card truth"') == 5 and "0 of its class" in page
        assert "truth: its class, not among the answers" in page
    finally:
        items.label[[row, other]] = items.label[[other, row]]


def test_class_aware_rules(served):
    row = row_of(served, "1-4.png")
    hard, soft = (served.ask(f"/search?row={row}&rule={rule}").text for rule in ("hard", "soft"))
    assert "Ranked by class too (hard): taken for throat" in hard
    assert "Ranked by class too (soft, weight 0.05): taken for throat" in soft and "bonus for matching classes" in soft


def test_a_text_has_answers(served):
    page = served.ask("/search?text=septal+spur&k=3")
    assert page.status == 200 and page.text.count('class="card"') == 3 and "Its class is not known" in page.text
    assert served.ask("/search?text=").status == 400 and served.ask(f"/search?text={'x' * 1001}").status == 400


def test_a_text_has_answers_where_a_class_has_no_prompt(served, monkeypatch):
    def no_prompt(texts):
        raise DataError("The classes of the texts cannot be told.", faults=["class throat has no prompt"])

    monkeypatch.setattr(served.site.finder.model, "classify_texts", no_prompt)
    page = served.ask("/search?text=septal+spur&k=3")
    assert page.status == 200 and page.text.count('class="card"') == 3 and "The run takes it for" not in page.text
    refused = served.ask("/search?text=septal+spur&rule=hard")
    assert refused.status == 400 and "class throat has no prompt" in refused.text


def test_a_method_without_texts_says_so(tmp_path):
    served = Served(Site(make_finder(tmp_path, text=False)))
    try:
        assert 'name="text"' not in served.ask("/").text and "cannot search by text" in served.ask("/").text
        refused = served.ask("/search?text=a+spur")
        assert refused.status == 400 and "cannot search by text" in refused.text
    finally:
        served.close()


@pytest.mark.parametrize(
    "path, status",
    [
        ("/search?row=99", 400),
        ("/search?row=-1", 400),
        ("/search?row=1&k=0", 400),
        ("/search?row=1&k=101", 400),
        ("/search?row=1&k=%D9%A3", 400),
        ("/search?row=1&rule=firm", 400),
        ("/search?upload=nothing", 400),
        ("/search", 400),
        ("/image/99", 404),
        ("/image/..%2f..%2fetc%2fpasswd", 404),
        ("/uploaded/nothing", 404),
        ("/nothing", 404),
        ("/upload", 405),
    ],
)
def test_what_does_not_exist_is_a_page_that_says_so(served, path, status):
    answer = served.ask(path)
    assert answer.status == status and 'role="alert"' in answer.text and answer.headers["content-security-policy"] == POLICY


def test_pictures_are_made_anew_and_one_that_is_gone_is_404(served):
    row = row_of(served, "2-3.png")
    picture = served.ask(f"/image/{row}")
    assert picture.status == 200 and picture.headers["content-type"] == "image/jpeg" and picture.body[:2] == b"\xff\xd8"
    path = Path(served.site.finder.gallery.items.path[row + 1])
    path.rename(path.with_suffix(".away"))
    try:
        assert served.ask(f"/image/{row + 1}").status == 404
    finally:
        path.with_suffix(".away").rename(path)


# ---------------------------------------------------------------- uploads


def test_an_upload_leads_to_its_answers(served):
    sent = served.send(encoded(draw("throat", seed=77), "PNG"), to="/upload?k=4")
    assert sent.status == 303 and sent.headers["location"].startswith("/search?upload=") and "k=4" in sent.headers["location"]
    page = served.ask(sent.headers["location"]).text
    assert page.count('class="card"') == 4 and "<h2>frame.png</h2>" in page
    (picture,) = re.findall(r'src="(/uploaded/[^"]+)"', page)
    assert served.ask(picture).body[:2] == b"\xff\xd8"


def test_an_upload_of_pixels_of_the_gallery_is_known(served):
    path = Path(served.site.finder.gallery.items.path[row_of(served, "1-5.png")])
    page = served.ask(served.send(path.read_bytes()).headers["location"]).text
    assert "Labelled <b>throat</b>" in page and "1-5.png" not in page


def test_an_upload_never_reaches_the_disk(served, monkeypatch, tmp_path):
    """Of 3 MB, which the library's own parser would spool to a file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("it is written to the disk"))
    content = encoded(draw("throat", (1200, 900)), "PNG", compress_level=0)
    assert len(content) > 3 * 2**20 and served.send(content).status == 303 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "the file is empty"),
        (b"<svg onload=alert(1)>", "not an image in a known format"),
        (png_header(60_000, 60_000), "64 million allowed"),
        (encoded(draw("throat"), "PNG")[:-900], "damaged or truncated"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(served, content, said):
    answer = served.send(content, "x.png")
    assert answer.status == 400 and "x.png" in answer.text and "cannot be read" in answer.text and said in answer.text


def test_a_form_without_an_image_is_refused(served):
    for body, kind in (
        (b"a=b", "application/x-www-form-urlencoded"),
        (multipart(b"x", "a.png", field="other"), "multipart/form-data; boundary=xx"),
        (b'--xx\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--xx--\r\n', "multipart/form-data; boundary=xx"),
        (b"junk", "multipart/form-data; boundary=xx"),
        (b"junk", "multipart/form-data"),
    ):
        answer = served.ask("/upload", body, Content_Type=kind)
        assert answer.status == 400 and 'role="alert"' in answer.text, body


def test_an_upload_too_large_is_413(served):
    answer = served.send(bytes(MAX_BODY + 1))
    assert answer.status == 413 and f"larger than {MAX_BODY // 2**20} MB" in answer.text


def test_only_the_last_uploads_stay_in_memory(served):
    first = served.send(encoded(draw("throat", seed=1), "PNG")).headers["location"]
    for seed in range(UPLOADS):
        served.send(encoded(draw("throat", seed=seed), "PNG"))
    assert len(served.site.uploads) == UPLOADS and "no longer in memory" in served.ask(first).text


# ---------------------------------------------------------------- who may ask


def test_only_this_machine_is_listened_to():
    with listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1" and address(listening).startswith("http://127.0.0.1:")
        with pytest.raises(RunError, match="in use") as error:
            listen(listening.getsockname()[1])
        assert "--port 0" in error.value.hint


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", "0.0.0.0:{port}", ""])
def test_a_name_that_is_not_ours_is_refused(served, host):
    """DNS rebinding: the page of evil.example asks its own name, which now leads here."""
    answer = served.ask("/", Host=host.format(port=served.port))
    assert answer.status in (400, 403) and b"/image/" not in answer.body


@pytest.mark.parametrize("host", ["localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_loopback_by_its_other_names(served, host):
    assert served.ask("/", Host=host.format(port=served.port)).status == 200


def test_other_sites_may_send_nothing(served):
    content = encoded(draw("throat"), "PNG")
    origins, sites = ("http://evil.example", "null"), ("cross-site", "same-site")
    for headers in (*({"Origin": origin} for origin in origins), *({"Sec_Fetch_Site": site} for site in sites)):
        assert served.send(content, **headers).status == 403
        assert served.ask("/search?text=spur", **headers).status == 403 and served.ask("/image/1", **headers).status == 403
    assert served.send(content, Origin=f"http://127.0.0.1:{served.port}", Sec_Fetch_Site="same-origin").status == 303
    assert served.ask("/", Sec_Fetch_Site="cross-site").status == 200  # a link to the start


def test_every_answer_has_the_headers(served):
    for answer in (*map(served.ask, ("/", "/style.css", "/image/1", "/x")), served.ask("/", Host="evil.example")):
        headers = answer.headers
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == POLICY and "script" not in POLICY and headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers and "server" not in headers
    assert served.ask("/", method="OPTIONS").status == 405


def test_a_bug_is_no_page_and_names_nothing(served, monkeypatch, capsys):
    monkeypatch.setattr(served.site.finder.model, "embed_texts", lambda texts: 1 / 0)
    answer = served.ask("/search?text=secret-name")
    assert answer.status == 500 and b"secret" not in answer.body
    err, deadline = "", time.monotonic() + 30
    while not err and time.monotonic() < deadline:  # it is told after the page is sent
        time.sleep(0.01)
        err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "secret" not in err and "Traceback" not in err


# ---------------------------------------------------------------- settings, hostile names, a browser


def test_settings_come_back_from_an_address():
    for settings in (Settings(), Settings(5, True, "soft"), Settings(12, False, "hard")):
        assert Settings.of({key: str(value) for key, value in settings.as_query().items()}) == settings
    assert Settings().as_query() == {}
    with pytest.raises(UsageError):
        Settings.of({"k": "1e3"})


def test_hostile_names_labels_and_texts_are_shown_as_they_are_spelt(served):
    row = row_of(served, HOSTILE)
    upload = served.send(encoded(draw("throat", seed=3), "PNG"), "<img src=x onerror=alert(1)>\x1b[2J.png").headers["location"]
    pages = [
        served.ask("/"),
        served.ask(f"/search?row={row}"),
        served.ask(f"/search?row={row_of(served, '2-1.png')}"),
        served.ask("/search?" + urllib.parse.urlencode({"text": "<script>alert(1)</script>\"'[red]\x1b[2J"})),
        served.ask("/search?" + urllib.parse.urlencode({"row": "<script>alert(1)</script>"})),
        served.ask("/?" + urllib.parse.urlencode({"label": '"><script>alert(1)</script>'})),
        served.ask(upload),
    ]
    for page in pages:
        assert "<script" not in page.text and "<img src=x" not in page.text and "\x1b" not in page.text and "<b>nose" not in page.text
    assert "[red]&lt;script&gt;alert(1)&lt;/script&gt;.png" in pages[1].text and "&lt;b&gt;nose&lt;/b&gt;[/]" in pages[2].text
    assert read_image(Path(served.site.finder.gallery.items.path[row])).size == (64, 48) and HOSTILE_LABEL in served.site.finder.labels


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_real_browser(served, tmp_path):
    """The hostile names stay texts, pictures and styles pass our own policy, and the console stays empty."""
    row = row_of(served, "0-1.png")
    line = [CHROMIUM, *FLAGS.split(), "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,1500"]
    line += ["--enable-logging=stderr", "--virtual-time-budget=3000", f"--screenshot={tmp_path / 'page.png'}", "--dump-dom"]
    done = subprocess.run([*line, f"http://127.0.0.1:{served.port}/search?row={row}&k=40"], capture_output=True, text=True, timeout=120)
    assert done.stdout.count('<a class="card') == 31 and "&lt;script&gt;alert(1)&lt;/script&gt;" in done.stdout
    assert "CONSOLE" not in done.stderr
    page = read_image(tmp_path / "page.png")
    colours = {colour for _, colour in page.getcolors(page.width * page.height)}
    assert page.size == (390, 1500) and {(0, 114, 178), (0, 133, 95)} <= colours  # the frames of the query and of hits
