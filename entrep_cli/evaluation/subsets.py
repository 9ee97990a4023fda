"""All scores of one part of a split: classification, and retrieval within the part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from entrep_cli.data.catalog import Catalog, finding_relevance
from entrep_cli.evaluation.classification import ClassificationScores
from entrep_cli.evaluation.comparison import GroupTotals
from entrep_cli.evaluation.metrics import CLASSIFICATION, TASKS, TEXTS, headline_columns
from entrep_cli.evaluation.retrieval import RetrievalScores, score_retrieval
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.retrieval.ranking import Exclusions, Ranking, match_codes, ranked_blocks
from entrep_cli.retrieval.refinement import Refinement

COMPARED = (CLASSIFICATION, *TASKS)


@dataclass(frozen=True)
class TextQueries:
    """Texts that ask for images of a part.

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
    """Scores of a part, or of a submission.

    Attributes:
        classification: of its images; None where they were not classified.
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


def finding_texts(part: Catalog) -> list[str]:
    """The distinct findings of a part that are texts, in the order of the images."""
    return list(dict.fromkeys(key for keys in part.frame["findings"] for key in keys if not key.startswith("pair:")))


def score_subset(
    part: Catalog,
    seen: Embeddings,
    *,
    mask_groups: bool = True,
    rule: ClassRule = ClassRule(),
    texts: TextQueries | None = None,
    refinement: Refinement | None = None,
) -> SubsetScores:
    """Score a part whose images `seen` holds, in the same order.

    Every image is a query to all others of the part; itself, its exact copies and, with
    `mask_groups`, its own group may not answer. With `rule`, retrieval is scored without and with it,
    from the same queries and by the same resamples; with `refinement` likewise. With `texts`, each asks for all
    images that have the finding.
    """
    names = part.taxonomy.names
    targets, groups = part.targets, part.groups
    classes, vectors = np.asarray(seen.probabilities), np.asarray(seen.vectors)
    classification = ClassificationScores(targets, classes.argmax(axis=1), names, groups)
    exclude = subset_exclusions(part, seen, mask_groups)
    labels = part.frame["label"].to_numpy(dtype=object)
    findings = part.frame["findings"].tolist()
    asked, given = match_codes(labels, labels)
    kinds: dict[str, tuple[str, Callable[[slice], np.ndarray]]] = {"class": ("class", lambda rows: asked[rows, None] == given)}
    if any(findings):
        kinds["finding"] = ("finding", lambda rows: finding_relevance(findings[rows], findings))
    found = SubsetScores(classification, {})
    own = _Task("images", vectors, classes, vectors, classes, exclude, groups)
    for key, (relevance, relevance_of) in kinds.items():
        _score(found, own, key, relevance, relevance_of, rule)
        if refinement is not None and key in found.retrieval:
            blocks = refinement.ranked_blocks(vectors, vectors, None, exclude)
            found.retrieval[f"{key}, {refinement}"] = _scored(blocks, own, relevance, relevance_of, found.retrieval[key].n_relevant)
            if key in found.chance:
                found.chance[f"{key}, {refinement}"] = found.chance[key]
    if texts is not None and texts.texts:
        wanted = [(text,) for text in texts.texts]
        task = _Task("texts", texts.vectors, texts.probabilities, vectors, classes, [], None)
        _score(found, task, TEXTS, "finding", lambda rows: finding_relevance(wanted[rows], findings), rule)
    return found


def joined_subsets(parts: Sequence[SubsetScores]) -> SubsetScores:
    """Scores of parts that share no image, as of one: every query by what its own part answered.

    What a part could not be scored by is left out of all. Chance is the mean over queries; the hard rule's are added up.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    classified = [part.classification for part in parts]
    classification = ClassificationScores(
        np.concatenate([c.truth for c in classified]),
        np.concatenate([c.predicted for c in classified]),
        classified[0].class_names,
        np.concatenate([c.groups for c in classified]),
    )
    retrieval, chance = {}, {}
    for key in first.retrieval:
        own = [part.retrieval[key] for part in parts if key in part.retrieval]
        if len(own) < len(parts):
            continue
        columns = (np.concatenate([getattr(s, name) for s in own]) for name in ("first_rank", "average_precision", "n_relevant"))
        groups = None if own[0].groups is None else np.concatenate([s.groups for s in own])
        retrieval[key] = RetrievalScores(*columns, own[0].relevance, groups)
        if all(key in part.chance for part in parts):
            chance[key] = float(np.average([part.chance[key] for part in parts], weights=[s.scored.sum() for s in own]))
    fell_back = {name: sum(part.fell_back[name] for part in parts) for name in first.fell_back}
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


