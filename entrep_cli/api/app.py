"""`app`: the search as a page in the browser, on this machine only."""

from __future__ import annotations

import importlib.util
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrep_cli.api.common import check_class_aware
from entrep_cli.errors import UsageError
from entrep_cli.results import Result, Table
from entrep_cli.workspace import Run, open_run

if TYPE_CHECKING:
    from entrep_cli.web.site import Site

_NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}  # module -> package


@dataclass(frozen=True)
class Page(Result):
    """A page that waits to be served.

    Attributes:
        url, port: where it is; the socket listens already.
        images: how many can be looked up.
    """

    url: str
    port: int
    run: Run
    images: int
    _site: Site
    _socket: socket.socket

    def tables(self) -> list[Table]:
        return [Table("Search page", ["run", "images", "address"], [(self.run.name, self.images, self.url)])]

    def to_dict(self) -> dict[str, Any]:
        return {"url": self.url, "run": self.run.name, "images": self.images}

    def serve(self) -> None:
        """Answer until the server is stopped; KeyboardInterrupt after Ctrl-C."""
        from entrep_cli.web.serve import server_of

        with self._socket:
            server_of(self._site, self._socket).run(sockets=[self._socket])

    def open_browser(self) -> bool:
        """Show the page in the desktop's browser; False where no desktop is running."""
        from entrep_cli.web.serve import open_browser

        return open_browser(self.url)


def app(*, run: str | None = None, class_weight: float | None = None, port: int = 8765, device: str = "auto") -> Page:
    """Prepare the search page; `Page.serve()` then answers to this machine alone.

    Args:
        run: by name or folder; None for the one that completed last.
        class_weight: of class-aware retrieval; None for what validation chooses.
        port: on 127.0.0.1; 0 picks a free one.
        device: where the model computes.

    Raises:
        UsageError: packages are missing. RunError: the port is taken, or the run has no index.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"The search page needs {' and '.join(missing)}.", hint="pip install '.[app]', in the checkout")
    if class_weight is not None:
        check_class_aware("soft", class_weight)
    opened = open_run(run)
    from entrep_cli.web.serve import address, listen

    listening = listen(port)  # before the model, which takes seconds
    try:
        from entrep_cli.retrieval.search import open_finder
        from entrep_cli.web.site import Site

        finder = open_finder(opened, device=device)
        site = Site(finder, class_weight=class_weight)
    except BaseException:
        listening.close()
        raise
    return Page(address(listening), listening.getsockname()[1], opened, len(finder.gallery), site, listening)
