"""Prototypes from the data to the answers: texts, towers of a file or of a run, cache, save and load, the command."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from entrep_cli.app import main
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import pixel_digest
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import DataError, RunError, UsageError, WeightsError
from entrep_cli.methods import prototype as module
from entrep_cli.methods.prototype import Prototype, PrototypeRecipe
from entrep_cli.methods.runs import load_model
from entrep_cli.models.clip import Architecture, build_clip
from entrep_cli.models.precision import choose_inference_precision
from entrep_cli.recipes.recipe import build_recipe, parse_assignments
from entrep_cli.workspace import Run, open_run
from tests.tiny import ENTREP, fit_method, make_contest

TAXONOMY = Taxonomy(
    "sides",
    tuple(
        ClassInfo(name, i, region, None, {"en": (f"{name} edge", "another"), "vi": (f"cạnh {name}",)})
        for i, (name, region) in enumerate([("left", "flank"), ("right", "flank"), ("top", "top")])
    ),
)
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
CONV = {
    **CLIP,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
}
CPU = torch.device("cpu")
# The paper's Table 3, word for word.
TABLE_3 = {
    "nose-left": "An endoscopic image of the left nasal passage.",
    "nose-right": "An endoscopic image of the right nasal passage.",
    "ear-left": "An endoscopic image of the left ear.",
    "ear-right": "An endoscopic image of the right ear.",
    "vc-open": "An endoscopic image of the vocal cords in the open state.",
    "vc-closed": "An endoscopic image of the vocal cords in the closed state.",
    "throat": "An endoscopic image of the throat region.",
}


def draw(label: str, seed: int) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 90, (32, 32, 3), dtype=np.uint8)
    image[{"left": np.s_[:, :10], "right": np.s_[:, -10:], "top": np.s_[:10, :]}[label]] += 150
    return image


def text_of(i: int) -> dict:
    """Every third image has a description, every third a finding of its own, as t2i.json ties it, the others a pair alone."""
    if i % 3 == 0:
        return {"text_en": f"scar {i}", "text_vi": f"sẹo {i}", "findings": (f"scar {i}", f"sẹo {i}")}
    return {"text_en": "", "text_vi": "", "findings": ("pair:a|b", *((f"spot {i}",) if i % 3 == 1 else ()))}


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    rows = []
    for i in range(36):
        label = TAXONOMY.names[i // 3 % 3]
        path = tmp_path / f"{i:02}.png"
        Image.fromarray(draw(label, i)).save(path)
        rows.append({"image": path.name, "path": str(path), "label": label, "group": path.name, "digest": pixel_digest(Image.open(path))})
        rows[-1] |= text_of(i)
    return Catalog(pd.DataFrame(rows), TAXONOMY)


@pytest.fixture
def clip(tmp_path) -> dict[str, str]:
    """An architecture and weights for it."""
    torch.manual_seed(7)
    (tmp_path / "vit.json").write_text(json.dumps(CLIP))
    state = build_clip(Architecture(CLIP), 32).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "vit.safetensors")
    return {"name": str(tmp_path / "vit.json"), "weights": str(tmp_path / "vit.safetensors")}


def recipe(clip: dict[str, str], *assignments: str, **backbone: str) -> PrototypeRecipe:
    settings = [f"backbone.{key}={value}" for key, value in {**clip, **backbone}.items()]
    return build_recipe(PrototypeRecipe, parse_assignments(["image.size=32", "batch_size=7", *settings, *assignments]))


def fit(catalog: Catalog, made: PrototypeRecipe, run: Run, n_train: int = 24):
    run.folder.mkdir(exist_ok=True)
    train, val = catalog.subset(catalog.images[:n_train]), catalog.subset(catalog.images[n_train:])
    return fit_method(Prototype, train, val, made, run)


def pixels(n: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(TAXONOMY.names[i % 3], 100 + i).transpose(2, 0, 1) for i in range(n)]))


def of(catalog: Catalog, taxonomy: Taxonomy) -> Catalog:
    return Catalog(catalog.frame, taxonomy)


# ---------------------------------------------------------------- texts


def test_the_fallback_texts_are_the_papers_table_3():
    found = {c.name: module._sentence(c.prompts["en"][0]) for c in Taxonomy.entrep().classes}
    assert found == TABLE_3


def test_each_image_has_its_own_text_or_its_classs(catalog, clip, capsys):
    def texts(*assignments: str) -> list[str]:
        return module._texts(catalog, recipe(clip, *assignments))

    classes = [TAXONOMY.names[i // 3 % 3] for i in range(36)]
    human = texts()
    for i in range(36):
        assert human[i] == {0: f"scar {i}", 1: f"spot {i}", 2: f"{classes[i].capitalize()} edge."}[i % 3]
    assert "24 of 36 training images have a human description, 12 their" in capsys.readouterr().err
    assert texts("texts=fallback") == [f"{name.capitalize()} edge." for name in classes]
    assert "0 of 36 training images" in capsys.readouterr().err
    vietnamese = texts("language=vi")  # findings tied to an image are English
    assert vietnamese == [f"sẹo {i}" if i % 3 == 0 else f"Cạnh {classes[i]}." for i in range(36)]


def test_images_without_any_text_are_named_by_class(catalog, clip):
    bare = Taxonomy("bare", tuple(ClassInfo(c.name, c.id, c.region, None, c.prompts if c.name == "top" else {}) for c in TAXONOMY.classes))
    with pytest.raises(DataError) as caught:
        module._texts(of(catalog, bare), recipe(clip))
    assert caught.value.faults == ("left: 4 images", "right: 4 images") and "prompts.en" in caught.value.hint
    told = Catalog(catalog.frame.assign(text_en="a scar"), bare)
    assert module._texts(told, recipe(clip)) == ["a scar"] * 36  # no prompt is missed where every image has a text


def test_long_and_vietnamese_texts_are_counted_each_time(catalog, clip, tmp_path, capsys):
    told = Catalog(catalog.frame.assign(text_en=["word " * 40, "viêm mũi", *["short"] * 34]), TAXONOMY)
    for name in ("computed", "cached"):
        model, _ = fit(told, recipe(clip), Run(tmp_path / name))
        said = capsys.readouterr().err
        assert "1 of 3 texts are longer than the 16 tokens" in said and "1 of 3 texts are Vietnamese" in said
    model.embed_texts(["viêm mũi"])
    assert "ask in English" in capsys.readouterr().err


# ---------------------------------------------------------------- the model


def test_prototypes_are_those_of_a_plain_loop(catalog, clip, tmp_path):
    made = recipe(clip)
    model, fitted = fit(catalog, made, Run(tmp_path / "run"))
    train = catalog.subset(catalog.images[:24])
    texts = module._texts(train, made)
    fused: dict[str, list[torch.Tensor]] = {}
    for path, label, text in zip(train.paths, train.frame["label"], texts):
        v = model.embed_images(torch.from_numpy(np.array(Image.open(path)).transpose(2, 0, 1)[None]))[0]
        u = model.embed_texts([text])[0]
        s = float(v @ u)
        z = s * v + (1 - s) * u
        fused.setdefault(label, []).append(z / z.norm())
    for i, c in enumerate(TAXONOMY.classes):
        mean = sum(fused[c.name]) / len(fused[c.name])
        assert torch.allclose(model.prototypes.classes[i], mean / mean.norm(), atol=1e-5)
    flank = sum(fused["left"] + fused["right"])
    assert torch.allclose(model.prototypes.regions, torch.stack([flank / flank.norm(), model.prototypes.classes[2]]), atol=1e-5)
    assert fitted.epoch == 0 and set(fitted.validation) == {"val_loss", "val_accuracy", "val_macro_f1", "val_region_accuracy"}


def test_it_answers_in_fp32_where_the_machine_computes_in_bf16(catalog, clip, tmp_path, monkeypatch):
    monkeypatch.setattr("entrep_cli.models.device._bf16_units", lambda: ["amx_bf16"])
    model, _ = fit(catalog, recipe(clip), Run(tmp_path / "run"))
    assert choose_inference_precision("auto", torch.device("cpu"), model) == ("fp32", "prototype answers in it alone")


def test_a_query_is_purely_visual_and_all_answers_come_from_one_pass(catalog, clip, tmp_path):
    model, _ = fit(catalog, recipe(clip), Run(tmp_path / "run"))
    embeddings, probabilities, _ = model.infer(pixels())
    assert torch.equal(embeddings, model.towers(pixels())) and torch.allclose(embeddings.norm(dim=1), torch.ones(6))
    similarities, regions = model.scores(embeddings)
    assert torch.allclose(similarities, embeddings @ model.prototypes.classes.T, atol=1e-6) and regions.shape == (6, 2)
    assert torch.equal(model.similarities(pixels()), similarities) and torch.equal(model.region_similarities(pixels()), regions)
    assert torch.equal(model.classify(pixels()), probabilities)
    assert torch.allclose(probabilities, (similarities / model.prototypes.class_temperature).softmax(dim=1))
    of_regions = model.classify_regions(pixels())
    assert torch.allclose(of_regions, (regions / model.prototypes.region_temperature).softmax(dim=1))
    summed = model.regions_of(probabilities)
    assert torch.allclose(summed, torch.stack([probabilities[:, :2].sum(dim=1), probabilities[:, 2]], dim=1))
    texts = ["Left edge.", "scar"]
    wanted = (model.embed_texts(texts) @ model.prototypes.classes.T / model.prototypes.class_temperature).softmax(dim=1)
    assert torch.allclose(model.classify_texts(texts), wanted, atol=1e-5)
    with pytest.raises(DataError) as caught:
        model.embed_texts(["a", " "])
    assert caught.value.faults == ("text 2",)


def test_regions_that_are_classes_answer_as_the_classes_do(catalog, clip, tmp_path):
    model, fitted = fit(of(catalog, Taxonomy.derive(TAXONOMY.names)), recipe(clip), Run(tmp_path / "run"))
    assert torch.equal(model.classify(pixels()), model.classify_regions(pixels()))
    assert torch.equal(model.regions_of(model.classify(pixels())), model.classify(pixels()))
    assert fitted.validation["val_region_accuracy"] == pytest.approx(fitted.validation["val_accuracy"])


def test_validation_scores_are_of_the_saved_model(catalog, clip, tmp_path):
    model, fitted = fit(catalog, recipe(clip), Run(tmp_path / "run"))
    val = catalog.subset(catalog.images[24:])
    seen = torch.from_numpy(np.stack([np.array(Image.open(p)).transpose(2, 0, 1) for p in val.paths]))
    targets = torch.from_numpy(val.targets)
    assert fitted.validation["val_loss"] == pytest.approx(float(F.nll_loss(model.classify(seen).log(), targets)), abs=1e-5)
    right = model.classify_regions(seen).argmax(dim=1) == model.region_of[targets]
    assert fitted.validation["val_region_accuracy"] == pytest.approx(float(right.float().mean()))


def test_classes_without_training_images_are_told_and_not_predicted(catalog, clip, tmp_path, capsys):
    order = sorted(catalog.images, key=lambda name: (catalog.frame.set_index("image").label[name] == "top", name))
    train, val = catalog.subset(order[:20]), catalog.subset(order[20:])
    model, fitted = fit_method(Prototype, train, val, recipe(clip), Run(tmp_path / "run"))
    assert "1 classes have no training images" in capsys.readouterr().err
    assert model.classify(pixels())[:, 2].eq(0).all() and model.similarities(pixels())[:, 2].eq(-math.inf).all()
    assert all(map(math.isfinite, fitted.validation.values()))


def test_one_class_alone_works(catalog, clip, tmp_path, capsys):
    top = catalog.subset(catalog.frame.loc[catalog.frame["label"] == "top", "image"])
    model, _ = fit(top, recipe(clip), Run(tmp_path / "run"), n_train=8)
    assert model.classify(pixels()).tolist() == [[0, 0, 1]] * 6
    assert "Temperature of class probabilities: 0.05, for the validation split shows fewer than two" in capsys.readouterr().err


def test_embeddings_are_computed_once(catalog, clip, tmp_path, monkeypatch):
    first, _ = fit(catalog, recipe(clip), Run(tmp_path / "a"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_pixels", lambda *a: pytest.fail("the images are embedded already"))
        patch.setattr(module, "_encode", lambda *a: pytest.fail("the texts are embedded already"))
        second, _ = fit(catalog, recipe(clip), Run(tmp_path / "b"))
    assert all(torch.equal(a, b) for a, b in zip(first.prototypes.buffers(), second.prototypes.buffers()))
    # The same tensors in another architecture are another model.
    quick = tmp_path / "quick.json"
    quick.write_text(json.dumps({**CLIP, "quick_gelu": True}))
    third, _ = fit(catalog, recipe(clip, name=str(quick)), Run(tmp_path / "c"))
    assert not torch.allclose(first.prototypes.classes, third.prototypes.classes, atol=1e-5)
    for path in module.cache_dir("features").iterdir():
        path.write_bytes(b"damaged")
    fourth, _ = fit(catalog, recipe(clip), Run(tmp_path / "d"))
    assert torch.equal(first.prototypes.classes, fourth.prototypes.classes)


# ---------------------------------------------------------------- save and load


def test_a_saved_model_answers_the_same(catalog, clip, tmp_path):
    made, run = recipe(clip), Run(tmp_path / "run")
    model, fitted = fit(catalog, made, run)
    model.save(run)
    run.mark_complete({"weights": fitted.weights})
    assert set(load_file(run.path("model.safetensors"))) == {"classes", "regions", "class_temperature", "region_temperature"}
    again = Prototype.load(run, made, TAXONOMY, CPU)
    asked = ["a", "b c"]
    for a, b in zip(
        (*model.infer(pixels())[:2], model.classify_regions(pixels()), model.embed_texts(asked), model.classify_texts(asked)),
        (*again.infer(pixels())[:2], again.classify_regions(pixels()), again.embed_texts(asked), again.classify_texts(asked)),
    ):
        assert torch.equal(a, b)
    (tmp_path / "vit.json").unlink()  # the run keeps the architecture
    Prototype.load(run, made, TAXONOMY, CPU)
    state = load_file(clip["weights"])
    save_file({**state, "ln_final.bias": state["ln_final.bias"] + 1}, clip["weights"])
    with pytest.raises(RunError, match="not those that the prototypes were made with"):
        Prototype.load(run, made, TAXONOMY, CPU)


def test_towers_without_meaning_are_refused(catalog, clip, tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(UsageError, match="pretrained towers"):
        fit(catalog, recipe(clip, weights="none"), run)
    with pytest.raises(WeightsError, match="No weights file and no run named"):
        fit(catalog, recipe(clip, weights="nowhere"), run)
    (tmp_path / "conv.json").write_text(json.dumps(CONV))
    trunk = build_clip(Architecture(CONV), 32).visual.trunk.state_dict()
    save_file({k: v.contiguous() for k, v in trunk.items()}, tmp_path / "trunk.safetensors")
    with pytest.raises(UsageError, match="image tower alone"):
        fit(catalog, recipe({"name": str(tmp_path / "conv.json"), "weights": str(tmp_path / "trunk.safetensors")}), run)


# ---------------------------------------------------------------- the command


@pytest.fixture
def entrep(capfd):
    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        return (ended.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture
def data(tmp_path, entrep):
    """A tiny contest dataset, split; one image of each class has a human text (t2i.json)."""
    made = make_contest(tmp_path / "data", per_class=6, tests=2)
    assert entrep("split", "--data", made.root, "--ratios", "60/20/20")[0] == 0
    return made


def options(clip: dict[str, str]) -> list[str]:
    return ["--backbone", clip["name"], "--weights", clip["weights"], "--set", "image.size=32", "--set", "batch_size=8"]


def test_the_command_with_human_texts_and_without(data, clip, entrep):
    code, out, err = entrep("train", "prototype", *options(clip))
    assert code == 0 and re.search(r"Texts: [1-7] of 25 training images have a human description", err), err
    manifest = open_run("prototype").manifest
    assert manifest["method"] == "prototype" and manifest["epoch"] == 0 and 0 <= manifest["validation"]["val_region_accuracy"] <= 1
    assert entrep("evaluate")[0] == 0
    for track in (1, 2, 3):
        code, _, err = entrep("predict", "--track", track)
        assert code == 0, err
    code, out, err = entrep("train", "prototype", *options(clip), "--set", "texts=fallback", "--name", "fallback")
    assert code == 0 and "Texts: 0 of 25" in err and "val_region_accuracy" in out, err
    one, other = (load_model(open_run(name)).prototypes.classes for name in ("prototype", "fallback"))
    assert one.shape == (len(ENTREP), 32) and not torch.allclose(one, other, atol=1e-4)
    assert load_model(open_run("prototype")).taxonomy.regions == ["nose", "ear", "vc", "throat"]


def test_the_same_command_leaves_the_same_bytes(data, clip, entrep):
    for name in ("a", "b"):
        assert entrep("train", "prototype", *options(clip), "--name", name)[0] == 0
    assert open_run("a").path("model.safetensors").read_bytes() == open_run("b").path("model.safetensors").read_bytes()


def test_settings_of_a_training_are_unknown(data, clip, entrep):
    code, _, err = entrep("train", "prototype", *options(clip), "--epochs", "3")
    assert code == 2 and "train.epochs" in err and "entrep train prototype --show-recipe" in err
    assert entrep("train", "prototype", "--recipe", "prototype", "--show-recipe")[0] == 0


def test_a_trained_run_gives_the_towers(data, clip, entrep, tmp_path, monkeypatch):
    small = ["--set", "fusion.levels=[1,2]", "--set", "train.batch_size=14", "--set", "texts.findings=false", "--epochs", "1"]
    code, _, err = entrep("train", "clip-lora", *options(clip), *small)
    assert code == 0, err
    code, _, err = entrep("train", "prototype", "--weights", "clip-lora")
    assert code == 0 and "Towers: those of run clip-lora" in err and "another split" not in err, err
    code, _, err = entrep("train", "prototype", "--weights", open_run("clip-lora").folder, "--name", "by-folder")
    assert code == 0, err
    towers, model = load_model(open_run("clip-lora")), load_model(open_run("prototype"))
    assert torch.equal(towers.embed_images(pixels()), model.embed_images(pixels()))
    assert torch.equal(towers.embed_texts(["a scar"]), model.embed_texts(["a scar"]))
    assert open_run("prototype").manifest["weights"]["sha256"] == open_run("clip-lora").manifest["files"]["model.safetensors"]
    assert open_run("prototype").path("model.safetensors").stat().st_size < 10_000
    # A run whose text tower never learned has nothing to fuse with an image.
    fresh = ["--backbone", clip["name"], "--weights", "none", "--tune", "full", "--set", "image.size=32", "--set", "texts.contrast=0"]
    code, _, err = entrep("train", "clip-lora", *fresh, *small, "--name", "textless")
    assert code == 0, err
    code, _, err = entrep("train", "prototype", "--weights", "textless", "--name", "of-textless")
    assert code == 2 and "never trained" in err and not (open_run("clip-lora").folder.parent / "of-textless").exists()
    # Runs that were moved together are found beside each other.
    moved = tmp_path / "moved"
    open_run("prototype").folder.parent.rename(moved)
    load_model(Run(moved / "by-folder"))
    monkeypatch.setenv("ENTREP_RUNS", str(moved))
    # Towers that have seen another split are told of; towers that were trained again are refused.
    assert entrep("split", "--data", data.root, "--ratios", "60/20/20", "--seed", "5")[0] == 0
    code, _, err = entrep("train", "prototype", "--weights", "clip-lora", "--name", "leak")
    assert code == 0 and "another split" in err, err
    code, _, err = entrep("train", "prototype", "--weights", "leak", "--name", "tower-of-prototypes")
    assert code == 2 and "is one of prototype" in err
    assert entrep("train", "clip-lora", *options(clip), *small, "--seed", "4", "--name", "clip-lora", "--overwrite")[0] == 0
    code, _, err = entrep("evaluate", "--run", "leak")
    assert code == 1 and "not those that the prototypes were made with" in err
    # A run that was copied with its towers has its own, whatever stands here by their name.
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in ("prototype", "clip-lora"):
        shutil.copytree(moved / name, copied / name)
    assert entrep("train", "prototype", "--weights", "clip-lora", "--name", "prototype", "--overwrite")[0] == 0
    shutil.rmtree(copied / "prototype")
    shutil.copytree(moved / "prototype", copied / "prototype")
    assert entrep("train", "clip-lora", *options(clip), *small, "--seed", "6", "--name", "clip-lora", "--overwrite")[0] == 0
    load_model(Run(copied / "prototype"))
