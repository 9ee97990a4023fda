from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrep_cli.data import splits
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import (
    allocate,
    make_split,
    read_catalog_and_split,
    read_split,
    split_command,
    split_groups,
    split_path,
    write_split,
)
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import DataError, RunError, UsageError
from tests.tiny import make_contest

# *Fusion at the Foregut*, Table 1 (combined) and Table 2 (train, val, test).
TABLE_1 = {"nose-left": 470, "nose-right": 453, "vc-open": 239, "vc-closed": 209, "ear-left": 178, "ear-right": 200, "throat": 108}
TABLE_2 = {
    "nose-left": [376, 47, 47],
    "nose-right": [362, 45, 46],
    "vc-open": [191, 24, 24],
    "vc-closed": [167, 21, 21],
    "ear-right": [160, 20, 20],
    "ear-left": [142, 18, 18],
    "throat": [87, 11, 10],
}


def catalog_of(labels: list[str], groups: list[str] | None = None) -> Catalog:
    """A catalog of images that are not there, one a label; without groups each stands for itself."""
    names = [f"{i:06}.png" for i in range(len(labels))]
    frame = pd.DataFrame({"image": names, "label": labels, "group": groups or names, "digest": names})
    known = set(labels) <= {*Taxonomy.entrep().names, ""}
    return Catalog(frame, Taxonomy.entrep() if known else Taxonomy.derive(set(labels)))


def counts(split, catalog) -> dict[str, list[int]]:
    return {name: list(row.values()) for name, row in split.counts(catalog).items()}


@st.composite
def grouped_catalogs(draw) -> Catalog:
    n = draw(st.integers(30, 120))
    labels = draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n))
    groups = draw(st.lists(st.integers(0, draw(st.integers(12, n))).map(str), min_size=n, max_size=n))
    return catalog_of(labels, groups)


# ---------------------------------------------------------------- how many go where


@pytest.mark.parametrize("seed", [0, 7])
def test_the_paper_s_table_2(seed):
    labels = [label for label, n in TABLE_1.items() for _ in range(n)]
    catalog = catalog_of(list(np.random.default_rng(seed).permutation(labels)))
    assert len(catalog) == 1857
    assert counts(make_split(catalog, ratios=(80, 10, 10), seed=seed), catalog) == TABLE_2


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=8), ratios=st.lists(st.integers(1, 90), min_size=2, max_size=6))
def test_allocation_is_whole_near_and_leaves_no_subset_out(counts, ratios):
    wanted = allocate(counts, ratios)
    exact = np.outer(np.array(ratios) / sum(ratios), counts)
    assert (wanted.sum(axis=0) == counts).all() and (wanted >= 0).all()
    large = exact.min(axis=0) >= 1
    # Parts are cut off one by one: what rounding leaves over adds up in the last.
    assert (np.abs(wanted - exact)[:, large] < len(ratios)).all()
    assert wanted[:, np.array(counts) >= len(ratios)].all()


def test_ratios_are_scaled_and_test_may_be_left_out():
    catalog = catalog_of(list("ab") * 50)
    assert counts(make_split(catalog, ratios=(0.6, 0.2, 0.2)), catalog) == {"a": [30, 10, 10], "b": [30, 10, 10]}
    assert counts(make_split(catalog, ratios=(90, 10, 0)), catalog) == {"a": [45, 5, 0], "b": [45, 5, 0]}


@pytest.mark.parametrize(
    "ratios", [(80, 20), (0, 50, 50), (80, 0, 20), (-80, 10, 10), (80, 10, 10, 10), (float("nan"), 1, 1), (float("inf"), 1, 1)]
)
def test_ratios_that_make_no_sense(ratios):
    with pytest.raises(UsageError):
        make_split(catalog_of(list("ab") * 50), ratios=ratios)


@pytest.mark.parametrize("folds", [-1, 1, 2])
def test_too_few_folds(folds):
    with pytest.raises(UsageError):
        make_split(catalog_of(list("ab") * 50), folds=folds)


