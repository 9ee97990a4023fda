"""All scores of one part of a split: classification, and retrieval within the part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from entrep_cli.data.catalog import Catalog, finding_relevance
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.scoring.classification import ClassificationScores
from entrep_cli.scoring.retrieval import RetrievalScores, score_retrieval


@dataclass(frozen=True)
class PartScores:
    """Scores of a part; `retrieval` by the name of the relevance."""

    classification: ClassificationScores
    retrieval: dict[str, RetrievalScores]


def score_part(part: Catalog, seen: Embeddings, *, mask_groups: bool = True) -> PartScores:
    """Score a part whose images `seen` holds, in the same order.

    Every image is a query to all others of the part; itself, its exact copies and, with
    `mask_groups`, its own group may not answer.
    """
    names = part.taxonomy.names
    targets, groups = part.targets, part.groups
    classification = ClassificationScores(targets, seen.probabilities.argmax(axis=1), names, groups)
    exclude = [(seen.items.image, seen.items.image), (seen.items.digest, seen.items.digest)]
    if mask_groups:
        exclude.append((groups, groups))
    vectors = np.asarray(seen.vectors)
    labels = part.frame["label"].to_numpy(dtype=object)
    retrieval = {"class": score_retrieval(vectors, vectors, (labels, labels), name="class", exclude=exclude, groups=groups)}
    findings = part.frame["findings"].tolist()
    if any(findings):
        by_finding = score_retrieval(
            vectors,
            vectors,
            lambda rows: finding_relevance(findings[rows], findings),
            name="finding",
            exclude=exclude,
            groups=groups,
        )
        if by_finding.scored.any():
            retrieval["finding"] = by_finding
    return PartScores(classification, retrieval)
