"""The method on images small enough to check by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from entrep_cli.app import main
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import pixel_digest
from entrep_cli.data.splits import Split, make_split, read_catalog_and_split
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation.subsets import score_subset
from entrep_cli.methods import METHODS, method_class
from entrep_cli.methods import dinov2_training as module
from entrep_cli.methods.base import FitContext, in_classes_of
from entrep_cli.methods.dinov2 import Dinov2, Dinov2Recipe
from entrep_cli.methods.runs import load_model, train_run
from entrep_cli.models.backbones import Backbone, create_backbone
from entrep_cli.recipes.recipe import build_recipe, parse_assignments
from entrep_cli.retrieval.embeddings import embed_items
from entrep_cli.retrieval.sets import catalog_items
from entrep_cli.workspace import Run, open_run
from tests.tiny import fit_method, make_contest

TAXONOMY = Taxonomy("sides", (ClassInfo("left", 0, "r", "right"), ClassInfo("right", 1, "r", "left"), ClassInfo("top", 2, "s", "top")))


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))


def draw(label: str, seed: int) -> np.ndarray:
    """A noisy square with one bright edge: left, right or top."""
    image = np.random.default_rng(seed).integers(0, 90, (32, 32, 3), dtype=np.uint8)
    image[{"left": np.s_[:, :10], "right": np.s_[:, -10:], "top": np.s_[:10, :]}[label]] += 150
    return image


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    rows = []
    for i in range(36):
        label = TAXONOMY.names[i % 3]
        path = tmp_path / f"{i:02}.png"
        Image.fromarray(draw(label, i)).save(path)
        rows.append(
            {
                "image": path.name,
                "path": str(path),
                "label": label,
                "group": path.name,
                "findings": (),
                "digest": pixel_digest(Image.open(path)),
            }
        )
    return Catalog(pd.DataFrame(rows), TAXONOMY)


def recipe(*assignments: str, name: str = "test_vit") -> Dinov2Recipe:
    base = ["image.size=32", "backbone.weights=none", f"backbone.name={name}", "batch_size=8", "train.batch_size=8"]
    return build_recipe(Dinov2Recipe, parse_assignments([*base, *assignments]))


def fit(catalog, made, run, **more):
    train, val = catalog.subset(catalog.images[:24]), catalog.subset(catalog.images[24:])
    return fit_method(Dinov2, train, val, made, run, **more)


def view_classes(model, images, view: int) -> torch.Tensor:
    context = FitContext(images, images, model.recipe, Run(Path("none")), torch.device("cpu"))
    return module._view_features(model.backbone, model.preprocess, images, view, {}, context)[1]


def pixels(n: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(TAXONOMY.names[i % 3], 100 + i).transpose(2, 0, 1) for i in range(n)]))


@pytest.mark.parametrize("tune", ["head", "full"])
def test_it_learns_saves_and_loads_back_the_same(catalog, tmp_path, tune):
    made = recipe(f"tune={tune}", "train.epochs=12", "train.backbone_learning_rate=1e-3", name="test_resnet")
    run = Run(tmp_path / "run")
    model, fitted = fit(catalog, made, run)
    assert fitted.validation["val_accuracy"] > 0.8
    model.save(run)
    again = Dinov2.load(run, made, TAXONOMY, torch.device("cpu"))
    x = pixels()
    assert all(torch.equal(a, b) for a, b in zip(model.infer(x)[:2], again.infer(x)[:2]))


def test_what_a_model_gives(catalog, tmp_path):
    model, _ = fit(catalog, recipe("train.epochs=1"), Run(tmp_path / "run"))
    x = pixels(5)
    embeddings, probabilities = model.embed_images(x), model.classify(x)
    assert embeddings.shape == (5, 128) and probabilities.shape == (5, 3)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(5)) and torch.allclose(probabilities.sum(1), torch.ones(5))
    for ask in (model.embed_texts, model.classify_texts):
        with pytest.raises(UsageError):
            ask(["a spur"])


@pytest.mark.parametrize("kind, width", [("head", 128), ("backbone", 64), ("both", 192)])
def test_embedding_kinds_by_hand(catalog, tmp_path, kind, width):
    model, _ = fit(catalog, recipe("train.epochs=1", f"embedding={kind}"), Run(tmp_path / "run"))
    x = pixels()
    with torch.no_grad():
        features = model.backbone(x)
        hidden = model.head.body(features)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (features, hidden)]
    wanted = {"head": unit[1], "backbone": unit[0], "both": torch.cat(unit, 1) / 2**0.5}[kind]
    assert wanted.shape[1] == width and torch.allclose(model.embed_images(x), wanted, atol=1e-6)


def test_a_frozen_backbone_stays_as_it_was(catalog, tmp_path):
    torch.manual_seed(0)
    made = recipe("train.epochs=2", name="test_resnet")
    before = create_backbone(made.backbone, 32)[0].state_dict()
    model, _ = fit(catalog, made, Run(tmp_path / "run"))
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in before.items())


def test_features_are_computed_once(catalog, tmp_path, monkeypatch):
    made = recipe("train.epochs=1", "views=2")
    first, _ = fit(catalog, made, Run(tmp_path / "a"))
    monkeypatch.setattr(module, "load_pixels", lambda *a: pytest.fail("the features are cached"))
    second, _ = fit(catalog, made, Run(tmp_path / "b"))
    assert torch.equal(first.head.output.weight, second.head.output.weight)
    monkeypatch.undo()
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_pixels", lambda *a: (_ for _ in ()).throw(ZeroDivisionError))
        with pytest.raises(ZeroDivisionError):  # another augmentation has other features
            fit(catalog, recipe("train.epochs=1", "views=2", "augment.rotation=3"), Run(tmp_path / "c"))


def test_views_carry_the_mirror_class_when_flipped(catalog):
    backbone, _ = create_backbone(recipe().backbone, 32)
    model = Dinov2(backbone, recipe("augment.flip=1"), TAXONOMY).eval()
    plain, flipped = (view_classes(model, catalog, view) for view in (0, 1))
    assert flipped.tolist() == [TAXONOMY.mirrors[t] for t in plain.tolist()] != plain.tolist()


def test_a_section_given_in_part_keeps_the_methods_other_defaults():
    made = recipe("train.epochs=3")
    assert (made.train.epochs, made.train.balance, made.train.average) == (3, "none", 0.99)


def test_every_method_keeps_the_contract():
    for name in METHODS:
        kind = method_class(name)
        assert kind.Recipe.model_fields["method"].default == name
        assert all(callable(getattr(kind, f)) for f in ("infer", "embed_images", "embed_texts", "classify", "save", "load", "fit"))
    with pytest.raises(UsageError) as caught:
        method_class("dino")
    assert "dinov2" in caught.value.hint


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize("tune", ["head", "full"])
@pytest.mark.parametrize("target, names", [("region", ["r", "s"]), ("r", ["left", "right"])])
def test_a_coarse_model_and_an_expert_have_classes_of_their_own(catalog, tmp_path, target, names, tune):
    made = recipe(f"target={target}", f"tune={tune}", "train.epochs=12", "train.backbone_learning_rate=1e-3", name="test_resnet")
    run = Run(tmp_path / "run")
    model, fitted = fit(catalog, made, run)
    assert model.taxonomy.names == names and model.classify(pixels()).shape == (3, 2)
    assert fitted.validation["val_accuracy"] > 0.8
    model.save(run)
    again = Dinov2.load(run, made, model.taxonomy, torch.device("cpu"))
    assert torch.equal(model.classify(pixels()), again.classify(pixels()))


def test_of_target_maps_labels_and_leaves_out(catalog):
    coarse, own = catalog.of_target("region"), catalog.of_target("r")
    assert coarse.counts() == {"r": 24, "s": 12} and coarse.images == catalog.images
    assert own.counts() == {"left": 12, "right": 12} and own.images == [image for i, image in enumerate(catalog.images) if i % 3 != 2]
    assert catalog.of_target("class").counts() == catalog.counts()


def test_a_run_of_a_target_describes_itself(catalog, tmp_path):
    split = make_split(catalog, ratios=(50, 25, 25))
    for target, images, names in (("region", 18, ["r", "s"]), ("r", 12, ["left", "right"])):
        run = Run(tmp_path / target)
        run.folder.mkdir()
        _, manifest = train_run(catalog, split, recipe(f"target={target}", "train.epochs=1"), run, device="cpu", precision="fp32")
        assert [c["name"] for c in manifest["taxonomy"]["classes"]] == names
        assert manifest["data"]["images"]["train"] == images and manifest["data"]["catalog"] == catalog.fingerprint
        model = load_model(run, "cpu")
        assert model.taxonomy.names == names
        assert in_classes_of(model, catalog).counts() == {"r": 24, "s": 12} if target == "region" else {"left": 12, "right": 12}


def test_targets_that_cannot_be_trained(catalog, tmp_path):
    def error(kind, match, target, part=catalog, val=catalog, *more):
        with pytest.raises(kind, match=match):
            fit_method(Dinov2, part, val, recipe(f"target={target}", *more), Run(tmp_path / "run"))

    def only(*labels):
        return catalog.subset([i for i, label in zip(catalog.images, catalog.frame["label"]) if label in labels])

    error(UsageError, "No region named 'x'", "x")
    error(UsageError, "one class, 'top'", "s")
    error(RunError, "train subset of the split has no image of left, right", "r", only("top"))
    error(RunError, "val subset of the split has no image of left, right", "r", catalog, only("top"))
    error(RunError, "All training images of left, right are left", "r", only("left", "top"))
    error(UsageError, "logistic", "class", catalog, catalog, "head.kind=logistic", "tune=full")
    assert not (tmp_path / "runs" / "cache").exists()  # all of it before anything is computed


def test_all_targets_read_one_pass_of_features(catalog, tmp_path, monkeypatch):
    passed = []
    forward = Backbone.forward

    def counted(self, x):
        passed.append(len(x) * (x.dtype == torch.uint8))  # a new backbone asks for its dimension with one that is not
        return forward(self, x)

    monkeypatch.setattr(Backbone, "forward", counted)
    fit(catalog, recipe("train.epochs=1", "views=2"), Run(tmp_path / "a"))
    assert sum(passed) == 3 * 24 + 12
    passed.clear()
    for i, more in enumerate((["target=region"], ["target=r"], ["head.kind=logistic"], ["target=r", "head.kind=linear"])):
        fit(catalog, recipe("train.epochs=1", "views=2", *more), Run(tmp_path / f"b{i}"))
    assert not sum(passed)


def test_a_flip_that_leaves_the_expert_is_not_shown(catalog, tmp_path):
    """Two regions that are mirrors of each other: a flipped image of one is none of its expert's."""
    crossed = Taxonomy(
        "crossed",
        (ClassInfo("left", 0, "a", "right"), ClassInfo("top", 1, "a", "top"), ClassInfo("right", 2, "b", "left")),
    )
    made = recipe("target=a", "augment.flip=1", "views=1", "train.epochs=2", "train.label_smoothing=0")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_objective", lambda *a: lambda logits, wanted: (seen.append(wanted), F.cross_entropy(logits, wanted))[1])
        model, fitted = fit(Catalog(catalog.frame, crossed), made, Run(tmp_path / "run"))
    assert model.taxonomy.mirrors == [-1, 1]
    for epoch in torch.cat(seen).split(16):
        assert sorted(epoch.tolist()) == [0] * 8 + [1] * 8
    assert fit(Catalog(catalog.frame, crossed), recipe("target=a", "head.kind=logistic", "augment.flip=1", "views=1"), Run(tmp_path / "l"))


