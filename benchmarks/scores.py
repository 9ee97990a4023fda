"""How fast are ranking, retrieval scores and bootstrap beside naive loops and the usual libraries?

    python benchmarks/scores.py --out scores.json
    python benchmarks/scores.py --queries 100 --gallery 300      # a second or two
    python benchmarks/scores.py --queries 10000 --gallery 100000 --repeats 1    # half an hour, most of it numpy's; memory stays small

Every peer runs in this one process on the same numbers. `ratio` is its time over ours, above 1
where we are faster; `difference` is the largest gap to our result, so that a peer is an oracle too.
Peers that cannot be imported are named under `skipped`. torchmetrics, scikit-learn and ranx are given all cosines,
ranx without the time of building Qrels and Run; open-metric-learning is given the ranking too; ours and the numpy loop
begin with the vectors.
"""

import importlib
import resource
import sys

import entrep_cli.torchvision_ops  # noqa: F401 - before torchmetrics imports torchvision

import numpy as np
from harness import fastest, parser, peer, report

from entrep_cli.evaluation.classification import ClassificationScores
from entrep_cli.evaluation.retrieval import score_retrieval
from entrep_cli.retrieval.ranking import rank

MOST_AT_ONCE = 50_000_000


def compare(question, ours, peers):
    best = fastest({"ours": ours, **peers}, args.repeats)
    seconds, expected = best.pop("ours")
    print(f"{question}: ours {seconds:.4f} s")
    rows = results[question] = {"ours": {"seconds": seconds}}
    for name, (theirs, found) in best.items():
        gap = float(np.abs(np.asarray(found) - expected).max())
        rows[name] = {"seconds": theirs, "ratio": theirs / seconds, "difference": gap}
        print(f"  {name}: {theirs:.4f} s, ratio {theirs / seconds:.1f}, difference {gap:.1e}")


cli = parser(__doc__)
cli.add_argument("--queries", type=int, default=844, help="844: the private track 1 folder")
cli.add_argument("--gallery", type=int, default=1291, help="1291: the training images")
cli.add_argument("--dimensions", type=int, default=512)
cli.add_argument("--resamples", type=int, default=1000)
args = cli.parse_args()
results = {}
faiss, metrics = peer("faiss", "faiss-cpu"), peer("sklearn.metrics", "scikit-learn")
torchmetrics, ranx = peer("torchmetrics", "torchmetrics"), peer("ranx", "ranx")
oml = peer("oml.functional.metrics", "open-metric-learning")

rng = np.random.default_rng(0)
centres = rng.standard_normal((7, args.dimensions))


def draw(n):
    labels = rng.integers(7, size=n)
    rows = centres[labels] + 4 * rng.standard_normal((n, args.dimensions))
    return labels, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


(query_labels, queries), (gallery_labels, gallery) = draw(args.queries), draw(args.gallery)


def held():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def naive_top_10():
    best = []
    for query in queries:  # one at a time, so that large sets fit
        cosines = gallery @ query
        best.append(cosines[np.argsort(-cosines, kind="stable")[:10]])
    return np.stack(best)


started = held()
peers = {"numpy argsort": naive_top_10}
if faiss:
    index = faiss.IndexFlatIP(args.dimensions)
    index.add(gallery)
    peers["faiss flat"] = lambda: index.search(queries, 10)[0]
compare("top 10", lambda: rank(queries, gallery, 10).scores, peers)


def naive_map():
    precisions = []
    for query, label in zip(queries, query_labels, strict=True):
        hits = (gallery_labels == label)[np.argsort(-(gallery @ query))]
        precisions.append((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean())
    return np.mean(precisions)


def our_scores(intervals):
    scores = score_retrieval(queries, gallery, (query_labels, gallery_labels), name="class", resamples=args.resamples)
    return scores.means["map"].value if intervals else scores.per_query["map"].mean()


peers = {"numpy loop": naive_map}
if args.queries * args.gallery <= MOST_AT_ONCE:
    relevant = query_labels[:, None] == gallery_labels
    cosines = queries @ gallery.T + 2  # torchmetrics takes a score <= 0 as not retrieved
    if metrics:
        peers["scikit-learn"] = lambda: np.mean([metrics.average_precision_score(*pair) for pair in zip(relevant, cosines, strict=True)])
    if torchmetrics:
        torch = importlib.import_module("torch")
        flat, target = torch.from_numpy(cosines).ravel(), torch.from_numpy(relevant).ravel()
        of_query = torch.arange(args.queries).repeat_interleave(args.gallery)
        peers["torchmetrics"] = lambda: torchmetrics.retrieval.RetrievalMAP()(flat, target, of_query)
    if ranx:
        truth, run = (
            {f"q{i}": {f"g{j}": kind(row[j]) for j in np.flatnonzero(row)} for i, row in enumerate(rows)}
            for rows, kind in ((relevant, int), (cosines, float))
        )
        qrels, run = ranx.Qrels(truth), ranx.Run(run)
        peers["ranx"] = lambda: ranx.evaluate(qrels, run, "map")
    if oml:
        torch = importlib.import_module("torch")
        ranked = list(torch.from_numpy(np.argsort(-cosines, axis=1)))
        wanted = [torch.from_numpy(np.flatnonzero(row)) for row in relevant]
        how = {"cmc_top_k": (), "precision_top_k": (), "map_top_k": (args.gallery,), "verbose": False}
        peers["open-metric-learning"] = lambda: oml.calc_retrieval_metrics(ranked, wanted, **how)["map"][args.gallery]
else:
    print(f"torchmetrics, ranx, open-metric-learning and scikit-learn hold all pairs at once, and are left out above {MOST_AT_ONCE} pairs")
compare("mean average precision (ours with Recall@k and MRR)", lambda: our_scores(intervals=False), peers)
print(f"most memory this process has held: {held():.0f} MiB, {started:.0f} before anything was ranked")
compare(f"the same with {args.resamples:,} resamples", lambda: our_scores(intervals=True), {})

classes = np.where(rng.random(args.gallery) < 0.9, gallery_labels, rng.integers(7, size=args.gallery))


def loop():
    draws = rng.integers(args.gallery, size=(args.resamples, args.gallery))
    pairs = [(gallery_labels[d], classes[d]) for d in draws]
    scores = [metrics.f1_score(*pair, average="macro", zero_division=0) for pair in pairs]
    return np.quantile(scores, [0.025, 0.975])  # of other draws: differs by chance


def our_bootstrap():
    scores = ClassificationScores(gallery_labels, classes, "abcdefg", resamples=args.resamples)
    return scores.macro_f1.low, scores.macro_f1.high


compare("macro F1 interval", our_bootstrap, {"scikit-learn loop": loop} if metrics else {})

report(args, results)
