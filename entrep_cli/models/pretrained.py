"""The pretrained weights that methods start from, as data: what they are, their files, and which are on this machine.

from entrep_cli.models.pretrained import find_weights
find_weights("biomedclip").missing     # files that are not in the hub's cache

Nothing here asks a network, and nothing imports torch.
"""

from __future__ import annotations

import difflib
import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from entrep_cli.errors import UsageError, WeightsError
from entrep_cli.workspace import file_sha256, find_run


@dataclass(frozen=True)
class HubFile:
    """One file of a repository of the hub.

    Attributes:
        instead: names of files of the same repository that serve as well.
        size, sha256: of the file called `name`; None where they are not known.
        about: its size in bytes as far as that is known, to be shown and never checked.
    """

    repository: str
    name: str
    instead: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    about: int = 0

    def local(self) -> Path | None:
        """Its path in the hub's cache, or that of a file that serves as well; None where neither is cached."""
        from huggingface_hub import try_to_load_from_cache

        for name in (self.name, *self.instead):
            path = try_to_load_from_cache(self.repository, name)
            if isinstance(path, str):
                return Path(path)
        return None

    def fault(self, path: Path) -> str | None:
        """What is wrong with the bytes at `path`, as far as size and hash are known; None where they are right."""
        size = path.stat().st_size
        if not size:
            return "it is empty"
        if path.name != self.name:
            return None  # one that serves as well, of which nothing is known
        if self.size is not None and size != self.size:
            return f"it has {size:,} bytes, the published file {self.size:,}"
        if self.sha256 is not None and (sha256 := file_sha256(path)) != self.sha256:
            return f"its SHA-256 is {sha256}, the published file's {self.sha256}"
        return None


@dataclass(frozen=True)
class PretrainedWeights:
    """One entry of `pretrained.toml`.

    Attributes:
        purpose: methods and recipes that start from it.
        revision: of the repository when hashes were read; for information, because the cache is searched by its main branch.
        commercial: whether the licence allows commercial use.
        load: what `weights check` builds to load it, {"clip", "tag", "size"} or {"timm", "size"}; None where entrep does not.
        start: a command that uses it, with {path} for the first file.
    """

    name: str
    title: str
    purpose: str
    repository: str
    licence: str
    commercial: bool
    url: str
    files: tuple[HubFile, ...]
    revision: str | None = None
    note: str | None = None
    load: dict[str, Any] | None = None
    start: str | None = None

    @property
    def size(self) -> int:
        """Bytes in all, as far as they are known."""
        return sum(file.size or file.about for file in self.files)

    @property
    def missing(self) -> tuple[HubFile, ...]:
        return tuple(file for file in self.files if file.local() is None)

    @property
    def state(self) -> str:
        """`here`, `incomplete` or `no`; damage is detected by `weights check` alone, which reads the files."""
        missing = len(self.missing)
        return "here" if not missing else "no" if missing == len(self.files) else "incomplete"

    def start_command(self) -> str | None:
        """`start` with the path of the first file; None where it needs a file that is not here."""
        path = self.files[0].local()
        if self.start is None or "{path}" in self.start and path is None:
            return None
        return self.start.format(path=shlex.quote(str(path)))

    def as_dict(self) -> dict[str, Any]:
        shown = ("name", "title", "purpose", "repository", "revision", "licence", "commercial", "note", "url")
        return {
            **{key: vars(self)[key] for key in shown},
            "bytes": self.size,
            "state": self.state,
            "files": [
                {
                    "repository": file.repository,
                    "name": file.name,
                    "bytes": file.size,
                    "sha256": file.sha256,
                    "path": None if (path := file.local()) is None else str(path),
                }
                for file in self.files
            ],
            "start": self.start_command(),
        }


@cache
def pretrained_weights() -> tuple[PretrainedWeights, ...]:
    """The table, in its order."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return tuple(_entry(dict(entry)) for entry in table["weights"])


def find_weights(name: str) -> PretrainedWeights:
    """An entry by name; UsageError that names the nearest."""
    known = {weights.name: weights for weights in pretrained_weights()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 3)
    raise UsageError(
        f"No weights are named {name!r}.",
        hint=f"did you mean {', '.join(near)}? `entrep weights list` shows all" if near else "`entrep weights list` shows all",
    )


def weights_path(named: str) -> Path:
    """The file that `--weights NAME` means: a path as it is, else the pretrained weights of that name.

    A run of that name goes first: its path, which is no file, is for the caller to open.

    Raises:
        WeightsError: the pretrained weights are not on this machine.
    """
    weights = next((weights for weights in pretrained_weights() if weights.name == named), None)
    if weights is None or Path(named).is_file() or find_run(named):
        return Path(named)
    if (path := weights.files[0].local()) is None:
        raise WeightsError(
            f"The weights {named!r} are not on this machine, and nothing is downloaded unasked.",
            where=f"{weights.files[0].repository}, file {weights.files[0].name}",
            hint=f"with a network: `entrep weights fetch {named}`; or give a file with --weights FILE",
        )
    return path


def fetch_commands(repository: str, files: Iterable[str]) -> str:
    """The commands that fetch files of a repository, for a hint: ours where the table has it, and the hub's.

    Args:
        files: what the hub's command is to fetch, unless the table has the repository and knows better.
    """
    wanted = list(files)
    for weights in pretrained_weights():
        ours = [file for file in weights.files if file.repository == repository]
        names = {name for file in ours for name in (file.name, *file.instead)}
        # A repository may hold several weights (SurgeNet's does): the file decides.
        if ours and not names.isdisjoint(wanted):
            return f"`entrep weights fetch {weights.name}` or `hf download {' '.join([repository, *(file.name for file in ours)])}`"
    return f"`hf download {' '.join([repository, *wanted])}`"


def _entry(entry: dict[str, Any]) -> PretrainedWeights:
    files = []
    for file in entry.pop("files"):
        about = round(file.pop("megabytes", 0) * 1e6)
        size, instead = file.pop("bytes", None), tuple(file.pop("instead", ()))
        files.append(HubFile(**{"repository": entry["repository"], **file}, instead=instead, size=size, about=about))
    return PretrainedWeights(**entry, files=tuple(files))
