"""Three stages against a loop written out, thresholds, parts on disk, going on, taxonomies of every form, the command."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from entrep_cli.app import main
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import pixel_digest
from entrep_cli.data.splits import Split, make_split
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.methods import dinov2_training, runs
from entrep_cli.methods import hybrid as module
from entrep_cli.methods.dinov2 import Dinov2
from entrep_cli.methods.hybrid import Hybrid, tune_threshold
from entrep_cli.methods.hybrid_components import HybridRecipe, component_recipes
from entrep_cli.methods.runs import load_model, train_run
from entrep_cli.models.backbones import Backbone
from entrep_cli.models.clip import Architecture, build_clip
from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe, recipe_toml
from entrep_cli.training import loop
from entrep_cli.workspace import Run, runs_dir
from tests.tiny import fit_method, make_contest

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
BASELINE = """
method = "dinov2"
tune = "full"
freeze_norm = false
image.size = 32
backbone = { name = "test_resnet", weights = "none" }
train = { epochs = 14, batch_size = 8, backbone_learning_rate = 1e-3, balance = "oversample", average = 0.0 }
"""


def taxonomy_of(*rows: tuple[str, str]) -> Taxonomy:
    """Classes with their regions; left and right are mirrors where both are there."""
    names = {name for name, _ in rows}
    mirrors = {"left": "right", "right": "left"}
    return Taxonomy(
        "test",
        tuple(
            ClassInfo(name, i, region, mirror if (mirror := mirrors.get(name, name)) in names else None, {"en": (f"{name} edge",)})
            for i, (name, region) in enumerate(rows)
        ),
    )


TAXONOMY = taxonomy_of(("left", "side"), ("right", "side"), ("top", "pole"), ("bottom", "floor"))


def draw(label: str, seed: int) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 90, (32, 32, 3), dtype=np.uint8)
    place = {"left": np.s_[:, :10], "right": np.s_[:, -10:], "top": np.s_[:10, :], "bottom": np.s_[-10:, :]}
    image[place[label]] += 150
    return image


def pixels(n: int = 16, size: int = 32) -> torch.Tensor:
    images = [Image.fromarray(draw(TAXONOMY.names[i % 4], 100 + i)).resize((size, size)) for i in range(n)]
    return torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]))


def make_catalog(folder: Path, taxonomy: Taxonomy = TAXONOMY, n: int = 48) -> Catalog:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        label = taxonomy.names[i % len(taxonomy)]
        path = folder / f"{i:02}.png"
        Image.fromarray(draw(label, i)).save(path)
        rows.append({"image": path.name, "path": str(path), "label": label, "group": path.name, "digest": pixel_digest(Image.open(path))})
        rows[-1] |= {"text_en": "", "text_vi": "", "findings": ()}
    return Catalog(pd.DataFrame(rows), taxonomy)


def split_of(catalog: Catalog) -> Split:
    return make_split(catalog, ratios=(50, 25, 25))


def make_files(folder: Path) -> Path:
    """A CLIP with random weights, and a recipe of a baseline that is trained from scratch."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    (folder / "clip.json").write_text(json.dumps(CLIP))
    save_file({k: v.contiguous() for k, v in build_clip(Architecture(CLIP), 32).state_dict().items()}, folder / "clip.safetensors")
    (folder / "baseline.toml").write_text(BASELINE)
    return folder


def recipe(files: Path, *assignments: str) -> HybridRecipe:
    base = ["prototype.image.size=32", f"prototype.backbone.name={files / 'clip.json'}"]
    base += [f"prototype.backbone.weights={files / 'clip.safetensors'}", f"baseline.recipe={files / 'baseline.toml'}"]
    base += ["experts.image.size=32", "experts.backbone.name=test_resnet", "experts.backbone.weights=baseline", "experts.views=1"]
    base += ["experts.train.epochs=10", "experts.train.batch_size=8", "batch_size=5", "threshold=tune"]
    return build_recipe(HybridRecipe, parse_assignments([*base, *assignments]))


