"""The server on loopback: a socket of this machine alone, and uvicorn on it until Ctrl-C."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

from entrep_cli.errors import RunError
from entrep_cli.web.guard import Guard

if TYPE_CHECKING:
    from entrep_cli.web.site import Site

LOOPBACK = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """A socket that listens on loopback; a free port is picked for 0.

    Raises:
        RunError: the port is taken, or not for everyone.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere this would let two programs listen on one port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        what = "in use" if error.errno == errno.EADDRINUSE else "not for every user"
        raise RunError(f"Port {port} is {what}.", hint="--port 0 picks a free one") from error
    return listening


def address(listening: socket.socket) -> str:
    """The address of the page."""
    return f"http://{LOOPBACK}:{listening.getsockname()[1]}/"


def server_of(site: Site, listening: socket.socket) -> uvicorn.Server:
    """The server; its `run(sockets=[listening])` returns when it is stopped, and raises KeyboardInterrupt after Ctrl-C."""
    pages = Guard(site.pages(), listening.getsockname()[1])
    silent = {"log_config": None, "log_level": "critical", "access_log": False, "server_header": False}
    plain = {"loop": "asyncio", "http": "h11", "ws": "none", "lifespan": "off", "proxy_headers": False}
    return uvicorn.Server(uvicorn.Config(pages, **plain, **silent, limit_concurrency=128, timeout_graceful_shutdown=2))


def open_browser(url: str) -> bool:
    """Show the page in the desktop's browser; False without a desktop, for a browser in the terminal would take it over."""
    import webbrowser

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False
