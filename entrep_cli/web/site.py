"""The pages of the search: a start, the answers to a query, and the pictures. Server-rendered, without scripts.

    /                    the gallery, a page at a time, and the forms
    /search?text=...     the answers to a text; ?row=N to an image of the gallery; ?upload=T to an uploaded one
    /upload (POST)       takes an image and leads to its answers
    /image/N  /uploaded/T  pictures, scaled down: by row of the gallery or by the upload's token, never by a path

What is uploaded stays in memory, the last few of them. One query at a time reaches the model.
"""

from __future__ import annotations

import functools
import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from entrep_cli.console import visible
from entrep_cli.data.images import ImageError, decode_image, read_image
from entrep_cli.errors import DataError, EntrepError, UsageError
from entrep_cli.evaluation.selection import select
from entrep_cli.reporting.pages import render, stylesheet
from entrep_cli.retrieval.class_aware import MODES, ClassRule
from entrep_cli.retrieval.search import MARKS, Case, Finder, Query, SearchResult, find_cases, gallery_query, image_query, text_query
from entrep_cli.version import __version__
from entrep_cli.web.guard import MAX_BODY, TOO_LARGE

MAX_ANSWERS = 100
MAX_TEXT = 1000  # characters; text towers read a tenth of that
UPLOADS = 16  # cached in memory
PICTURES = 600  # cached in memory, some 20 kB each
PER_PAGE = 24
CLASSES_SHOWN = 5
_SIDE = 480  # pixels of a picture's longer side