def train(catalog: Catalog, made: HybridRecipe, run: Run, **more) -> tuple[Hybrid, dict]:
    run.folder.mkdir(parents=True, exist_ok=True)
    return train_run(catalog, split_of(catalog), made, run, device="cpu", precision="fp32", **more)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with files, images and the trained run runs/hybrid."""
    folder = tmp_path_factory.mktemp("hybrid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTREP_RUNS", str(folder / "runs"))
        train(make_catalog(folder / "images"), recipe(make_files(folder / "files")), Run(folder / "runs" / "hybrid"))
    return folder


@pytest.fixture
def copied(base, tmp_path, monkeypatch) -> Path:
    """The same of the test's own; the runs folder has another place now."""
    shutil.copytree(base / "runs", tmp_path / "runs")
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs" / "hybrid"


@pytest.fixture
def model(copied) -> Hybrid:
    return load_model(Run(copied), "cpu")


# ---------------------------------------------------------------- answers


def one_by_one(model: Hybrid, images: torch.Tensor) -> list[tuple[int, int]]:
    """Class and stage of each image, by the paper's three stages as they read."""
    found = []
    for image in images:
        image = image[None]
        similarities = model.prototype.similarities(image)[0]
        if similarities.max() >= model.threshold:
            found.append((int(similarities.argmax()), 1))
            continue
        region = model.region.taxonomy.names[int(model.region.classify(image).argmax())]
        own = [c.name for c in model.taxonomy.classes if c.region == region]
        if len(own) == 1:
            found.append((model.taxonomy.index(own[0]), 2))
        else:
            expert = next(e for r, e in zip(model.expert_regions, model.experts) if r == region)
            found.append((model.taxonomy.index(expert.taxonomy.names[int(expert.classify(image).argmax())]), 3))
    return found


@pytest.mark.parametrize("threshold", ["all", "some", "none"])
def test_the_stages_are_those_of_a_loop_written_out(model, threshold):
    images = pixels()
    confidences = model.prototype.similarities(images).amax(dim=1).sort().values
    model.threshold = {"all": -1.0, "some": float(confidences[5:7].mean()), "none": 1.01}[threshold]
    found = model.decide(images)
    assert list(zip(found.classes.tolist(), found.stages.tolist())) == one_by_one(model, images)
    assert (found.stages == 1).sum() == {"all": 16, "some": 10, "none": 0}[threshold]
    assert threshold != "none" or set(found.stages.tolist()) == {2, 3}
    assert not found.abstained.any()


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 1.01])
def test_the_largest_probability_is_the_class_decided_on(model, threshold):
    images = pixels()
    model.threshold = threshold
    embeddings, probabilities, stage = model.infer(images)
    found = model.decide(images)
    assert torch.equal(stage, found.stages)
    assert torch.equal(probabilities.argmax(dim=1), found.classes) and torch.allclose(probabilities.sum(1), torch.ones(16), atol=1e-6)
    assert torch.equal(embeddings, model.prototype.embed_images(images)) and torch.equal(model.embed_images(images), embeddings)
    assert torch.equal(model.classify(images), probabilities)
    first = found.stages == 1
    assert torch.equal(probabilities[first], model.prototype.classify(images)[first])
    later = ~first
    assert torch.all(found.confidences <= probabilities.amax(dim=1) + 1e-6)
    if later.any():
        region = (model.region(images) / model.temperatures[0]).softmax(dim=1)[later]
        expert = (model.experts[0](images) / model.temperatures[1]).softmax(dim=1)[later]
        joint = torch.stack([region[:, 0] * expert[:, 0], region[:, 0] * expert[:, 1], region[:, 1], region[:, 2]], dim=1)
        same = joint.argmax(dim=1) == found.classes[later]
        assert same.any() and torch.allclose(probabilities[later][same], joint[same], atol=1e-6)
        assert torch.allclose(found.confidences[later], joint.gather(1, found.classes[later][:, None])[:, 0], atol=1e-6)


def test_any_logits_give_consistent_probabilities(model):
    generator = torch.Generator().manual_seed(0)
    coarse, fine = torch.randn(4000, 3, generator=generator), torch.randn(4000, 2, generator=generator) / 3
    coarse[:50], fine[25:75] = 0, 0  # ties: the first class, as argmax has it
    probabilities, found = model._refine(coarse, fine)
    own = fine.argmax(dim=1)
    wanted = torch.tensor([0, 2, 3])[coarse.argmax(dim=1)] + own * (coarse.argmax(dim=1) == 0)
    assert torch.equal(found.classes, wanted) and torch.equal(probabilities.argmax(dim=1), wanted)
    assert torch.allclose(probabilities.sum(1), torch.ones(4000), atol=1e-5) and probabilities.min() >= 0
    joint = (coarse / model.temperatures[0]).softmax(dim=1)[:, [0, 0, 1, 2]]
    joint[:, :2] *= (fine / model.temperatures[1]).softmax(dim=1)
    agree = joint.argmax(dim=1) == wanted
    assert 0.5 < agree.float().mean() < 1 and torch.allclose(probabilities[agree], joint[agree], atol=1e-6)
    # Elsewhere the class decided on is the largest by no more than it must.
    top = probabilities[~agree].topk(2, dim=1).values
    assert torch.allclose(top[:, 0], top[:, 1], atol=1e-5)


