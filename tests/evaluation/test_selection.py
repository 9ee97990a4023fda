"""What validation chooses: from the validation images of a run alone, written into the run, and chosen again where that is stale."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.splits import Split, make_split
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation import selection as module
from entrep_cli.evaluation.selection import WEIGHTS, ClassWeight, Selection, select, temperature_on, tune_refinement, tune_weight
from entrep_cli.methods.base import Inference
from entrep_cli.retrieval.class_aware import ClassRule
from entrep_cli.retrieval.embeddings import embed_items, embedded_sets, embeddings_of
from entrep_cli.retrieval.ranking import Exclusions
from entrep_cli.retrieval.refinement import Refinement, Reranking
from entrep_cli.retrieval.sets import TRAIN, catalog_items
from entrep_cli.workspace import Run
from tests.finders import Fake
from tests.retrieval.test_class_aware import naive, one_hot, shares, unit_rows
from tests.tiny import make_contest

EACH = [{"temperature": True}, {"class_aware": "soft"}, {"refine": ("whiten", "qe")}]
OPTIONS = ["--calibrate", "--class-weight", "--refine"]
GONE = Path("no such folder")  # where a dataset that must not be read would be read from


class Brightness(Fake):
    """Nothing but light and dark is embedded; the colour tells the class, imperfectly."""

    def __init__(self, taxonomy) -> None:
        super().__init__(taxonomy, Preprocess(8), batch_size=4)
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def infer(self, pixels):
        self.seen.append(len(pixels))
        colour = pixels.float().mean(dim=(2, 3)) / 255
        embedding = torch.stack([colour.sum(dim=1), torch.ones(len(colour))], dim=1)
        weights = torch.linspace(-9, 9, 3 * len(self.taxonomy)).view(3, -1)
        return Inference(nn.functional.normalize(embedding, dim=1), (colour @ weights).softmax(dim=1))


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    return Catalog.read(make_contest(tmp_path / "data", per_class=12, classes=("nose-left", "nose-right", "throat"), groups=2).root)


@pytest.fixture
def split(catalog) -> Split:
    return make_split(catalog, ratios=(1, 1, 1))


@pytest.fixture
def model(catalog) -> Brightness:
    return Brightness(catalog.taxonomy)


@pytest.fixture
def run(tmp_path, catalog, split) -> Run:
    return completed(tmp_path / "runs" / "r", catalog, split)


def completed(folder: Path, catalog: Catalog, split: Split, weights: bytes = b"weights", **made) -> Run:
    run = Run(folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.path("model.safetensors").write_bytes(weights)
    file = run.path("selection.json")
    hidden = file.rename(folder.parent / "hidden") if file.exists() else None  # what is made with a model is none of its files
    trained_on = {"data": {"catalog": catalog.fingerprint}, "split": {"fingerprint": split.fingerprint, "fold": None, **made}}
    run.mark_complete({"taxonomy": catalog.taxonomy.as_dict(), **trained_on})
    if hidden:
        hidden.rename(file)
    return run


def by_hand(model: Brightness, val: Catalog, train: Catalog, flip: bool = False) -> Selection:
    """Every choice, from the images themselves."""
    embeddings, training = (embed_items(model, catalog_items(images), flip=flip) for images in (val, train))
    exclude: Exclusions = [(keys, keys) for keys in (val.images, val.digests, val.groups)]
    labels, plain = val.frame["label"], embed_items(model, catalog_items(val))
    weight = tune_weight(plain.vectors, plain.probabilities, labels, exclude)
    refinement = tune_refinement(("whiten", "qe"), training.vectors, embeddings.vectors, labels, exclude)
    return Selection(ClassRule("soft", weight.value), temperature_on(embeddings.probabilities, val.targets), weight, refinement)


def same(one: Selection, other: Selection) -> bool:
    """A whitening holds arrays, which have no single truth value."""
    return one == replace(other, refinement=one.refinement) and plain(one.refinement) == plain(other.refinement)


def plain(choice) -> dict | None:
    return None if choice is None else choice.as_dict()


def test_each_choice_is_what_the_validation_images_give_and_is_written_for_the_next(run, model, catalog, split):
    val, train = (catalog.subset(split.images(name)) for name in ("val", "train"))
    chosen = select(run, model, (catalog, split), temperature=True, class_aware="soft")
    assert sum(model.seen) == len(val) == chosen.temperature.images  # no other image was looked at
    assert chosen.temperature.nll_calibrated <= chosen.temperature.nll + 1e-3
    assert 0 < chosen.class_weight.queries <= len(val) and chosen.class_weight.after >= chosen.class_weight.before
    everything = {key: value for kind in EACH for key, value in kind.items()}
    for flip in (False, True):
        chosen = select(run, model, (catalog, split), **everything, flip=flip)
        assert same(chosen, by_hand(model, val, train, flip))
    assert chosen.temperature != select(run, model, GONE, temperature=True).temperature
    count = len(model.seen)
    assert select(run, model, GONE, temperature=True, class_aware="soft", flip=True) == replace(chosen, refinement=None)
    assert len(model.seen) == count
    assert json.loads(run.path("selection.json").read_text())["class_weight"]["tried"][0]["weight"] == 0
    run.check_files()  # it is no file of the model
    assert select(run, model, GONE) == Selection() and select(run, model, GONE, class_aware="hard").rule == ClassRule("hard")


def test_a_refinement_without_whitening_needs_no_dataset_again_and_one_with_it_learns_it_again(run, model, catalog, split):
    chosen = select(run, model, (catalog, split), refine=("qe", "dba"))
    assert select(run, model, GONE, refine=("dba", "qe")) == chosen
    select(run, model, (catalog, split), refine=("whiten",))
    stored = json.loads(run.path("selection.json").read_text())
    stored["refinement whiten"] |= {"whiten": 1, "rerank": {"k1": 3, "k2": 2, "weight": 0.5}}
    run.path("selection.json").write_text(json.dumps(stored))
    again = select(run, model, (catalog, split), refine=("whiten",)).refinement.value
    training = embed_items(model, catalog_items(catalog.subset(split.images("train")))).vectors
    assert np.array_equal(again.whiten.projection, module.Whitening.learn(training, 1).projection)
    assert again.rerank == Reranking(3, 2, 0.5) and again.expand is None


def test_a_given_weight_is_taken_and_said(run, model):
    given = select(run, model, GONE, class_aware="soft", class_weight=0.3)
    assert given.rule == ClassRule("soft", 0.3) and given.sentences == ["Class-aware: weight 0.3 (as given)."]
    assert given.class_aware == {"mode": "soft", "weight": 0.3, "validation": None}
    assert select(run, model, GONE).class_aware == {"mode": "off", "weight": None, "validation": None}
    with pytest.raises(UsageError, match="'witen'"):
        select(run, model, GONE, refine=("witen",))


def test_of_folds_it_is_the_validation_fold_of_the_run(tmp_path, model, catalog):
    """The fold after the one that was left out; another run of the same split has another."""
    folds = make_split(catalog, folds=3)
    for fold in (0, 2):
        run = completed(tmp_path / "runs" / f"fold-{fold}", catalog, folds, fold=fold)
        chosen = select(run, model, (catalog, folds), class_aware="soft")
        val = catalog.subset([image for image, name in folds.assignment.items() if name == str((fold + 1) % 3)])
        assert chosen.class_weight == by_hand(model, val, val).class_weight


def test_no_set_is_added_to_the_run(run, model, catalog, split):
    """Else its index would be older than its embeddings; where the training images are embedded already, they serve."""
    chosen = select(run, model, (catalog, split), class_aware="soft").class_weight
    assert embedded_sets(run) == []
    run.path("selection.json").unlink()
    embeddings_of(run, TRAIN, catalog_items(catalog), model)
    count = sum(model.seen)
    again = select(run, model, (catalog, split), class_aware="soft").class_weight
    assert sum(model.seen) == count
    assert again.value == chosen.value and np.allclose(again.tried, chosen.tried)


def test_it_is_chosen_again_for_another_model_split_or_list_of_candidates(run, model, catalog, split, monkeypatch):
    reads = []

    def chosen(run_: Run, model_=model, split_=split) -> int:
        monkeypatch.setattr(module, "read_catalog_and_split", lambda root: reads.append(root) or (catalog, split_))
        for choice in EACH[:2]:
            select(run_, model_, catalog.root, **choice)
        return len(reads)

    assert chosen(run) == chosen(run) == 2
    assert chosen(completed(run.folder, catalog, split, b"other weights")) == 4
    run.path("metrics.csv").write_text("epoch\n1\n")
    assert chosen(completed(run.folder, catalog, split, b"other weights")) == 4  # the log of a training is no model
    other = Brightness(catalog.taxonomy)
    other.preprocess = Preprocess(16)
    assert chosen(run, other) == 6
    moved = replace(split, assignment={image: {"val": "test", "test": "val"}.get(name, name) for image, name in split.assignment.items()})
    assert chosen(completed(run.folder, catalog, moved, b"other weights"), split_=moved) == 8
    monkeypatch.setattr(module, "WEIGHTS", (0.0, 3.0))
    assert chosen(run, split_=moved) == 10


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1}', '{"key": ', "null"])
def test_a_damaged_file_is_chosen_again(run, model, catalog, split, content):
    chosen = [select(run, model, (catalog, split), **choice) for choice in EACH]
    stored = json.loads(run.path("selection.json").read_text())
    damaged = {"class_weight": {"weight": 77}, "temperature": {"value": -1}, "refinement whiten,qe": {"qe": {"n": 0, "power": 0}}}
    for text in (content, json.dumps(stored | {name: stored[name] | change for name, change in damaged.items()})):
        run.path("selection.json").write_text(text)
        assert all(same(select(run, model, (catalog, split), **choice), one) for choice, one in zip(EACH, chosen))


@pytest.mark.parametrize("choice, option", list(zip(EACH, OPTIONS)), ids=OPTIONS)
def test_what_is_not_available_or_of_another_run_names_the_option(tmp_path, run, model, catalog, split, choice, option):
    moved = replace(split, assignment=dict.fromkeys(split.assignment, "val"))
    folds = make_split(catalog, folds=3)
    bare = Run(run.folder.parent / "bare")
    bare.folder.mkdir()
    bare.path("model.safetensors").write_bytes(b"x")
    bare.mark_complete({})  # of no split, as an ensemble may be
    whole = completed(tmp_path / "runs" / "folds", catalog, folds, folds=3)
    cases = [(run, GONE, "dataset"), (run, (catalog, moved), "not the one the run was trained with")]
    cases += [(bare, (catalog, split), "not the one"), (whole, (catalog, folds), "every fold")]
    for run_, dataset, said in cases:
        with pytest.raises(RunError, match=said) as caught:
            select(run_, model, dataset, **choice)
        assert option in caught.value.hint and not run_.path("selection.json").exists()


def test_a_validation_split_that_is_empty_or_has_nothing_to_retrieve(tmp_path, model, catalog, split):
    val = split.images("val")
    first = {label: image for image, label in zip(catalog.images, catalog.frame["label"]) if image in val}
    lonely = replace(split, assignment={i: "val" if i in first.values() else "train" for i in catalog.images})
    run = completed(tmp_path / "runs" / "lonely", catalog, lonely)
    for choice, option in zip(EACH[1:], OPTIONS[1:]):
        with pytest.raises(RunError, match="No validation image has another") as caught:
            select(run, model, (catalog, lonely), **choice)
        assert option in caught.value.hint
    empty = replace(split, assignment=dict.fromkeys(split.assignment, "train"))
    with pytest.raises(RunError, match="cannot be calibrated: the val split is empty"):
        select(completed(tmp_path / "runs" / "empty", catalog, empty), model, (catalog, empty), temperature=True)


def test_in_a_folder_that_may_not_be_written_to_it_is_chosen_all_the_same(run, model, catalog, split, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "write_json_atomic", refuse)
    assert select(run, model, (catalog, split), class_aware="soft").class_weight.queries > 0


def test_a_model_of_regions_is_tuned_by_regions(tmp_path, catalog, split):
    regions = catalog.of_target("region")
    model = Brightness(regions.taxonomy)
    model.recipe.target = "region"
    chosen = select(completed(tmp_path / "runs" / "coarse", catalog, split), model, (catalog, split), class_aware="soft")
    val = regions.subset(split.images("val"))
    assert chosen.class_weight == by_hand(model, val, val).class_weight
    assert set(val.frame["label"]) == {"nose", "throat"}


# ---------------------------------------------------------------- the temperature


def test_images_of_one_class_leave_the_probabilities_as_they_are():
    chosen = temperature_on(np.array([[0.7, 0.3], [0.6, 0.4]]), np.array([0, 0]))
    assert chosen.value == 1 and chosen.nll == pytest.approx(chosen.nll_calibrated)


# ---------------------------------------------------------------- the class weight


def circle(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def naive_scores(vectors, probabilities, labels, exclude, weight: float) -> tuple[float, float]:
    rows, _, _ = naive(ClassRule("soft", weight), vectors, vectors, probabilities, probabilities, exclude)
    first = [next((r for r, j in enumerate(row, 1) if labels[j] == labels[i]), None) for i, row in enumerate(rows)]
    first = [r for r in first if r]
    return sum(r == 1 for r in first) / len(first), sum(1 / r for r in first) / len(first)


@pytest.mark.parametrize("seed", range(4))
def test_the_weight_is_the_best_by_recall_then_mrr_then_the_smallest(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 24)
    vectors = unit_rows(24, 4, seed)
    probabilities = 0.6 * one_hot(labels.tolist()) + 0.4 * shares(24, 3, seed)
    exams = [f"exam {i // 2}" for i in range(24)]
    exclude = [(range(24), range(24)), (exams, exams)]
    tuned = tune_weight(vectors, probabilities, [f"class {c}" for c in labels], exclude)
    expected = [(w, *naive_scores(vectors, probabilities, labels, exclude, w)) for w in WEIGHTS]
    assert [row[:2] for row in tuned.tried] == [row[:2] for row in expected]
    assert [row[2] for row in tuned.tried] == pytest.approx([row[2] for row in expected])
    best = max((recall, round(mrr, 9)) for _, recall, mrr in expected)
    assert tuned.value == min(w for w, recall, mrr in expected if (recall, round(mrr, 9)) == best)
    assert tuned.before == tuned.tried[0][1:] and tuned.after == max(row[1:] for row in tuned.tried)
    assert ClassWeight.from_dict(tuned.as_dict()) == tuned


def test_the_smallest_of_equal_weights_wins():
    """On the circle, the other class is the nearer neighbour; a small bonus turns it, and larger ones do no better."""
    vectors, labels = circle(0, 10, 20, 30), list("abab")
    sure = one_hot("0101", 2)
    exclude = [(range(4), range(4))]
    tuned = tune_weight(vectors, sure, labels, exclude)
    assert tuned.queries == 4 and tuned.before[0] == 0 and tuned.after == (1, 1)
    assert tuned.value == next(w for w, recall, _ in tuned.tried if recall == 1) == 0.005
    # Where the classes that the model sees say nothing, no weight changes anything, and 0 stands.
    assert tune_weight(vectors, np.full((4, 2), 0.5, np.float32), labels, exclude).value == 0
    # Where they mislead, too.
    misled = tune_weight(circle(0, 1, 90, 91), one_hot("0101", 2), list("aabb"), exclude)
    assert misled.value == 0 and "no weight does better: the cosine decides alone" in str(misled)


def test_0_is_always_tried_and_groups_of_the_query_do_not_count():
    vectors, labels, exams = circle(0, 1, 50, 90), list("aaab"), list("1123")
    exclude = [(range(4), range(4)), (exams, exams)]
    tuned = tune_weight(vectors, one_hot("0001", 2), labels, exclude, weights=[0.3])
    assert [row[0] for row in tuned.tried] == [0, 0.3]
    assert tuned.queries == 3  # b has no other of its class
    with pytest.raises(RunError, match="No validation image"):
        tune_weight(vectors, one_hot("0001", 2), list("abcd"), exclude)


def test_few_images_are_warned_about_and_a_table_that_is_none_is_refused():
    tuned = ClassWeight(0.1, 5, ((0.0, 0.2, 0.3), (0.1, 0.4, 0.5)))
    assert "chosen on 5 validation images alone" in Selection(class_weight=tuned).warnings[0]
    assert (
        not Selection(class_weight=replace(tuned, queries=30)).warnings and not Selection(class_weight=replace(tuned, value=0.0)).warnings
    )
    for change in ({"weight": 0.7}, {"tried": []}, {"tried": [{"weight": 1}]}, {"queries": None}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            ClassWeight.from_dict(tuned.as_dict() | change)


# ---------------------------------------------------------------- the refinement


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ in a direction of small variance, beside four of great variance that say nothing."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    rows = np.concatenate([rng.normal(0, 2, (n, 4)), 0.4 * (2 * labels[:, None] - 1) + rng.normal(0, 0.1, (n, 1)), np.full((n, 1), 8.0)], 1)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels.astype(str)


def test_whitening_is_chosen_where_it_helps_and_nothing_where_nothing_does():
    vectors, labels = clusters(60, 0)
    itself = [(np.arange(60).astype(str), np.arange(60).astype(str))]
    tuned = tune_refinement(("whiten",), clusters(80, 1)[0], vectors, labels, itself)
    assert tuned.value.whiten is not None and tuned.after > tuned.before and tuned.queries == 60
    # Told apart without a mistake already.
    easy = np.eye(2, dtype=np.float32)[np.arange(10) % 2]
    tuned = tune_refinement(("dba", "qe", "rerank"), easy, easy, (np.arange(10) % 2).astype(str), [(np.arange(10).astype(str),) * 2])
    assert tuned.value == Refinement() and tuned.before == tuned.after == (1.0, 1.0)
    assert tuned.as_dict()["qe"] is None and "Refined by nothing" in str(tuned) and "no setting does better" in str(tuned)


def test_faulty_steps_and_validation_without_anything_to_retrieve():
    vectors = unit_rows(3, 5)
    with pytest.raises(UsageError, match="'witen'"):
        tune_refinement(("witen",), vectors, vectors, ["a", "a", "b"])
    with pytest.raises(UsageError, match="No refinement"):
        tune_refinement((), vectors, vectors, ["a", "a", "b"])
    with pytest.raises(RunError, match="No validation image"):
        tune_refinement(("qe",), vectors, vectors, ["a", "b", "c"], [(["1", "2", "3"],) * 2])