def test_unlabelled_images_are_left_out():
    catalog = catalog_of(["throat", ""] * 20)
    assert set(make_split(catalog).assignment) == set(catalog.labelled.images)


# ---------------------------------------------------------------- groups


@settings(deadline=None, max_examples=60)
@given(catalog=grouped_catalogs(), folds=st.sampled_from([0, 3, 5]), seed=st.integers(0, 3), to_train=st.booleans())
def test_groups_never_straddle_and_each_image_stands_in_one_subset(catalog, folds, seed, to_train):
    try:
        split = make_split(catalog, folds=folds, seed=seed, small_to_train=to_train)
    except DataError as error:
        assert "too small" in error.what and (folds or not to_train)
        return
    assert sorted(split.assignment) == sorted(catalog.images)
    parts = {(group, split.assignment[image]) for image, group in zip(catalog.images, catalog.groups)}
    assert len(parts) == len(set(catalog.groups))
    if folds:
        for fold in range(folds):
            train, val, test = (split.images(subset, fold) for subset in ("train", "val", "test"))
            assert sorted(train + val + test) == sorted(catalog.images)
        assert sorted(image for fold in range(folds) for image in split.images("test", fold)) == sorted(catalog.images)


def deviation(catalog: Catalog, subset_of: dict[str, str], n_subsets: int) -> float:
    """Images that would have to move for every fold to have its share of every class."""
    found = Counter(zip(catalog.frame["label"], (subset_of[image] for image in catalog.images)))
    wanted = catalog.counts()
    return sum(abs(found[label, str(fold)] - wanted[label] / n_subsets) for label in wanted for fold in range(n_subsets)) / 2


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_grouped_folds_are_nearer_than_scikit_learn_s():
    from sklearn.model_selection import StratifiedGroupKFold

    ours, theirs = 0.0, 0.0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        sizes = np.minimum(rng.pareto(1.5, 120) + 0.3, 8)
        groups = rng.choice(120, 600, p=sizes / sizes.sum())
        of_group = rng.choice(7, 120, p=np.array([25, 22, 12, 11, 13, 11, 6]) / 100)
        labels = np.where(rng.random(600) < 0.2, rng.integers(0, 7, 600), of_group[groups])
        catalog = catalog_of([f"c{label}" for label in labels], [str(group) for group in groups])
        ours += deviation(catalog, make_split(catalog, folds=5, seed=seed).assignment, 5)
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        theirs += deviation(catalog, {catalog.images[i]: str(k) for k, (_, test) in enumerate(folds) for i in test}, 5)
    assert ours < 0.95 * theirs


def test_every_class_stands_in_every_subset_where_its_groups_allow():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sizes = np.minimum(rng.pareto(1.5, 40) + 0.3, 12)
        groups = rng.choice(40, 90, p=sizes / sizes.sum())
        labels = rng.choice(4, 40, p=[0.4, 0.3, 0.2, 0.1])[groups]
        catalog = catalog_of([f"c{label}" for label in labels], [str(group) for group in groups])
        try:
            split = make_split(catalog, seed=seed)
        except DataError:
            continue  # a class of one or two groups
        assert np.array(list(counts(split, catalog).values())).all()


def test_many_groups_are_placed_exactly():
    rng = np.random.default_rng(0)
    targets, groups = rng.integers(0, 7, 20_000), rng.integers(0, 6_000, 20_000)
    wanted = allocate(np.bincount(targets), (80, 10, 10))
    subset_of = splits._assign(targets, groups, wanted, np.zeros(20_000, dtype=bool), seed=0)
    found = np.zeros_like(wanted)
    np.add.at(found, (subset_of, targets), 1)
    assert (found == wanted).all()


# ---------------------------------------------------------------- small classes

SMALL = ["a"] * 40 + ["b"] * 40 + ["c"] * 2 + ["d"]