def test_images_the_last_stage_is_not_sure_of_are_marked(model):
    images = pixels()
    for threshold in (-1.0, 1.01):
        model.threshold = threshold
        confidences = model.decide(images).confidences.sort().values
        for least, n in ((0.0, 0), (float(confidences[2:4].mean()), 3), (1.0, 16)):
            model.recipe = model.recipe.model_copy(update={"abstain": least})
            assert int(model.decide(images).abstained.sum()) == n


def test_confidence_may_be_the_probability(model):
    images = pixels()
    own = model.prototype.classify(images).amax(dim=1)
    model.recipe = model.recipe.model_copy(update={"confidence": "probability"})
    model.threshold = float(own.median())
    assert torch.equal(model.decide(images).stages == 1, own >= model.threshold)


def test_texts_go_to_the_prototypes(model):
    assert torch.equal(model.embed_texts(["a spur"]), model.prototype.embed_texts(["a spur"]))
    assert model.classify_texts(["a spur", "left edge"]).shape == (2, 4)


def test_one_pass_of_one_backbone_serves_all_experts(model, monkeypatch):
    assert all(expert.backbone is model.region.backbone for expert in model.experts)
    seen = []
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
    model.threshold = 1.01
    model.infer(pixels(7))
    assert seen == [7]
    model.threshold = -1.0
    model.infer(pixels(7))
    assert seen == [7]  # nothing is deferred


# ---------------------------------------------------------------- the threshold


def test_tuning_finds_the_best_of_all_thresholds():
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        n = int(torch.randint(1, 9, (1,), generator=generator))
        confidences = torch.randint(0, 6, (n,), generator=generator) / 7
        first, later = (torch.rand(n, generator=generator) < 0.6 for _ in range(2))

        def right(threshold: float) -> int:
            return int(torch.where(confidences >= threshold, first, later).sum())

        found = tune_threshold(confidences, first, later)
        tried = [1.01, *(float(c) for c in confidences)]
        assert right(found) == max(map(right, tried))
        assert not any(right(t) == right(found) for t in tried if (confidences >= t).sum() < (confidences >= found).sum())


@pytest.mark.parametrize(
    ("first", "later", "wanted"),
    [([1, 1, 0], [0, 1, 1], 0.85), ([1, 1, 1], [1, 1, 1], 1.01), ([0, 0, 0], [1, 0, 1], 1.01), ([1, 1, 1], [0, 0, 0], 0.5 - 1e-6)],
)
def test_equals_are_decided_by_the_higher_threshold(first, later, wanted):
    found = tune_threshold(torch.tensor([0.9, 0.8, 0.5]), torch.tensor(first).bool(), torch.tensor(later).bool())
    assert found == pytest.approx(wanted, abs=1e-7)


def test_what_the_stages_did_is_kept(base, copied):
    told = json.loads((copied / "stages.json").read_text())
    assert told["tuned"] and told["images"] == 12 == sum(stage["images"] for stage in told["stages"][:-1])
    assert [(s["stage"], s["by"]) for s in told["stages"]] == [(1, "prototypes"), (2, "region model"), (3, "expert side"), ("", "all")]
    assert list(told["temperatures"]) == ["region", "expert side"]
    scores = {row["model"]: row["accuracy"] for row in told["models"]}
    assert list(scores) == ["prototype alone", "baseline alone", "region and experts alone", "hybrid"]
    assert scores["hybrid"] >= max(scores["prototype alone"], scores["region and experts alone"])  # each is a threshold that was tried
    assert scores["region and experts alone"] > 0.8
    # The table is what the model does.
    catalog = make_catalog(base / "images")
    val = catalog.subset(split_of(catalog).images("val"))
    model = load_model(Run(copied), "cpu")
    seen = torch.stack([torch.from_numpy(model.preprocess(Image.open(path))) for path in val.paths])
    found = model.decide(seen)
    right = found.classes == torch.from_numpy(val.targets)
    assert [int((found.stages == s).sum()) for s in (1, 2, 3)] == [s["images"] for s in told["stages"][:-1]]
    assert [int(right[found.stages == s].sum()) for s in (1, 2, 3)] == [s["right"] for s in told["stages"][:-1]]
    assert json.loads((copied / "run.json").read_text())["validation"]["val_accuracy"] == pytest.approx(scores["hybrid"])