# ---------------------------------------------------------------- logistic heads, oversampling


@pytest.mark.parametrize("target", ["class", "r"])
def test_a_logistic_head_is_chosen_by_validation(catalog, tmp_path, target):
    made, run = recipe("head.kind=logistic", f"target={target}", "views=1", name="test_resnet"), Run(tmp_path / "run")
    model, fitted = fit(catalog, made, run)
    rows = [line.split(",") for line in run.path("metrics.csv").read_text().splitlines()]
    assert rows[0] == ["c", "val_loss", "val_accuracy", "val_macro_f1"] and [float(r[0]) for r in rows[1:]] == list(made.head.c)
    best = max(rows[1:], key=lambda r: (float(r[3]), -float(r[1])))
    assert json.loads(run.path("training.json").read_text()) == {"c": float(best[0])}
    assert fitted.validation["val_macro_f1"] == pytest.approx(float(best[3]), abs=1e-5) and fitted.epoch == 0
    model.save(run)
    again = Dinov2.load(run, made, model.taxonomy, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(model.infer(pixels())[:2], again.infer(pixels())[:2]))
    assert torch.equal(fit(catalog, made, Run(tmp_path / "again"))[0].head.output.weight, model.head.output.weight)


@pytest.mark.parametrize("tune", ["head", "full"])
def test_oversampling_is_counted(catalog, tmp_path, capsys, tune):
    labels = catalog.frame["label"]
    few = catalog.subset([image for image, label in zip(catalog.images, labels) if label != "right" or image < "08.png"])
    run = Run(tmp_path / "run")
    fit_method(Dinov2, few, catalog, recipe("train.balance=oversample", "train.epochs=1", f"tune={tune}"), run)
    counts = few.counts()
    assert counts == {"left": 12, "right": 3, "top": 12}
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("oversampled")]
    assert said == [f"oversampled: {counts[name]} images of class {name} shown as 9" for name in TAXONOMY.names]
    assert json.loads(run.path("training.json").read_text())["oversampled"]["right"] == {"images": 3, "shown": 9}


