"""A map of embeddings: their places in the plane, and what a page shows of each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.reporting.pictures import Pictures, sprite

MAX_TSNE = 2000  # images; its time grows faster than their number, and a report must not take minutes
MAX_POINTS = 6000  # of a map; more would be a page that no phone opens
MAX_THUMBNAILS = 2000


def tsne(vectors: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """(N, D) unit rows to (N, 2), by scikit-learn's t-SNE on cosine distances, started at the principal components.

    Perplexity is 30, or a third of the images below 91 (ours; the paper states none).

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


def places(vectors: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, str]:
    """(N, 2) for N >= 4 rows, and how: `t-SNE` up to `MAX_TSNE` images, `PCA` above."""
    if len(vectors) <= MAX_TSNE:
        return tsne(vectors, seed=seed), "t-SNE"
    from sklearn.decomposition import PCA

    return PCA(2, svd_solver="covariance_eigh").fit_transform(np.asarray(vectors, np.float64)), "PCA"


@dataclass(frozen=True)
class EmbeddingMap:
    """A map of the images of a split.

    Attributes:
        places: (N, 2). classes, regions: (N,) indices into their names.
        captions: the name of each image.
        sprite: the thumbnails in one picture, `columns` in a row, of every `step`th image; "" for none.
        how: t-SNE or PCA.
        n_images: in the split, of which N are drawn.
    """

    places: np.ndarray
    classes: np.ndarray
    regions: np.ndarray
    class_names: tuple[str, ...]
    region_names: tuple[str, ...]
    captions: tuple[str, ...]
    sprite: str
    columns: int
    step: int
    how: str
    n_images: int


def embedding_map(
    vectors: np.ndarray, targets: np.ndarray, taxonomy: Taxonomy, pictures: Pictures, *, seed: int = 0
) -> EmbeddingMap | None:
    """The map of (N, D) embeddings; None for fewer than four images, of which no map can be made.

    Of more than `MAX_POINTS` images an even sample is drawn, with a picture for at most `MAX_THUMBNAILS`.
    """
    n = len(vectors)
    if n < 4:
        return None
    chosen = np.arange(n) if n <= MAX_POINTS else np.linspace(0, n - 1, MAX_POINTS).round().astype(int)
    where, how = places(np.asarray(vectors)[chosen], seed=seed)
    regions = taxonomy.regions
    region_of = np.array([regions.index(c.region) for c in taxonomy.classes])
    columns = int(np.ceil(np.sqrt(min(len(chosen), MAX_THUMBNAILS))))
    step = -(-len(chosen) // MAX_THUMBNAILS)
    return EmbeddingMap(
        places=where,
        classes=targets[chosen],
        regions=region_of[targets[chosen]],
        class_names=tuple(taxonomy.names),
        region_names=tuple(regions),
        captions=tuple(pictures.name(i) for i in chosen),
        sprite=sprite([] if pictures.private else [pictures.paths[i] for i in chosen[::step]], columns),
        columns=columns,
        step=step,
        how=how,
        n_images=n,
    )
