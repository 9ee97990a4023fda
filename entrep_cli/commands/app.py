"""`entrep app`: the search as a page in the browser, on this machine only."""

from __future__ import annotations

import importlib.util
import shlex
from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import UsageError
from entrep_cli.workspace import open_run

NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}  # module -> package


def app(
    run: options.RunName = None,
    class_weight: options.ClassWeight = None,
    port: Annotated[int, typer.Option(help="The port on 127.0.0.1; 0 picks a free one.", min=0, max=65535)] = 8765,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Whether the page is opened in the browser.")] = True,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep app

    Search by image or by text in a browser, and go on from neighbour to neighbour. The page is served to
    this machine alone, asks no network, and keeps what is uploaded in memory only. It answers from what
    `entrep embed` and `entrep index` have made; Ctrl-C stops it.
    """
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(
            f"The search page needs {' and '.join(missing)}.",
            hint="pip install '.[app]', in the checkout",
        )
    if class_weight is not None:
        options.check_class_aware("soft", class_weight)
    opened = open_run(run)
    from entrep_cli.web.serve import address, listen, open_browser, server_of

    # Before the model, which takes seconds: a port that is taken is told at once.
    with listen(port) as listening:
        from entrep_cli.retrieval.search import open_finder
        from entrep_cli.web.site import Site

        finder = open_finder(opened, device=device)
        site = Site(finder, class_weight=class_weight)
        url = address(listening)
        console.plain(f"{url}  (run {console.visible(opened.name)}, {len(finder.gallery)} images; Ctrl-C stops)")
        if console.mode == "json":
            # Said at the start, for there is no end but Ctrl-C; which then must not be a second document.
            console.document({"url": url, "run": opened.name, "images": len(finder.gallery)})
            console.set_mode("quiet")
        if open_ and not open_browser(url):
            port_ = listening.getsockname()[1]
            console.say(
                "No desktop here to open it on. From another machine, through ssh: "
                f"{shlex.join(['ssh', '-L', f'{port_}:127.0.0.1:{port_}', 'THIS_MACHINE'])}, then open the address there."
            )
        server_of(site, listening).run(sockets=[listening])
    return {}