def test_a_logistic_expert_sees_its_rare_class_as_often_as_the_other(catalog, tmp_path, monkeypatch):
    labels = catalog.frame["label"]
    few = catalog.subset([image for image, label in zip(catalog.images, labels) if label != "right" or image < "08.png"])
    shown = []
    solve = module.Head.solve
    monkeypatch.setattr(module.Head, "solve", lambda self, x, y, *more: (shown.append(y.bincount().tolist()), solve(self, x, y, *more))[1])
    for balance, wanted in (("none", [24, 6]), ("oversample", [24, 24])):
        made = recipe("target=r", "head.kind=logistic", f"train.balance={balance}", "views=1", "augment.flip=0", "head.c=[1.0]")
        fit_method(Dinov2, few, catalog, made, Run(tmp_path / balance))
        assert shown.pop() == wanted


def test_weights_by_class_reach_the_logistic_head(catalog, tmp_path, monkeypatch):
    few = catalog.subset([image for image, label in zip(catalog.images, catalog.frame["label"]) if label != "right" or image < "08.png"])
    given = []
    solve = module.Head.solve
    monkeypatch.setattr(module.Head, "solve", lambda self, x, y, c, w: (given.append((y, w)), solve(self, x, y, c, w))[1])
    made = recipe("target=r", "head.kind=logistic", "train.balance=weights", "views=1", "head.c=[1.0]")
    fit_method(Dinov2, few, catalog, made, Run(tmp_path / "run"))
    ((classes, weights),) = given
    for label, wanted in ((0, 15 / 24), (1, 15 / 6)):
        assert weights[classes == label].unique().tolist() == [pytest.approx(wanted)]


