"""`weights_list`, `weights_check`, `weights_fetch`: pretrained weights, where they come from, and whether they are on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.errors import EntrepError, Interrupted
from entrep_cli.results import Result, Table

if TYPE_CHECKING:
    from entrep_cli.models.pretrained import PretrainedWeights


@dataclass(frozen=True)
class WeightsList(Result):
    """All pretrained weights that recipes and methods can start from."""

    weights: tuple[PretrainedWeights, ...]

    def tables(self) -> list[Table]:
        columns = ["name", "for", "MB", "licence", "here", "where"]
        rows = [(w.name, w.purpose, f"{w.size / 1e6:,.0f}", _licence(w), w.state, w.files[0].local() or w.repository) for w in self.weights]
        return [Table("Pretrained weights", columns, rows)]

    def to_dict(self) -> dict[str, Any]:
        return {"weights": [weights.as_dict() for weights in self.weights]}


@dataclass(frozen=True)
class WeightsCheck(Result):
    """Weights that were checked: for each its name, `ok`, `faults`, whether it was `loaded`, and how many hashes are known."""

    results: tuple[dict[str, Any], ...]

    @property
    def damaged(self) -> list[str]:
        """Names of the weights with a fault."""
        return [result["name"] for result in self.results if not result["ok"]]

    def tables(self) -> list[Table]:
        rows = [(r["name"], "ok" if r["ok"] else "NO", _how_checked(r)) for r in self.results]
        return [Table("Pretrained weights, checked", ["name", "", "how"], rows or [("none on this machine", "", "")])]

    def to_dict(self) -> dict[str, Any]:
        return {"weights": list(self.results), "ok": not self.damaged}


@dataclass(frozen=True)
class FetchedWeights(Result):
    """Weights that are now in the cache: for each its name, licence and files."""

    fetched: tuple[dict[str, Any], ...]
    next_commands: tuple[str, ...]

    def tables(self) -> list[Table]:
        rows = [(entry["name"], entry["licence"], file["path"]) for entry in self.fetched for file in entry["files"]]
        return [Table("Weights", ["name", "licence", "file"], rows)]

    def to_dict(self) -> dict[str, Any]:
        return {"weights": list(self.fetched)}


def weights_list() -> WeightsList:
    """All pretrained weights that a recipe or a method can start from; needs no network."""
    from entrep_cli.models.pretrained import pretrained_weights

    return WeightsList(pretrained_weights())


def weights_check(name: str | None = None, *, load: bool = True) -> WeightsCheck:
    """Check that files are complete, match their size and SHA-256 where these are known, and load strictly into their model.

    Args:
        name: a name of `weights_list`; by default all weights that have a file on this machine.
        load: also load them into their model.
    """
    from entrep_cli.models.pretrained import find_weights, pretrained_weights
    from entrep_cli.models.pretrained_fetch import check_weights

    wanted = [find_weights(name)] if name else [weights for weights in pretrained_weights() if weights.state != "no"]
    results: list[dict[str, Any]] = []
    with console.progress("Checking", len(wanted), "weights") as advance:
        for weights in wanted:
            faults = check_weights(weights, load=load)
            loaded = bool(load and weights.load and not faults)
            hashed = sum(file.sha256 is not None for file in weights.files)
            results.append({"name": weights.name, "ok": not faults, "faults": faults, "loaded": loaded, "hashes_known": hashed})
            advance()
    return WeightsCheck(tuple(results))


def weights_fetch(names: Sequence[str]) -> FetchedWeights:
    """Download weights into the hub's cache, and check their size and SHA-256 where these are known.

    Args:
        names: names of `weights_list`.

    Raises:
        UsageError: no such weights.
        WeightsError: a download failed; completed downloads are not removed.
        Interrupted: on Ctrl-C; the next call resumes the download.
    """
    from entrep_cli.models.pretrained import find_weights
    from entrep_cli.models.pretrained_fetch import fetch_file

    wanted = [find_weights(name) for name in dict.fromkeys(names)]
    for weights in wanted:
        # Before the first byte: a licence is agreed to by taking the weights.
        if not weights.commercial:
            console.warn(f"{weights.name} is under {weights.licence}: no commercial use, nor of models trained from it.")
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
                console.say(f"{'fetched' if fetched else 'cached'}: {path}" + ("" if verified else " (its hash is not known)"))
            done.append({"name": weights.name, "licence": weights.licence, "commercial": weights.commercial, "files": files})
    except KeyboardInterrupt:
        command = f"`entrep weights fetch {' '.join(weights.name for weights in wanted)}`"
        raise Interrupted("Interrupted; what was downloaded stays in the cache.", hint=f"go on with {command}") from None
    except EntrepError:
        if done:
            console.warn(f"fetched before the error: {', '.join(entry['name'] for entry in done)}")
        raise
    return FetchedWeights(tuple(done), tuple(filter(None, (weights.start_command() for weights in wanted))))


def _licence(weights: PretrainedWeights) -> str:
    return weights.licence + ("" if weights.commercial else ", not commercial")


def _how_checked(result: dict[str, Any]) -> str:
    if not result["ok"]:
        return f"{len(result['faults'])} fault{'s' if len(result['faults']) > 1 else ''}"
    return ("hash" if result["hashes_known"] else "no hash known") + (", loaded strictly" if result["loaded"] else ", not loaded")
