"""The index of a run: its embedded sets as one gallery, and the cases most like an image."""

from __future__ import annotations

import json
import shlex

import numpy as np

from entrep_cli.errors import RunError
from entrep_cli.retrieval.embeddings import Embeddings, embedded_sets, read_embeddings, set_fingerprint
from entrep_cli.retrieval.index import build_index, load_index, save_index, search_index
from entrep_cli.retrieval.ranking import Bonus, Ranking, rank
from entrep_cli.workspace import Run, write_json_atomic


def gallery_of(run: Run) -> Embeddings:
    """All embedded sets of a run as one gallery; RunError where nothing is embedded."""
    names = embedded_sets(run)
    if not names:
        raise RunError(f"Run {run.name!r} has no embeddings.", where=run.folder, mend=f"`entrep embed --run {shlex.quote(run.reference)}`")
    return Embeddings.joined([read_embeddings(run, name) for name in names])


def build_run_index(run: Run) -> dict:
    """Build the index over all embedded sets; its manifest, written last."""
    gallery = gallery_of(run)
    sha256 = save_index(build_index(gallery.vectors), run.path("index", "index.faiss"))
    manifest = {
        "sets": _fingerprints(run),
        "images": len(gallery),
        "dimensions": int(gallery.vectors.shape[1]),
        "sha256": sha256,
    }
    write_json_atomic(run.path("index", "manifest.json"), manifest)
    return manifest


def open_run_index(run: Run):
    """The index and its gallery; RunError where the index is missing or older than the embeddings."""
    path = run.path("index", "manifest.json")
    mend = f"`entrep index --run {shlex.quote(run.reference)}`"
    if not path.is_file():
        raise RunError(f"Run {run.name!r} has no index.", where=path.parent, mend=mend)
    try:
        manifest = json.loads(path.read_text("utf-8"))
        sets, sha256 = manifest["sets"], manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError("The index is damaged.", where=path, mend=mend) from error
    if sets != _fingerprints(run):
        raise RunError("The index is older than the embeddings.", where=path.parent, mend=mend)
    return load_index(run.path("index", "index.faiss"), sha256), gallery_of(run)


def nearest(index, gallery: Embeddings, query: np.ndarray, k: int, *, digest: str = "", group: str = "") -> Ranking:
    """The k gallery images nearest to a query (1, D), without its own pixels and its own group.

    More are asked of the index until k are left after masking, or the gallery is at an end.
    """
    wanted = k
    while True:
        found = search_index(index, query, min(wanted, len(gallery)))
        rows = found.indices[0]
        rows_known = np.where(rows >= 0, rows, 0)
        keep = rows >= 0
        for key, column in ((digest, gallery.items.digest), (group, gallery.items.group)):
            if key:
                keep &= column[rows_known] != key
        if keep.sum() >= k or wanted >= len(gallery):
            return Ranking(found.indices[:, keep][:, :k], found.scores[:, keep][:, :k])
        wanted *= 4


def nearest_exactly(
    gallery: Embeddings, query: np.ndarray, k: int, *, digest: str = "", group: str = "", bonus: Bonus | None = None
) -> Ranking:
    """As `nearest`, without an index and with the bonus of class-aware retrieval; the row ends where candidates do."""
    exclude = [([digest], gallery.items.digest), ([group], gallery.items.group)]
    found = rank(query, np.asarray(gallery.vectors), k, exclude, bonus=bonus)
    n = int((found.indices >= 0).sum())
    return Ranking(found.indices[:, :n], found.scores[:, :n])


def _fingerprints(run: Run) -> dict[str, str]:
    return {name: set_fingerprint(run, name) for name in embedded_sets(run)}
