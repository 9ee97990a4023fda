"""The pictures of the README, from phantom data alone: `make figures`, or `python docs/figures.py runs/demo`.

Takes what `entrep demo` has left in its folder and writes to docs/figures/: a search sheet, a confusion
matrix, a map of the embeddings, what an answer rests on, and where a Chromium is installed the search page and the
report. Each stays under 150 kB.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import entrep_cli as entrep
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.reporting.drawing import embedding_map
from entrep_cli.reporting.embedding_map import tsne
from entrep_cli.retrieval.search import Finder, find_cases, gallery_query, open_finder
from entrep_cli.workspace import open_run

MAX_BYTES = 150_000
RUN = "clip-lora"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"


def main(demo: Path, out: Path) -> None:
    os.environ["ENTREP_RUNS"], data = str(demo / "runs"), demo / "data"
    out.mkdir(exist_ok=True)
    run = open_run(RUN)  # what `entrep demo` has trained, whatever was trained after it
    finder = open_finder(run)
    labels = finder.gallery.items.label
    query = telling_query(finder)
    regions = finder.model.taxonomy.regions
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn.png"
        entrep.search(str(finder.gallery.items.path[query]), run=RUN, top_k=11, mask_groups=True, save=drawn)
        keep(drawn, out / "search.png")
        of_regions = [np.flatnonzero(labels == next(c.name for c in finder.model.taxonomy.classes if c.region == r))[0] for r in regions]
        entrep.explain([Path(finder.gallery.items.path[row]) for row in of_regions], run=RUN, save=drawn)
        keep(drawn, out / "explain.png")
        keep(entrep.evaluate(data=data, run=RUN, split="queries").figure, out / "confusion.png")
        rows = np.flatnonzero(labels != "")
        taxonomy: Taxonomy = finder.model.taxonomy
        region = {c.name: c.region for c in taxonomy.classes}
        embedding_map(
            tsne(np.asarray(finder.gallery.vectors[rows])),
            [("regions", [region[label] for label in labels[rows]]), ("classes", list(labels[rows]))],
            f"t-SNE of the embeddings, {len(rows)} phantom images",
            order=[*taxonomy.names, *taxonomy.regions],
        ).png(drawn)
        keep(drawn, out / "map.png")
        if browser := shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"):
            with served(finder) as address:
                shoot(browser, f"{address}search?row={query}&k=10&mask=1", drawn, (1100, 1000))
            keep(drawn, out / "app.png")
            page = entrep.report(run=RUN, data=data, split="queries", out=Path(folder) / "report.html").page
            shoot(browser, page.as_uri(), drawn, (1100, 2500))
            keep(drawn, out / "report.png")
        else:
            print("No Chromium is installed: app.png and report.png are not drawn.", file=sys.stderr)


def telling_query(finder: Finder) -> int:
    """A labelled image with hits and a miss among its neighbours, so that the legend has all marks; else the first."""
    rows = np.flatnonzero(finder.gallery.items.label != "")
    for row in rows:
        hits = [case.hit for case in find_cases(finder, gallery_query(finder, int(row)), 11, mask_group=True).cases]
        if hits[0] and 1 <= hits.count(False) <= 3:
            return int(row)
    return int(rows[0])


@contextlib.contextmanager
def served(finder: Finder) -> Iterator[str]:
    from entrep_cli.web.serve import address, listen, server_of
    from entrep_cli.web.site import Site

    with listen(0) as listening:
        server = server_of(Site(finder), listening)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address(listening)
        finally:
            server.should_exit = True
            thread.join()


def shoot(browser: str, address: str, path: Path, size: tuple[int, int]) -> None:
    """What a browser shows of a page."""
    with tempfile.TemporaryDirectory() as profile:
        line = [browser, *FLAGS.split(), "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"]
        line += ["--window-size={},{}".format(*size), "--virtual-time-budget=5000", f"--screenshot={path}", address]
        subprocess.run(line, check=True, capture_output=True, timeout=180)


def keep(drawn: Path, path: Path) -> None:
    """The picture in few colours, scaled down until it is small enough for a repository."""
    with Image.open(drawn) as image:
        picture = image.convert("RGB")
    width = min(picture.width, 1100)
    while True:
        scaled = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        # Not by the frequency of colours: what is hottest in a picture of heat is rare, and must keep its colour.
        scaled.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < MAX_BYTES or width < 400:
            break
        width = int(width * 0.9)
    print(f"{path}: {width} pixels wide, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "figures")
