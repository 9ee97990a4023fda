"""Scores of a submission against a truth file, every number worked out by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import DataError
from entrep_cli.submission.tracks import Submission
from entrep_cli.submission.truth import score_submission, truth_taxonomy

ABC = Taxonomy("abc", (ClassInfo("ant", 3, "x"), ClassInfo("bee", 5, "x"), ClassInfo("cow", 9, "y")))


def truth(folder: Path, name: str, content: object, groups: dict[str, str] | None = None) -> Path:
    (folder / name).write_text(json.dumps(content))
    if groups:
        with open(folder / "groups.csv", "w", newline="") as file:
            csv.writer(file).writerows([("image", "group"), *groups.items()])
    return folder / name


def submission(folder: Path, answers: dict, ranked: dict[str, list[str]] | None = None) -> Submission:
    """Answers, and in a CSV beside them the whole lists."""
    if ranked:
        rows = [(q, place, a, 1 / place) for q, row in ranked.items() for place, a in enumerate(row, 1)]
        with open(folder / "mine.csv", "w", newline="") as file:
            csv.writer(file).writerows([("query", "rank", "answer", "score"), *rows])
    return Submission(folder / "mine.zip", "submission.json", answers)


# ---------------------------------------------------------------- truth files


def test_classes_from_the_truth_alone(tmp_path):
    """Ids stand for themselves, whatever their text sorts as; names of ENTRep are ENTRep's."""
    ids = truth_taxonomy(truth(tmp_path, "ids.json", {"a": 10, "b": 2, "c": 2, "d": 1}), 1)
    assert (ids.ids, ids.names) == ([1, 2, 10], ["1", "2", "10"])
    assert truth_taxonomy(truth(tmp_path, "names.json", {"a": "ear-left"}), 1) == Taxonomy.entrep()
    assert truth_taxonomy(truth(tmp_path, "truth_i2i.json", {"a": "b"}), 2) == Taxonomy.entrep()
    truth(tmp_path, "truth_cls.json", {"a": "polyp", "b": "normal"})
    assert truth_taxonomy(tmp_path / "truth_i2i.json", 2).names == ["normal", "polyp"]


# ---------------------------------------------------------------- track 1


def test_classes_as_names_or_ids(tmp_path):
    """a and c right, b wrong; ids are neither 0..n-1 nor in the order of the names."""
    mine = submission(tmp_path, {"a": 3, "b": 9, "c": 9})
    for content in ({"a": "ant", "b": "bee", "c": "cow"}, {"a": 3, "b": 5, "c": 9}, {"a": "ant", "b": 5, "c": "cow"}):
        scored = score_submission(mine, truth(tmp_path, "truth_cls.json", content), 1, ABC)
        assert scored.classification.accuracy.value == pytest.approx(2 / 3)
        assert scored.classification.confusion.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
        assert scored.retrieval == {} and scored.notes == []


def test_what_is_missing_or_no_class_is_wrong(tmp_path):
    mine = submission(tmp_path, {"a": 3, "b": "bee", "c": 4, "x": 3})
    scored = score_submission(mine, truth(tmp_path, "t.json", {"a": 3, "b": 5, "c": 9, "d": 9}), 1, ABC)
    assert scored.classification.accuracy.value == 1 / 4
    assert scored.classification.class_names[-1] == "(no answer)" and scored.classification.confusion[:, -1].tolist() == [0, 1, 2, 0]
    missing, extra, strange = scored.notes
    assert missing.startswith("1 queries have no answer") and extra.startswith("1 answers are to queries")
    assert strange.startswith("2 answers are no class id of abc")


def test_intervals_are_over_groups(tmp_path):
    mine = submission(tmp_path, dict.fromkeys("abcdefgh", 3))
    content = dict.fromkeys("abcd", 3) | dict.fromkeys("efgh", 5)
    alone = score_submission(mine, truth(tmp_path, "t.json", content), 1, ABC).classification
    grouped = score_submission(mine, truth(tmp_path, "t.json", content, dict(zip("abcdefgh", "11112222"))), 1, ABC).classification
    assert alone.groups is None and grouped.groups == list("11112222")
    # Of two groups, one all right and one all wrong, half of the resamples have an accuracy of 0 or 1.
    assert (grouped.accuracy.low, grouped.accuracy.high) == (0, 1)
    assert alone.accuracy.low > 0 and alone.accuracy.high < 1


