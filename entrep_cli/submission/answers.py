"""A run's answers to the queries of a track: from the images alone, never from a label file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import split_groups
from entrep_cli.data.testsets import TestSet, named_test_set, only_test_set, read_test_folder
from entrep_cli.data.tracks import track_of
from entrep_cli.errors import DataError, UsageError
from entrep_cli.evaluation.calibration import with_temperature
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import Embeddings, Items, embeddings_of
from entrep_cli.retrieval.index import rank_by_store
from entrep_cli.retrieval.pipeline import templated, text_probabilities, text_vectors
from entrep_cli.retrieval.ranking import rank
from entrep_cli.retrieval.refinement import Refinement
from entrep_cli.retrieval.sets import TRAIN, catalog_items, folder_items, set_name
from entrep_cli.submission.archive import bare_name
from entrep_cli.submission.tracks import Answer, read_queries, resolve_names
from entrep_cli.workspace import Run

if TYPE_CHECKING:
    from entrep_cli.methods.base import Model

GALLERIES = ("queries", "test", "train", "all")


@dataclass(frozen=True)
class Answers:
    """Answers of one track.

    Attributes:
        queries: verbatim, in the order asked.
        answers: one for each query.
        ranked: (query, rank from 1, answer, score), best first, for the ranked CSV.
        gallery: names that could be answered; None for track 1.
        folder: where the queries came from.
        fell_back: queries without a candidate of their predicted class, for which all were ranked.
    """

    queries: list[str]
    answers: dict[str, Answer]
    ranked: list[tuple[str, int, Answer, float]]
    gallery: list[str] | None
    folder: Path
    fell_back: int = 0


def answer_track(
    run: Run,
    model: Model,
    data: Path | None,
    track: int,
    *,
    queries: Path | None = None,
    gallery: str = "test",
    top_k: int = 10,
    flip: bool = False,
    temperature: float = 1.0,
    mask_groups: bool = False,
    rule: ClassRule = ClassRule(),
    refinement: Refinement | None = None,
    template: str | None = None,
    warn: Callable[[str], None] | None = None,
) -> Answers:
    """Answer all queries of a track.

    Args:
        data: the dataset folder; its test folder is asked where `queries` is None, its training images
            are searched by `train` and `all`. None where neither is wanted.
        queries: a folder of images (with query files, or each image is a query), or one query file.
        gallery: where tracks 2 and 3 search: `queries`, `test`, `train`, `all`, or a folder.
        flip: test-time augmentation by the label-aware flip (`embed_items`), for tracks 1 and 2.
        temperature: of the scores of track 1; the answers do not change with it.
        mask_groups: an image of the query's group may not be answered; `warn` is called where no group is known.
        rule: class-aware retrieval, for tracks 2 and 3.
        refinement: of the ranking of track 2, in the place of the rule.
        template: a text with one `{}` into which the texts of track 3 are set before they are embedded; the
            answers hold the queries as they were asked.

    Raises:
        DataError: faulty queries, or a gallery in which a query has no candidate; all are listed.
    """
    test_set = named_test_set(queries, data) if queries else only_test_set(data)
    asked = _queries(test_set, track, queries, warn)
    # Labels, images and their names are read, and their faults reported, before anything is computed.
    searched = {} if track == 1 else _gallery(data, test_set, gallery)
    test = set_name(test_set, data)
    sets = searched if track == 3 or test in searched else {**searched, test: folder_items(test_set, data)}
    embedded = {name: embeddings_of(run, name, items, model, flip=flip) for name, items in sets.items()}
    if track == 1:
        return _classified(asked, _named(embedded[test], asked), model, test_set.folder, temperature)

    images = _named(embedded[test], asked) if track == 2 else None
    galleries = [images] if images is not None and gallery == "queries" else [embedded[name] for name in searched]
    pool = Embeddings.joined([replace(searchable, items=_answerable(searchable.items)) for searchable in galleries])
    if images is not None:
        if mask_groups and warn and not (any(images.items.group) and any(pool.items.group)):
            whose = "query" if not any(images.items.group) else "image of the gallery"
            warn(f"--mask-groups masks nothing: no {whose} has a group, neither in a groups.csv nor in its name")
        masked = {"image": images.items.image, "digest": images.items.digest} | ({"group": images.items.group} if mask_groups else {})
        vectors, classes = np.asarray(images.vectors), np.asarray(images.probabilities)
    else:
        texts = templated(asked, template)
        vectors, masked = text_vectors(model, texts), {}
        classes = np.empty(0) if rule.mode == "off" else text_probabilities(model, texts)
    given = np.asarray(pool.probabilities)
    plain = rule.mode == "off" and not flip and refinement is None
    ranking = rank_by_store(run, pool, vectors, top_k, masked) if plain else None
    if ranking is None:
        exclude = [(keys, getattr(pool.items, column)) for column, keys in masked.items()]
        pool_vectors, bonus = pool.vectors, rule.bonus(classes, given)
        if refinement is not None:
            vectors, pool_vectors = refinement.whitened(vectors), refinement.whitened(np.asarray(pool_vectors))
            bonus = refinement.bonus(vectors, pool_vectors)
        ranking = rank(vectors, pool_vectors, top_k, exclude, bonus=bonus)
    empty = [query for query, first in zip(asked, ranking.indices[:, 0]) if first < 0]
    if empty:
        raise DataError(
            f"{len(empty)} queries have no candidate: the gallery of {len(pool)} holds nothing but the queries themselves.",
            where=gallery,
            faults=empty,
            hint="choose a larger --gallery: test, train, all or a folder" + (", or leave out --mask-groups" if mask_groups else ""),
        )
    fell_back = int(rule.fell_back(ranking, classes, given).sum())
    if fell_back and warn:
        warn(f"{fell_back} of {len(asked)} queries have no candidate of their predicted class; for them the whole gallery was ranked")
    ranked = [
        (query, place, str(pool.items.image[row]), float(score))
        for query, rows, scores in zip(asked, ranking.indices, ranking.scores)
        for place, (row, score) in enumerate(zip(rows, scores), 1)
        if row >= 0
    ]
    best = {query: answer for query, place, answer, _ in ranked if place == 1}
    return Answers(asked, best, ranked, [str(name) for name in pool.items.image], test_set.folder, fell_back)


def _classified(asked: list[str], images: Embeddings, model: Model, folder: Path, temperature: float) -> Answers:
    ids, given = model.taxonomy.ids, images.probabilities
    scores = given if temperature == 1 else with_temperature(given, temperature)
    order = np.argsort(-given, axis=1, kind="stable")
    ranked = [
        (query, place, ids[c], float(row[c])) for query, row, classes in zip(asked, scores, order) for place, c in enumerate(classes, 1)
    ]
    return Answers(asked, {query: answer for query, place, answer, _ in ranked if place == 1}, ranked, None, folder)


def _queries(test_set: TestSet, track: int, queries: Path | None, warn: Callable[[str], None] | None) -> list[str]:
    path = queries if queries is not None and queries.is_file() else test_set.queries.get(track)
    if path is not None:
        asked = read_queries(path, track, known_names=test_set.images, warn=warn)
    elif track == 3 or test_set.queries:
        # With other query files beside, that of the track is missing: all images would be another list than the contest's.
        hint = f"put {track_of(track).query_file} into the folder (has it another name?), or name it: --queries FILE.csv"
        raise DataError(f"No queries of track {track}.", where=test_set.folder, hint=hint)
    else:
        asked = list(test_set.images)
    if not asked:
        raise DataError("The query file is empty.", where=path)
    return asked


def _named(embeddings: Embeddings, asked: list[str]) -> Embeddings:
    """The queries' embeddings in their order, names that differ in case resolved."""
    files = resolve_names(asked, [str(name) for name in embeddings.items.image])
    return embeddings.named([files[query] for query in asked])