def test_a_class_too_small_is_named():
    with pytest.raises(DataError) as error:
        make_split(catalog_of(SMALL))
    assert list(error.value.faults) == ["c: 2 images in 2 groups", "d: 1 image in 1 group"]
    assert error.value.what == "2 classes are too small to stand in 3 subsets." and "--small-to-train" in error.value.hint


def test_what_counts_is_the_groups_not_the_images():
    groups = [str(i) for i in range(80)] + ["c", "c", "c"]
    with pytest.raises(DataError, match="1 class is too small") as error:
        make_split(catalog_of(["a"] * 40 + ["b"] * 40 + ["c"] * 3, groups))
    assert list(error.value.faults) == ["c: 3 images in 1 group"]


def test_small_classes_can_stay_in_train():
    catalog = catalog_of(SMALL)
    assert counts(make_split(catalog, small_to_train=True), catalog) == {"a": [32, 4, 4], "b": [32, 4, 4], "c": [2, 0, 0], "d": [1, 0, 0]}


def test_small_classes_bring_their_groups_to_train():
    # Each image of `c` and `d` shares its exam with twenty of `a`: more than train would have.
    labels = ["a"] * 90 + ["c", "c", "d", "d"]
    groups = [f"exam {i // 20}" if i < 80 else str(i) for i in range(90)] + [f"exam {i}" for i in range(4)]
    catalog = catalog_of(labels, groups)
    split = make_split(catalog, ratios=(50, 25, 25), small_to_train=True)
    assert counts(split, catalog) == {"a": [80, 5, 5], "c": [2, 0, 0], "d": [2, 0, 0]}
    train = {group for image, group in zip(catalog.images, groups) if split.assignment[image] == "train"}
    assert train == {f"exam {i}" for i in range(4)}


def test_folds_have_no_train_to_keep_small_classes_in():
    with pytest.raises(DataError) as error:
        make_split(catalog_of(["a"] * 40 + ["b"] * 4), folds=5, small_to_train=True)
    assert "the smallest class allows 4" in error.value.hint and "--small" not in error.value.hint


# ---------------------------------------------------------------- seeds and files


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    make_contest(tmp_path / "data", per_class=12, groups=2, size=(8, 6))
    return Catalog.read(tmp_path / "data")


@pytest.mark.parametrize("folds", [0, 4])
def test_same_seed_same_bytes(catalog, folds):
    def written(seed: int) -> tuple[bytes, bytes]:
        path = write_split(make_split(catalog, folds=folds, seed=seed))
        return path.read_bytes(), path.with_suffix(".json").read_bytes()

    first = written(0)
    assert written(1)[0] != first[0] and written(0) == first
    assert first[0].startswith(b"image,fold\n" if folds else b"image,part\n") and b"\r" not in first[0]


def test_a_split_survives_the_disk(catalog, tmp_path):
    for folds in (0, 4):
        split = make_split(catalog, folds=folds, seed=3, ratios=(70, 20, 10))
        write_split(split)
        assert read_split(catalog) == split
        again, found = read_catalog_and_split(tmp_path / "data")
        assert found == split and again.fingerprint == catalog.fingerprint


def test_names_with_commas_quotes_and_formulas_survive_the_disk():
    labels = ["throat"] * 12
    frame = catalog_of(labels).frame
    frame["image"] = [f"{mark}{i}.png" for i in range(3) for mark in ("a,", 'q"', "=1+", " b ")]
    split = make_split(Catalog(frame, Taxonomy.entrep()))
    write_split(split)
    assert read_split(Catalog(frame, Taxonomy.entrep())) == split


def test_no_split_an_edited_one_and_a_damaged_one_are_refused(catalog):
    with pytest.raises(RunError, match="No split was made yet"):
        read_split(catalog)
    write_split(make_split(catalog))
    text = split_path().read_text()
    split_path().write_text(text.replace(",val", ",train", 1))
    with pytest.raises(RunError, match="changed after it was made"):
        read_split(catalog)
    split_path().write_text(text)
    for content in ("", "[]", '{"seed": 0}', "3"):
        split_path().with_suffix(".json").write_text(content)
        with pytest.raises(RunError, match="damaged"):
            read_split(catalog)


