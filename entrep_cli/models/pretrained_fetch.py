"""Download published weights into the hub's cache, when somebody asks for it, and check what came."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from entrep_cli.errors import EntrepError, WeightsError, first_line
from entrep_cli.models.pretrained import HubFile
from entrep_cli.workspace import file_sha256

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def fetch_file(file: HubFile, *, show_progress: bool = True) -> tuple[Path, bool]:
    """The file in the hub's cache, and whether it was downloaded now.

    One that is there and right is left as it is; one that is there and damaged is fetched again. It is
    the main branch that is fetched, for that is where a model looks; the hash tells whether it still
    holds what the table knows. What is not right is not kept, unless it was there before. The hub goes
    on with a download that was interrupted.

    Raises:
        WeightsError: no network, no such file, no access, or other bytes than published. EntrepError: no room on the disk.
    """
    kept = file.local()
    if kept is not None and file.fault(kept) is None:
        return kept, False
    before = None if kept is None else file_sha256(kept)
    _check_room(file)
    import huggingface_hub

    with _hub_progress(show_progress):
        try:
            # A damaged file has the right name: only force makes the hub look at it again.
            fetched = Path(huggingface_hub.hf_hub_download(file.repository, file.name, force_download=kept is not None))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise  # the command line has words for these
            raise _refused(file, error) from error
    if (fault := file.fault(fetched)) is None:
        return fetched, True
    if file_sha256(fetched) == before:
        done = "is left as it was"  # whole, and of another revision than the table's: somebody may be using it
    else:
        done = "was not kept"
        _remove(fetched)
    raise WeightsError(
        f"What was fetched is not the published file, and {done}: {fault}.",
        where=f"{file.repository}, file {file.name}",
        hint="fetch it again; if it stays so, its publisher has changed it: look at the repository's page, "
        f"then `hf download {file.repository} {file.name}` takes it as it is",
    )


def _refused(file: HubFile, error: Exception) -> WeightsError:
    """The hub's exceptions as what, where and hint; the order matters, for some are kinds of others."""
    from huggingface_hub import constants, errors

    command = f"hf download {file.repository} {file.name}"
    elsewhere = f"where there is a network: `{command}`, then copy the hub's cache here (HF_HOME names its place)"
    if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
        what, hint = "The hub is switched off by HF_HUB_OFFLINE.", f"HF_HUB_OFFLINE=0 switches it on; or {elsewhere}"
    elif isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{file.repository}"
        what, hint = "Its publisher gives access on request only.", f"ask for it at {page}, then `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "There is no such repository, or it is private."
        hint = "`hf auth login` if you may see it; else its publisher has moved it"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        what, hint = "The repository has no such file any more.", "see the repository's page for what it is called now"
    else:
        # "Not in the cache and not to be had" is raised from what the network said.
        reason = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        what, hint = f"The hub cannot be reached: {first_line(reason)}.", f"check the network and the proxy and try again; or {elsewhere}"
    return WeightsError(what, where=f"{file.repository}, file {file.name}", hint=hint)


def _check_room(file: HubFile) -> None:
    needed = file.size or file.about
    cache = _hub_cache()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise EntrepError(
            f"There is no room for {file.name}: it has {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free.",
            where=cache,
            hint="free some space (`entrep cache clear`), or put the hub's cache elsewhere with HF_HOME=FOLDER",
        )


def _remove(path: Path) -> None:
    """Take a downloaded file out of the hub's cache: the name in the snapshot, and the blob that it points to."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    if blob.is_relative_to(_hub_cache().resolve()):
        blob.unlink(missing_ok=True)


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@contextlib.contextmanager
def _hub_progress(show: bool) -> Iterator[None]:
    """The hub draws its own bar, with what an earlier sitting had fetched; not in the quiet and json modes."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if show or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
