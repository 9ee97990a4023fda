"""The index of a run: its embedded sets as one gallery, in FAISS shards or in a Milvus store, for interactive search.

    build_run_index(run)
    index, gallery = open_run_index(run)
    nearest(index, gallery, query, 10, digest="...")  # (1, k) rows of the gallery

A shard is built from a block of memory-mapped vectors, written and let go, so memory holds one shard, however large
the gallery is. Read back, a shard stays a memory map of its file, of which the system caches what it has room for.

A `.faiss` file is not a safe format: parsing a forged one can corrupt memory. So the hash is taken over the very
mapping that is then parsed, and only a file with the hash in the manifest is parsed at all. Scores and submissions
come from the exact `ranking.rank`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entrep_cli.errors import RunError
from entrep_cli.retrieval.embeddings import Embeddings, Rows, embedded_sets, read_embeddings, set_fingerprint
from entrep_cli.retrieval.ranking import Bonus, Ranking, exact_products, product_error, rank
from entrep_cli.retrieval.stores import MilvusStore, address, build_store, drop_store, open_store
from entrep_cli.workspace import Run, atomic_path, write_json_atomic

if TYPE_CHECKING:
    import faiss

Index = MilvusStore | Sequence["faiss.Index"]
EXACT_UP_TO = 1_000_000
SHARD_ROWS = 2**19
_SHARD = re.compile(r"shard-\d+\.faiss")
_ROWS_AT_ONCE = 2**14
_TRAINED_ON = 40  # rows a cell; FAISS calls 39 the fewest that are enough
_HINT = "entrep index"


# ---------------------------------------------------------------- of a run


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
        UsageError: no such store. RunError: nothing is embedded, or the store cannot be reached.
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


def nearest(index: Index, gallery: Embeddings, query: np.ndarray, k: int, **masks: str) -> Ranking:
    """The k gallery images nearest to a query (1, D) by their exact products; the row ends where candidates do.

    The index is asked for candidates until no other image can be among the k best. It compares in float32, and
    what it leaves out is no better than its last candidate by more than `product_error`. An index of cells leaves
    out what it did not visit all the same.

    Args:
        masks: keys of the query by column of the items (`image`, `digest`, `group`): images with one of them are
            no answers; "" masks nothing.
    """
    wanted, error = 2 * k + 16, np.float32(product_error(query.shape[1]))
    while True:
        wanted = min(wanted, len(gallery))
        asked = index.search(query, wanted, masks) if isinstance(index, MilvusStore) else search_index(index, query, wanted)
        rows = asked.indices[0][asked.indices[0] >= 0]
        last = asked.scores[0, len(rows) - 1] if len(rows) else -np.inf
        no_more_to_ask = len(rows) < wanted or wanted == len(gallery)
        for column, key in masks.items():
            if key:
                rows = rows[getattr(gallery.items, column)[rows] != key]
        scores = exact_products(query, gallery.vectors[rows])[0] + np.float32(0)
        order = np.lexsort((rows, -scores))[:k]
        if no_more_to_ask or len(order) == k and scores[order[-1]] > last + error:
            return Ranking(rows[order][None], scores[order][None])
        wanted *= 4


def nearest_exactly(
    gallery: Embeddings, query: np.ndarray, k: int, *, digest: str = "", group: str = "", bonus: Bonus | None = None
) -> Ranking:
    """As `nearest`, without an index and with the bonus of class-aware retrieval; the row ends where candidates do."""
    exclude = [([digest], gallery.items.digest), ([group], gallery.items.group)]
    ranking = rank(query, gallery.vectors, k, exclude, bonus=bonus)
    n = int((ranking.indices >= 0).sum())
    return Ranking(ranking.indices[:, :n], ranking.scores[:, :n])


def rank_by_store(run: Run, pool: Embeddings, queries: np.ndarray, k: int, masks: Mapping[str, Sequence[str]]) -> Ranking | None:
    """As `rank` of a pool, answered by the run's Milvus store; None where it has none, or the pool is not what the store holds.

    Args:
        pool: the gallery of the queries.
        masks: (Q,) keys of the queries by column, as in `nearest`.

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
        best = nearest(store, gallery, queries[i : i + 1], k, **{column: str(keys[i]) for column, keys in masks.items()})
        indices[i, : best.indices.shape[1]], scores[i, : best.indices.shape[1]] = best.indices[0], best.scores[0]
    return Ranking(indices, scores)


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