def test_a_split_of_an_older_entrep_is_refused_with_the_command_that_makes_it_again(catalog, tmp_path):
    path = write_split(make_split(catalog, folds=4, seed=3), tmp_path / "data").with_suffix(".json")
    made = json.loads(path.read_text())
    assert made.pop("schema") == 2
    path.write_text(json.dumps(made))
    for read in (lambda: read_split(catalog), lambda: read_catalog_and_split(tmp_path / "data")):
        with pytest.raises(RunError, match="was made by an older entrep") as caught:
            read()
        assert f"`entrep split --folds 4 --seed 3 --data {tmp_path / 'data'}`" in caught.value.hint


def test_a_split_of_other_data_is_refused(catalog, tmp_path):
    write_split(make_split(catalog))
    with pytest.raises(RunError, match="labels, groups or pixels changed"):
        read_split(Catalog.read(tmp_path / "data", groups="none"))
    make_contest(tmp_path / "other", per_class=13, groups=2, size=(8, 6))
    with pytest.raises(RunError, match="0 of its images are gone, 7 are new"):
        read_split(Catalog.read(tmp_path / "other"))


def test_subsets_and_folds_are_asked_for_rightly(catalog):
    split, folded = make_split(catalog), make_split(catalog, folds=4)
    assert split.subsets == ["train", "val", "test"] and folded.subsets == ["0", "1", "2", "3"]
    assert folded.images("val", 3) == folded.images("test", 0)
    for wrong in (lambda: split.images("train", 0), lambda: folded.images("train"), lambda: folded.images("train", 4)):
        with pytest.raises(UsageError):
            wrong()


def test_the_description_says_how_it_was_made(catalog):
    path = write_split(make_split(catalog, seed=5))
    made = json.loads(path.with_suffix(".json").read_text())
    assert (made["seed"], made["ratios"], made["folds"], made["groups"]) == (5, [80, 10, 10], 0, "auto")
    assert made["catalog"] == catalog.fingerprint and made["small_to_train"] is False


@pytest.mark.parametrize(
    ("settings", "groups", "command"),
    [
        ({}, "auto", "entrep split --ratios 80/10/10 --seed 0"),
        ({"folds": 4, "seed": 3}, "exam", "entrep split --folds 4 --seed 3 --groups exam"),
        ({"ratios": (0.7, 33.333333333, 0)}, r"^(\w+)_", r"entrep split --ratios 0.7/33.333333333/0 --seed 0 --groups '^(\w+)_'"),
        ({"small_to_train": True}, "none", "entrep split --ratios 80/10/10 --seed 0 --groups none --small-to-train"),
    ],
)
def test_the_command_that_makes_a_split_again(catalog, tmp_path, settings, groups, command):
    split = make_split(Catalog.read(tmp_path / "data", groups=groups), **settings)
    path = write_split(split)
    made = json.loads(path.with_suffix(".json").read_text())
    assert split_command(made) == command
    assert split_command(made, tmp_path / "my data").startswith(f"{command.removesuffix(' --small-to-train')} --data '{tmp_path}/my data'")
    assert read_split(Catalog.read(tmp_path / "data", groups=groups)) == split


def test_names_tell_groups_as_the_split_of_that_dataset_says(catalog, tmp_path):
    root, pattern = tmp_path / "data", r"^(\w+)_"
    assert split_groups(root) == "auto"
    write_split(make_split(Catalog.read(root, groups="exam")), root)
    assert split_groups(root) == "auto"
    write_split(make_split(Catalog.read(root, groups=pattern)), root)
    assert split_groups(root) == pattern and split_groups(tmp_path) == "auto"
    assert read_catalog_and_split(root)[0].group_rule == pattern
