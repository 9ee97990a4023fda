"""The method on images small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import pixel_digest
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import UsageError
from entrep_cli.methods import METHODS, WITH_TEXT, method_class
from entrep_cli.methods import dinov2 as module
from entrep_cli.methods.dinov2 import Dinov2, Dinov2Recipe
from entrep_cli.recipes.recipe import build_recipe, parse_assignments
from entrep_cli.workspace import Run

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
    return Dinov2.fit(train, val, made, run, device=torch.device("cpu"), **more)


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
    assert all(torch.equal(a, b) for a, b in zip(model.infer(x), again.infer(x)))


def test_what_a_model_gives(catalog, tmp_path):
    model, _ = fit(catalog, recipe("train.epochs=1"), Run(tmp_path / "run"))
    x = pixels(5)
    embeddings, probabilities = model.embed_images(x), model.classify(x)
    assert embeddings.shape == (5, 128) and probabilities.shape == (5, 3)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(5)) and torch.allclose(probabilities.sum(1), torch.ones(5))
    with pytest.raises(UsageError):
        model.embed_texts(["a spur"])


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
    before = module.create_backbone(made.backbone, 32)[0].state_dict()
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
    backbone, _ = module.create_backbone(recipe().backbone, 32)
    model = Dinov2(backbone, recipe("augment.flip=1"), TAXONOMY).eval()
    _, plain = module._view_features(model, catalog, {}, 0, torch.device("cpu"))
    _, flipped = module._view_features(model, catalog, {}, 1, torch.device("cpu"))
    assert flipped.tolist() == [TAXONOMY.mirrors[t] for t in plain.tolist()] != plain.tolist()


def test_a_section_given_in_part_keeps_the_methods_other_defaults():
    made = recipe("train.epochs=3")
    assert (made.train.epochs, made.train.balance, made.train.average) == (3, "none", 0.99)


def test_every_method_keeps_the_contract():
    for name in METHODS:
        kind = method_class(name)
        assert kind.Recipe.model_fields["method"].default == name
        assert all(callable(getattr(kind, f)) for f in ("infer", "embed_images", "embed_texts", "classify", "save", "load", "fit"))
    assert [name for name in METHODS if method_class(name).has_text_tower] == list(WITH_TEXT)
    with pytest.raises(UsageError) as caught:
        method_class("dino")
    assert "dinov2" in caught.value.mend
