"""From a query, an image or a text, to the cases most like it: what `entrep search` and `entrep app` ask.

    finder = open_finder(open_run())
    result = find_cases(finder, image_query(finder, read_image(path), path.name), 10)
    result.cases[0].label, result.cases[0].hit

Relevance is by class, as the dataset labels it: an answer is a hit where its label is the query's, a miss
where it has another, and neither where one of the two is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entrep_cli.data.groups import RULES, name_group
from entrep_cli.data.images import pixel_digest
from entrep_cli.errors import UsageError
from entrep_cli.methods.base import Model
from entrep_cli.results import Result, Table
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.retrieval.index import Index, gallery_of, nearest, nearest_exactly, open_run_index
from entrep_cli.retrieval.pipeline import templated, text_probabilities, text_vectors
from entrep_cli.retrieval.sets import open_model
from entrep_cli.workspace import Run

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

MAX_MISSED = 5
MARKS = {True: "hit", False: "miss", None: ""}


@dataclass(frozen=True)
class Finder:
    """A run, opened to answer any number of queries.

    Attributes:
        gallery: all that is embedded. index: over it; None for exact search alone.
    """

    run: Run
    model: Model
    gallery: Embeddings
    index: Index | None = None

    @property
    def reads_texts(self) -> bool:
        return self.model.reads_text

    @property
    def labels(self) -> list[str]:
        """The classes that images of the gallery are labelled with, in the order of the taxonomy."""
        order = {name: i for i, name in enumerate(self.model.taxonomy.names)}
        return sorted(set(self.gallery.items.label) - {""}, key=lambda name: (order.get(name, len(order)), name))


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        name: of the file, or the text.
        vector: (1, D) float32 unit row.
        probabilities: (1, C) over the model's classes; None where they were not asked for.
        label: the true class; "" where it is not known.
        digest, group: of its pixels and its exam or patient; "" for a text.
        row: its place in the gallery; None where it is not one of its images.
        source: how it was asked for, if not by its name: the path of the file.
        template: what a text was set into.
    """

    name: str
    vector: np.ndarray
    probabilities: np.ndarray | None = None
    label: str = ""
    digest: str = ""
    group: str = ""
    row: int | None = None
    source: str = ""
    template: str | None = None


@dataclass(frozen=True)
class Case:
    """An image of the gallery beside a query.

    Attributes:
        rank: from 1; None of a case that is not among the answers.
        row: its place in the gallery.
        score: cosine, with the bonus of class-aware retrieval where that is on.
        hit: whether it is of the query's class; None where that is not known.
    """

    rank: int | None
    row: int
    image: str
    path: str
    label: str
    group: str
    score: float
    hit: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: getattr(self, key) for key in ("rank", "image", "label", "group", "score", "hit")}


@dataclass(frozen=True)
class SearchResult(Result):
    """The answers to a query, best first.

    Attributes:
        run: name of the run.
        missed: if some answers are wrong, the nearest images of the query's class that are not among the answers.
        taken_for: the predicted class of the query, with its probability; None without class-aware retrieval.
        fell_back: whether the hard rule left no image, so that all classes were ranked.
        validation: how validation chose the weight of the rule; None if it was given or not used.
        sheet: the file with the drawn query and answers.
    """

    run: str
    query: Query
    cases: tuple[Case, ...]
    rule: ClassRule = ClassRule()
    missed: tuple[Case, ...] = ()
    taken_for: tuple[str, float] | None = None
    fell_back: bool = False
    validation: Mapping[str, Any] | None = None
    sheet: Path | None = None

    @property
    def title(self) -> str:
        """What was asked and how."""
        rule, label = "" if self.rule.mode == "off" else f", {self.rule}", f", {self.query.label}" if self.query.label else ""
        return f"Nearest to {self.query.name} (run {self.run}{rule}{label})"

    def tables(self) -> list[Table]:
        marked = bool(self.query.label)
        columns = ["rank", "image", "class", "score", *(["truth"] if marked else [])]
        rows = [(str(c.rank), c.image, c.label or "-", c.score, *([MARKS[c.hit]] if marked else [])) for c in self.cases]
        return [Table(self.title, columns, rows, left=("image", "class", "truth"))]

    def to_dict(self) -> dict[str, Any]:
        aware: dict[str, Any] = {**self.rule.as_dict(), "validation": self.validation}
        if self.taken_for:
            aware |= {"class": self.taken_for[0], "fell_back": int(self.fell_back)}
        about = {"run": self.run, "query": self.query.source or self.query.name, "label": self.query.label or None}
        answers = [case.as_dict() for case in self.cases]
        sheet = {"sheet": str(self.sheet)} if self.sheet else {}
        return {**about, "class_aware": aware, "template": self.query.template, "answers": answers, **sheet}

    def frame(self) -> pd.DataFrame:
        """One row an answer: query, rank, image, label, group, score, hit."""
        import pandas as pd

        columns = ["query", "rank", "image", "label", "group", "score", "hit"]
        return pd.DataFrame([{"query": self.query.name, **case.as_dict()} for case in self.cases], columns=columns)


def open_finder(run: Run, *, device: str = "auto", exact: bool = False) -> Finder:
    """Open a run for queries.

    Args:
        exact: compare with every image and use no index, as class-aware retrieval does.

    Raises:
        RunError: nothing is embedded; without `exact`, the index is missing or older than the embeddings.
    """
    index, gallery = (None, gallery_of(run)) if exact else open_run_index(run)
    return Finder(run, open_model(run, device), gallery, index)