def test_every_strange_class_is_listed(tmp_path):
    mine = submission(tmp_path, {"a": 3})
    with pytest.raises(DataError) as caught:
        score_submission(mine, truth(tmp_path, "t.json", {"a": "ant", "b": "antt", "c": "antt", "d": 4}), 1, ABC)
    assert list(caught.value.faults) == ["'antt', 2 times", "4, 1 time"] and "bee (5)" in caught.value.hint


# ---------------------------------------------------------------- tracks 2 and 3

# Two classes, two exams each; p and q are one exam.
LABELS = {"p": "ant", "q": "ant", "r": "ant", "s": "bee", "t": "bee"}
GROUPS = {"p": "1", "q": "1", "r": "2", "s": "3", "t": "4"}


def means(scores) -> dict[str, float]:
    return {name: interval.value for name, interval in scores.means.items() if not np.isnan(interval.value)}


def test_image_to_image_by_finding_and_by_class(tmp_path):
    truth(tmp_path, "truth_cls.json", LABELS)
    named = truth(tmp_path, "truth_i2i.json", {"p": "r", "r": "q", "s": "t"})
    ranked = {"p": ["s", "r", "q"], "r": ["q", "p", "s"], "s": ["p", "q", "r"]}
    scored = score_submission(submission(tmp_path, {q: row[0] for q, row in ranked.items()}, ranked), named, 2, ABC)
    assert set(scored.retrieval) == {"pair", "class"} and scored.notes == []
    # First right answers: p at 2, r at 1, s nowhere within 3.
    assert means(scored.retrieval["pair"]) == pytest.approx({"recall@1": 1 / 3, "mrr@3": (1 / 2 + 1 + 0) / 3})
    assert means(scored.retrieval["class"]) == pytest.approx({"recall@1": 1 / 3, "mrr@3": (1 / 2 + 1 + 0) / 3})


def test_own_group_answers_are_counted_and_masked(tmp_path):
    truth(tmp_path, "truth_cls.json", LABELS, GROUPS)
    named = truth(tmp_path, "truth_i2i.json", {"p": "r", "q": "p", "s": "t"})
    ranked = {"p": ["q", "r", "s"], "q": ["r", "p", "s"], "s": ["t", "p", "q"]}
    scored = score_submission(submission(tmp_path, {q: row[0] for q, row in ranked.items()}, ranked), named, 2, ABC)
    assert scored.notes[0].startswith("1 first answers are frames of the query's group")
    assert means(scored.retrieval["pair"]) == pytest.approx({"recall@1": 1 / 3, "mrr@3": (1 / 2 + 1 / 2 + 1) / 3})
    assert means(scored.retrieval["class"])["recall@1"] == 1
    # Masked, p's r moves to the first place, and q is left out: what the truth names is of its own exam.
    masked = scored.retrieval["pair, group masked"]
    assert means(masked)["recall@1"] == 1 and masked.n_without_relevant == 1
    by_class = scored.retrieval["class, group masked"]
    assert means(by_class)["recall@1"] == 1 and by_class.n_without_relevant == 0


@pytest.mark.parametrize("place", ["names", "dataset"])
def test_groups_are_those_of_the_images_wherever_they_are_told(tmp_path, place):
    """Without a groups.csv beside the truth: by the one of the dataset, or by the patient in the names."""
    exam = "202501020304050607"
    a, b, c = (f"9_{exam}_a.png", f"9_{exam}_b.png", f"8_{exam}_c.png") if place == "names" else "abc"
    test = tmp_path / "test"
    test.mkdir()
    if place == "dataset":
        (tmp_path / "groups.csv").write_text("image,group\nA,9\nb,9\nc,8\nold,9\n")
    named = truth(test, "truth_i2i.json", {a: c, b: c, c: a})
    ranked = {a: [b, c], b: [c, a], c: [a, b]}
    mine = submission(tmp_path, {query: row[0] for query, row in ranked.items()}, ranked)
    scored = score_submission(mine, named, 2, ABC, {}, tmp_path)
    assert scored.notes[0].startswith("1 first answers are frames of the query's group")
    assert means(scored.retrieval["pair"])["recall@1"] == pytest.approx(2 / 3)
    assert means(scored.retrieval["pair, group masked"])["recall@1"] == 1
    assert scored.retrieval["pair"].groups == ["9", "9", "8"]
    assert scored.chance == {"pair": 1 / 2}  # of three test images: training images in the groups are none
    classes = score_submission(submission(tmp_path, {a: 3, b: 3, c: 3}), truth(test, "t.json", {a: 3, b: 3, c: 5}), 1, ABC, None, tmp_path)
    assert classes.classification.groups == ["9", "9", "8"]
    if place == "dataset":
        elsewhere = score_submission(mine, named, 2, ABC, {}, test)
        assert set(elsewhere.retrieval) == {"pair"} and elsewhere.retrieval["pair"].groups is None


