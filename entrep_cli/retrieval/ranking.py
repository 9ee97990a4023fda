"""Exact ranking of a gallery by cosine, with masks, and the same answer on every machine.

    ranking = rank(queries, gallery, k=10, exclude=[(names, gallery_names), (exams, gallery_exams)])
    hits = relevance(ranking, labels, gallery_labels)

Why the answer is always the same. A float32 matrix product changes its last bits with the shape of
the block, the number of threads and the place of a row in it, so two copies of one image can get
two scores and a ranking can depend on the block size. Here every coordinate is first rounded to a
multiple of 2**-26. The products are then multiples of 2**-52 and, for unit rows, no partial sum
reaches 2, so float64 holds each of them exactly: no rounding happens, in whatever order BLAS adds.
The rounding of the coordinates moves a cosine by some 1e-8, less than float32 itself can tell.
Scores are rounded once, to float32, and ties are decided on these float32 scores: what a reader
sees as equal is equal. A bonus, where one is given, is a float32 too and is added to the cosine.

Where few answers of a large gallery are wanted, float32 products (FAISS's, or of the matrices) find the
candidates and only these get the exact product: the same answer at a fraction of the price. Let e
bound the distance of the two products (`product_error`) and t be the k-th best float32 product. Then
k items have an exact one of t - e or more, so each of the k best has, and its float32 product is
t - 2e or more: nobody else need be looked at. Where so many pass that it saves nothing (a gallery of
copies), the exact products of all are taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from entrep_cli.errors import DataError, UsageError

Keys = Sequence | np.ndarray
Exclusions = Sequence[tuple[Keys, Keys]]
Bonus = Callable[[slice, np.ndarray], np.ndarray]
Masks = Sequence[tuple[np.ndarray, np.ndarray]]  # codes of the queries and of the gallery, as `match_codes` gives them

_GRID = 2.0**26
_TILE = 1024  # gallery rows on the grid at a time: they stay in the processor's cache
_SCORES_AT_ONCE = 2**21  # sorting takes some 50 bytes a score
_PRODUCTS_AT_ONCE = 2**24  # a product takes 4 bytes, to find candidates among them 5 more
_FEWEST_QUERIES = 64  # below this, putting the gallery on the grid costs more than the product
_PRODUCT_TILE = 2**14  # gallery rows in a float32 product at a time: a memory map is never read whole
_NEAREST_TILE = 2**17  # gallery rows that FAISS searches at a time
_FAISS_BLOCK = 4096
_MANY_QUERIES = 1024  # at a time, where FAISS finds the candidates
_MARGIN, _WIDEST = 90, 1024  # more than k that FAISS is asked for (from 100 on it selects faster), and the most
_PAIRS_AT_ONCE = 2**16  # coordinates of candidates on the grid at a time: they stay in the processor's cache
_FEW_COORDINATES = 2**21  # whose lengths numpy tells before FAISS is imported
_LARGE_GALLERY = 256  # times k: from here on candidates are searched first
_CROWDED = 64  # where more than one item in so many is a candidate, the exact products of all cost less


@dataclass(frozen=True, eq=False)
class Ranking:
    """The gallery items answered to each query, best first.

    Args:
        indices: (Q, k) int64, rows of the gallery; -1 where no candidate was left.
        scores: (Q, k) float32 cosines (with their bonus, where one was given), never rising along a
            row; -inf where the index is -1.

    Raises:
        ValueError: the two arrays do not fit each other (a bug in the caller).
    """

    indices: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        if self.indices.ndim != 2 or self.indices.shape != self.scores.shape:
            raise ValueError(f"indices {self.indices.shape} and scores {self.scores.shape} must have one shape (Q, k)")
        if not np.array_equal(self.indices == -1, np.isneginf(self.scores)):
            raise ValueError("index -1 and score -inf must stand together")
        if (self.scores[:, 1:] > self.scores[:, :-1]).any():
            raise ValueError("scores must not rise along a row")


def rank(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int | None,
    exclude: Exclusions = (),
    *,
    bonus: Bonus | None = None,
    block_size: int | None = None,
) -> Ranking:
    """Rank the gallery for each query by cosine, exactly; ties go to the earlier gallery row.

    Args:
        queries: (Q, D) unit rows, float32 or what casts to it.
        gallery: (G, D) unit rows; a memory map, or `Rows` of several, is read tile by tile.
        k: answers to a query; None for the full ranking (k = G).
        exclude: pairs (query_keys (Q,), gallery_keys (G,)): a gallery item whose key equals the
            query's in any pair is never returned. None, '' and NaN are no key and match nothing.
        bonus: what is added to the cosines: from (rows of the queries, (q, G) bool candidates that
            are not excluded) to (q, G) float32. -inf takes a candidate out; none comes back in.
        block_size: queries ranked at a time; it bounds memory and cannot change the answer.

    Returns:
        A Ranking of shape (Q, k), padded with index -1 and score -inf where candidates run out.

    Raises:
        DataError: rows are not of unit length, or shapes do not fit.
        UsageError: k is below 1.
    """
    blocks = [ranking for _, ranking in ranked_blocks(queries, gallery, k, exclude, bonus=bonus, block_size=block_size)]
    width = len(gallery) if k is None else k
    return Ranking(
        np.concatenate([np.empty((0, width), np.int64), *(block.indices for block in blocks)]),
        np.concatenate([np.empty((0, width), np.float32), *(block.scores for block in blocks)]),
    )


def ranked_blocks(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int | None,
    exclude: Exclusions = (),
    *,
    bonus: Bonus | None = None,
    block_size: int | None = None,
) -> Iterator[tuple[slice, Ranking]]:
    """As `rank`, but yields (rows of the queries, their Ranking) and holds one block at a time."""
    if k is not None and k < 1:
        raise UsageError(f"top-k must be at least 1, not {k}.", hint="--top-k 10")
    _check_unit_rows("queries", queries)
    _check_unit_rows("gallery", gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise DataError(
            f"Queries have {queries.shape[1]} dimensions and the gallery has {gallery.shape[1]}.",
            hint="Embed both with the same run.",
        )
    for query_keys, gallery_keys in exclude:
        if len(query_keys) != len(queries) or len(gallery_keys) != len(gallery):
            raise DataError(
                f"Exclusion keys ({len(query_keys)}, {len(gallery_keys)}) do not fit "
                f"{len(queries)} queries and {len(gallery)} gallery items."
            )
    masks = [match_codes(*pair) for pair in exclude]
    if bonus is None and k is not None and len(gallery) >= _LARGE_GALLERY * k:
        for rows in _blocks(len(queries), block_size or max(_MANY_QUERIES, _PRODUCTS_AT_ONCE // len(gallery))):
            yield rows, _best_by_candidates(queries[rows], gallery, k, _masks_of(rows, masks))
        return
    at_once = block_size or max(_FEWEST_QUERIES, _PRODUCTS_AT_ONCE // max(1, len(gallery)))
    block_size = block_size or max(_FEWEST_QUERIES // 16, _SCORES_AT_ONCE // max(1, len(gallery)))
    for block in _blocks(len(queries), at_once):
        products = exact_products(queries[block], gallery)
        # A product takes 4 bytes and sorting it 50, so fewer queries at a time are sorted.
        for some in _blocks(len(products), block_size):
            rows = slice(block.start + some.start, block.start + some.stop)
            scores = _masked(products[some], _masks_of(rows, masks))
            if bonus is not None:
                scores += bonus(rows, ~np.isneginf(scores))  # -inf stays -inf: a mask holds
            yield rows, _best(scores, k)


def relevance(ranking: Ranking, query_labels: Keys, gallery_labels: Keys) -> np.ndarray:
    """(Q, k) bool, whether an answer bears the query's label.

    Padding is never relevant, nor is anything to or by a missing label (None, '', NaN).

    Raises:
        DataError: there is not one label for each query.
    """
    if len(query_labels) != len(ranking.indices):
        raise DataError(f"{len(query_labels)} labels do not fit {len(ranking.indices)} queries.")
    query_codes, gallery_codes = match_codes(query_labels, gallery_labels)
    # One more code at the end is what the padding index -1 meets; no query bears it.
    return query_codes[:, None] == np.append(gallery_codes, -2)[ranking.indices]


def match_codes(query_keys: Keys, gallery_keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    """Integers (Q,), (G,), equal exactly where two keys are equal and neither is missing."""
    query_codes, gallery_codes = key_codes(query_keys, gallery_keys)
    return query_codes, np.where(gallery_codes < 0, -2, gallery_codes)


def key_codes(*columns: Keys) -> list[np.ndarray]:
    """One int64 array a column: equal keys have equal codes in all columns, counted from 0.

    A missing key (None, '', NaN, pandas' NA) is -1. Keys are compared as Python objects, so the
    number 1 and the text '1' differ.
    """
    codes: dict = {}

    def code(key) -> int:
        missing = not key if isinstance(key, str) else key is None or str(key) in ("nan", "NaT", "<NA>")
        return -1 if missing else codes.setdefault(key, len(codes))

    def as_list(column: Keys) -> list:
        # np.asarray would turn a NaN among strings into the text 'nan'.
        return column.tolist() if hasattr(column, "tolist") else list(column)

    return [np.array([code(key) for key in as_list(column)], np.int64) for column in columns]


def _check_unit_rows(name: str, rows: np.ndarray) -> None:
    if rows.ndim != 2:
        raise DataError(f"{name} must be (rows, dimensions), not of shape {rows.shape}.")
    lengths = np.empty(len(rows), np.float32)
    for tile in _blocks(len(rows), _PRODUCT_TILE):
        _squared_lengths(np.ascontiguousarray(rows[tile], np.float32), out=lengths[tile])
    np.sqrt(lengths, out=lengths)
    # Rows normalised in bfloat16 miss 1 by up to 0.4%; NaN fails the comparison as it must.
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 0.01))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} of {len(rows)} rows of {name} are not of unit length (row {wrong[0]} has length {lengths[wrong[0]]:.4g}).",
            hint="Normalise the rows, or make the embeddings again with `entrep embed`.",
        )


def _squared_lengths(rows: np.ndarray, out: np.ndarray) -> None:
    """(n,) of (n, D), both float32 and contiguous; FAISS uses all cores, and takes too long to import for a few rows."""
    if rows.size < _FEW_COORDINATES:
        np.einsum("ij,ij->i", rows, rows, out=out)
        return
    import faiss

    faiss.fvec_norms_L2sqr(faiss.swig_ptr(out), faiss.swig_ptr(rows), rows.shape[1], len(rows))


def _on_grid(rows: np.ndarray) -> np.ndarray:
    """Coordinates in units of 2**-26, whole numbers as float64; to scale a float32 so is exact."""
    scaled = np.asarray(rows, np.float32) * np.float32(_GRID)
    return np.rint(scaled, out=scaled).astype(np.float64)


def exact_products(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(q, G) float32, each the exact product of the gridded rows (q, D) and (G, D) rounded once.

    Of unit rows the cosines; likewise exact for rows of probabilities, whose products sum to 1 at most.
    """
    left = _on_grid(queries)
    scores = np.empty((len(queries), len(gallery)), np.float32)
    for start in range(0, len(gallery), _TILE):
        tile = _on_grid(gallery[start : start + _TILE])
        np.multiply(left @ tile.T, _GRID**-2, out=scores[:, start : start + _TILE], casting="same_kind")
    return scores


def product_error(dimensions: int) -> float:
    """How far a float32 product of two unit rows can be from their exact product of `exact_products`.

    Whatever the order of the sum, of n products it is off by n u / (1 - n u) sum |x y| at most, u = 2**-24
    (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), and sum |x y| is 1 for
    unit rows, 1.03 for what `rank` takes as such. The grid moves a coordinate by 2**-27 at most, so a
    product of rows by 2 sqrt(n) 2**-27; the last terms are the rounding of the exact product and of a
    comparison in float32.
    """
    n_units = dimensions * 2.0**-24
    return 1.03 * (n_units / (1 - n_units) + 2 * dimensions**0.5 * 2**-27 + dimensions * 2**-54) + 2 * 2**-23


def _blocks(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _masks_of(rows: slice | np.ndarray, masks: Masks) -> Masks:
    return [(query_codes[rows], gallery_codes) for query_codes, gallery_codes in masks]


def _masked(scores: np.ndarray, masks: Masks) -> np.ndarray:
    for query_codes, gallery_codes in masks:
        scores[query_codes[:, None] == gallery_codes] = -np.inf
    return scores


def _best_by_candidates(queries: np.ndarray, gallery: np.ndarray, k: int, masks: Masks) -> Ranking:
    """The same as `_best` of the exact products, from a float32 product and the exact ones of its best."""
    n_queries, n_gallery = len(queries), len(gallery)
    left = np.ascontiguousarray(queries, np.float32)
    query, row, settled = _nearest_candidates(left, gallery, k, masks)
    rest = np.flatnonzero(~settled)
    for block in _blocks(len(rest), max(_FEWEST_QUERIES // 16, _PRODUCTS_AT_ONCE // n_gallery)):
        some = rest[block]
        others, rows = _all_candidates(left[some], gallery, k, _masks_of(some, masks))
        query, row = np.concatenate([query, some[others]]), np.concatenate([row, rows])
    n_candidates = np.bincount(query, minlength=n_queries)
    crowded = n_candidates > n_gallery // _CROWDED
    of_few = ~crowded[query]
    query, row = query[of_few], row[of_few]
    n_candidates[crowded] = 0

    gridded = _on_grid(queries)
    scores = np.empty(len(query), np.float32)
    n_pairs = max(1, _PAIRS_AT_ONCE // queries.shape[1])
    for start in range(0, len(query), n_pairs):
        pairs = slice(start, start + n_pairs)
        exact = np.einsum("nd,nd->n", gridded[query[pairs]], _on_grid(gallery[row[pairs]]))
        np.multiply(exact, _GRID**-2, out=scores[pairs], casting="same_kind")
    order = np.lexsort((row, -scores, query))
    place = np.arange(len(order)) - np.repeat(n_candidates.cumsum() - n_candidates, n_candidates)
    order, place = order[place < k], place[place < k]
    indices = np.full((n_queries, k), -1, np.int64)
    best = np.full((n_queries, k), -np.inf, np.float32)
    indices[query[order], place] = row[order]
    best[query[order], place] = scores[order] + np.float32(0)
    rest = np.flatnonzero(crowded)
    for block in _blocks(len(rest), max(_FEWEST_QUERIES, _SCORES_AT_ONCE // n_gallery)):
        some = rest[block]
        ranked = _best(_masked(exact_products(queries[some], gallery), _masks_of(some, masks)), k)
        indices[some], best[some] = ranked.indices, ranked.scores
    return Ranking(indices, best)


def _nearest_candidates(left: np.ndarray, gallery: np.ndarray, k: int, masks: Masks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (P,), (P,) of a query and a gallery row that may be among its k best, as FAISS finds them tile by tile.

    FAISS is asked for more than k of each tile. Where the last of them is no candidate, nothing behind it is.

    Returns:
        also (q,) bool: the queries whose candidates are complete; the others have none.
    """
    import faiss

    masked = [np.bincount(codes[codes >= 0], minlength=query_codes.max(initial=0) + 1) for query_codes, codes in masks]
    most = sum(int(np.where(query_codes < 0, 0, counts[query_codes]).max(initial=0)) for (query_codes, _), counts in zip(masks, masked))
    width = k + _MARGIN + most
    # FAISS multiplies matrices from so many coordinates on; below, it is slower than numpy's product of all.
    if width > _WIDEST or left.size < faiss.cvar.distance_compute_blas_threshold:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(len(left), bool)
    products, rows, last = [], [], []
    for start in range(0, len(gallery), _NEAREST_TILE):
        tile = np.ascontiguousarray(gallery[start : start + _NEAREST_TILE], np.float32)
        with _wide_blocks():
            nearest, places = faiss.knn(left, tile, min(width, len(tile)), metric=faiss.METRIC_INNER_PRODUCT)
        last.append(nearest[:, -1] if width < len(tile) else np.full(len(left), -np.inf, np.float32))
        products.append(nearest)
        rows.append(places + start)
    nearest, row = np.concatenate(products, axis=1), np.concatenate(rows, axis=1)
    for query_codes, gallery_codes in masks:
        nearest[query_codes[:, None] == gallery_codes[row]] = -np.inf
    kth = -np.partition(-nearest, k - 1, axis=1)[:, k - 1]
    least = _least(kth, left.shape[1])
    settled = np.max(last, axis=0) < least
    query, place = np.nonzero((nearest >= least[:, None]) & settled[:, None])
    return query, row[query, place], settled


@contextlib.contextmanager
def _wide_blocks() -> Iterator[None]:
    """FAISS multiplies the queries by so many gallery rows at a time, in the block: a twentieth faster than by its default of 1,024."""
    import faiss

    before = faiss.cvar.distance_compute_blas_database_bs
    faiss.cvar.distance_compute_blas_database_bs = _FAISS_BLOCK
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_database_bs = before


def _all_candidates(left: np.ndarray, gallery: np.ndarray, k: int, masks: Masks) -> tuple[np.ndarray, np.ndarray]:
    """The same pairs from all products at once, however many."""
    products = np.empty((len(left), len(gallery)), np.float32)
    for start in range(0, len(gallery), _PRODUCT_TILE):
        tile = np.asarray(gallery[start : start + _PRODUCT_TILE], np.float32)
        np.matmul(left, tile.T, out=products[:, start : start + _PRODUCT_TILE])
    _masked(products, masks)
    kth = np.partition(products, len(gallery) - k, axis=1)[:, len(gallery) - k]
    return np.nonzero(products >= _least(kth, left.shape[1])[:, None])


def _least(kth: np.ndarray, dimensions: int) -> np.ndarray:
    """(q,) the least float32 product of a candidate; what is masked is none, even where fewer than k are left."""
    return np.maximum(kth - np.float32(2 * product_error(dimensions)), np.finfo(np.float32).min)


def _best(scores: np.ndarray, k: int | None) -> Ranking:
    n_queries, n_gallery = scores.shape
    width = n_gallery if k is None else k
    n_best = min(width, n_gallery)
    keys = _sort_keys(scores)
    if n_best < n_gallery:
        keys = np.partition(keys, n_best - 1, axis=1)[:, :n_best]
    keys.sort(axis=1)
    order = keys & 0xFFFFFFFF
    indices = np.full((n_queries, width), -1, np.int64)
    best = np.full((n_queries, width), -np.inf, np.float32)
    best[:, :n_best] = np.take_along_axis(scores, order, axis=1) + np.float32(0)  # no zero is negative
    indices[:, :n_best] = np.where(np.isneginf(best[:, :n_best]), -1, order)
    return Ranking(indices, best)


def _sort_keys(scores: np.ndarray) -> np.ndarray:
    """(q, G) int64 that rise as scores fall, then with the gallery row.

    High half: the bits of the score, in an order in which integers compare as the floats do. Low
    half: the gallery row. No two keys are equal, so any sort and any partition, stable or not, has
    one outcome; and numpy sorts integers several times faster than it sorts floats stably.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # adding 0 makes -0.0 and 0.0 one
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    keys = falling.astype(np.int64)
    keys <<= 32
    keys |= np.arange(scores.shape[1])
    return keys