def test_starting_from_a_run_of_another_split_is_told(catalog, tmp_path, capsys):
    made = recipe("tune=full", "train.epochs=1")
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    split = make_split(catalog, ratios=(50, 25, 25))
    train_run(catalog, split, made, Run(folder), device="cpu", precision="fp32")
    frozen = recipe("train.epochs=1", "backbone.weights=first")
    other = Split(dict(zip(catalog.images, list(split.assignment.values())[::-1])), 0, 1, split.ratios, split.catalog)
    for i, now in enumerate((split, other)):
        capsys.readouterr()
        run = Run(tmp_path / f"run{i}")
        run.folder.mkdir()
        _, manifest = train_run(catalog, now, frozen, run, device="cpu", precision="fp32")
        assert ("too good" in capsys.readouterr().err) == bool(i)
        assert manifest["weights"]["run"] == "first" and len(manifest["weights"]["sha256"]) == 64


def test_the_command_trains_a_coarse_model_and_an_expert(tmp_path, monkeypatch, capsys):
    made = make_contest(tmp_path / "data", per_class=6, tests=2)
    monkeypatch.setenv("ENTREP_DATA", str(made.root))

    def entrep(*arguments: object) -> None:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        assert not ended.value.code, capsys.readouterr().err

    entrep("split", "--ratios", "60/20/20")
    small = ["--set", "image.size=32", "--set", "views=1", "--backbone", "test_resnet", "--weights", "none", "--epochs", 3]
    entrep("train", "dinov2", "--name", "coarse", "--set", "target=region", *small)
    assert "predict --track 2" in (said := capsys.readouterr().err) and "predict --track 1" not in said
    entrep("train", "dinov2", "--name", "ears", "--set", "target=ear", "--set", "head.kind=logistic", *small)
    read, split = read_catalog_and_split(made.root)
    test = read.subset(split.images("test"))
    ears = int((test.frame["region"] == "ear").sum())
    for name, names, n in (("coarse", ["nose", "ear", "vc", "throat"], len(test)), ("ears", ["ear-right", "ear-left"], ears)):
        run = open_run(name)
        model = load_model(run, "cpu")
        assert model.taxonomy.names == names and model.taxonomy.as_dict() == run.manifest["taxonomy"]
        entrep("predict", "--track", 2, "--run", name)
        with pytest.raises(SystemExit) as ended:
            main(["predict", "--track", "1", "--run", name])
        assert ended.value.code == 2 and "knows all classes" in capsys.readouterr().err
        # What `entrep evaluate` scores: the part in the classes of the run.
        part = in_classes_of(model, test)
        scores = score_subset(part, embed_items(model, catalog_items(part))).classification.as_dict()
        assert [row["class"] for row in scores["per_class"]][: len(names)] == names and scores["n_items"] == n