def image_query(finder: Finder, picture: Image.Image, name: str) -> Query:
    """A decoded image as a query; label and group are those of the same pixels in the gallery, else the group is its name's."""
    import torch

    model = finder.model
    pixels = torch.from_numpy(model.preprocess(picture)[None]).to(model.device)
    with torch.inference_mode():
        vector, probabilities = (rows.float().cpu().numpy() for rows in model.infer(pixels)[:2])
    digest = pixel_digest(picture)
    rule = finder.run.manifest.get("split", {}).get("groups")  # how names tell groups to the split of the run
    group = name_group(name, "auto" if rule in (None, *RULES) else rule)
    query = Query(name, vector, probabilities, digest=digest, group=group)
    rows = np.flatnonzero(finder.gallery.items.digest == digest)
    if not len(rows):
        return query
    # Of copies, the one that says what it is.
    row = int(next((row for row in rows if finder.gallery.items.label[row]), rows[0]))
    return replace(query, **_known(finder, row))


def gallery_query(finder: Finder, row: int) -> Query:
    """An image of the gallery as a query, as it was embedded; IndexError where there is no such row."""
    if not 0 <= row < len(finder.gallery):
        raise IndexError(row)
    gallery = finder.gallery
    vector, probabilities = (np.asarray(rows[row : row + 1]) for rows in (gallery.vectors, gallery.probabilities))
    return Query(str(gallery.items.image[row]), vector, probabilities, **_known(finder, row))


def text_query(finder: Finder, text: str, template: str | None = None, *, classes: bool = False) -> Query:
    """A text as a query.

    Args:
        template: the text is set into it.
        classes: also classify it, which class-aware retrieval needs.

    Raises:
        UsageError: the model has no text tower, or cannot tell classes; DataError: the text is empty.
    """
    check_reads_texts(finder.run, text)
    texts = templated([text], template)
    probabilities = text_probabilities(finder.model, texts) if classes else None
    return Query(text, text_vectors(finder.model, texts), probabilities, template=template)


def check_reads_texts(run: Run, text: str) -> None:
    """UsageError where the run cannot search by text; raised before a model is loaded."""
    if not run.manifest["reads_text"]:
        raise UsageError(
            f"No image {text!r}, and {run.manifest['method']} cannot search by text.",
            hint="name an image file, or train a method with a text tower: `entrep train clip-lora`",
        )


def labelled(finder: Finder, query: Query, label: str) -> Query:
    """The query with its true class as it is given; UsageError where no image of the gallery has it."""
    if label not in finder.labels:
        raise UsageError(
            f"No image of the gallery is of the class {label!r}.",
            hint=f"--label {', '.join(finder.labels)}" if finder.labels else "leave --label out: no image of the gallery has a label",
        )
    return replace(query, label=label)


def find_cases(finder: Finder, query: Query, k: int, *, rule: ClassRule = ClassRule(), mask_group: bool = False) -> SearchResult:
    """The k images of the gallery most like a query, without its exact copies.

    Args:
        rule: class-aware retrieval, which ranks all of the gallery exactly; the query needs its probabilities.
        mask_group: also leave out the images of the query's group.
    """
    gallery, group = finder.gallery, query.group if mask_group else ""
    taken_for, fell_back = None, False
    if rule.mode == "off" and finder.index is not None:
        ranking = nearest(finder.index, gallery, query.vector, k, digest=query.digest, group=group)
    else:
        probabilities = np.asarray(gallery.probabilities)
        bonus = rule.bonus(query.probabilities, probabilities)
        ranking = nearest_exactly(gallery, query.vector, k, digest=query.digest, group=group, bonus=bonus)
        if rule.mode != "off":
            best = int(query.probabilities[0].argmax())
            taken_for = finder.model.taxonomy.names[best], float(query.probabilities[0, best])
            fell_back = bool(rule.fell_back(ranking, query.probabilities, probabilities).any())
    cases = _cases(finder, query, ranking.indices[0], ranking.scores[0])
    missed = _missed(finder, query, [case.row for case in cases], rule, group) if any(case.hit is False for case in cases) else ()
    return SearchResult(finder.run.name, query, cases, rule, missed, taken_for, fell_back)


def _missed(finder: Finder, query: Query, answered: Sequence[int], rule: ClassRule, group: str) -> tuple[Case, ...]:
    """Ranked by the cosine where the rule is hard: its filter would hide what it has missed."""
    gallery = finder.gallery
    rows = np.setdiff1d(np.flatnonzero(gallery.items.label == query.label), answered)
    if not len(rows):
        return ()
    those = gallery.take(rows)
    bonus = rule.bonus(query.probabilities, np.asarray(those.probabilities)) if rule.mode == "soft" else None
    ranking = nearest_exactly(those, query.vector, MAX_MISSED, digest=query.digest, group=group, bonus=bonus)
    return tuple(replace(case, rank=None) for case in _cases(finder, query, rows[ranking.indices[0]], ranking.scores[0]))


def _cases(finder: Finder, query: Query, rows: Sequence[int], scores: Sequence[float]) -> tuple[Case, ...]:
    items = finder.gallery.items

    def case(rank: int, row: int, score: float) -> Case:
        image, path, label, group = (str(column[row]) for column in (items.image, items.path, items.label, items.group))
        hit = label == query.label if label and query.label else None
        return Case(rank, int(row), image, path, label, group, float(score), hit)

    return tuple(case(rank, row, score) for rank, (row, score) in enumerate(zip(rows, scores), 1))


def _known(finder: Finder, row: int) -> dict[str, Any]:
    items = finder.gallery.items
    return {"label": str(items.label[row]), "digest": str(items.digest[row]), "group": str(items.group[row]), "row": row}
