"""The tuned weight of a run: from its validation part alone, kept, and tuned again where it is stale."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.splits import make_split
from entrep_cli.errors import DataError, RunError
from entrep_cli.methods.dinov2 import of_target
from entrep_cli.retrieval import class_weight, validation
from entrep_cli.retrieval.class_aware import tune_weight
from entrep_cli.retrieval.class_weight import tuned_weight
from entrep_cli.retrieval.embeddings import embed_items, embedded_sets, embeddings_of
from entrep_cli.retrieval.sets import TRAIN, catalog_items
from entrep_cli.workspace import Run
from tests.tiny import make_contest


class Brightness(nn.Module):
    """Nothing but light and dark is embedded; the colour tells the class, imperfectly."""

    def __init__(self, taxonomy) -> None:
        super().__init__()
        self.taxonomy, self.preprocess = taxonomy, Preprocess(8)
        self.recipe = type("R", (), {"batch_size": 4})()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def infer(self, pixels):
        self.seen.append(len(pixels))
        colour = pixels.float().mean(dim=(2, 3)) / 255
        embedding = torch.stack([colour.sum(dim=1), torch.ones(len(colour))], dim=1)
        weights = torch.linspace(-9, 9, 3 * len(self.taxonomy)).view(3, -1)
        return nn.functional.normalize(embedding, dim=1), (colour @ weights).softmax(dim=1)


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    return Catalog.read(make_contest(tmp_path / "data", per_class=12, classes=("nose-left", "nose-right", "throat"), groups=2).root)


@pytest.fixture
def split(catalog):
    return make_split(catalog, ratios=(1, 1, 1))


@pytest.fixture
def model(catalog) -> Brightness:
    return Brightness(catalog.taxonomy)


@pytest.fixture
def run(tmp_path, catalog, split) -> Run:
    return completed(tmp_path / "runs" / "r", catalog, split)


def completed(folder, catalog, split, weights: bytes = b"weights", fold: int | None = None) -> Run:
    run = Run(folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.path("model.safetensors").write_bytes(weights)
    made = {"data": {"catalog": catalog.fingerprint}, "split": {"fingerprint": split.fingerprint, "fold": fold}}
    kept = run.path("class_aware.json")
    hidden = kept.rename(folder.parent / "kept") if kept.exists() else None  # what is made with a model is none of its files
    run.mark_complete({"taxonomy": catalog.taxonomy.as_dict(), **made})
    if hidden:
        hidden.rename(kept)
    return run


def never():
    raise AssertionError("the dataset was read")


def test_it_is_what_the_validation_part_gives(run, model, catalog, split):
    tuned = tuned_weight(run, model, lambda: (catalog, split))
    val = catalog.subset(split.images("val"))
    seen = embed_items(model, catalog_items(val))
    exclude = [(keys, keys) for keys in (val.images, val.digests, val.groups)]
    assert tuned == tune_weight(seen.vectors, seen.probabilities, val.frame["label"], exclude)
    assert 0 < tuned.queries <= len(val) and tuned.after >= tuned.before
    assert set(model.seen) and sum(model.seen) == 2 * len(val)  # nothing but the validation images was looked at


def test_of_folds_it_is_the_validation_fold_of_the_run(tmp_path, model, catalog):
    """The fold after the one that was left out; another run of the same split has another."""
    folds = make_split(catalog, folds=3)
    for fold in (0, 2):
        run = completed(tmp_path / "runs" / f"fold-{fold}", catalog, folds, fold=fold)
        tuned = tuned_weight(run, model, lambda: (catalog, folds))
        val = catalog.subset([image for image, part in folds.assignment.items() if part == str((fold + 1) % 3)])
        seen = embed_items(model, catalog_items(val))
        exclude = [(keys, keys) for keys in (val.images, val.digests, val.groups)]
        assert tuned == tune_weight(seen.vectors, seen.probabilities, val.frame["label"], exclude)


def test_it_is_kept_and_the_dataset_not_read_again(run, model, catalog, split):
    tuned = tuned_weight(run, model, lambda: (catalog, split))
    seen = list(model.seen)
    assert tuned_weight(run, model, never) == tuned and model.seen == seen
    kept = json.loads(run.path("class_aware.json").read_text())
    assert kept["weight"] == tuned.weight and kept["tried"][0]["weight"] == 0
    run.check_files()  # it is no part of the model


def test_no_set_is_added_to_the_run(run, model, catalog, split):
    """Else its index would be older than its embeddings; where the training images are embedded already, they serve."""
    tuned = tuned_weight(run, model, lambda: (catalog, split))
    assert embedded_sets(run) == []
    run.path("class_aware.json").unlink()
    embeddings_of(run, TRAIN, catalog_items(catalog), model)
    n_seen = sum(model.seen)
    again = tuned_weight(run, model, lambda: (catalog, split))
    assert sum(model.seen) == n_seen
    assert again.weight == tuned.weight and np.allclose(again.tried, tuned.tried)


def test_it_is_tuned_again_for_another_model_split_or_list_of_weights(run, model, catalog, split, monkeypatch):
    read = []

    def tell():
        read.append(1)
        return catalog, split

    def tune(run_, model_=model) -> int:
        tuned_weight(run_, model_, tell)
        return len(read)

    assert tune(run) == tune(run) == 1
    assert tune(completed(run.folder, catalog, split, b"other weights")) == 2
    run.path("metrics.csv").write_text("epoch\n1\n")
    assert tune(completed(run.folder, catalog, split, b"other weights")) == 2  # the log of a training is no model
    other = Brightness(catalog.taxonomy)
    other.preprocess = Preprocess(16)
    assert tune(run, other) == 3
    moved = replace(split, assignment={image: {"val": "test", "test": "val"}.get(part, part) for image, part in split.assignment.items()})
    read.clear()
    tuned_weight(completed(run.folder, catalog, moved, b"other weights"), model, lambda: tell() and (catalog, moved))
    assert len(read) == 1
    monkeypatch.setattr(class_weight, "WEIGHTS", (0.0, 3.0))
    tuned_weight(run, model, lambda: tell() and (catalog, moved))
    assert len(read) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1}', "null"])
def test_a_damaged_file_is_tuned_again(run, model, catalog, split, content):
    tuned = tuned_weight(run, model, lambda: (catalog, split))
    run.path("class_aware.json").write_text(content)
    assert tuned_weight(run, model, lambda: (catalog, split)) == tuned
    kept = json.loads(run.path("class_aware.json").read_text())
    run.path("class_aware.json").write_text(json.dumps(kept | {"weight": 77}))
    assert tuned_weight(run, model, lambda: (catalog, split)) == tuned


def test_what_is_not_at_hand_or_not_its_own_names_the_option(run, model, catalog, split):
    def gone():
        raise DataError("There is no dataset folder.", where="nowhere")

    moved = replace(split, assignment=dict.fromkeys(split.assignment, "val"))
    for read, said in ((gone, "no dataset folder"), (lambda: (catalog, moved), "not the one the run was trained with")):
        with pytest.raises(RunError, match=said) as caught:
            tuned_weight(run, model, read)
        assert "--class-weight" in caught.value.hint and not run.path("class_aware.json").exists()
    bare = Run(run.folder.parent / "bare")
    bare.folder.mkdir()
    bare.path("model.safetensors").write_bytes(b"x")
    bare.mark_complete({})  # of no split, as an ensemble may be
    with pytest.raises(RunError, match="not the one") as caught:
        tuned_weight(bare, model, lambda: (catalog, split))
    assert "--class-weight" in caught.value.hint


def test_a_validation_part_in_which_nothing_can_be_found(tmp_path, model, catalog, split):
    val = split.images("val")
    first = {label: image for image, label in zip(catalog.images, catalog.frame["label"]) if image in val}
    lonely = replace(split, assignment={i: "val" if i in first.values() else "train" for i in catalog.images})
    run = completed(tmp_path / "runs" / "lonely", catalog, lonely)
    with pytest.raises(RunError, match="No validation image has another") as caught:
        tuned_weight(run, model, lambda: (catalog, lonely))
    assert "--class-weight" in caught.value.hint


def test_a_run_of_somebody_else_is_tuned_all_the_same(run, model, catalog, split, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(validation, "write_json_atomic", refuse)
    assert tuned_weight(run, model, lambda: (catalog, split)).queries > 0


def test_a_model_of_regions_is_tuned_by_regions(tmp_path, catalog, split):
    regions = of_target(catalog, "region")
    model = Brightness(regions.taxonomy)
    model.recipe.target = "region"
    tuned = tuned_weight(completed(tmp_path / "runs" / "coarse", catalog, split), model, lambda: (catalog, split))
    val = regions.subset(split.images("val"))
    seen = embed_items(model, catalog_items(val))
    exclude = [(keys, keys) for keys in (val.images, val.digests, val.groups)]
    assert tuned == tune_weight(seen.vectors, seen.probabilities, val.frame["label"], exclude)
    assert set(val.frame["label"]) == {"nose", "throat"}
