"""Scores of a part of a split, worked out by hand on five images on a circle."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.retrieval.embeddings import Embeddings, Items
from entrep_cli.scoring.parts import score_part

AB = Taxonomy("ab", (ClassInfo("a", 0, "x"), ClassInfo("b", 1, "x")))


def part(labels: str, groups: str, findings: list[tuple[str, ...]]) -> Catalog:
    images = [f"{i}.png" for i in range(len(labels))]
    return Catalog(pd.DataFrame({"image": images, "label": list(labels), "group": list(groups), "findings": findings}), AB)


def seen(degrees: list[float], predicted: str, digests: str | None = None) -> Embeddings:
    angles = np.radians(degrees)
    names = [f"{i}.png" for i in range(len(degrees))]
    items = Items.of(image=names, digest=list(digests or "01234"[: len(names)]))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return Embeddings(items, vectors, np.eye(2, dtype=np.float32)[["ab".index(p) for p in predicted]])


def means(scores) -> dict[str, float]:
    return {name: interval.value for name, interval in scores.means.items()}


def test_by_hand():
    """On the circle 0, 10, 30, 60, 100 degrees: each looks for the nearest others, its own group left out."""
    catalog = part("aabba", "11234", [("spur",), (), ("spur",), ("wax",), ()])
    found = score_part(catalog, seen([0, 10, 30, 60, 100], "abbba"))
    assert found.classification.accuracy.value == 4 / 5 and found.classification.groups.tolist() == list("11234")

    # Ranked, own group masked, first of the own class:
    # 0 (a): 2 3 4 -> 3rd. 1 (a): 2 3 4 -> 3rd. 2 (b): 1 0 3 4 -> 3rd (20, 30, 30 degrees: a tie by cosine, 0 comes first).
    # 3 (b): 2 4 1 0 -> 1st. 4 (a): 3 2 1 0 -> 3rd and 4th.
    by_class = found.retrieval["class"]
    assert by_class.first_rank.tolist() == [3, 3, 3, 1, 3]
    assert means(by_class) == pytest.approx(
        {"recall@1": 1 / 5, "recall@5": 1, "recall@10": 1, "mrr": (4 / 3 + 1) / 5, "map": (1 / 3 * 3 + 1 + (1 / 3 + 2 / 4) / 2) / 5}
    )
    # Only 0 and 2 share a finding; for the others nothing is relevant, and they are left out.
    by_finding = found.retrieval["finding"]
    assert by_finding.n_without_relevant == 3 and by_finding.first_rank[[0, 2]].tolist() == [1, 2]
    assert means(by_finding)["mrr"] == pytest.approx((1 + 1 / 2) / 2)


def test_own_group_and_copies():
    catalog = part("aabba", "11234", [()] * 5)
    masked, open_ = (score_part(catalog, seen([0, 10, 30, 60, 100], "aabba"), mask_groups=m).retrieval["class"] for m in (True, False))
    assert open_.first_rank.tolist() == [1, 1, 3, 1, 3] and masked.first_rank.tolist() == [3, 3, 3, 1, 3]
    # Where 0 and 1 are the same pixels, neither answers the other, whatever is asked.
    copies = score_part(catalog, seen([0, 10, 30, 60, 100], "aabba", "00234"), mask_groups=False).retrieval["class"]
    assert copies.first_rank.tolist() == [3, 3, 3, 1, 3] and copies.n_relevant.tolist() == [1, 1, 1, 1, 2]


def test_no_finding_no_score_by_finding():
    assert set(score_part(part("ab", "12", [(), ()]), seen([0, 90], "ab")).retrieval) == {"class"}
    assert set(score_part(part("ab", "12", [("x",), ("y",)]), seen([0, 90], "ab")).retrieval) == {"class"}
    alone = score_part(part("ab", "12", [(), ()]), seen([0, 90], "ab")).retrieval["class"]
    assert alone.n_without_relevant == 2 and all(np.isnan(value) for value in means(alone).values())
