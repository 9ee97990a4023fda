"""Contact sheets of a report: queries, what they were answered and what they should have been.

The rankings are those of the evaluation: the same vectors, the same masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from entrep_cli.data.catalog import Catalog, finding_relevance
from entrep_cli.evaluation.retrieval import RetrievalScores
from entrep_cli.evaluation.subsets import TEXTS, SubsetScores, TextQueries, subset_exclusions
from entrep_cli.reporting.content import Sheet, SheetSet, Tile
from entrep_cli.reporting.pictures import Pictures
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.retrieval.ranking import Exclusions, match_codes, rank

N_BEST, N_WORST = 3, 4
N_TRUTHS = 2  # relevant images beyond the answers


def sheets_of(
    images: Catalog, embeddings: Embeddings, scores: SubsetScores, pictures: Pictures, *, texts: TextQueries | None = None, top_k: int = 6
) -> tuple[SheetSet, ...]:
    """Sheets for every relevance that was scored, class-aware ones left out."""
    labels, findings = images.frame["label"].to_numpy(dtype=object), images.frame["findings"].tolist()
    of_queries, of_gallery = match_codes(labels, labels)
    vectors, masks = np.asarray(embeddings.vectors), subset_exclusions(images, embeddings)
    relevance_of: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "class": lambda rows: of_queries[rows, None] == of_gallery,
        "finding": lambda rows: finding_relevance([findings[i] for i in rows], findings),
    }
    sheets = []
    for key, relevant in relevance_of.items():
        if (scored := scores.retrieval.get(key)) and scored.scored.any():
            draw = _Drawer(vectors, vectors, masks, relevant, scored, labels, pictures, top_k)
            best, worst = pick(scored, labels)
            sheets.append(SheetSet(key, tuple(map(draw.of_image, best)), tuple(map(draw.of_image, worst))))
    if texts is not None and (scored := scores.retrieval.get(TEXTS)) and scored.scored.any():

        def with_text(rows: np.ndarray) -> np.ndarray:
            return finding_relevance([(texts.texts[i],) for i in rows], findings)

        draw = _Drawer(texts.vectors, vectors, [], with_text, scored, labels, pictures, top_k)
        best, worst = pick(scored, None)
        shown = [f"text {i + 1}" if pictures.private else text for i, text in enumerate(texts.texts)]
        sheets.append(SheetSet(TEXTS, *(tuple(draw.of_text(i, shown[i]) for i in rows) for rows in (best, worst))))
    return tuple(sheets)


def pick(
    scores: RetrievalScores, labels: Sequence[str] | None, n_best: int = N_BEST, n_worst: int = N_WORST
) -> tuple[list[int], list[int]]:
    """Queries to show: the best by the rank of their first relevant answer, of different classes where they can be, and the worst.

    Among equal ranks the average precision decides, then the order of the queries. No query is shown twice.
    """
    rows = np.flatnonzero(scores.scored)
    # A query that did not meet a relevant item within the ranking has rank 0 and is the worst of all.
    first = np.where(scores.first_rank[rows] > 0, scores.first_rank[rows], np.iinfo(np.int64).max)
    order = rows[np.lexsort((rows, -scores.average_precision[rows], first))]
    worst = [int(i) for i in order[::-1][: min(n_worst, max(len(order) - 1, 0))]]
    rest = [int(i) for i in order if int(i) not in set(worst)]
    best_of_class = {labels[i] if labels is not None else i: i for i in reversed(rest)}
    varied = set(best_of_class.values())
    return sorted(sorted(rest, key=lambda i: i not in varied)[:n_best], key=rest.index), worst


@dataclass(frozen=True, eq=False)
class _Drawer:
    """Rankings of a few queries as sheets."""

    queries: np.ndarray
    gallery: np.ndarray
    masks: Exclusions
    relevant: Callable[[np.ndarray], np.ndarray]
    scores: RetrievalScores
    labels: np.ndarray
    pictures: Pictures
    top_k: int

    def of_image(self, i: int) -> Sheet:
        query = Tile("query", self.pictures.name(i), self.pictures(i), (str(self.labels[i]),))
        return Sheet(f"{self.pictures.name(i)}, {self.labels[i]}", self._summary(i), (query, *self._answers(i)))

    def of_text(self, i: int, text: str) -> Sheet:
        return Sheet(text, self._summary(i), self._answers(i))

    def _summary(self, i: int) -> str:
        first, n = int(self.scores.first_rank[i]), int(self.scores.n_relevant[i])
        return f"first relevant answer at rank {first or 'none'}, {n} relevant, average precision {self.scores.average_precision[i]:.2f}"

    def _answers(self, i: int) -> tuple[Tile, ...]:
        masks = [(np.asarray(keys, dtype=object)[[i]], gallery) for keys, gallery in self.masks]
        ranking = rank(self.queries[[i]], self.gallery, None, masks)
        relevant = self.relevant(np.array([i]))[0]
        order = [(place + 1, int(j), float(s)) for place, (j, s) in enumerate(zip(ranking.indices[0], ranking.scores[0])) if j >= 0]
        answers = [self._tile("hit" if relevant[answer[1]] else "miss", *answer) for answer in order[: self.top_k]]
        missed = [answer for answer in order[self.top_k :] if relevant[answer[1]]][:N_TRUTHS]
        return (*answers, *(self._tile("truth", *answer) for answer in missed))

    def _tile(self, kind, place: int, j: int, score: float) -> Tile:
        return Tile(kind, self.pictures.name(j), self.pictures(j), (f"{place}. {self.labels[j]}", f"cosine {score:.3f}"))