def test_labels_that_were_mended_are_learned_where_features_are_kept(catalog, tmp_path):
    fit(catalog, recipe("train.epochs=1", "views=1"), Run(tmp_path / "run"))
    turned = {"left": "top", "right": "left", "top": "right"}
    corrected = Catalog(catalog.frame.assign(label=catalog.frame["label"].map(turned)), TAXONOMY)
    made = recipe("views=1")
    model = Dinov2(Backbone(made.backbone, 32), made, TAXONOMY)
    for part in (corrected.subset(corrected.images[:24]), corrected.subset(corrected.images[24:])):
        shown = view_classes(model, part, 0)
        assert torch.equal(shown, torch.from_numpy(part.targets))


@pytest.mark.parametrize("assignment", ["views=-1", "batch_size=0"])
def test_counts_that_cannot_be_are_refused_at_once(assignment):
    with pytest.raises(UsageError, match="do not hold"):
        recipe(assignment)


def test_focal_loss_mixing_and_rates_train_another_model(catalog, tmp_path):
    from safetensors.torch import save_file

    save_file(create_backbone(recipe().backbone, 32)[0].model.state_dict(), tmp_path / "weights.safetensors")
    one = "tune=full", "train.epochs=2", "head.dropout=0", f"backbone.weights={tmp_path / 'weights.safetensors'}"
    plain, _ = fit(catalog, recipe(*one), Run(tmp_path / "plain"))
    for i, setting in enumerate(("loss.focal=2.0", "mixing.mosaic=1.0", "train.layer_decay=0.3")):
        model, _ = fit(catalog, recipe(*one, setting), Run(tmp_path / str(i)))
        assert not torch.equal(model.classify(pixels()), plain.classify(pixels())), setting


