"""What stands before the pages: who may ask, how much may be sent, and the headers of every answer.

The server listens on loopback, which keeps other machines out but not other web pages: a page of the
internet can make the browser ask 127.0.0.1, and by DNS rebinding even under the name of its site. So a
request must name this server as its host, and what another site has the browser send is refused.
"""

from __future__ import annotations

import os
import traceback

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from entrep_cli import console

MAX_BODY = 32 * 2**20  # bytes; a 4K frame as PNG takes half of it
_DRAINED = 8 * MAX_BODY
POLICY = "default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Not `no-referrer`: with that a browser hides the origin of these pages' forms too.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """An ASGI application that lets through to another one what it may answer.

    Args:
        port: that the server listens on.
    """

    def __init__(self, pages: ASGIApp, port: int) -> None:
        self.pages = pages
        names = ("127.0.0.1", "localhost", "[::1]")
        self.hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = _Body(receive)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drain()
                message["headers"] = [*message.get("headers", ()), *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        if why := self._refused(scope["method"], scope["path"], Headers(scope=scope)):
            await PlainTextResponse(why, 403)(scope, receive, send_guarded)
            return
        try:
            await self.pages(scope, body.receive, send_guarded)
        except Exception as error:  # answered with 500 by then; the terminal must not fill up with names
            what = f"a page could not be made: {type(error).__name__}"
            console.warn(f"{what}; this is a bug in entrep, ENTREP_DEBUG=1 shows where it happened")
            if os.environ.get("ENTREP_DEBUG") == "1":
                console.warn(*traceback.format_exc().splitlines())

    def _refused(self, method: str, path: str, headers: Headers) -> str:
        """Why a request is refused; "" where it is not."""
        if len(host := headers.getlist("host")) != 1 or host[0].lower() not in self.hosts:
            return "This server answers to 127.0.0.1 and localhost alone."
        site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "")
        elsewhere = origin and origin.lower() not in {f"http://{name}" for name in self.hosts}
        if elsewhere or site not in ("", "same-origin", "none") and not (method == "GET" and path == "/"):
            return "Another site has sent this request."
        return ""


TOO_LARGE = f"The upload is larger than {MAX_BODY // 2**20} MB. Send a smaller file: a single frame."


class _Body:
    """The body of a request, as far as it may go."""

    def __init__(self, receive: Receive) -> None:
        self.source, self.size, self.more = receive, 0, False

    async def receive(self) -> Message:
        """HTTPException 413 where more is sent than `MAX_BODY`."""
        message = await self._next()
        if self.size > MAX_BODY:
            raise HTTPException(413)
        return message

    async def drain(self) -> None:
        """Throw away what is left of a body that was too large: a browser shows an answer only after it has sent all."""
        while MAX_BODY < self.size < _DRAINED and self.more:
            await self._next()

    async def _next(self) -> Message:
        message = await self.source()
        self.size += len(message.get("body", b""))
        self.more = message["type"] == "http.request" and message.get("more_body", False)
        return message