def test_queries_with_nothing_relevant_are_counted(tmp_path):
    """r has no finding, s shares none, and neither r nor s has a class: none of them vanishes, or counts as wrong."""
    (tmp_path / "groups.csv").write_text("image,group,text\np,1,spur\nq,2,Spur\nr,3,\ns,4,wax\n")
    truth(tmp_path, "truth_cls.json", {"p": "ant", "q": "ant"})
    named = truth(tmp_path, "truth_i2i.json", {"p": "q", "r": "p", "s": "p"})
    scored = score_submission(submission(tmp_path, {"p": "q", "r": "p", "s": "p"}), named, 2, ABC)
    for relevance in ("finding", "class"):
        found = scored.retrieval[relevance]
        assert means(found)["recall@1"] == 1 and found.n_without_relevant == 2
        assert scored.chance[relevance] == 1 / 3
    assert scored.retrieval["pair"].n_without_relevant == 0


def test_a_query_is_no_answer_to_itself(tmp_path):
    """Not even where the truth has its class; and a class of one image has no right answer."""
    named = truth(tmp_path, "truth_cls.json", {"p": "ant", "q": "ant", "s": "bee"})
    scored = score_submission(submission(tmp_path, {"p": "p", "q": "p", "s": "p"}), named, 2, ABC).retrieval["class"]
    assert means(scored)["recall@1"] == 1 / 2 and scored.n_without_relevant == 1


def test_classes_alone_leave_out_what_was_not_asked(tmp_path):
    """`truth_cls.json` names every test image, of which track 2 asks some."""
    named = truth(tmp_path, "truth_cls.json", LABELS)
    scored = score_submission(submission(tmp_path, {"p": "q", "s": "q"}), named, 2, ABC)
    assert set(scored.retrieval) == {"class"} and means(scored.retrieval["class"]) == {"recall@1": 1 / 2, "mrr@1": 1 / 2}
    assert not any("have no answer" in note for note in scored.notes)


def test_training_images_among_the_answers_have_the_labels_handed_in(tmp_path):
    named = truth(tmp_path, "truth_cls.json", {"p": "ant", "q": "ant"})
    mine = submission(tmp_path, {"p": "old.png", "q": "unknown.png"})
    scored = score_submission(mine, named, 2, ABC, {"old.png": "ant"})
    assert means(scored.retrieval["class"])["recall@1"] == 1 / 2
    assert "1 answers have no known class and count as wrong" in scored.notes


def test_labels_that_know_no_query_leave_the_finding_scores(tmp_path):
    named = truth(tmp_path, "truth_i2i.json", {"p": "r", "s": "t"})
    scored = score_submission(submission(tmp_path, {"p": "r", "s": "p"}), named, 2, ABC, {"old.png": "ant"})
    assert set(scored.retrieval) == {"pair"} and means(scored.retrieval["pair"])["recall@1"] == 1 / 2


def test_a_query_without_answer_is_a_miss(tmp_path):
    named = truth(tmp_path, "truth_i2i.json", {"p": "r", "s": "t"})
    # The list beside it may know more than was submitted: only the submission counts.
    scored = score_submission(submission(tmp_path, {"p": "r"}, {"p": ["r"], "s": ["t"]}), named, 2, ABC)
    assert means(scored.retrieval["pair"])["recall@1"] == 1 / 2
    assert scored.notes == ["1 queries have no answer and count as wrong"]


