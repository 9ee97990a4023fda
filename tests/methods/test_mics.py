"""MICS as a method: which images and labels are read, what is learned and what stays, and what a run starts from."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from entrep_cli.data.augment import AugmentSettings, augment
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.modalities import pseudo_nbi
from entrep_cli.data.splits import make_split
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import RunError, UsageError, WeightsError
from entrep_cli.methods import METHODS, method_class
from entrep_cli.methods import mics as module
from entrep_cli.methods.dinov2 import Dinov2, Dinov2Recipe
from entrep_cli.methods.mics import Mics, MicsRecipe, labelled_rows, start_encoders
from entrep_cli.methods.mics_pretraining import augment_alike, gather, hold_out, pretrain_run
from entrep_cli.methods.runs import load_model, train_run
from entrep_cli.models.backbones import create_backbone, read_weights
from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe
from entrep_cli.training import loop
from entrep_cli.workspace import CHECKPOINT, Run, runs_dir
from tests.tiny import draw, fit_method, make_contest

CPU = torch.device("cpu")
BASE = ["image.size=32", "backbone.name=test_vit", "backbone.options={patch_size = 8, depth = 1}", "fusion.depth=1", "fusion.heads=4"]
BASE += ["epoch_images=0", "train.epochs=2", "train.batch_size=16", "train.accumulate=1", "train.learning_rate=1e-3"]
BASE += ["shift.clusters=4", "views=1", "batch_size=16"]
_DECODER = "decoder={width = 32, depth = 1, heads = 4}"
_TRAIN = ("train.epochs=3", "train.batch_size=16", "train.learning_rate=1e-3")
BASE += [f"pretraining.{s}" for s in (_DECODER, "consistency_dim=8", "alignment_dim=16", "held_out=0.1", *_TRAIN)]


def recipe(*assignments: str) -> MicsRecipe:
    return build_recipe(MicsRecipe, parse_assignments([*BASE, *assignments]))


@pytest.fixture
def made(tmp_path):
    """A dataset in groups of two, with images that have no label."""
    made = make_contest(tmp_path / "data", per_class=8, groups=2, tests=1, size=(32, 32))
    for i in range(4):
        draw("unknown", (32, 32), seed=900 + i).save(made.train / "imgs" / f"unlabelled_{i}.png")
    return made


@pytest.fixture
def data(made):
    catalog = Catalog.read(made.root)
    return catalog, make_split(catalog, ratios=(50, 25, 25))


def new(name: str) -> Run:
    run = Run(runs_dir() / name)
    run.folder.mkdir(parents=True)
    return run


def pretrain(catalog, split, own: MicsRecipe, name: str = "pre", **more) -> Run:
    run = more.pop("run", None) or new(name)
    images, about = gather(catalog, split, None)
    pretrain_run(images, about, own.for_pretraining(), run, device="cpu", precision="fp32", **more)
    return run


def parts(catalog, split) -> list[Catalog]:
    return [catalog.subset(split.images(part)) for part in ("train", "val")]


def fit(data, own: MicsRecipe, name: str = "run", **more) -> tuple[Mics, Run]:
    run = new(name)
    model, _ = fit_method(Mics, *parts(*data), own, run, **more)
    return model, run


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def pixels(n: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


# ---------------------------------------------------------------- recipes


def test_it_is_in_the_table():
    assert METHODS["mics"]
    with pytest.raises(UsageError, match="knows no classes"):
        method_class("mics-pretrain")


def test_the_recipe_has_the_papers_figures():
    own = build_recipe(MicsRecipe, read_recipe("mics"))
    assert own == MicsRecipe()
    section = own.for_pretraining().pretraining
    assert own.image.size == 384 and own.fusion.depth == 6 and own.backbone.name == "vit_base_patch16_384"
    assert (section.mask_ratio, section.alignment_dim, section.temperature) == (0.75, 512, 0.07)
    assert section.weights.model_dump() == {"reconstruction": 10, "consistency": 1, "alignment": 0.1}
    assert (section.train.epochs, section.train.learning_rate, section.train.weight_decay) == (30, 1e-4, 0.02)
    tiny = build_recipe(MicsRecipe, read_recipe("mics-tiny"), parse_assignments(["backbone.options.depth=6"]))
    assert tiny.backbone.options["depth"] == 6 and tiny.for_pretraining().image.size == 96


@pytest.mark.parametrize(
    "bad",
    ["label_fraction=0", "label_fraction=1.5", "label_fraction=-0.1", "tune=lora", "pretraining.train.balance=oversample"]
    + ["pretraining.train.label_smoothing=0.1", "pretraining.train.batch_size=1", "pretraining.held_out=0", "narrow=none"],
)
def test_settings_that_do_not_hold(bad):
    with pytest.raises(UsageError, match="do not hold"):
        recipe(bad)
    with pytest.raises(ValidationError):
        MicsRecipe(label_fraction=float("nan"))


# ---------------------------------------------------------------- few labels


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.5, 1.0])
def test_labels_are_kept_class_by_class(fraction):
    counts = {0: 40, 1: 3, 2: 110, 3: 1}
    targets = np.random.default_rng(0).permutation(np.repeat(list(counts), list(counts.values())))
    groups = np.array([f"g{i // 3}" for i in range(len(targets))], dtype=object)
    rows = labelled_rows(targets, groups, fraction, 3)
    assert Counter(targets[rows].tolist()) == {c: max(1, int(fraction * n + 0.5)) for c, n in counts.items()}
    assert (np.diff(rows) > 0).all() and np.array_equal(rows, labelled_rows(targets, groups, fraction, 3))
    if 0.05 <= fraction < 1:
        assert not np.array_equal(rows, labelled_rows(targets, groups, fraction, 4))


def test_more_labels_hold_the_fewer_and_groups_stay_whole_but_one_a_class():
    targets = np.repeat([0, 1], 60)
    groups = np.array([f"g{i // 4}" for i in range(120)], dtype=object)
    kept = [set(labelled_rows(targets, groups, fraction, 0)) for fraction in (0.05, 0.1, 0.4, 1.0)]
    assert all(a < b for a, b in zip(kept, kept[1:])) and len(kept[-1]) == 120
    for rows in kept:
        shares = Counter(groups[i] for i in rows)
        assert sum(n < 4 for n in shares.values()) <= 2


def test_the_labels_of_the_others_are_never_read(data, monkeypatch):
    train, val = parts(*data)
    own = recipe("label_fraction=0.5", "train.epochs=1")
    first, _ = fit_method(Mics, train, val, own, run := new("a"))
    told = json.loads(run.path("labels.json").read_text())
    assert told["of"] == len(train) == 28 and set(told["counts"].values()) == {2}
    rows = np.flatnonzero(train.frame["image"].isin(told["images"]))
    others = np.setdiff1d(np.arange(len(train)), rows)
    labels = train.frame["label"].to_numpy().copy()
    labels[others] = np.random.default_rng(0).permutation(labels[others])
    monkeypatch.setattr(module, "labelled_rows", lambda *given: rows)  # the choice itself goes by class
    seen = []
    original = module._Images.views
    monkeypatch.setattr(module._Images, "views", lambda self, rows: (seen.append(rows), original(self, rows))[1])
    assert same(first, fit_method(Mics, replace(train, frame=train.frame.assign(label=labels)), val, own, new("b"))[0])
    assert set(torch.cat(seen).tolist()) == set(range(len(train)))  # the dictionary has seen all
    seen.clear()
    fit_method(Mics, train, val, recipe("label_fraction=0.5", "train.epochs=1", "shift.scale=0"), new("c"))
    assert set(torch.cat(seen).tolist()) == set(rows.tolist())


# ---------------------------------------------------------------- the dictionary


def test_only_training_images_are_in_the_dictionary(data, made):
    catalog, split = data
    _, run = fit(data, recipe("label_fraction=0.2"))
    told = json.loads(run.path("dictionary.json").read_text())
    train, val, test = (set(catalog.subset(split.images(part)).digests) for part in ("train", "val", "test"))
    assert set(told["images"]) == train and not train & (val | test)
    assert sum(told["white"]["sizes"]) == sum(told["narrow"]["sizes"]) == len(train)
    _, other = fit(data, recipe("shift.scale=0"), "none")
    assert not other.path("dictionary.json").exists()


def test_a_validation_image_in_the_dictionary_is_refused(data):
    train, val = parts(*data)
    both = replace(train, frame=pd.concat([train.frame, val.frame[:2]], ignore_index=True))
    with pytest.raises(RunError, match="2 validation images"):
        fit_method(Mics, both, val, recipe(), new("run"))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("tune", ["full", "head"])
def test_what_is_learned_and_what_stays(data, tune):
    own = recipe(f"tune={tune}")
    torch.manual_seed(own.seed)
    before = start_encoders(own.backbone, 32)[:2]
    model, run = fit(data, own)
    for encoder, there in zip(before, (model.classifier.white, model.classifier.narrow)):
        assert same(encoder, there) == (tune == "head")
    again, _ = fit(data, own, "again")
    assert same(model, again)
    model.save(run)
    loaded = Mics.load(run, own, model.taxonomy, CPU)
    for a, b in zip(model.infer(pixels())[:2], loaded.infer(pixels())[:2]):
        assert torch.equal(a, b)
    vectors, probabilities, _ = loaded.infer(pixels())
    assert vectors.shape == (5, 64) and torch.allclose(vectors.norm(dim=1), torch.ones(5), atol=1e-5)
    assert probabilities.shape == (5, 7) and torch.allclose(probabilities.sum(dim=1), torch.ones(5), atol=1e-5)
    for answer in (loaded.embed_texts, loaded.classify_texts):
        with pytest.raises(UsageError, match="no text tower"):
            answer(["a nose"])


def test_an_answer_needs_white_light_alone(data):
    model, _ = fit(data, recipe("train.epochs=1"))
    with torch.inference_mode():
        fused, logits = model.classifier(pixels(), pseudo_nbi(pixels()))
    assert torch.equal(model.embed_images(pixels()), torch.nn.functional.normalize(fused, dim=1))
    assert torch.equal(model.classify(pixels()), logits.softmax(dim=1))


def test_a_killed_training_ends_with_the_same_weights(data, monkeypatch):
    own = recipe("train.epochs=3", "train.patience=0", "fusion.dropout=0.1")
    whole, _ = fit(data, own, "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    drawn = module.augment_alike

    def killed(*given):
        if given[-1].initial_seed() == own.seed * 1_000_003 + 3:
            raise KeyboardInterrupt
        return drawn(*given)

    run = new("killed")
    with monkeypatch.context() as patch:
        patch.setattr(module, "augment_alike", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_method(Mics, *parts(*data), own, run)
    assert run.path(CHECKPOINT).is_file()
    assert same(whole, fit_method(Mics, *parts(*data), own, run, resume=True)[0])


def test_frozen_tokens_are_kept_or_worked_out_anew(data, monkeypatch, capsys):
    _, split = data
    own = recipe("tune=head", "views=0", "augment.flip=0", "train.epochs=1", "shift.scale=0")
    for s in ("rotation", "shift", "zoom", "brightness", "contrast", "saturation", "hue", "blur"):
        own = build_recipe(MicsRecipe, own.model_dump(), {"augment": {s: 0.0}})
    kept, run = fit(data, own)
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    anew, other = fit(data, own, "anew")
    assert "run in every epoch" in capsys.readouterr().err
    rows = [pd.read_csv(r.path("metrics.csv")).iloc[0] for r in (run, other)]
    assert np.allclose(*rows, atol=1e-4) and kept.classifier.frozen and anew.classifier.frozen


def test_with_few_labels_an_epoch_shows_them_more_often(data, monkeypatch):
    shown = []
    original = module.batches
    monkeypatch.setattr(module, "batches", lambda order, size: (shown.append(order), original(order, size))[1])
    fit(data, recipe("label_fraction=0.3", "epoch_images=40", "train.epochs=1"))
    counts = Counter(shown[-1].tolist())
    assert len(set(counts.values())) == 1 and 40 <= len(shown[-1]) < 40 + len(counts)


def test_a_shift_is_added_in_training_and_no_fusion_is_an_option(data, monkeypatch):
    given = []
    original = module.MicsClassifier.classify_tokens
    monkeypatch.setattr(
        module.MicsClassifier, "classify_tokens", lambda self, w, n, s=None: (given.append((self.training, s)), original(self, w, n, s))[1]
    )
    model, _ = fit(data, recipe("fuse=false", "train.epochs=1"))
    assert model.classifier.fusion is None
    assert all((shifts is not None) == training for training, shifts in given) and any(training for training, _ in given)
    assert all(s.abs().max() > 0 for _, shifts in given if shifts for s in shifts)
    given.clear()
    fit(data, recipe("shift.scale=0", "train.epochs=1"), "none")
    assert given and all(shifts is None for _, shifts in given)


def test_both_modalities_are_turned_and_flipped_alike():
    sides = Taxonomy("sides", (ClassInfo("left", 0, "r", "right"), ClassInfo("right", 1, "r", "left")))
    targets, settings = torch.tensor([0, 1, 0, 1, 0]), AugmentSettings()
    g = torch.Generator().manual_seed(4)
    white, narrow, wanted = augment_alike(pixels(), pixels(), targets, sides, settings, g)
    alone, flipped, _ = augment(pixels(), targets, sides, settings, torch.Generator().manual_seed(4))
    assert torch.equal(white, narrow) and torch.equal(white, alone) and torch.equal(wanted, flipped)
    assert 0 < (wanted != targets).sum() < 5
    assert not torch.equal(augment_alike(pixels(), pixels(), targets, sides, settings, g)[0], white)  # the generator has moved on


def test_real_narrow_band_images_are_learned_from(tmp_path, capsys):
    for i in range(8):
        for j, label in enumerate(("polyp", "normal")):
            for modality in ("WLI", "NBI"):
                path = tmp_path / "data" / f"{label}_{modality}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw(f"{label}{modality}", (32, 32), seed=10 * i + j).save(path)
    catalog = Catalog.read(tmp_path / "data")
    data = catalog, make_split(catalog, ratios=(50, 25, 25))
    models = [fit(data, recipe("train.epochs=1", f"narrow={narrow}"), narrow) for narrow in ("real", "pseudo")]
    assert "real NBI of" in (said := capsys.readouterr().err) and "it gets pseudo-NBI" in said
    assert not same(models[0][0], models[1][0])
    assert json.loads(models[0][1].path("dictionary.json").read_text())["narrow"]["real NBI"] == len(parts(*data)[0])
    # Validation is scored as answers are given, by pseudo-NBI, whatever was learned from.
    seen = torch.from_numpy(np.stack([models[0][0].preprocess(Image.open(p).convert("RGB")) for p in parts(*data)[1].paths]))
    right = models[0][0].classify(seen).argmax(dim=1).numpy() == parts(*data)[1].targets
    assert pd.read_csv(models[0][1].path("metrics.csv"))["val_accuracy"][0] == pytest.approx(right.mean())


# ---------------------------------------------------------------- pre-training


def test_a_killed_pretraining_ends_with_the_same_bytes(data, monkeypatch):
    from entrep_cli.methods import mics_pretraining

    own = recipe()
    whole = pretrain(*data, own, "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    drawn = mics_pretraining.augment_alike

    def killed(*given):
        if given[-1].initial_seed() == own.seed * 1_000_003 + 3:
            raise KeyboardInterrupt
        return drawn(*given)

    with monkeypatch.context() as patch:
        patch.setattr(mics_pretraining, "augment_alike", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(*data, own, "killed")
    run = Run(runs_dir() / "killed")
    assert run.path(CHECKPOINT).is_file() and not run.complete
    with pytest.raises(RunError, match="another recipe"):
        pretrain(*data, recipe("pretraining.mask_ratio=0.5"), run=run, resume=True)
    catalog, split = data
    with pytest.raises(RunError, match="other data"):
        pretrain(catalog.labelled, split, own, run=run, resume=True)
    pretrain(*data, own, run=run, resume=True)
    for file in ("model.safetensors", "metrics.csv", "images.csv", "config.toml"):
        assert run.path(file).read_bytes() == whole.path(file).read_bytes(), file
    assert not run.path(CHECKPOINT).exists() and run.manifest["validation"] == whole.manifest["validation"]


def test_no_label_is_read_in_pretraining(data):
    catalog, split = data
    own = recipe("pretraining.train.epochs=1")
    images, about = gather(catalog, split, None)
    assert set(images.frame["label"]) == set(images.frame["text_en"]) == {""} and not any(images.frame["findings"])
    with pytest.raises(KeyError):
        images.targets  # noqa: B018 - there is nothing to read
    first = pretrain(catalog, split, own, "first")
    rng = np.random.default_rng(0)
    mixed = replace(catalog, frame=catalog.frame.assign(label=rng.permutation(catalog.frame["label"].to_numpy()), text_en="another"))
    images, _ = gather(replace(mixed, frame=mixed.frame[mixed.frame["image"].isin(images.images)].assign(label="")), None, None)
    second = new("second")
    pretrain_run(images, about, own.for_pretraining(), second, device="cpu", precision="fp32")
    assert first.path("model.safetensors").read_bytes() == second.path("model.safetensors").read_bytes()


def test_images_of_other_parts_and_of_their_groups_stay_out(made):
    catalog = Catalog.read(made.root)
    split = make_split(catalog, ratios=(50, 25, 25))
    train, val, test = (catalog.subset(split.images(part)) for part in ("train", "val", "test"))
    frame = catalog.frame.copy()
    frame.loc[frame["image"] == "unlabelled_0.png", "group"] = val.groups[0]
    frame.loc[frame["image"] == "unlabelled_1.png", "group"] = test.groups[0]
    frame.loc[frame["image"] == "unlabelled_2.png", "group"] = train.groups[0]
    images, about = gather(replace(catalog, frame=frame), split, None)
    assert set(images.images) == {*train.images, "unlabelled_2.png", "unlabelled_3.png"}
    assert about["split"]["fingerprint"] == split.fingerprint and about["data"]["catalog"] == catalog.fingerprint
    assert not set(images.paths) & {made.image(name) for name in made.test_labels}


def test_folders_of_images_are_learned_from_as_well(data, made, tmp_path, capsys):
    catalog, split = data
    for name in ("deep/er/a.png", "x_WLI/b.png", "x_NBI/b.png", "y_NBI/c.png"):
        (tmp_path / "more" / name).parent.mkdir(parents=True, exist_ok=True)
        draw(name, (32, 32), seed=5).save(tmp_path / "more" / name)
    images, _ = gather(None, None, None, [tmp_path / "more"])
    assert images.images == ["more/deep/er/a.png", "more/x_WLI/b.png", "more/y_NBI/c.png"]  # x_NBI/b.png is the partner of another
    images, about = gather(catalog, split, None, [tmp_path / "more", made.train / "imgs"])
    assert len(images) == len(catalog) + 3 and images.frame["digest"].is_unique
    n = sum(len(split.images(part)) for part in ("val", "test"))
    assert f"{n} images of --images are validation or test images" in " ".join(capsys.readouterr().err.split())
    assert about["data"]["layouts"][1:] == ["images in more", "images in imgs"]
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(Exception, match="No (such|images in the) folder"):
            gather(None, None, None, [folder])


def test_held_out_groups_are_whole():
    groups = np.array([f"g{i // 5}" for i in range(100)], dtype=object)
    held = hold_out(groups, 0.1, 0)
    assert held.sum() == 10 and not set(groups[held]) & set(groups[~held])
    assert np.array_equal(held, hold_out(groups, 0.1, 0)) and not np.array_equal(held, hold_out(groups, 0.1, 1))
    assert hold_out(np.arange(8).astype(object), 0.01, 0).sum() == 2
    for few in (groups[:5], np.arange(3).astype(object)):
        with pytest.raises(RunError, match="too few"):
            hold_out(few, 0.1, 0)


def test_a_patch_that_does_not_fill_the_image_is_refused(data):
    with pytest.raises(UsageError, match="cannot take images of 36"):
        pretrain(*data, recipe("image.size=36"))
    with pytest.raises(UsageError, match="does not divide into 5 heads"):
        fit(data, recipe("fusion.heads=5"))


# ---------------------------------------------------------------- what a run starts from


@pytest.fixture
def pretrained(data) -> Run:
    return pretrain(*data, recipe("pretraining.train.epochs=1"))


def test_each_encoder_starts_from_its_own(pretrained):
    state = read_weights(pretrained.path("model.safetensors"))
    white, narrow, origin = start_encoders(recipe("backbone.weights=pre").backbone, 32)
    for name, encoder in (("white", white), ("narrow", narrow)):
        assert all(torch.equal(value, state[f"{name}.model.{key}"]) for key, value in encoder.model.state_dict().items())
    assert origin["run"] == "pre" and origin["encoders"] == ["white", "narrow"]
    assert origin["sha256"] == pretrained.manifest["files"]["model.safetensors"]
    assert not same(white, narrow)


def test_a_run_of_mics_and_a_run_of_dinov2_give_theirs_too(data, pretrained):
    catalog, split = data
    own = recipe("backbone.weights=pre", "train.epochs=1")
    first = new("first")
    model, manifest = train_run(catalog, split, own, first, device="cpu", precision="fp32")
    assert manifest["method"] == "mics" and manifest["weights"]["run"] == "pre"
    assert same(load_model(first, "cpu"), model)
    white, narrow, _ = start_encoders(recipe("backbone.weights=first").backbone, 32)
    assert same(white, model.classifier.white) and same(narrow, model.classifier.narrow)
    # dinov2 starts from the white-light encoder of both, and mics from the backbone of dinov2, twice.
    small = ["image.size=32", "backbone.name=test_vit", BASE[2], "views=0", "train.epochs=1"]
    for name, run in (("pre", pretrained), ("first", first)):
        wanted = read_weights(run.path("model.safetensors"))
        made = build_recipe(Dinov2Recipe, parse_assignments([*small, f"backbone.weights={name}"]))
        backbone, origin = create_backbone(made.backbone, 32)
        assert all(torch.equal(value, wanted[f"white.model.{key}"]) for key, value in backbone.model.state_dict().items())
        assert origin["trained_on"]["split"] == split.fingerprint
    run = new("dino")
    dino, _ = train_run(catalog, split, made, run, device="cpu", precision="fp32")
    assert isinstance(dino, Dinov2)
    white, narrow, origin = start_encoders(recipe("backbone.weights=dino").backbone, 32)
    assert same(white, dino.backbone) and same(narrow, dino.backbone) and "encoders" not in origin


@pytest.mark.parametrize(
    ("assignments", "told"),
    [
        (["backbone.weights=nowhere"], "No such weights file"),
        (["backbone.weights=pre", "backbone.name=test_vit2", "image.size=64"], "has the backbone 'test_vit'"),
        (["backbone.weights=pre", "backbone.options={patch_size = 8, depth = 2}"], "tensors differ"),
    ],
)
def test_weights_that_do_not_fit_are_refused(data, pretrained, assignments, told):
    with pytest.raises(WeightsError, match=told):
        fit(data, recipe(*assignments))


def test_a_half_pretrained_run_is_refused(data, pretrained):
    pretrained.path("run.json").unlink()
    with pytest.raises(RunError, match="not complete"):
        fit(data, recipe("backbone.weights=pre"))


def test_a_pretraining_that_has_seen_the_validation_part_is_told(data, pretrained, capsys):
    catalog, split = data
    train, val = parts(catalog, split)
    own = recipe("backbone.weights=pre", "train.epochs=1")
    fit(data, own)
    assert "too good" not in capsys.readouterr().err
    fit_method(Mics, val, train, own, new("other"))
    assert f"was trained on {len(train) - 0} of the {len(train)} validation images" in " ".join(capsys.readouterr().err.split())
    assert "From scratch" not in capsys.readouterr().err
    fit(data, recipe("train.epochs=1"), "scratch")
    assert "From scratch" in capsys.readouterr().err
