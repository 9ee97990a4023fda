"""All scores of a set of images: classification, and retrieval within the set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from entrep_cli.data.catalog import Catalog, finding_relevance
from entrep_cli.evaluation.classification import ClassificationScores
from entrep_cli.evaluation.comparison import GroupTotals
from entrep_cli.evaluation.metrics import CLASSIFICATION, TASKS, TEXTS, headline_columns
from entrep_cli.evaluation.retrieval import RelevanceOf, RetrievalScores, score_retrieval
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.retrieval.ranking import Exclusions, Ranking, match_codes, ranked_blocks
from entrep_cli.retrieval.refinement import Refinement

COMPARED = (CLASSIFICATION, *TASKS)


@dataclass(frozen=True)
class TextQueries:
    """Texts that ask for images.

    Attributes:
        texts: findings, as `finding_texts` lists them.
        vectors: (M, D) unit rows.
        probabilities: (M, C); None where their classes are not known, and then they are not asked class-aware.
    """

    texts: list[str]
    vectors: np.ndarray
    probabilities: np.ndarray | None = None


@dataclass(frozen=True)
class SubsetScores:
    """Scores of a set of images, or of a submission.

    Attributes:
        classification: of the images; None where they were not classified.
        retrieval: by the name of the relevance, `TEXTS` for texts; with class-aware retrieval each a second
            time, as in "class, class-aware soft", and image queries with a refinement, as in "class, refined".
        chance: Recall@1 of a candidate drawn at random, by the same names.
        fell_back: queries for which the hard rule left nothing, of "images" and of "texts".
        notes: what a reader of the numbers must know, one line each.
    """

    classification: ClassificationScores | None
    retrieval: dict[str, RetrievalScores]
    chance: dict[str, float] = field(default_factory=dict)
    fell_back: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def finding_texts(images: Catalog) -> list[str]:
    """The distinct findings that are texts, in the order of the images."""
    return list(dict.fromkeys(key for keys in images.frame["findings"] for key in keys if not key.startswith("pair:")))


def score_subset(
    images: Catalog,
    embeddings: Embeddings,
    *,
    mask_groups: bool = True,
    rule: ClassRule = ClassRule(),
    texts: TextQueries | None = None,
    refinement: Refinement | None = None,
) -> SubsetScores:
    """Score images by their embeddings and probabilities, in the same order.

    Every image is a query to all others; itself, its exact copies and, with `mask_groups`, its group may not answer.
    With `rule`, retrieval is scored without and with it, from the same queries and by the same resamples; with
    `refinement` likewise. With `texts`, each asks for all images that have the finding.
    """
    targets, groups = images.targets, images.groups
    probabilities, vectors = np.asarray(embeddings.probabilities), np.asarray(embeddings.vectors)
    classification = ClassificationScores(targets, probabilities.argmax(axis=1), images.taxonomy.names, groups)
    exclude = subset_exclusions(images, embeddings, mask_groups)
    labels = images.frame["label"].to_numpy(dtype=object)
    findings = images.frame["findings"].tolist()
    query_codes, gallery_codes = match_codes(labels, labels)
    relevances: dict[str, RelevanceOf] = {"class": lambda rows: query_codes[rows, None] == gallery_codes}
    if any(findings):
        relevances["finding"] = lambda rows: finding_relevance(findings[rows], findings)
    scores = SubsetScores(classification, {})
    for relevance, relevance_of in relevances.items():
        task = _Task("images", vectors, probabilities, vectors, probabilities, exclude, groups, relevance, relevance_of)
        _score(scores, task, relevance, rule)
        if refinement is not None and relevance in scores.retrieval:
            blocks = refinement.ranked_blocks(vectors, vectors, None, exclude)
            _add(scores, relevance, str(refinement), _scored(blocks, task, scores.retrieval[relevance].n_relevant))
    if texts is not None and texts.texts:
        wanted = [(text,) for text in texts.texts]
        asked = (texts.vectors, texts.probabilities, vectors, probabilities, [], None)
        _score(scores, _Task("texts", *asked, "finding", lambda rows: finding_relevance(wanted[rows], findings)), TEXTS, rule)
    return scores


def joined_subsets(subsets: Sequence[SubsetScores]) -> SubsetScores:
    """Scores of subsets without a common image, as of one: every query is answered from its subset alone.

    What one subset could not be scored by is left out of all. Chance is the mean over queries; the hard rule's are added up.
    """
    first = subsets[0]
    if len(subsets) == 1:
        return first
    columns = zip(*((s.classification.truth, s.classification.predicted, s.classification.groups) for s in subsets))
    truth, predicted, groups = map(np.concatenate, columns)
    classification = ClassificationScores(truth, predicted, first.classification.class_names, groups)
    retrieval, chance = {}, {}
    for key in first.retrieval:
        each = [s.retrieval[key] for s in subsets if key in s.retrieval]
        if len(each) < len(subsets):
            continue
        columns = zip(*((s.first_rank, s.average_precision, s.n_relevant) for s in each))
        groups = None if each[0].groups is None else np.concatenate([s.groups for s in each])
        retrieval[key] = RetrievalScores(*map(np.concatenate, columns), each[0].relevance, groups)
        if all(key in s.chance for s in subsets):
            chance[key] = float(np.average([s.chance[key] for s in subsets], weights=[s.scored.sum() for s in each]))
    fell_back = {name: sum(s.fell_back[name] for s in subsets) for name in first.fell_back}
    return SubsetScores(classification, retrieval, chance, fell_back)


def totals_of(scores: SubsetScores) -> dict[str, GroupTotals]:
    """The scores that trainings are compared by, by the headings of tables; a retrieval without a relevant item has none."""
    totals = {}
    for heading, (task, metric) in headline_columns(COMPARED).items():
        scored = scores.classification if task == CLASSIFICATION else scores.retrieval.get(task)
        if task == CLASSIFICATION or scored is not None and scored.scored.any():
            totals[heading] = scored.totals(metric)
    return totals


def chance_recall(counts: Sequence[tuple[int, int]] | np.ndarray) -> float:
    """Recall@1 of a candidate drawn at random: the mean over queries (Q, 2) of relevant candidates among all candidates."""
    n_relevant, n_candidates = np.asarray(counts).T
    return float((n_relevant / np.maximum(n_candidates, 1)).mean())


def subset_exclusions(images: Catalog, embeddings: Embeddings, mask_groups: bool = True) -> Exclusions:
    """What may not answer where every image asks all others: itself, its exact copies and, if wanted, its group."""
    exclude = [(embeddings.items.image, embeddings.items.image), (embeddings.items.digest, embeddings.items.digest)]
    return [*exclude, (images.groups, images.groups)] if mask_groups else exclude


@dataclass(frozen=True)
class _Task:
    """Queries, the gallery they are put to, and what is relevant."""

    name: str
    queries: np.ndarray
    query_classes: np.ndarray | None
    gallery: np.ndarray
    gallery_classes: np.ndarray
    exclude: Exclusions
    groups: np.ndarray | None
    relevance: str
    relevance_of: RelevanceOf

    def n_candidates(self) -> np.ndarray:
        """(Q,) int, gallery items that are not excluded."""
        masks = [match_codes(*pair) for pair in self.exclude]
        none = np.zeros(len(self.gallery), bool)
        masked = [sum((q[i] == g for q, g in masks), none).sum() for i in range(len(self.queries))]
        return len(self.gallery) - np.array(masked, np.int64)


def _score(scores: SubsetScores, task: _Task, key: str, rule: ClassRule) -> None:
    """Add the scores of a task, without and with the rule; by findings only where some query has a relevant image."""
    plain = score_retrieval(task.queries, task.gallery, task.relevance_of, name=task.relevance, exclude=task.exclude, groups=task.groups)
    if task.relevance != "class" and not plain.scored.any():
        return
    scores.retrieval[key] = plain
    if plain.scored.any():
        scores.chance[key] = chance_recall(np.stack([plain.n_relevant, task.n_candidates()], axis=1)[plain.scored])
    if rule.mode == "off" or task.query_classes is None:
        return
    bonus = rule.bonus(task.query_classes, task.gallery_classes)
    fell_back = 0

    def blocks() -> Iterator[tuple[slice, Ranking]]:
        nonlocal fell_back
        for rows, ranking in ranked_blocks(task.queries, task.gallery, None, task.exclude, bonus=bonus):
            fell_back += int(rule.fell_back(ranking, task.query_classes[rows], task.gallery_classes).sum())
            yield rows, ranking

    _add(scores, key, str(rule), _scored(blocks(), task, plain.n_relevant))
    scores.fell_back[task.name] = fell_back


def _add(scores: SubsetScores, key: str, kind: str, ranked: RetrievalScores) -> None:
    """Add another ranking of the same queries, which has the same chance."""
    scores.retrieval[f"{key}, {kind}"] = ranked
    if key in scores.chance:
        scores.chance[f"{key}, {kind}"] = scores.chance[key]


def _scored(blocks: Iterable[tuple[slice, Ranking]], task: _Task, n_relevant: np.ndarray) -> RetrievalScores:
    first, precision = np.zeros(len(task.queries), np.int64), np.zeros(len(task.queries))
    for rows, ranking in blocks:
        hits = np.take_along_axis(np.asarray(task.relevance_of(rows), bool), ranking.indices, axis=1) & (ranking.indices >= 0)
        # What a filter takes away stays relevant: else a wrongly predicted class would leave the query out, and not count as wrong.
        block = RetrievalScores.from_relevance(hits, n_relevant[rows], task.relevance)
        first[rows], precision[rows] = block.first_rank, block.average_precision
    return RetrievalScores(first, precision, n_relevant, task.relevance, task.groups)