def test_a_ranked_list_of_another_submission_is_not_read(tmp_path):
    named = truth(tmp_path, "truth_i2i.json", {"p": "r"})
    scored = score_submission(submission(tmp_path, {"p": "s"}, {"p": ["t", "r"]}), named, 2, ABC)
    assert means(scored.retrieval["pair"]) == {"recall@1": 0, "mrr@1": 0}
    assert scored.notes == ["no ranked CSV lies beside the submission: only the first answers are scored"]


def test_text_to_image(tmp_path):
    """A text has class and exam of the image that the truth names; nothing is masked."""
    truth(tmp_path, "truth_cls.json", LABELS, GROUPS)
    named = truth(tmp_path, "truth_t2i.json", {"a spur": "p", "wax, left": "s"})
    ranked = {"a spur": ["q", "p"], "wax, left": ["p", "q"]}
    scored = score_submission(submission(tmp_path, {q: row[0] for q, row in ranked.items()}, ranked), named, 3, ABC)
    assert set(scored.retrieval) == {"pair", "class"} and scored.notes == []
    assert means(scored.retrieval["pair"]) == {"recall@1": 0, "mrr@2": 1 / 4}
    assert means(scored.retrieval["class"]) == {"recall@1": 1 / 2, "mrr@2": 1 / 2}
    assert scored.retrieval["class"].groups == ["1", "3"]


@pytest.mark.parametrize(
    "track, answers, content, said",
    [
        (1, {"p": "r"}, {"p": "ant"}, "no class ids"),
        (2, {"p": 3}, {"p": "r"}, "no file names"),
        (2, {"p": "r"}, {"p": 3}, "another track"),
        (2, {"p": "r"}, {"other": "r"}, "knows none"),
    ],
)
def test_another_track_is_refused_and_not_scored_as_wrong(tmp_path, track, answers, content, said):
    with pytest.raises(DataError, match=said):
        score_submission(submission(tmp_path, answers), truth(tmp_path, "t.json", content), track, ABC)


def test_findings_are_shared_through_the_texts_of_groups_csv(tmp_path):
    """Of a, b, c, d: a and b share a spur, c has mucus. Query texts: one of two images, one of one, one of none."""
    rows = [
        ("image", "group", "text_en", "text_vi"),
        ("a", "1", "Spur, mucus", ""),
        ("b", "2", "spur", "gai"),
        ("c", "3", "MUCUS", ""),
        ("d", "4", "", ""),
    ]
    with open(tmp_path / "groups.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    path = truth(tmp_path, "truth_t2i.json", {"spur": "a", "gai": "b", "wax": "d"})
    lists = {"spur": ["b", "a"], "gai": ["a", "b"], "wax": ["d", "a"]}
    scored = score_submission(submission(tmp_path, {q: row[0] for q, row in lists.items()}, lists), path, 3, ABC)
    assert means(scored.retrieval["pair"]) == pytest.approx({"recall@1": 1 / 3, "mrr@2": (1 / 2 + 1 / 2 + 1) / 3})
    assert means(scored.retrieval["finding"]) == pytest.approx({"recall@1": 1 / 2, "mrr@2": 3 / 4})
    assert scored.retrieval["finding"].n_without_relevant == 1  # "wax" is true of none
    assert scored.chance == pytest.approx({"pair": 1 / 4, "finding": (2 / 4 + 1 / 4) / 2})

    path = truth(tmp_path, "truth_i2i.json", {"a": "b", "b": "a"})
    lists = {"a": ["c", "b"], "b": ["c", "a"]}
    scored = score_submission(submission(tmp_path, {q: row[0] for q, row in lists.items()}, lists), path, 2, ABC)
    assert means(scored.retrieval["finding"]) == pytest.approx({"recall@1": 1 / 2, "mrr@2": 3 / 4})  # c shares mucus with a alone


def test_a_missing_answer_is_no_class_of_its_own(tmp_path):
    """Of two ants and two bees one bee has no answer: F1 is 1 and 2/3, and their mean is over two classes."""
    path = truth(tmp_path, "truth_cls.json", {"a": "ant", "b": "ant", "c": "bee", "d": "bee"})
    scored = score_submission(submission(tmp_path, {"a": 3, "b": 3, "c": 5}), path, 1, ABC).classification
    assert scored.accuracy.value == 3 / 4
    assert scored.macro_f1.value == pytest.approx((1 + 2 / 3) / 2)
