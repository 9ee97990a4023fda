"""Pretrained weights on this machine: downloaded into the hub's cache when asked for, and checked without a network."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from entrep_cli.errors import EntrepError, WeightsError, first_line
from entrep_cli.models.pretrained import HubFile, PretrainedWeights
from entrep_cli.workspace import file_sha256

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def fetch_file(file: HubFile, *, show_progress: bool = True) -> tuple[Path, bool]:
    """The file in the hub's cache, and whether it was downloaded now.

    A cached file that is right is left as it is; a damaged one is fetched again. The main branch is fetched,
    because models look up that one; the hash shows whether it still holds what the table knows. A wrong file is
    removed, unless it was cached before. The hub resumes an interrupted download.

    Raises:
        WeightsError: no network, no such file, no access, or other bytes than published. EntrepError: the disk is full.
    """
    cached = file.local()
    if cached is not None and file.fault(cached) is None:
        return cached, False
    before = None if cached is None else file_sha256(cached)
    _check_room(file)
    import huggingface_hub

    with _hub_progress(show_progress):
        try:
            # A damaged file has the right name: only force makes the hub look at it again.
            fetched = Path(huggingface_hub.hf_hub_download(file.repository, file.name, force_download=cached is not None))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise  # the command line has words for these
            raise _refused(file, error) from error
    if (fault := file.fault(fetched)) is None:
        return fetched, True
    if file_sha256(fetched) == before:
        done = "is left as it was"  # whole, and of another revision than the table's: it may be in use
    else:
        done = "was removed"
        _remove(fetched)
    raise WeightsError(
        f"What was fetched is not the published file, and {done}: {fault}.",
        where=f"{file.repository}, file {file.name}",
        hint="fetch it again; if it stays so, its publisher has changed it: look at the repository's page, "
        f"then `hf download {file.repository} {file.name}` takes it as it is",
    )


def check_weights(weights: PretrainedWeights, *, load: bool = True) -> list[str]:
    """Every fault of an entry's files: missing, of another size or hash, or not those of the model. Empty where all is well.

    Args:
        load: also build the model and load the files strictly; only tried where no file has a fault.
    """
    faults = []
    for file in weights.files:
        path = file.local()
        fault = "it is not on this machine" if path is None else file.fault(path)
        if fault:
            faults.append(f"{file.repository}, {file.name}: {fault}")
    if faults or not load or weights.load is None:
        return faults
    try:
        _load(weights)
    except EntrepError as error:
        faults.append("; ".join([f"it does not load: {error.what}", *error.faults, *([error.where] if error.where else [])]))
    except Exception as error:  # the libraries raise anything for files that are not what they are called
        faults.append(f"it does not load: {type(error).__name__}: {first_line(error)}")
    return faults


def _load(weights: PretrainedWeights) -> None:
    how = weights.load
    if "timm" in how:
        from entrep_cli.models.backbones import BackboneSettings, create_backbone

        path: Path = weights.files[0].local()
        create_backbone(BackboneSettings(name=how["timm"], weights=str(path)), how["size"])
        return
    from entrep_cli.models.clip import ClipSettings, build_clip, load_clip_weights, make_tokenizer, read_architecture

    settings = ClipSettings(name=how["clip"], **({"tag": how["tag"]} if "tag" in how else {}))
    architecture = read_architecture(settings.name)
    load_clip_weights(build_clip(architecture, how["size"]), settings)
    make_tokenizer(settings, architecture)(["a polyp"])


def _refused(file: HubFile, error: Exception) -> WeightsError:
    """The hub's exceptions as what, where and hint; the order matters, for some are kinds of others."""
    from huggingface_hub import constants, errors

    command = f"hf download {file.repository} {file.name}"
    elsewhere = f"with a network: `{command}`, then copy the hub's cache here (HF_HOME names its place)"
    if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
        what, hint = "The hub is switched off by HF_HUB_OFFLINE.", f"HF_HUB_OFFLINE=0 switches it on; or {elsewhere}"
    elif isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{file.repository}"
        what, hint = "Its publisher gives access on request only.", f"ask for it at {page}, then `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "No such repository, or it is private."
        hint = "`hf auth login` if you may see it; else its publisher has moved it"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        what, hint = "The repository does not have this file now.", "see the repository's page for what it is called now"
    else:
        # "Not in the cache and not to be had" is raised from what the network said.
        reason = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        what, hint = f"The hub cannot be reached: {first_line(reason)}.", f"check the network and the proxy and try again; or {elsewhere}"
    return WeightsError(what, where=f"{file.repository}, file {file.name}", hint=hint)


def _check_room(file: HubFile) -> None:
    needed = file.size or file.about
    cache = _hub_cache()
    folder = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EntrepError(
            f"No room for {file.name}: it has {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free.",
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
    """The hub's progress bar, which counts what an earlier session fetched; not in the quiet and json modes."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if show or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
