"""A FAISS index on disk, in shards, bound to the hashes that our own manifest holds.

A shard is built from a block of memory-mapped vectors, written and let go, so memory holds one shard,
however large the gallery is. Read back, a shard stays a memory map of its file: the system keeps of it
what it has room for.

A `.faiss` file is not a safe format: parsing a forged one can corrupt memory. So the hash is taken
over the very mapping that is then parsed, and only a file with the expected hash is parsed at all.
Scores and submissions come from the exact `ranking.rank`; an index is for interactive search.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from entrep_cli.errors import RunError
from entrep_cli.retrieval.ranking import Ranking, rank
from entrep_cli.retrieval.rows import Rows
from entrep_cli.workspace import atomic_path

if TYPE_CHECKING:
    import faiss

EXACT_UP_TO = 1_000_000
SHARD_ROWS = 2**19
_ROWS_AT_ONCE = 2**14
_TRAINED_ON = 40  # rows a cell; FAISS calls 39 the fewest that are enough
_MEND = "entrep index"


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
        raise RunError(f"The index cannot be read: {what}.", where=path, hint=_MEND) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RunError("The index is not the one its manifest describes.", where=path, hint=_MEND)
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
        raise RunError(f"Queries have {queries.shape[1]} dimensions and the index has {shards[0].d}: two models.", hint=_MEND)
    found, start = [], 0
    for shard in shards:
        scores, indices = shard.search(queries, k)
        found.append((np.where(indices < 0, -np.inf, scores), np.where(indices < 0, -1, indices + start)))
        start += shard.ntotal
    scores, indices = (np.concatenate(arrays, axis=1) for arrays in zip(*found))
    order = np.lexsort((indices, -scores), axis=1)[:, :k]
    return Ranking(np.take_along_axis(indices, order, axis=1), np.take_along_axis(scores, order, axis=1))


def measured_recall(shards: Sequence[faiss.Index], vectors: np.ndarray | Rows, *, k: int = 10, n_queries: int = 200) -> float:
    """The share of the k nearest that the index finds, the mean over a sample of the rows themselves as queries."""
    sample = np.random.default_rng(0).choice(len(vectors), min(n_queries, len(vectors)), replace=False)
    queries = vectors[np.sort(sample)]
    exact, found = rank(queries, vectors, k).indices, search_index(shards, queries, k).indices
    return float(np.mean([np.isin(wanted[wanted >= 0], got).mean() for wanted, got in zip(exact, found)]))


def _float32(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, np.float32)
