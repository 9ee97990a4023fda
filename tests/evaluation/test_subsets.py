"""Scores of a part of a split, worked out by hand on five images on a circle."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.evaluation.subsets import TextQueries, finding_texts, joined_subsets, score_subset
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import Embeddings, Items
from entrep_cli.retrieval.refinement import Expansion, Refinement

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
    found = score_subset(catalog, seen([0, 10, 30, 60, 100], "abbba"))
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
    masked, open_ = (score_subset(catalog, seen([0, 10, 30, 60, 100], "aabba"), mask_groups=m).retrieval["class"] for m in (True, False))
    assert open_.first_rank.tolist() == [1, 1, 3, 1, 3] and masked.first_rank.tolist() == [3, 3, 3, 1, 3]
    # Where 0 and 1 are the same pixels, neither answers the other, whatever is asked.
    copies = score_subset(catalog, seen([0, 10, 30, 60, 100], "aabba", "00234"), mask_groups=False).retrieval["class"]
    assert copies.first_rank.tolist() == [3, 3, 3, 1, 3] and copies.n_relevant.tolist() == [1, 1, 1, 1, 2]


def test_no_finding_no_score_by_finding():
    assert set(score_subset(part("ab", "12", [(), ()]), seen([0, 90], "ab")).retrieval) == {"class"}
    assert set(score_subset(part("ab", "12", [("x",), ("y",)]), seen([0, 90], "ab")).retrieval) == {"class"}
    alone = score_subset(part("ab", "12", [(), ()]), seen([0, 90], "ab")).retrieval["class"]
    assert alone.n_without_relevant == 2 and all(np.isnan(value) for value in means(alone).values())


def naive(scores_of, relevant, allowed) -> tuple[list[int], list[float], list[int]]:
    """First rank, average precision and number of relevant items of each query, by a loop."""
    first, precision, n_relevant = [], [], []
    for q, right in enumerate(relevant):
        right = {g for g in right if g in allowed[q]}
        order = sorted((g for g in allowed[q] if scores_of(q, g) is not None), key=lambda g: (-scores_of(q, g), g))
        ranks = [place for place, g in enumerate(order, 1) if g in right]
        first.append(ranks[0] if ranks else 0)
        precision.append(sum(n / r for n, r in enumerate(ranks, 1)) / max(len(right), 1))
        n_relevant.append(len(right))
    return first, precision, n_relevant


LABELS, GROUPS, ANGLES, SEES = "aabbab", "112345", [0, 10, 30, 60, 100, 105], "abbbab"
FINDINGS = [("spur",), (), ("spur", "wax"), ("wax",), ("pair:x",), ("pair:x", "spur")]


def six() -> tuple[Catalog, Embeddings]:
    return part(LABELS, GROUPS, FINDINGS), seen(ANGLES, SEES, "012345")


@pytest.mark.parametrize("rule", [ClassRule("hard"), ClassRule("soft", 0.05)], ids=str)
def test_class_aware_beside_the_cosine_alone(rule):
    catalog, embedded = six()
    plain = score_subset(catalog, embedded).retrieval
    found = score_subset(catalog, embedded, rule=rule)
    assert list(found.retrieval) == ["class", f"class, {rule}", "finding", f"finding, {rule}"]
    for name in ("class", "finding"):
        assert found.retrieval[name].as_dict() == plain[name].as_dict()
    allowed = [{g for g in range(6) if g != q and GROUPS[g] != GROUPS[q]} for q in range(6)]

    def scores_of(q: int, g: int):
        cosine = np.cos(np.radians(ANGLES[q] - ANGLES[g]))
        if rule.mode == "soft":
            return cosine + 0.05 * np.log(1.0 if SEES[q] == SEES[g] else 1e-6)
        own = [o for o in allowed[q] if SEES[o] == SEES[q]]
        return cosine if not own or SEES[q] == SEES[g] else None

    right = {
        "class": [{g for g in range(6) if LABELS[g] == LABELS[q]} for q in range(6)],
        "finding": [{g for g in range(6) if set(FINDINGS[g]) & set(FINDINGS[q])} for q in range(6)],
    }
    for name, relevant in right.items():
        scores = found.retrieval[f"{name}, {rule}"]
        first, precision, n_relevant = naive(scores_of, relevant, allowed)
        assert scores.first_rank.tolist() == first and scores.n_relevant.tolist() == n_relevant
        assert scores.average_precision == pytest.approx(precision) and scores.depth is None
        assert set(scores.means) == set(plain[name].means) and scores.relevance == name


def test_what_the_filter_takes_away_counts_as_missed():
    """0 is taken for b: its filter holds no a. It is a query that failed, not one without anything to find."""
    catalog, embedded = part("aabb", "1234", [()] * 4), seen([0, 5, 50, 90], "babb")
    found = score_subset(catalog, embedded, rule=ClassRule("hard"))
    plain, aware = found.retrieval["class"], found.retrieval["class, class-aware hard"]
    assert plain.first_rank.tolist() == [1, 1, 1, 1]
    # 0 asks the b's, among which no a is; 1 has no other that is taken for a, and asks all; 2 and 3 ask the b's, 0 among them.
    assert aware.first_rank.tolist() == [0, 1, 1, 1] and aware.n_without_relevant == 0
    assert means(aware) == pytest.approx({"recall@1": 3 / 4, "recall@5": 3 / 4, "recall@10": 3 / 4, "mrr": 3 / 4, "map": 3 / 4})
    assert found.fell_back == {"images": 1}


def test_no_rule_leaves_no_trace():
    catalog, embedded = six()
    found = score_subset(catalog, embedded)
    assert set(found.retrieval) == set(found.chance) == {"class", "finding"} and found.fell_back == {}


def test_chance_is_the_share_of_what_is_relevant_among_what_may_answer():
    catalog, embedded = six()
    found = score_subset(catalog, embedded, rule=ClassRule("hard"))
    # By class, 0 and 1 mask each other and have 1 of 4; the others have 2 of 5.
    assert found.chance["class"] == found.chance["class, class-aware hard"] == pytest.approx((1 / 4 * 2 + 2 / 5 * 4) / 6)
    assert score_subset(catalog, embedded, mask_groups=False).chance["class"] == pytest.approx(2 / 5)


def texts(*names: str, degrees: list[float], sees: str | None = None) -> TextQueries:
    angles = np.radians(degrees)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return TextQueries(list(names), vectors, None if sees is None else np.eye(2, dtype=np.float32)[["ab".index(s) for s in sees]])


def test_texts_ask_for_the_images_that_have_the_finding():
    catalog, embedded = six()
    assert finding_texts(catalog) == ["spur", "wax"]  # what pairs two images is no text
    found = score_subset(catalog, embedded, texts=texts("spur", "wax", degrees=[95, 19]))
    scores = found.retrieval["text to finding"]
    # spur (0, 2, 5) from 95 degrees: 4 5 3 2 1 0. wax (2, 3) from 19: 1 2 0 3 4 5.
    assert scores.first_rank.tolist() == [2, 2] and scores.n_relevant.tolist() == [3, 2] and scores.relevance == "finding"
    assert scores.average_precision == pytest.approx([(1 / 2 + 2 / 4 + 3 / 6) / 3, (1 / 2 + 2 / 4) / 2])
    assert scores.groups is None and found.chance["text to finding"] == pytest.approx((3 / 6 + 2 / 6) / 2)
    assert scores.means["mrr"].low <= 1 / 2 <= scores.means["mrr"].high


def test_texts_with_classes():
    catalog, embedded = six()
    found = score_subset(catalog, embedded, rule=ClassRule("hard"), texts=texts("spur", "wax", degrees=[95, 19], sees="ab"))
    aware = found.retrieval["text to finding, class-aware hard"]
    # Taken for a are 0 and 4, for b 1 2 3 5.
    assert aware.first_rank.tolist() == [2, 2] and aware.average_precision == pytest.approx([1 / 2 / 3, (1 / 2 + 2 / 3) / 2])
    assert aware.n_relevant.tolist() == [3, 2] and found.fell_back == {"images": 0, "texts": 0}
    # Without the classes of the texts they are asked by the cosine alone.
    alone = score_subset(catalog, embedded, rule=ClassRule("hard"), texts=texts("spur", "wax", degrees=[95, 19]))
    assert "text to finding" in alone.retrieval and "text to finding, class-aware hard" not in alone.retrieval


def test_no_text_no_score_by_text():
    catalog, embedded = part("ab", "12", [("pair:x",), ("pair:x",)]), seen([0, 90], "ab")
    assert finding_texts(catalog) == []
    assert "text to finding" not in score_subset(catalog, embedded, texts=TextQueries([], np.empty((0, 2), np.float32))).retrieval


def test_a_refinement_is_scored_beside_the_cosine():
    catalog, own = part("aabba", "11234", [()] * 5), seen([0, 10, 30, 60, 100], "aabba")
    found = score_subset(catalog, own, refinement=Refinement(expand=Expansion(1, 0.0)))
    assert list(found.retrieval) == ["class", "class, refined"] and found.chance["class"] == found.chance["class, refined"]
    # Query 2 at 30 degrees with its nearest but group, 1 at 10, points to 20: 1, 0, 3 as before, but without a tie. Query 3 at
    # 60 with 2 at 30 points to 45: 2 1 4 0.
    assert found.retrieval["class, refined"].first_rank.tolist() == [3, 3, 3, 1, 3]
    assert set(score_subset(catalog, own).retrieval) == {"class"}


def test_a_refinement_can_change_the_first_answer():
    # Query 0 at 0 degrees: 1 (b) at 20 and 2 (a) at -21, with 3 (a) at -25 beside it. Its nearest pulls it to 10 degrees, its
    # three nearest to about -6.
    catalog, own = part("abaa", "1234", [()] * 4), seen([0, 20, -21, -25], "abaa", "0123")
    for n, first in ((1, 2), (3, 1)):
        found = score_subset(catalog, own, refinement=Refinement(expand=Expansion(n, 0.0)))
        assert found.retrieval["class"].first_rank[0] == 2 and found.retrieval["class, refined"].first_rank[0] == first


def test_parts_joined_are_every_query_in_its_own_part():
    one = score_subset(part("aab", "123", [("spur",), ("spur",), ()]), seen([0, 20, 30], "aab"))
    two = score_subset(part("abbab", "45667", [()] * 5), seen([0, 10, 30, 60, 100], "abbbb"))
    whole = joined_subsets([one, two])
    assert whole.classification.accuracy.value == 7 / 8 and list(whole.classification.groups) == list("12345667")
    assert whole.retrieval["class"].first_rank.tolist() == [*one.retrieval["class"].first_rank, *two.retrieval["class"].first_rank]
    n = [p.retrieval["class"].scored.sum() for p in (one, two)]
    recalls = [p.retrieval["class"].means["recall@1"].value for p in (one, two)]
    assert whole.retrieval["class"].means["recall@1"].value == pytest.approx(np.dot(n, recalls) / sum(n))
    assert whole.chance["class"] == pytest.approx(np.dot(n, [one.chance["class"], two.chance["class"]]) / sum(n))
    assert set(whole.retrieval) == {"class"}  # the second part has no findings
    assert joined_subsets([one]) is one
