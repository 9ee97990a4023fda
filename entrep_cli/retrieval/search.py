"""The index of a run: its embedded sets as one gallery, in FAISS shards or in a Milvus store, and the cases most like an image."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from entrep_cli.errors import RunError
from entrep_cli.retrieval.embeddings import Embeddings, embedded_sets, read_embeddings, set_fingerprint
from entrep_cli.retrieval.index import EXACT_UP_TO, build_shards, load_index, measured_recall, save_index, search_index
from entrep_cli.retrieval.ranking import Bonus, Ranking, exact_products, product_error, rank
from entrep_cli.retrieval.stores import MilvusStore, address, build_store, drop_store, open_store
from entrep_cli.workspace import Run, write_json_atomic

if TYPE_CHECKING:
    import faiss

Index = MilvusStore | Sequence["faiss.Index"]
_SHARD = re.compile(r"shard-\d+\.faiss")


def gallery_of(run: Run) -> Embeddings:
    """All embedded sets of a run as one gallery; RunError where nothing is embedded."""
    names = embedded_sets(run)
    if not names:
        raise RunError(f"Run {run.name!r} has no embeddings.", where=run.folder, hint=f"`entrep embed --run {shlex.quote(run.reference)}`")
    return Embeddings.joined([read_embeddings(run, name) for name in names])


def build_run_index(run: Run, store: str | None = None) -> dict[str, Any]:
    """Build the index over all embedded sets; its manifest, written last.

    Args:
        store: `milvus`, `FILE.db` or `http://HOST:19530` puts the gallery into Milvus; None is FAISS, in the run.

    Raises:
        UsageError: no such store. RunError: nothing is embedded, or the store is not to be had.
    """
    uri = None if store is None else address(store)
    gallery, sets, folder = gallery_of(run), _fingerprints(run), run.path("index")
    before = _manifest(run, damaged={})
    made: dict[str, Any] = {"sets": sets, "images": len(gallery), "dimensions": int(gallery.vectors.shape[1])}
    if uri is not None:
        made |= {"kind": "milvus", "store": build_store(uri, gallery, sets, folder)}
    else:
        files: dict[str, str] = {}
        for number, shard in enumerate(build_shards(gallery.vectors)):
            name = f"shard-{number}.faiss"
            files[name] = save_index(shard, folder / name)
            del shard  # before the next one is built
        made |= {"kind": "exact" if len(gallery) <= EXACT_UP_TO else "cells", "files": files}
        if made["kind"] == "cells":
            made["recall@10"] = measured_recall(_load(run, files), gallery.vectors)
    write_json_atomic(folder / "manifest.json", made)
    for path in folder.glob("*.faiss"):
        if path.name not in made.get("files", ()):
            path.unlink()
    if before.get("store") not in (None, made.get("store")):
        drop_store(before["store"], folder)
    return made


def open_run_index(run: Run) -> tuple[Index, Embeddings]:
    """The index and its gallery; RunError where the index is missing or older than the embeddings."""
    manifest, hint = _manifest(run), _hint(run)
    sets = _fingerprints(run)
    if manifest["sets"] != sets:
        raise RunError("The index is older than the embeddings.", where=run.path("index"), hint=hint)
    gallery = gallery_of(run)
    if "store" in manifest:
        return open_store(manifest["store"], gallery, sets, run.path("index")), gallery
    return _load(run, manifest["files"]), gallery


def nearest(index: Index, gallery: Embeddings, query: np.ndarray, k: int, *, digest: str = "", group: str = "") -> Ranking:
    """The k gallery images nearest to a query (1, D), without its own pixels and its own group; the row ends where candidates do."""
    return _nearest(index, gallery, query, k, {"digest": digest, "group": group})


def nearest_exactly(
    gallery: Embeddings, query: np.ndarray, k: int, *, digest: str = "", group: str = "", bonus: Bonus | None = None
) -> Ranking:
    """As `nearest`, without an index and with the bonus of class-aware retrieval; the row ends where candidates do."""
    exclude = [([digest], gallery.items.digest), ([group], gallery.items.group)]
    found = rank(query, gallery.vectors, k, exclude, bonus=bonus)
    n = int((found.indices >= 0).sum())
    return Ranking(found.indices[:, :n], found.scores[:, :n])


def rank_by_store(run: Run, pool: Embeddings, queries: np.ndarray, k: int, own: Mapping[str, Sequence[str]]) -> Ranking | None:
    """As `rank` of a pool, answered by the run's Milvus store; None where it has none, or the pool is not what the store holds.

    Args:
        pool: the gallery of the queries.
        own: (Q,) keys of the queries by column (`image`, `digest`, `group`), whose images are no answers.

    Raises:
        RunError: the store does not answer.
    """
    manifest = _manifest(run, damaged={})
    if "store" not in manifest or manifest["sets"] != _fingerprints(run) or manifest["images"] != len(pool):
        return None
    store, gallery = open_run_index(run)
    if any((getattr(gallery.items, column) != getattr(pool.items, column)).any() for column in ("image", "digest")):
        return None
    indices, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    for i in range(len(queries)):
        found = _nearest(store, gallery, queries[i : i + 1], k, {column: str(keys[i]) for column, keys in own.items()})
        indices[i, : found.indices.shape[1]], scores[i, : found.indices.shape[1]] = found.indices[0], found.scores[0]
    return Ranking(indices, scores)


def _nearest(index: Index, gallery: Embeddings, query: np.ndarray, k: int, own: Mapping[str, str]) -> Ranking:
    """Asks for candidates until no other image can be among the k best, and ranks these by their exact products.

    An index compares in float32; whoever it leaves out is no better than its last candidate by more than
    `product_error`. An index of cells leaves out what it did not visit all the same.
    """
    wanted, error = 2 * k + 16, np.float32(product_error(query.shape[1]))
    while True:
        wanted = min(wanted, len(gallery))
        found = index.search(query, wanted, own) if isinstance(index, MilvusStore) else search_index(index, query, wanted)
        rows = found.indices[0][found.indices[0] >= 0]
        last = found.scores[0, len(rows) - 1] if len(rows) else -np.inf
        asked_for_more_in_vain = len(rows) < wanted or wanted == len(gallery)
        for key, value in own.items():
            if value:
                rows = rows[getattr(gallery.items, key)[rows] != value]
        scores = exact_products(query, gallery.vectors[rows])[0] + np.float32(0)
        order = np.lexsort((rows, -scores))[:k]
        if asked_for_more_in_vain or len(order) == k and scores[order[-1]] > last + error:
            return Ranking(rows[order][None], scores[order][None])
        wanted *= 4


def _load(run: Run, files: Mapping[str, str]) -> list[faiss.Index]:
    return [load_index(run.path("index", name), sha256) for name, sha256 in files.items()]


def _manifest(run: Run, damaged: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest of the index; `damaged`, or RunError, where there is none or it is no such thing."""
    path = run.path("index", "manifest.json")
    if damaged is None and not path.is_file():
        raise RunError(f"Run {run.name!r} has no index.", where=path.parent, hint=_hint(run))
    try:
        manifest = json.loads(path.read_text("utf-8"))
        dict(manifest["sets"]), int(manifest["images"])
        if "store" in manifest:
            str(manifest["store"]["uri"]), str(manifest["store"]["collection"])
        elif not all(_SHARD.fullmatch(name) and isinstance(sha256, str) for name, sha256 in manifest["files"].items()):
            raise ValueError("no shards")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if damaged is not None:
            return damaged
        raise RunError("The index is damaged.", where=path, hint=_hint(run)) from error
    return manifest


def _hint(run: Run) -> str:
    return f"`entrep index --run {shlex.quote(run.reference)}`"


def _fingerprints(run: Run) -> dict[str, str]:
    return {name: set_fingerprint(run, name) for name in embedded_sets(run)}
