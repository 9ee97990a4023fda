"""A map of embeddings: t-SNE in the plane, coloured and marked by region and by class (Foregut paper, figure 2)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from entrep_cli.workspace import atomic_path

# Okabe and Ito's colours, told apart by colour-blind people, from dark to light; the marks tell apart
# what colours cannot in grey. Every further eight classes begin the colours anew with other marks.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#B5A900")
_MARKS = "osD^vPX*<>hd"


def tsne(vectors: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """(N, D) unit rows to (N, 2), by scikit-learn's t-SNE on cosine distances, started at the principal components.

    Perplexity is 30, or a third of the images where there are fewer than 91 (ours; the paper states none).

    Raises:
        ValueError: fewer than four rows, of which no map can be made.
    """
    from sklearn.manifold import TSNE

    vectors = np.asarray(vectors, np.float32)
    if len(vectors) < 4:
        raise ValueError(f"a map needs at least four images, not {len(vectors)}")
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # On unit rows, Euclidean distance squared is twice the cosine distance: same neighbours, and exact.
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def pca(vectors: np.ndarray) -> np.ndarray:
    """(N, D) rows to (N, 2), on their two principal axes; of both directions of an axis the one in which its largest part is positive."""
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return centred @ axes


MAX_TSNE = 2000  # images; its time grows faster than their number, and a report must not take minutes


def places(vectors: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, str]:
    """(N, 2) for N >= 4 rows, and how: `t-SNE` up to `MAX_TSNE` images, `PCA` above."""
    return (tsne(vectors, seed=seed), "t-SNE") if len(vectors) <= MAX_TSNE else (pca(vectors), "PCA")


def map_png(
    places: np.ndarray, labellings: Sequence[tuple[str, Sequence[str]]], path: str | Path, title: str, *, order: Sequence[str] = ()
) -> Path:
    """Draw the same places once for each labelling, side by side, as the paper does by region and by class.

    Args:
        places: (N, 2), as from `tsne`.
        labellings: (heading, N labels) each.
        path: the PNG to write, replaced in one step.
        title: above all.
        order: labels in the order of the legends; others follow, sorted.

    Returns:
        `path`.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(5.2 * len(labellings), 5.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(textwrap.fill(title, 45 * len(labellings)), fontsize=11, parse_math=False)
        for axes, (heading, labels) in zip(figure.subplots(1, len(labellings), squeeze=False).flat, labellings):
            labels = np.asarray(labels, dtype=object)
            rank = {name: i for i, name in enumerate(order)}
            for i, name in enumerate(sorted(set(labels), key=lambda name: (rank.get(name, len(rank)), name))):
                chosen = places[labels == name]
                mark = _MARKS[(i + i // len(_COLOURS)) % len(_MARKS)]
                look = {"s": 22, "c": _COLOURS[i % len(_COLOURS)], "marker": mark, "linewidths": 0.4, "edgecolors": "white", "alpha": 0.85}
                axes.scatter(*chosen.T, label=f"{textwrap.shorten(name, 28, placeholder='...')} ({len(chosen)})", **look)
            axes.set(xticks=[], yticks=[])
            axes.set_title(heading, fontsize=10, parse_math=False)
            # Below the map: inside it a legend would hide images.
            legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2, fontsize=8, frameon=False)
            for text in legend.get_texts():
                text.set_parse_math(False)
        path = Path(path)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
        return path