def test_the_published_threshold_is_told_where_nothing_reaches_it(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    made = recipe(base / "files", "threshold=0.999", "abstain=1.0", "experts.train.epochs=1")
    model, _ = train(make_catalog(base / "images"), made, Run(tmp_path / "runs" / "h"))
    told = capsys.readouterr()
    assert model.threshold == 0.999 and "No similarity of validation reaches 0.999" in told.err and "threshold=tune" in told.err
    assert "Marked as out of distribution (probability below 1): 12 of 12" in told.err
    assert "Stages on validation" in told.out and "region and experts alone" in told.out


# ---------------------------------------------------------------- on disk


def test_every_part_is_a_run_of_its_own(base, copied):
    catalog = make_catalog(base / "images")
    names = {"prototype": 4, "baseline": 4, "region": 3, "expert-side": 2}
    assert {path.name for path in copied.iterdir() if path.is_dir()} == set(names)
    for name, n_classes in names.items():
        part = Run(copied / name)
        manifest = part.manifest
        assert manifest["data"]["catalog"] == catalog.fingerprint and manifest["split"]["fingerprint"] == split_of(catalog).fingerprint
        assert manifest["data"]["images"]["train"] == (12 if name == "expert-side" else 24) and not part.path("checkpoint.pt").exists()
        assert load_model(part, "cpu").classify(pixels(2)).shape == (2, n_classes)
    manifest = Run(copied).manifest
    assert manifest["files"].keys() == {"started.json", "config.toml", "model.safetensors", "components.json", "stages.json"}
    assert manifest["taxonomy"]["classes"][0]["name"] == "left" and set(manifest["weights"]["components"]) == set(names)
    assert "hybrid/baseline" in (copied / "region" / "config.toml").read_text()  # by name: no place of a machine


def test_saved_and_loaded_it_answers_the_same(base, copied, model):
    again = load_model(Run(copied), "cpu")
    made = Run(copied.parent / "again")
    shutil.copytree(copied, made.folder)
    model.save(made)
    assert (made.path("model.safetensors").read_bytes(), made.path("components.json").read_bytes()) == (
        (copied / "model.safetensors").read_bytes(),
        (copied / "components.json").read_bytes(),
    )
    for a, b in zip((*model.infer(pixels()), *model.decide(pixels())), (*again.infer(pixels()), *again.decide(pixels()))):
        assert torch.equal(a, b)


def test_the_same_training_gives_the_same_bytes_and_a_loaded_model(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    made, _ = train(make_catalog(base / "images"), recipe(base / "files"), Run(tmp_path / "runs" / "hybrid"))
    for file in ("model.safetensors", "components.json", "stages.json"):
        assert (tmp_path / "runs" / "hybrid" / file).read_bytes() == (base / "runs" / "hybrid" / file).read_bytes()
    loaded = load_model(Run(base / "runs" / "hybrid"), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(made.infer(pixels())[:2], loaded.infer(pixels())[:2]))


def test_a_part_that_is_another_one_is_refused(copied):
    stage = Run(copied / "region")
    stage.path("model.safetensors").write_bytes(b"changed")
    with pytest.raises(RunError, match="Component 'region' .* cannot be used: Run 'region' is damaged"):
        load_model(Run(copied), "cpu")
    stage.mark_complete(stage.manifest)  # as a training anew would leave it
    with pytest.raises(RunError, match="was trained anew") as caught:
        load_model(Run(copied), "cpu")
    assert caught.value.faults == ("model.safetensors is another one",)
    stage.path("run.json").unlink()
    with pytest.raises(RunError, match="not complete") as caught:
        load_model(Run(copied), "cpu")
    assert "--name hybrid --overwrite" in caught.value.hint


# ---------------------------------------------------------------- going on


class Stopped(BaseException):
    pass


def test_an_interrupted_hybrid_goes_on_to_the_same_end(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    catalog, made, run = make_catalog(base / "images"), recipe(base / "files"), Run(tmp_path / "runs" / "hybrid")
    fitted = []
    fit = Dinov2.fit.__func__

    def counted(cls, context):
        fitted.append((context.run.name, context.resume))
        return fit(cls, context)

    monkeypatch.setattr(Dinov2, "fit", classmethod(counted))

    def stop_at(part: str, epoch: int):
        def stopped(seed: int, now: int):
            if fitted[-1][0] == part and now == epoch:
                raise Stopped
            return loop.epoch_generator(seed, now)

        return stopped

    for resume, part, epoch in ((False, "baseline", 4), (True, "expert-side", 3)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(dinov2_training, "epoch_generator", stop_at(part, epoch))
            train(catalog, made, run, resume=resume)
        assert not run.complete and run.path("checkpoint.pt").is_file() and run.path(part, "checkpoint.pt").is_file()
    train(catalog, made, run, resume=True)
    assert fitted == [("baseline", False), ("baseline", True), ("region", True), ("expert-side", True), ("expert-side", True)]
    assert not list(run.folder.rglob("checkpoint.pt"))
    assert (run.path("components.json").read_bytes(), run.path("model.safetensors").read_bytes()) == tuple(
        (base / "runs" / "hybrid" / file).read_bytes() for file in ("components.json", "model.safetensors")
    )


def test_a_hybrid_that_ends_before_anything_is_learned_leaves_nothing(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(runs, "method_class", lambda name: pytest.fail("nothing may begin") if name != "hybrid" else Hybrid)
    run = Run(tmp_path / "runs" / "hybrid")
    with pytest.raises(UsageError, match="cut in different ways"):
        train(make_catalog(base / "images"), recipe(base / "files", "experts.image.fit=crop"), run)
    run.remove_if_empty()
    assert not run.folder.exists()


def test_a_part_that_fails_at_once_is_taken_away(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    run = Run(tmp_path / "runs" / "hybrid")
    with pytest.raises(RunError, match="No such weights file") as caught:
        train(make_catalog(base / "images"), recipe(base / "files", "experts.backbone.weights=nowhere.pth"), run)
    assert "--set experts.backbone.weights=FILE" in caught.value.hint  # --weights is no option of a hybrid's part
    assert {path.name for path in run.folder.iterdir() if path.is_dir()} == {"prototype", "baseline"}
    assert run.path("checkpoint.pt").is_file()  # the baseline is worth going on with


# ---------------------------------------------------------------- sizes


def test_pixels_come_in_the_larger_size(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    catalog, files = make_catalog(base / "images"), base / "files"
    more = ["experts.train.epochs=1", "baseline.settings.image.size=48", "experts.image.size=48", "baseline.settings.train.epochs=1"]
    run = Run(tmp_path / "runs" / "h")
    model, _ = train(catalog, recipe(files, *more), run)
    assert model.preprocess.size == 48 and model.prototype.preprocess.size == 32 and model.region.preprocess.size == 48
    images = pixels(size=48)
    small = module.resized(images, 32)
    assert small.dtype == torch.uint8 and small.shape == (16, 3, 32, 32) and module.resized(images, 48) is images
    assert torch.equal(model.embed_images(images), model.prototype.embed_images(small))
    model.threshold = 1.01
    assert torch.equal(model.decide(images).stages == 3, model.region.classify(images).argmax(dim=1) == 0)
    # Halves of a square: the mean of each, whatever the filter does at the edge.
    halves = torch.cat([torch.full((1, 3, 48, 24), 40), torch.full((1, 3, 48, 24), 200)], dim=3).to(torch.uint8)
    assert module.resized(halves, 24)[0, :, :, [2, -2]].unique().tolist() == [40, 200]


# ---------------------------------------------------------------- taxonomies


FORMS = {
    "every class its own region": (("left", "left"), ("right", "right"), ("top", "top")),
    "three classes in a region": (("left", "r"), ("right", "r"), ("top", "r"), ("bottom", "b")),
    "one region": (("left", "r"), ("right", "r"), ("top", "r")),
    "two regions of two": (("left", "a"), ("right", "a"), ("top", "b"), ("bottom", "b")),
}


@pytest.mark.parametrize("form", FORMS)
def test_taxonomies_of_every_form(base, tmp_path, monkeypatch, capsys, form):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    taxonomy = taxonomy_of(*FORMS[form])
    catalog = make_catalog(tmp_path / "images", taxonomy)
    run = Run(tmp_path / "runs" / "h")
    model, _ = train(catalog, recipe(base / "files", "baseline.settings.train.epochs=3", "experts.train.epochs=3", "threshold=1.01"), run)
    told = capsys.readouterr().err
    parts = {path.name for path in run.folder.iterdir() if path.is_dir()} - {"prototype", "baseline"}
    images = pixels()
    stages = set(model.decide(images).stages.tolist())
    if form == "every class its own region":
        assert parts == {"region"} and stages == {2} and "no experts are trained" in told
        assert model.region.taxonomy.mirrors == [1, 0, 2]  # regions that are mirrors, as their classes are
        assert torch.equal(model.decide(images).classes, model.region.classify(images).argmax(dim=1))
    elif form == "one region":
        assert parts == {"expert-r"} and stages == {3} and "no coarse model is trained" in told
        assert torch.equal(model.decide(images).classes, model.experts[0].classify(images).argmax(dim=1))
    elif form == "three classes in a region":
        assert parts == {"region", "expert-r"} and model.experts[0].taxonomy.names == ["left", "right", "top"]
        assert list(zip(*(column.tolist() for column in model.decide(images)[:2]))) == one_by_one(model, images)
    else:
        assert parts == {"region", "expert-a", "expert-b"} and stages == {3}
        assert list(zip(*(column.tolist() for column in model.decide(images)[:2]))) == one_by_one(model, images)
    again = load_model(run, "cpu")
    assert torch.equal(again.classify(images), model.classify(images))


def test_taxonomies_without_anything_to_tell_apart_are_refused(base):
    made = recipe(base / "files")
    with pytest.raises(DataError, match="The only class is 'left'"):
        component_recipes(made, taxonomy_of(("left", "r")), Run(runs_dir() / "h"))
    for name in ("class", "region"):
        with pytest.raises(DataError, match=f"cannot be called '{name}'"):
            component_recipes(made, taxonomy_of(("left", name), ("right", name), ("top", "t")), Run(runs_dir() / "h"))


def test_an_expert_without_images_is_told_before_anything_is_trained(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    catalog = make_catalog(tmp_path / "images", taxonomy_of(*FORMS["two regions of two"]))
    train_component, val = (catalog.subset(catalog.images[a:b]) for a, b in ((0, 24), (24, 48)))
    val = val.subset([image for image, label in zip(val.images, val.frame["label"]) if label in ("left", "right")])
    monkeypatch.setattr(module, "train_one", lambda *a: pytest.fail("nothing may begin"))
    with pytest.raises(RunError, match="val subset of the split has no image of top, bottom"):
        fit_method(Hybrid, train_component, val, recipe(base / "files"), Run(tmp_path / "h"))


def test_regions_of_odd_names_have_folders_of_their_own(base):
    names = [("left", "../a b"), ("right", "../a b"), ("top", ".._a_b"), ("bottom", ".._a_b")]
    parts = component_recipes(recipe(base / "files"), taxonomy_of(*names), Run(runs_dir() / "h"))
    experts = {name: made.target for name, made in parts.items() if name.startswith("expert-")}
    assert experts == {"expert-.._a_b": "../a b", "expert-.._a_b_": ".._a_b"}


# ---------------------------------------------------------------- recipes


def test_the_recipe_of_the_paper():
    made = build_recipe(HybridRecipe, read_recipe("foregut"))
    assert (made.threshold, made.confidence, made.expert_head, made.expert_balance) == (0.99, "similarity", "mlp", "oversample")
    assert "BiomedCLIP" in made.prototype.backbone.name and made.experts.head.hidden == (256, 128) and made.experts.head.dropout == 0.3
    parts = component_recipes(made, Taxonomy.entrep(), Run(runs_dir() / "hybrid"))
    assert list(parts) == ["prototype", "baseline", "region", "expert-nose", "expert-ear", "expert-vc"]
    assert [p.target for p in list(parts.values())[1:]] == ["class", "region", "nose", "ear", "vc"]
    assert {p.train.balance for name, p in parts.items() if name.startswith("expert-")} == {"oversample"}
    # All but the prototype read one pass of the same features.
    assert len({(p.backbone.model_dump_json(), p.image.model_dump_json(), p.views, p.seed) for p in list(parts.values())[1:]}) == 1


def test_the_tiny_recipe_trains_towers_and_backbone_itself():
    made = build_recipe(HybridRecipe, read_recipe("foregut-tiny"), {"seed": 3, "expert_head": "logistic"})
    parts = component_recipes(made, Taxonomy.entrep(), Run(runs_dir() / "mine"))
    assert list(parts)[:3] == ["towers", "prototype", "baseline"] and {p.seed for p in parts.values()} == {3}
    assert parts["prototype"].backbone.weights == "mine/towers" and parts["region"].backbone.weights == "mine/baseline"
    assert parts["baseline"].tune == "full" and parts["baseline"].image == parts["region"].image
    assert parts["expert-ear"].head.kind == "logistic" and parts["region"].head.kind == "mlp"
    assert parts["towers"].train.epochs == made.towers.settings["train"]["epochs"]
    assert build_recipe(HybridRecipe, tomllib.loads(recipe_toml(made))) == made


@pytest.mark.parametrize(
    ("assignments", "fault"),
    [
        (["experts.target=region"], "sets the targets"),
        (["expert_head=logistic", "experts.tune=full"], "experts.tune=head"),
        (["threshold=often"], "threshold"),
        (["abstain=2"], "abstain"),
        (["backbone.name=x"], "Unknown key: 'backbone.name'"),
    ],
)
def test_settings_that_do_not_hold(assignments, fault):
    with pytest.raises(UsageError) as caught:
        build_recipe(HybridRecipe, parse_assignments(assignments))
    assert fault in " ".join(caught.value.faults)


def test_parts_of_other_methods_and_circles_are_refused(base):
    for assignments, match in (
        (["towers.recipe=dinov2-tiny"], "towers.recipe must be one of clip-lora"),
        (["baseline.recipe=tiny"], "baseline.recipe must be one of dinov2"),
        (["baseline.recipe="], "start from the baseline"),
        (["towers.recipe=tiny", "towers.settings.nothing=1"], "do not hold"),
        (["experts.backbone.name=test_vit"], "has the backbone 'test_resnet', not 'test_vit'"),
    ):
        with pytest.raises(UsageError, match=match):
            component_recipes(recipe(base / "files", *assignments), TAXONOMY, Run(runs_dir() / "h"))


# ---------------------------------------------------------------- the command


def test_the_command_from_training_to_submissions(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ENTREP_DATA", str(make_contest(tmp_path / "data", per_class=6, tests=2).root))

    def entrep(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        assert not ended.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    entrep("split", "--ratios", "60/20/20")
    small = ["towers.settings.image.size=32", "towers.settings.train.epochs=1", "baseline.settings.train.epochs=3"]
    small += ["experts.train.epochs=5", "baseline.settings.backbone.name=test_resnet", "experts.backbone.name=test_resnet"]
    small += ["baseline.settings.image.size=32", "experts.image.size=32", "towers.settings.fusion.levels=[4,5]"]
    told = entrep("train", "hybrid", "--recipe", "foregut-tiny", *(x for a in small for x in ("--set", a)))
    assert "Stages on validation" in told and "baseline alone" in told
    for track in (1, 2, 3):
        assert "validated" in entrep("predict", "--track", track)
    assert "accuracy" in entrep("evaluate")
    assert "accuracy" in entrep("evaluate", "--run", "hybrid/baseline")
    parts = {path.parent.name for path in (tmp_path / "runs" / "hybrid").glob("*/run.json")}
    assert parts == {"towers", "prototype", "baseline", "region", "expert-nose", "expert-ear", "expert-vc"}


def test_marked_images_are_counted_stage_by_stage(model):
    seen, targets = pixels(16), torch.tensor([i % 4 for i in range(16)])
    sure = model.decide(seen)
    assert all("marked" not in row for row in model.stage_counts(sure, targets))
    between = float(sure.confidences.sort().values[7:9].mean())
    model.recipe = model.recipe.model_copy(update={"abstain": between})
    decisions = model.decide(seen)
    rows = model.stage_counts(decisions, targets)
    marked = [c < between for c in sure.confidences.tolist()]
    assert rows[-1]["marked"] == sum(marked) == sum(row["marked"] for row in rows[:-1]) > 0
    kept = [int(c) == int(t) for c, t, m in zip(decisions.classes, targets, marked) if not m]
    assert rows[-1]["accuracy of the unmarked"] == pytest.approx(sum(kept) / len(kept))