# ---------------------------------------------------------------- shards


def build_shards(vectors: np.ndarray | Rows, *, exact_up_to: int = EXACT_UP_TO, shard_rows: int = SHARD_ROWS) -> Iterator[faiss.Index]:
    """Inner-product indexes of (G, D) float32 unit rows, `shard_rows` of them each, one after the other.

    Up to `exact_up_to` rows every row is compared (`IndexFlatIP`). Above, rows are sorted into
    4 sqrt(G) cells and a query visits one cell in 16 (`IndexIVFFlat`): faster, and may miss some. The
    cells are learned once, from a sample, and are the same in all shards.
    """
    import faiss

    n_rows, dimensions = vectors.shape
    cells = None
    if n_rows > exact_up_to:
        n_cells = int(4 * n_rows**0.5)
        cells = faiss.IndexFlatIP(dimensions)
        sample = np.random.default_rng(0).choice(n_rows, min(n_rows, _TRAINED_ON * n_cells), replace=False)
        faiss.IndexIVFFlat(cells, dimensions, n_cells, faiss.METRIC_INNER_PRODUCT).train(_float32(vectors[np.sort(sample)]))
    for start in range(0, max(1, n_rows), shard_rows):
        stop = min(start + shard_rows, n_rows)
        shard = faiss.IndexFlatIP(dimensions)
        if cells is not None:
            shard = faiss.IndexIVFFlat(cells, dimensions, cells.ntotal, faiss.METRIC_INNER_PRODUCT)
            shard.nprobe = max(1, cells.ntotal // 16)
        for first in range(start, stop, _ROWS_AT_ONCE):
            shard.add(_float32(vectors[first : min(first + _ROWS_AT_ONCE, stop)]))
        yield shard


def save_index(index: faiss.Index, path: str | Path) -> str:
    """Write the index in one step and return its sha256, for the manifest."""
    import faiss

    digest = hashlib.sha256()
    with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:

        def write(data: bytes) -> int:
            digest.update(data)
            return file.write(data)

        faiss.write_index(index, faiss.PyCallbackIOWriter(write))
    return digest.hexdigest()


def load_index(path: str | Path, sha256: str) -> faiss.Index:
    """Map an index whose bytes have the given sha256.

    Raises:
        RunError: the file is missing, or is not the one that was hashed.
    """
    path = Path(path)
    try:
        data = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        what = getattr(error, "strerror", None) or "it is empty"
        raise RunError(f"The index cannot be read: {what}.", where=path, hint=_HINT) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RunError("The index is not the one its manifest describes.", where=path, hint=_HINT)
    import faiss

    index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(data), data.size), faiss.IO_FLAG_MMAP_IFC)
    index.referenced_objects = [data]  # it points into the mapping, which must live as long
    return index


def search_index(shards: Sequence[faiss.Index], queries: np.ndarray, k: int) -> Ranking:
    """The k best rows, counted through all shards, for each of (Q, D) unit queries; equal scores in gallery order.

    Raises:
        RunError: queries have other dimensions than the index.
    """
    queries = _float32(queries)
    if queries.shape[1] != shards[0].d:
        raise RunError(f"Queries have {queries.shape[1]} dimensions and the index has {shards[0].d}: two models.", hint=_HINT)
    answers, start = [], 0
    for shard in shards:
        scores, indices = shard.search(queries, k)
        answers.append((np.where(indices < 0, -np.inf, scores), np.where(indices < 0, -1, indices + start)))
        start += shard.ntotal
    scores, indices = (np.concatenate(arrays, axis=1) for arrays in zip(*answers))
    order = np.lexsort((indices, -scores), axis=1)[:, :k]
    return Ranking(np.take_along_axis(indices, order, axis=1), np.take_along_axis(scores, order, axis=1))


def measured_recall(shards: Sequence[faiss.Index], vectors: np.ndarray | Rows, *, k: int = 10, n_queries: int = 200) -> float:
    """The fraction of the k nearest that the index returns, the mean over a sample of the rows themselves as queries."""
    sample = np.random.default_rng(0).choice(len(vectors), min(n_queries, len(vectors)), replace=False)
    queries = vectors[np.sort(sample)]
    exact, answered = rank(queries, vectors, k).indices, search_index(shards, queries, k).indices
    return float(np.mean([np.isin(wanted[wanted >= 0], got).mean() for wanted, got in zip(exact, answered)]))


def _float32(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, np.float32)