def subset_exclusions(part: Catalog, seen: Embeddings, mask_groups: bool = True) -> Exclusions:
    """What may not answer where every image of a part asks all others: itself, its exact copies and, if wanted, its own group."""
    exclude = [(seen.items.image, seen.items.image), (seen.items.digest, seen.items.digest)]
    return [*exclude, (part.groups, part.groups)] if mask_groups else exclude


@dataclass(frozen=True)
class _Task:
    """Queries and the gallery they are put to."""

    name: str
    queries: np.ndarray
    query_classes: np.ndarray | None
    gallery: np.ndarray
    gallery_classes: np.ndarray
    exclude: Exclusions
    groups: np.ndarray | None

    def n_candidates(self) -> np.ndarray:
        """(Q,) int, gallery items that are not excluded."""
        masks = [match_codes(*pair) for pair in self.exclude]
        none = np.zeros(len(self.gallery), bool)
        masked = [sum((q[i] == g for q, g in masks), none).sum() for i in range(len(self.queries))]
        return len(self.gallery) - np.array(masked, np.int64)


def _score(
    found: SubsetScores, task: _Task, key: str, relevance: str, relevance_of: Callable[[slice], np.ndarray], rule: ClassRule
) -> None:
    """Put the scores of a task into `found`, without and with the rule; by findings only where one is shared at all."""
    plain = score_retrieval(task.queries, task.gallery, relevance_of, name=relevance, exclude=task.exclude, groups=task.groups)
    if relevance != "class" and not plain.scored.any():
        return
    found.retrieval[key] = plain
    if plain.scored.any():
        found.chance[key] = chance_recall(np.stack([plain.n_relevant, task.n_candidates()], axis=1)[plain.scored])
    if rule.mode == "off" or task.query_classes is None:
        return
    bonus = rule.bonus(task.query_classes, task.gallery_classes)
    fell_back = 0

    def blocks() -> Iterator[tuple[slice, Ranking]]:
        nonlocal fell_back
        for rows, ranking in ranked_blocks(task.queries, task.gallery, None, task.exclude, bonus=bonus):
            fell_back += int(rule.fell_back(ranking, task.query_classes[rows], task.gallery_classes).sum())
            yield rows, ranking

    found.retrieval[f"{key}, {rule}"] = _scored(blocks(), task, relevance, relevance_of, plain.n_relevant)
    if key in found.chance:
        found.chance[f"{key}, {rule}"] = found.chance[key]
    found.fell_back[task.name] = fell_back


def _scored(
    blocks: Iterable[tuple[slice, Ranking]],
    task: _Task,
    relevance: str,
    relevance_of: Callable[[slice], np.ndarray],
    n_relevant: np.ndarray,
) -> RetrievalScores:
    first, precision = np.zeros(len(task.queries), np.int64), np.zeros(len(task.queries))
    for rows, ranking in blocks:
        hits = np.take_along_axis(np.asarray(relevance_of(rows), bool), ranking.indices, axis=1) & (ranking.indices >= 0)
        # What a filter takes away stays relevant: else a wrongly predicted class would leave the query out, and not count as wrong.
        block = RetrievalScores.from_relevance(hits, n_relevant[rows], relevance)
        first[rows], precision[rows] = block.first_rank, block.average_precision
    return RetrievalScores(first, precision, n_relevant, relevance, task.groups)
