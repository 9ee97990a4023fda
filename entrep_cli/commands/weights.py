"""`entrep weights`: published weights, where they come from, and whether they are here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.errors import EntrepError, Interrupted


def list_() -> dict[str, Any]:
    """Example: entrep weights list

    Every published weight that a recipe or a method can start from: what for, how large, under which
    licence, and whether it is on this machine. Asks no network.
    """
    from entrep_cli.models.pretrained import published_weights

    known = published_weights()
    console.table(
        "Published weights",
        ["name", "for", "MB", "licence", "here", "where"],
        [(w.name, w.purpose, f"{w.size / 1e6:,.0f}", _licence(w), w.state, w.files[0].local() or w.repository) for w in known],
    )
    console.next_commands("entrep weights fetch NAME", "entrep weights check")
    return {"weights": [weights.as_dict() for weights in known]}


def check(
    name: Annotated[
        str | None, typer.Argument(help="As in `entrep weights list` (default: all of which something is here).", show_default=False)
    ] = None,
    load: Annotated[bool, typer.Option("--load/--no-load", help="Also load them strictly into their model.")] = True,
) -> dict[str, Any]:
    """Example: entrep weights check

    Are weights whole? Every file is there, has its size and SHA-256 where those are known, and loads
    strictly into its model, without a network. Exit code 1 where a file is missing or damaged; weights
    of which nothing is here are no fault unless they are named.
    """
    from entrep_cli.models.pretrained import find_weights, published_weights
    from entrep_cli.models.published_check import check_weights

    wanted = [find_weights(name)] if name else [weights for weights in published_weights() if weights.state != "no"]
    results: list[dict[str, Any]] = []
    with console.progress("Checking", len(wanted), "weights") as advance:
        for weights in wanted:
            faults = check_weights(weights, load=load)
            loaded = bool(load and weights.load and not faults)
            hashed = sum(file.sha256 is not None for file in weights.files)
            results.append({"name": weights.name, "ok": not faults, "faults": faults, "loaded": loaded, "hashes_known": hashed})
            advance()
    rows = [(r["name"], "ok" if r["ok"] else "NO", _how_checked(r)) for r in results]
    console.table("Published weights, checked", ["name", "", "how"], rows or [("none is here", "", "")])
    for result in results:
        for fault in result["faults"]:
            console.warn(f"{result['name']}: {fault}")
    bad = [r["name"] for r in results if not r["ok"]]
    if bad:
        console.next_commands(f"entrep weights fetch {' '.join(bad)}")
    elif not wanted:
        console.next_commands("entrep weights list")
    return {"weights": results, "ok": not bad}


def fetch(names: Annotated[list[str], typer.Argument(help="As in `entrep weights list`.", metavar="NAME")]) -> dict[str, Any]:
    """Example: entrep weights fetch dinov2-s

    Download weights into the hub's cache, where training finds them, and check their size and SHA-256
    where those are known. What is there already is not fetched again; an interrupted download goes on.
    Nothing else in entrep ever downloads anything.
    """
    from entrep_cli.models.pretrained import find_weights
    from entrep_cli.models.pretrained_fetch import fetch_file

    wanted = [find_weights(name) for name in dict.fromkeys(names)]
    for weights in wanted:
        # Before the first byte: a licence is agreed to by taking the weights.
        if not weights.commercial:
            console.warn(f"{weights.name} is under {weights.licence}: no commercial use, of models trained from it neither.")
        if weights.note:
            console.say(f"{weights.name}: {weights.note}.")
    done: list[dict[str, Any]] = []
    try:
        for weights in wanted:
            console.say(f"{weights.title}, {weights.size / 1e6:,.0f} MB, {weights.licence}, {weights.url}")
            files = []
            for file in weights.files:
                path, fetched = fetch_file(file, show_progress=console.mode == "human")
                verified = file.sha256 is not None and path.name == file.name
                files.append({"path": str(path), "fetched": fetched, "verified": verified})
                console.say(f"{'fetched' if fetched else 'was here'}: {path}" + ("" if verified else " (its hash is not known)"))
            done.append({"name": weights.name, "licence": weights.licence, "commercial": weights.commercial, "files": files})
    except KeyboardInterrupt:
        again = f"`entrep weights fetch {' '.join(weights.name for weights in wanted)}`"
        raise Interrupted("Interrupted; what was downloaded so far is kept.", hint=f"go on with {again}") from None
    except EntrepError as error:
        if done:
            console.warn(f"fetched before the error: {', '.join(entry['name'] for entry in done)}")
        raise error
    rows = [(entry["name"], entry["licence"], file["path"]) for entry in done for file in entry["files"]]
    console.table("Weights", ["name", "licence", "file"], rows)
    console.next_commands(*filter(None, (weights.start_command() for weights in wanted)))
    return {"weights": done}


def _licence(weights: Any) -> str:
    return weights.licence + ("" if weights.commercial else ", not commercial")


def _how_checked(result: dict[str, Any]) -> str:
    if not result["ok"]:
        return f"{len(result['faults'])} fault{'s' if len(result['faults']) > 1 else ''}"
    how = ["hash" if result["hashes_known"] else "no hash known", *(["loaded strictly"] if result["loaded"] else ["not loaded"])]
    return ", ".join(how)