@dataclass(frozen=True)
class Settings:
    """How a query is answered, as the address says it."""

    k: int = 12
    mask: bool = False
    rule: str = "off"

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Settings:
        """UsageError for what is none."""
        k = _number(given.get("k") or str(cls.k), "The number of neighbours", 1, MAX_ANSWERS)
        rule = given.get("rule") or cls.rule
        if rule not in MODES:
            raise UsageError(f"No class-aware ranking {rule!r}.", hint="choose off, hard or soft")
        return cls(k, given.get("mask") == "1", rule)

    def as_query(self) -> dict[str, str | int]:
        """What differs from the defaults, for an address."""
        return {f.name: int(value) if f.name == "mask" else value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


@dataclass(frozen=True)
class Upload:
    """An uploaded image: as a query, and its picture as JPEG."""

    query: Query
    picture: bytes


class Site:
    """The pages over one opened run.

    Args:
        class_weight: of the soft rule; None for the one that validation chooses.
    """

    def __init__(self, finder: Finder, *, class_weight: float | None = None) -> None:
        self.finder, self.class_weight = finder, class_weight
        self.lock = threading.Lock()  # torch takes all cores for one query
        self.uploads: OrderedDict[str, Upload] = OrderedDict()
        self.picture = functools.lru_cache(PICTURES)(self._picture)

    def pages(self) -> Starlette:
        """The ASGI application, to be put behind a `Guard`."""
        return Starlette(
            routes=[
                Route("/", self.start),
                Route("/search", self.search),
                Route("/upload", self.upload, methods=["POST"]),
                Route("/image/{row:int}", self.image),
                Route("/uploaded/{token}", self.uploaded),
                Route("/style.css", self.style),
                Route("/favicon.ico", self.icon),
            ],
            exception_handlers={EntrepError: self.at_fault, HTTPException: self.at_fault},
        )

    # ------------------------------------------------------------ pages

    def start(self, request: Request) -> Response:
        items, given = self.finder.gallery.items, request.query_params
        label = given.get("label", "")
        rows = [row for row in range(len(items)) if not label or visible(items.label[row]) == label]
        rows.sort(key=lambda row: not items.label[row])  # labelled images first: only for them hits are known
        n_pages = max(-(-len(rows) // PER_PAGE), 1)
        page = _number(given.get("page") or "1", "The page", 1, n_pages)
        settings = Settings.of(given)
        tiles = [
            {"source": f"/image/{row}", "link": _search(settings, row=row), "name": str(items.image[row]), "label": str(items.label[row])}
            for row in rows[(page - 1) * PER_PAGE : page * PER_PAGE]
        ]
        turn = {
            name: f"/?{urlencode({'page': to, **({'label': label} if label else {}), **settings.as_query()})}"
            for name, to in (("previous", page - 1), ("next", page + 1))
            if 1 <= to <= n_pages
        }
        gallery = {"tiles": tiles, "page": page, "pages": n_pages, "label": label, "turn": turn, "images": len(rows)}
        return self._page(settings, gallery=gallery)

    def search(self, request: Request) -> Response:
        given = request.query_params
        settings = Settings.of(given)
        query, asked, picture = self._query(given, settings)
        rule = self._rule(settings.rule)
        with self.lock:
            result = find_cases(self.finder, query, settings.k, rule=rule, mask_group=settings.mask)
        return self._page(settings, asked=asked, answer=self._answer(result, settings, picture))

    async def upload(self, request: Request) -> Response:
        settings = Settings.of(request.query_params)
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise UsageError("No image was sent.", hint="choose a file first")
        try:
            form = await _InMemory(request.headers, request.stream(), max_files=1, max_fields=4).parse()
        except MultiPartException as error:
            raise UsageError("The upload is damaged.", hint="send it again") from error
        try:
            sent = form.get("image")
            if sent is None or isinstance(sent, str) or not sent.filename:
                raise UsageError("No image was sent.", hint="choose a file first")
            content, name = await sent.read(), Path(sent.filename.replace("\\", "/")).name[:200]
        finally:
            await form.close()
        token = await run_in_threadpool(self._take, content, name)
        return RedirectResponse(_search(settings, upload=token), 303)

    def image(self, request: Request) -> Response:
        row = request.path_params["row"]
        if row >= len(self.finder.gallery):
            raise HTTPException(404)
        try:
            return Response(self.picture(row), media_type="image/jpeg")
        except ImageError as error:
            raise HTTPException(404) from error

    def uploaded(self, request: Request) -> Response:
        upload = self.uploads.get(request.path_params["token"])
        if upload is None:
            raise HTTPException(404)
        return Response(upload.picture, media_type="image/jpeg")

    def style(self, _: Request) -> Response:
        return Response(stylesheet("page.css", "search_page.css"), media_type="text/css")

    def icon(self, _: Request) -> Response:
        return Response(status_code=204)

    def at_fault(self, _: Request, error: EntrepError | HTTPException) -> Response:
        if isinstance(error, EntrepError):
            return self._page(Settings(), 400, fault=error)
        known = {404: "No such page or picture.", 405: "This page does not take such a request.", 413: TOO_LARGE}
        return self._page(Settings(), error.status_code, fault=EntrepError(known.get(error.status_code, "That did not work.")))

    # ------------------------------------------------------------ queries

    def _query(self, given: Mapping[str, str], settings: Settings) -> tuple[Query, dict[str, str], str]:
        """The query of an address, how the address says it, and the address of its picture."""
        if token := given.get("upload"):
            upload = self.uploads.get(token)
            if upload is None:
                raise UsageError("This upload is no longer in memory.", hint="choose the file again")
            return upload.query, {"upload": token}, f"/uploaded/{token}"
        if text := given.get("row"):
            row = _number(text, "The image", 0, len(self.finder.gallery) - 1)
            return gallery_query(self.finder, row), {"row": str(row)}, f"/image/{row}"
        text = "".join(c if c.isprintable() else " " for c in given.get("text", "")).strip()
        if not text:
            raise UsageError("Nothing to search for.", hint="write a finding, or choose an image")
        if len(text) > MAX_TEXT:
            raise UsageError(f"The text is longer than {MAX_TEXT} characters.", hint="describe one finding")
        with self.lock:
            try:
                return text_query(self.finder, text, classes=True), {"text": text}, ""
            except DataError:  # a class without a prompt: the page can do without the class of the text, the rules cannot
                if settings.rule != "off":
                    raise
                return text_query(self.finder, text), {"text": text}, ""

    def _rule(self, mode: str) -> ClassRule:
        if mode == "soft" and self.class_weight is None:
            with self.lock:
                self.class_weight = select(self.finder.run, self.finder.model, class_aware=mode).rule.weight
        return ClassRule(mode, (self.class_weight or 0.0) if mode == "soft" else 0.0)

    def _take(self, content: bytes, name: str) -> str:
        """Decode and embed an upload; its token."""
        with self.lock:  # also of decoding: of images of many pixels one at a time
            try:
                picture = decode_image(content, name)
            except ImageError as error:
                raise UsageError(f"{name!r} cannot be read: {error.what}.", hint="choose an image file that opens elsewhere") from error
            upload = Upload(image_query(self.finder, picture, name), _jpeg(picture))
            token = secrets.token_urlsafe(12)
            self.uploads[token] = upload
            while len(self.uploads) > UPLOADS:
                self.uploads.popitem(last=False)
        return token

    def _picture(self, row: int) -> bytes:
        return _jpeg(read_image(Path(self.finder.gallery.items.path[row])))

    # ------------------------------------------------------------ what the template is given

    def _page(self, settings: Settings, status: int = 200, **content: Any) -> HTMLResponse:
        finder = self.finder
        page = {
            "run": finder.run.name,
            "method": finder.run.manifest["method"],
            "images": len(finder.gallery),
            "labels": finder.labels,
            "reads_texts": finder.reads_texts,
            "settings": settings,
            "hidden": settings.as_query(),
            "upload_to": f"/upload?{urlencode(settings.as_query())}",
            "max_answers": MAX_ANSWERS,
            "max_megabytes": MAX_BODY // 2**20,
            "modes": MODES,
            "version": __version__,
            **dict.fromkeys(("gallery", "answer", "asked", "fault")),
            **content,
        }
        return HTMLResponse(render("search_page.html.j2", **page), status)

    def _answer(self, result: SearchResult, settings: Settings, picture: str) -> dict[str, Any]:
        given = result.query.probabilities
        pairs = [] if given is None else zip(self.finder.model.taxonomy.names, given[0].tolist())
        classes = sorted(pairs, key=lambda pair: -pair[1])[:CLASSES_SHOWN]

        def card(case: Case) -> dict[str, Any]:
            return {"case": case, "kind": MARKS[case.hit], "source": f"/image/{case.row}", "link": _search(settings, row=case.row)}

        return {
            "result": result,
            "query": result.query,
            "picture": picture,
            "classes": classes,
            "cards": [card(case) for case in result.cases],
            "missed": [{**card(case), "kind": "truth"} for case in result.missed],
            "hits": sum(bool(case.hit) for case in result.cases),
        }


class _InMemory(MultiPartParser):
    """The library's parser would write a large file to the disk for a while."""

    spool_max_size = MAX_BODY + 1


def _search(settings: Settings, **asked: object) -> str:
    return f"/search?{urlencode({**asked, **settings.as_query()})}"


def _number(text: str, what: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise UsageError(f"{what} must be a number from {least} to {most}, not {text[:40]!r}.")
    return int(text)


def _jpeg(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()