def gallery_names(gallery: str, test_set: TestSet, train: Collection[str], asked: Sequence[str] = ()) -> list[str]:
    """The names that a gallery lets be answered, without an image being opened.

    Args:
        gallery: as for `answer_track`.
        train: the images of the catalog; asked: the queries of track 2.
    """
    if (folder := _gallery_folder(gallery)) is not None:
        return list(folder.images)
    test = resolve_names(asked, test_set.images).values() if gallery == "queries" and asked else test_set.images
    return [*(test if gallery != "train" else ()), *(map(bare_name, train) if gallery in ("train", "all") else ())]


def _gallery_folder(gallery: str) -> TestSet | None:
    """The folder that a gallery is; None where it is one of `GALLERIES`."""
    if gallery in GALLERIES:
        return None
    if not Path(gallery).is_dir():
        raise UsageError(f"No gallery {gallery!r}.", hint=f"choose one of {', '.join(GALLERIES)}, or an existing folder")
    return read_test_folder(Path(gallery))


def _gallery(data: Path | None, test_set: TestSet, gallery: str) -> dict[str, Items]:
    """The sets of images that are searched, by name."""
    if (folder := _gallery_folder(gallery)) is not None:
        return {set_name(folder, data): folder_items(folder, data)}
    sets = {}
    if gallery in ("train", "all"):
        sets[TRAIN] = catalog_items(Catalog.read(data, groups=split_groups(data)))
    if gallery != "train":
        sets = {set_name(test_set, data): folder_items(test_set, data), **sets}
    _check_names(sets.values(), data)
    return sets


def _answerable(items: Items) -> Items:
    """Images by the names that answers have for them: a catalog may call an image by its path."""
    return replace(items, image=np.array([bare_name(name) for name in items.image], dtype=object))


def _check_names(sets: Iterable[Items], where: Path | None) -> None:
    """DataError where an answer could mean two images."""
    images = dict.fromkeys((name, digest) for items in sets for name, digest in zip(_answerable(items).image, items.digest))
    twice = [name for name, n in Counter(name for name, _ in images).items() if n > 1]
    if twice:
        raise DataError(
            f"{len(twice)} names in the gallery stand for two images, and an answer is a name without a folder.",
            where=where,
            faults=twice,
            hint="rename one of each, or search in another --gallery: test, train or a folder",
        )
