"""`entrep app`: the search as a page in the browser, on this machine only."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from entrep_cli import console
from entrep_cli.commands import options


def app(
    run: options.RunName = None,
    class_weight: options.ClassWeight = None,
    port: Annotated[int, typer.Option(help="The port on 127.0.0.1; 0 picks a free one.", min=0, max=65535)] = 8765,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Whether the page is opened in the browser.")] = True,
    device: options.Device = "auto",
) -> None:
    """Example: entrep app

    Search by image or by text in a browser, and go on from neighbour to neighbour. The page is served to
    this machine alone, asks no network, and holds what is uploaded in memory only. It answers from what
    `entrep embed` and `entrep index` have made; Ctrl-C stops it.
    """
    from entrep_cli.api.app import app as prepare  # `entrep_cli.app` is the command line

    page = prepare(run=run, class_weight=class_weight, port=port, device=device)
    console.plain(f"{page.url}  (run {console.visible(page.run.name)}, {page.images} images; Ctrl-C stops)")
    if console.mode == "json":
        # Printed at the start, as only Ctrl-C ends the command; which then must not be a second document.
        console.document(page.to_dict())
        console.set_mode("quiet")
    if open_ and not page.open_browser():
        tunnel = shlex.join(["ssh", "-L", f"{page.port}:127.0.0.1:{page.port}", "THIS_MACHINE"])
        console.say(f"No desktop here to open it on. From another machine, through ssh: {tunnel}, then open the address.")
    page.serve()