def test_settings_that_nothing_would_read_are_refused(catalog, tmp_path):
    for assignments, fault in ((["mixing.mixup=0.5"], "mixing"), (["head.kind=logistic", "loss.focal=1.0"], "loss")):
        with pytest.raises(UsageError, match="nothing would read") as caught:
            fit(catalog, recipe("tune=head", *assignments), Run(tmp_path))
        assert [f.split(":")[0] for f in caught.value.faults] == [fault]


def test_norms_of_pretrained_weights_stay_as_they_are_also_where_all_is_tuned(catalog, tmp_path):
    for freeze in (True, False):
        made = recipe("tune=full", "train.epochs=1", f"freeze_norm={str(freeze).lower()}", name="test_resnet")
        after = fit(catalog, made, Run(tmp_path / str(freeze)))[0].backbone.state_dict()
        means = [value for key, value in after.items() if "running_mean" in key]  # 0 in a fresh network
        assert means and [bool(m.any()) for m in means] == [not freeze] * len(means)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_and_validation_compute_alike(catalog, tmp_path, monkeypatch, precision):
    """The backbone in the precision of the training, the head in float32 all the same."""
    seen = {Backbone: set(), module.Head: set()}

    def spied(kind, forward):
        def run(self, x):
            seen[kind].add((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), x.dtype))
            return forward(self, x)

        return run

    for kind in seen:
        monkeypatch.setattr(kind, "forward", spied(kind, kind.forward))
    fit(catalog, recipe("tune=full", "train.epochs=1"), Run(tmp_path / "run"), precision=precision)
    of_images = {call for call in seen[Backbone] if call[2] == torch.uint8}  # one that is made is asked for its width first
    assert of_images == {(precision == "bf16", learning, torch.uint8) for learning in (True, False)}
    assert seen[module.Head] == {(False, learning, torch.float32) for learning in (True, False)}


@pytest.mark.parametrize("name, computed", [("test_vit", "bf16"), ("test_resnet", "fp32")])
def test_features_of_a_frozen_vit_are_in_the_precision_of_the_training(catalog, tmp_path, monkeypatch, name, computed):
    seen, forward = set(), Backbone.forward

    def run(self, x):
        seen.add(torch.is_autocast_enabled("cpu"))
        return forward(self, x)

    made = recipe("train.epochs=1", name=name)
    fit(catalog, made, Run(tmp_path / "before"))  # kept features of another precision are not taken
    monkeypatch.setattr(Backbone, "forward", run)
    model, fitted = fit(catalog, made, Run(tmp_path / "run"), precision="bf16")
    assert fitted.precision == computed and next(model.parameters()).dtype == torch.float32
    assert (True in seen) == (computed == "bf16")


@pytest.mark.parametrize("weights", ["none", "a file"])
def test_random_backbones_learn_as_fast_as_the_head(catalog, tmp_path, monkeypatch, weights):
    from safetensors.torch import save_file

    given = []

    def spied(*arguments, pretrained, **how):
        given.append(pretrained)
        return looped(*arguments, pretrained=pretrained, **how)

    looped = module.fit
    monkeypatch.setattr(module, "fit", spied)
    file = tmp_path / "weights.safetensors"
    save_file(create_backbone(recipe().backbone, 32)[0].model.state_dict(), file)
    named = "none" if weights == "none" else str(file)
    fit(catalog, recipe("tune=full", "train.epochs=1", f"backbone.weights={named}"), Run(tmp_path / "run"))
    assert bool(given[0]) == (weights == "a file")
