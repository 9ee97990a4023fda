"""A FAISS index on disk, bound to the hash that our own manifest holds.

A `.faiss` file is not a safe format: parsing a forged one can corrupt memory. So the hash is taken
over the very bytes that are then parsed, and only a file with the expected hash is parsed at all.
Scores and submissions come from the exact `ranking.rank`; an index is for interactive search.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from entrep_cli.errors import RunError
from entrep_cli.retrieval.ranking import Ranking
from entrep_cli.workspace import write_bytes_atomic

if TYPE_CHECKING:
    import faiss

_MEND = "entrep index"


def build_index(vectors: np.ndarray, *, exact_up_to: int = 1_000_000) -> faiss.Index:
    """An inner-product index of (G, D) float32 unit rows.

    Up to `exact_up_to` rows every row is compared (`IndexFlatIP`). Above, rows are sorted into
    4 sqrt(G) cells and a query visits one cell in 16 (`IndexIVFFlat`): faster, and may miss some.
    """
    import faiss

    vectors = np.ascontiguousarray(vectors, np.float32)
    n_rows, dimensions = vectors.shape
    index = faiss.IndexFlatIP(dimensions)
    if n_rows > exact_up_to:
        n_cells = int(4 * n_rows**0.5)
        index = faiss.IndexIVFFlat(index, dimensions, n_cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, n_cells // 16)
        index.train(vectors)
    index.add(vectors)
    return index


def save_index(index: faiss.Index, path: str | Path) -> str:
    """Write the index in one step and return its sha256, for the manifest."""
    import faiss

    data = faiss.serialize_index(index).tobytes()
    write_bytes_atomic(Path(path), data)
    return hashlib.sha256(data).hexdigest()


def load_index(path: str | Path, sha256: str) -> faiss.Index:
    """Read an index whose bytes have the given sha256.

    Raises:
        RunError: the file is missing, or is not the one that was hashed.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"The index cannot be read: {error.strerror}.", where=path, mend=_MEND
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RunError("The index is not the one its manifest describes.", where=path, mend=_MEND)
    import faiss

    return faiss.deserialize_index(np.frombuffer(data, np.uint8))


def search_index(index: faiss.Index, queries: np.ndarray, k: int) -> Ranking:
    """The k best rows for each of (Q, D) unit queries; equal scores in gallery order.

    Raises:
        RunError: queries have other dimensions than the index.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.shape[1] != index.d:
        raise RunError(
            f"Queries have {queries.shape[1]} dimensions and the index has {index.d}: two models.",
            mend=_MEND,
        )
    scores, indices = index.search(queries, k)
    scores[indices < 0] = -np.inf
    order = np.lexsort((indices, -scores), axis=1)
    return Ranking(
        np.take_along_axis(indices, order, axis=1), np.take_along_axis(scores, order, axis=1)
    )
