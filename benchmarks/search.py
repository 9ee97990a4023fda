"""How fast are exact ranking, the index and a Milvus store beside FAISS alone, numpy and usearch?

    python benchmarks/search.py --out search.json                # 1e3 and 1e4 images, a minute
    python benchmarks/search.py --gallery 1000 10000 100000      # with Milvus' cost at 1e5, some minutes
    python benchmarks/search.py --gallery --cells 1000000        # an index by cells, with its measured recall

Top 10 of clustered unit vectors, all peers in turns in this one process. `ratio` is a peer's time over
ours, above 1 where we are faster; `agree` the share of our answers that it gives. Ours is `rank`: exact, with
ties decided; copies in the gallery (one row in 50 is its neighbour's) are what peers disagree on. `built` is the time to
build an index, which `rank` and numpy do without. `one query` is a search as `entrep search` does it.
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import fastest, parser, peer, report

from entrep_cli.retrieval.embeddings import Embeddings, Items
from entrep_cli.retrieval.index import build_shards, load_index, measured_recall, nearest, save_index
from entrep_cli.retrieval.ranking import rank
from entrep_cli.retrieval.stores import build_store, open_store

K = 10
cli = parser(__doc__)
cli.add_argument("--gallery", type=int, nargs="*", default=[1000, 10_000], help="sizes, each compared whole")
cli.add_argument("--cells", type=int, nargs="*", default=[], help="sizes of indexes by cells")
cli.add_argument("--queries", type=int, default=256)
cli.add_argument("--dimensions", type=int, default=512)
cli.add_argument("--no-milvus", action="store_true", help="leave the store out")
args = cli.parse_args()
faiss, usearch = peer("faiss", "faiss-cpu"), peer("usearch.index", "usearch")
milvus = None if args.no_milvus else peer("pymilvus", "pymilvus") and peer("milvus_lite", "milvus-lite")


def draw(n, seed, file=None):
    """n unit rows in 200 clusters, in blocks; in a file, where they are many."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((200, args.dimensions), dtype=np.float32)
    shape = (n, args.dimensions)
    rows = np.empty(shape, np.float32) if file is None else np.lib.format.open_memmap(file, "w+", np.float32, shape)
    for start in range(0, n, 10_000):
        block = rows[start : start + 10_000]
        block[:] = centres[rng.integers(200, size=len(block))] + 2 * rng.standard_normal(block.shape, dtype=np.float32)
        block[1::50] = block[::50]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return rows


def timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def numpy_top():
    cosines = queries @ gallery.T
    best = np.argpartition(-cosines, K, axis=1)[:, :K]
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1, kind="stable"), axis=1)


def searched(index, whole):
    """One query after another, as the command asks."""
    return np.concatenate([nearest(index, whole, query[None], K).indices for query in queries[:20]])


def embeddings(vectors):
    names = [f"{i}.png" for i in range(len(vectors))]
    items = Items.of(image=names, digest=names, group=[f"exam {i // 5}" for i in range(len(vectors))])
    return Embeddings(items, vectors, np.ones((len(vectors), 1), np.float32))


results, queries = {}, draw(args.queries, seed=1)
for n in args.gallery:
    gallery, built = draw(n, seed=2), {}
    whole = embeddings(gallery)
    functions = {"ours": lambda: rank(queries, gallery, K).indices, "numpy": numpy_top}
    if faiss:
        flat = faiss.IndexFlatIP(args.dimensions)
        built["faiss flat"], _ = timed(lambda: flat.add(gallery))
        functions["faiss flat"] = lambda: flat.search(queries, K)[1]
    if usearch:
        functions["usearch exact"] = lambda: usearch.search(gallery, queries, K, usearch.MetricKind.IP, exact=True).keys
    best = fastest(functions, args.repeats)
    ours, wanted = best["ours"]
    rows = {name: {"seconds": s, "ratio": s / ours, "agree": float((found == wanted).mean())} for name, (s, found) in best.items()}

    singles = {}
    built["index"], shards = timed(lambda: list(build_shards(gallery)))
    singles["index"] = lambda: searched(shards, whole)
    if faiss:
        singles["faiss flat"] = lambda: np.concatenate([flat.search(query[None], K)[1] for query in queries[:20]])
    with tempfile.TemporaryDirectory() as folder:
        if milvus:
            built["milvus"], made = timed(lambda: build_store("gallery.db", whole, {}, Path(folder)))
            opened, store = timed(lambda: open_store(made, whole, {}, Path(folder)))
            singles["milvus"] = lambda: searched(store, whole)
        best = fastest(singles, args.repeats)
        if milvus:
            store.client.close()
    single = {name: {"seconds": s / 20, "agree": float((found == wanted[:20]).mean())} for name, (s, found) in best.items()}
    results[f"{n} images"] = {f"top {K} of {args.queries} queries": rows, "one query": single, "built": built}
    told = (f"{name} {row['seconds']:.3f} s (ratio {row['ratio']:.2f}, agree {row['agree']:.3f})" for name, row in rows.items())
    print(f"{n} images: {', '.join(told)}")
    print("  one query: " + ", ".join(f"{name} {row['seconds'] * 1e3:.1f} ms (agree {row['agree']:.3f})" for name, row in single.items()))
    print("  built: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in built.items()))

for n in args.cells:
    with tempfile.TemporaryDirectory() as folder:
        vectors = draw(n, seed=2, file=Path(folder) / "vectors.npy")
        shards, start = [], time.perf_counter()
        for i, shard in enumerate(build_shards(vectors, exact_up_to=0)):
            path = Path(folder) / f"{i}.faiss"
            shards.append(load_index(path, save_index(shard, path)))
            del shard
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        recall = measured_recall(shards, vectors)
        whole = embeddings(vectors)
        best = fastest({"cells": lambda: searched(shards, whole), "exact": lambda: rank(queries[:20], vectors, K).indices}, args.repeats)
        results[f"{n} images by cells"] = {
            "built": seconds,
            "shards": len(shards),
            "peak MiB, building (mapped vectors count)": peak,
            "vectors MiB": vectors.nbytes / 2**20,
            "recall@10": recall,
            "one query": {name: s / 20 for name, (s, _) in best.items()},
        }
        print(f"{n} images by cells: {results[f'{n} images by cells']}")
report(args, results)
