"""One model for three tracks: what learns, what is saved, what a loss pulls together."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import pixel_digest
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.methods.clip_lora import ClipLora, ClipLoraRecipe
from entrep_cli.methods.clip_texts import TrainingTexts
from entrep_cli.models.clip import Architecture, build_clip
from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe
from entrep_cli.workspace import Run
from tests.tiny import CLIP, CONV_CLIP, fit_method

PROMPTS = {"en": ("{} edge",), "vi": ("cạnh {}",)}
TAXONOMY = Taxonomy(
    "sides",
    tuple(
        ClassInfo(name, i, "r", mirror, {k: tuple(p.format(name) for p in v) for k, v in PROMPTS.items()})
        for i, (name, mirror) in enumerate([("left", "right"), ("right", "left"), ("top", "top")])
    ),
)
CPU = torch.device("cpu")


def draw(label: str, seed: int) -> np.ndarray:
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
        text = "bright spot" if i % 2 else "left scar"
        rows.append(
            {"image": path.name, "path": str(path), "label": label, "group": path.name, "text_en": text, "text_vi": ""}
            | {"findings": (text, "pair:a|b"), "digest": pixel_digest(Image.open(path))}
        )
    return Catalog(pd.DataFrame(rows), TAXONOMY)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """An architecture of each kind and weights for it."""
    torch.manual_seed(7)
    found = {}
    for name, config in (("vit", CLIP), ("conv", CONV_CLIP)):
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        model = build_clip(Architecture(config), 32)
        state = model.state_dict() if name == "vit" else model.visual.trunk.state_dict()
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / f"{name}.safetensors")
        found |= {name: str(tmp_path / f"{name}.json"), f"{name}-weights": str(tmp_path / f"{name}.safetensors")}
    return found


def recipe(files, kind: str, *assignments: str, weights: str | None = None) -> ClipLoraRecipe:
    levels = {"vit": "[1,2]", "conv": "[4,5]"}[kind]
    base = ["image.size=32", f"fusion.levels={levels}", "train.epochs=1", "train.batch_size=12", "batch_size=16"]
    base += [f"backbone.name={files[kind]}", f"backbone.weights={weights or files[kind + '-weights']}"]
    return build_recipe(ClipLoraRecipe, parse_assignments([*base, *assignments]))


def _parts_of(catalog):
    return catalog.subset(catalog.images[:24]), catalog.subset(catalog.images[24:])


def fit(catalog, made, run):
    run.folder.mkdir(exist_ok=True)
    return fit_method(ClipLora, *_parts_of(catalog), made, run)


def pixels(n: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(TAXONOMY.names[i % 3], 100 + i).transpose(2, 0, 1) for i in range(n)]))


def completed(model, fitted, run) -> None:
    model.save(run)
    run.mark_complete({"weights": fitted.weights})


@pytest.mark.parametrize(
    "kind, tune, weights",
    [("vit", "lora", None), ("vit", "head", None), ("vit", "full", "none"), ("conv", "full", None), ("conv", "head", None)],
)
def test_a_saved_model_answers_the_same(catalog, files, tmp_path, kind, tune, weights):
    made, run = recipe(files, kind, f"tune={tune}", weights=weights), Run(tmp_path / "run")
    model, fitted = fit(catalog, made, run)
    completed(model, fitted, run)
    again = ClipLora.load(run, made, TAXONOMY, CPU)
    for a, b in zip(
        (*model.infer(pixels())[:2], model.embed_texts(["a", "b c"])), (*again.infer(pixels())[:2], again.embed_texts(["a", "b c"]))
    ):
        assert torch.allclose(a, b, atol=1e-5)
    assert again.pretrained_text == model.pretrained_text
    assert model.embed_images(pixels()).shape == (3, 32)
    assert torch.allclose(model.embed_texts(["a"]).norm(dim=1), torch.ones(1))


def test_lora_saves_adapters_fusion_and_head_alone(catalog, files, tmp_path):
    made, run = recipe(files, "vit", "tune=lora"), Run(tmp_path / "run")
    model, fitted = fit(catalog, made, run)
    completed(model, fitted, run)
    names = set(load_file(run.path("model.safetensors")))
    assert any("lora_A" in n for n in names) and {"head.weight", "fusion.level_logits"} <= names
    assert not any(n.endswith("base_layer.weight") or "token_embedding" in n for n in names)
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # q, k, v of 2 blocks: r (in + out) each, widths 32 and 16; head 32 * 3 + 3; 2 levels; slerp; temperature.
    assert learned == 6 * 2 * 64 + 6 * 2 * 32 + 99 + 2 + 1 + 1


def test_other_base_weights_are_refused(catalog, files, tmp_path):
    made, run = recipe(files, "vit", "tune=lora"), Run(tmp_path / "run")
    model, fitted = fit(catalog, made, run)
    completed(model, fitted, run)
    state = load_file(files["vit-weights"])
    save_file({**state, "ln_final.bias": state["ln_final.bias"] + 1}, files["vit-weights"])
    with pytest.raises(RunError, match="base weights"):
        ClipLora.load(run, made, TAXONOMY, CPU)


def test_frozen_weights_stay_and_fresh_ones_learn(catalog, files, tmp_path):
    made = recipe(files, "conv", "tune=head")
    model, _ = fit(catalog, made, Run(tmp_path / "run"))
    trunk = load_file(files["conv-weights"])
    assert all(torch.equal(v, model.backbone.visual.trunk.state_dict()[k]) for k, v in trunk.items())
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "backbone.text.token_embedding.weight" in learns and "backbone.visual.head.proj.weight" in learns
    assert not any(n.startswith("backbone.visual.trunk.") for n in learns)


def test_low_rank_over_random_weights_is_refused(catalog, files, tmp_path):
    with pytest.raises(UsageError) as caught:
        fit(catalog, recipe(files, "vit", weights="none"), Run(tmp_path / "run"))
    assert "--tune full" in caught.value.hint


def test_findings_are_positives_of_their_own_images(catalog, files):
    model = ClipLora(Architecture(CLIP), recipe(files, "vit"), TAXONOMY)
    texts = TrainingTexts(model, model.recipe.texts, catalog)
    assert texts.true_of.shape == (36, 2)  # "bright spot" and "left scar"; pairs are no texts
    pick, targets = torch.arange(6), torch.from_numpy(catalog.targets[:6])
    still = torch.zeros(6, dtype=torch.bool)
    drawn, positives = texts.batch(pick, targets, still, torch.Generator().manual_seed(0))
    assert drawn.tolist() == [0, 1] and positives.shape == (6, 3 + 2)
    for i in range(6):
        assert positives[i, :3].tolist() == [c == targets[i] for c in range(3)]
        assert positives[i, 3:].tolist() == [i % 2 == 1, i % 2 == 0]
    # A flipped image no longer shows a scar on the left.
    drawn, positives = texts.batch(pick, targets, ~still, torch.Generator().manual_seed(0))
    assert drawn.tolist() == [0] and positives[:, 3].tolist() == [False, True] * 3


def test_languages_are_a_choice(catalog, files):
    for language, prompts in (("en", ["left edge", "right edge", "top edge"]), ("vi", ["cạnh left", "cạnh right", "cạnh top"])):
        model = ClipLora(Architecture(CLIP), recipe(files, "vit", f"texts.languages=['{language}']"), TAXONOMY)
        assert torch.equal(TrainingTexts(model, model.recipe.texts, catalog).prompt_tokens, model.tokens(prompts))


@pytest.mark.parametrize(
    "prompts, languages, unnamed",
    [
        ({}, "['en', 'vi']", ("left", "right", "top")),
        ({"en": (" ", "\u200b")}, "['en', 'vi']", ("left", "right", "top")),
        ({"en": ("an edge",)}, "['vi']", ("left", "right", "top")),
        (None, "['vi']", ("top",)),
    ],
)
def test_a_class_without_prompts_is_named(catalog, files, prompts, languages, unnamed):
    only_two = [{"vi": ("cạnh trái",)}, {"vi": ("cạnh phải",)}, {}]
    own = only_two if prompts is None else [prompts] * 3
    bare = Taxonomy("bare", tuple(ClassInfo(c.name, c.id, c.region, c.mirror, p) for c, p in zip(TAXONOMY.classes, own)))
    model = ClipLora(Architecture(CLIP), recipe(files, "vit", f"texts.languages={languages}"), bare)
    with pytest.raises(DataError) as caught:
        TrainingTexts(model, model.recipe.texts, Catalog(catalog.frame, bare))
    assert caught.value.faults == unnamed and "prompts.vi" in caught.value.hint and "texts.contrast=0" in caught.value.hint
    without = recipe(files, "vit", f"texts.languages={languages}", "texts.contrast=0")
    TrainingTexts(ClipLora(Architecture(CLIP), without, bare), without.texts, Catalog(catalog.frame, bare))


def test_empty_and_long_texts(files, capsys):
    model = ClipLora(Architecture(CLIP), recipe(files, "vit"), TAXONOMY).eval()
    with pytest.raises(DataError, match="3 of 4 texts are empty") as caught:
        model.embed_texts(["a", " ", "", "\u200b\t"])
    assert caught.value.faults == ("text 2", "text 3", "text 4")
    with pytest.raises(DataError, match="No texts"):
        model.embed_texts([])
    model.embed_texts(["word " * 40, "short"])
    assert "1 of 2 texts are longer than the 16 tokens" in capsys.readouterr().err


VIETNAMESE = "texts are Vietnamese"


def test_vietnamese_texts_for_an_english_tower_are_counted_once(catalog, files, tmp_path, capsys):
    model, _ = fit(catalog, recipe(files, "vit", "tune=lora"), Run(tmp_path / "run"))
    (said,) = [line for line in capsys.readouterr().err.splitlines() if VIETNAMESE in line]
    # 3 prompts in each language and 2 findings.
    assert said.startswith(f"Warning: 3 of 8 {VIETNAMESE}, and the pretrained text tower has an English tokenizer") and "--set" in said
    model.embed_texts(["viêm tai", "a spur", "gai vách ngăn"])
    assert capsys.readouterr().err.count(f"2 of 3 {VIETNAMESE}") == 1
    model.embed_texts(["a spur", "Ménière's disease"])
    assert VIETNAMESE not in capsys.readouterr().err


def test_a_tower_that_can_know_vietnamese_is_not_accused(catalog, files, tmp_path, capsys, monkeypatch):
    fit(catalog, recipe(files, "conv", "tune=head"), Run(tmp_path / "fresh"))[0].embed_texts(["viêm tai"])  # it has no weights
    monkeypatch.setattr(Architecture, "multilingual", True)
    fit(catalog, recipe(files, "vit", "tune=lora"), Run(tmp_path / "many"))[0].embed_texts(["viêm tai"])
    assert VIETNAMESE not in capsys.readouterr().err


def test_a_run_without_vietnamese_texts_says_so_when_asked_in_it(files, capsys):
    model = ClipLora(Architecture(CLIP), recipe(files, "vit", "texts.languages=['en']"), TAXONOMY).eval()
    model.embed_texts(["viêm tai", "a spur"])
    assert f"1 of 2 {VIETNAMESE}, and the run has learned from texts in en alone; ask in English" in capsys.readouterr().err


@pytest.mark.parametrize(
    "assignments, said",
    [
        (["train.batch_size=3"], "a batch of 3 does not hold 4 images of a class; set train.batch_size=4 or more"),
        (["train.batch_size=8", "images_per_class=9"], "a batch of 8 does not hold 9"),
        (["images_per_class=1"], "2 images of a class, or more"),
        (["train.balance=weights"], "train.balance is oversample"),
    ],
)
def test_a_batch_without_room_for_positives_is_refused_at_once(assignments, said):
    with pytest.raises(UsageError) as caught:
        build_recipe(ClipLoraRecipe, parse_assignments(assignments))
    (fault,) = caught.value.faults
    assert said in fault
    build_recipe(ClipLoraRecipe, parse_assignments(["train.batch_size=2", "images_per_class=2"]))


def test_the_papers_recipe_is_the_default():
    """What `mlcf` names and what `entrep train` does without a recipe stay the same."""
    named = read_recipe("mlcf")
    assert build_recipe(ClipLoraRecipe, named) == ClipLoraRecipe()
    assert {"lora", "fusion", "texts"} <= named.keys() and named["lora"].keys() == ClipLoraRecipe().lora.model_dump().keys()


def test_it_learns_all_three_answers_from_scratch(catalog, files, tmp_path):
    made = recipe(
        files, "conv", "tune=full", "freeze_norm=false", "train.epochs=25", "train.learning_rate=3e-3", "augment.blur=0", weights="none"
    )
    model, fitted = fit(catalog, made, Run(tmp_path / "run"))
    assert fitted.validation["val_accuracy"] > 0.8
    images = model.embed_images(pixels(6))
    prompts = model.embed_texts(["left edge", "right edge", "top edge"])
    assert (images @ prompts.T).argmax(dim=1).tolist() == [0, 1, 2, 0, 1, 2]


def test_a_text_tower_that_never_learned_says_so(catalog, files, tmp_path):
    made, run = recipe(files, "conv", "tune=full", "texts.contrast=0"), Run(tmp_path / "run")
    model, fitted = fit(catalog, made, run)
    completed(model, fitted, run)
    for seen in (model, ClipLora.load(run, made, TAXONOMY, CPU)):
        for ask in (seen.embed_texts, seen.classify_texts):
            with pytest.raises(UsageError, match="never trained"):
                ask(["a spur"])
    learned = {name for name, p in fit_method(ClipLora, *_parts_of(catalog), made, run)[0].named_parameters() if p.requires_grad}
    assert not any("transformer" in name or "token" in name or name.endswith("logit_scale") for name in learned)
    whole = recipe(files, "vit", "tune=lora", "texts.contrast=0")
    model, _ = fit(catalog, whole, Run(tmp_path / "whole"))
    assert model.embed_texts(["a spur"]).shape == (1, 32)  # pretrained: it knows texts without the contrast
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.startswith("backbone.transformer"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_stays_near_float32(catalog, files, tmp_path, precision):
    made = recipe(files, "vit", "tune=lora", "train.epochs=2")
    found = {}
    for name in ("fp32", precision):
        run = Run(tmp_path / name)
        run.folder.mkdir()
        found[name] = fit_method(ClipLora, *_parts_of(catalog), made, run, precision=name)[0]
    assert {p.dtype for p in found[precision].parameters()} == {torch.float32}
    exact, near = (found[name].embed_images(pixels()) for name in ("fp32", precision))
    assert near.dtype == torch.float32 and not torch.equal(exact, near)
    assert (exact * near).sum(dim=1).min() > 0.98


def test_texts_that_are_embedded_once_are_embedded_without_dropout(catalog, files, tmp_path, monkeypatch):
    seen, encode = [], ClipLora.encode

    def watched(self, tokens):
        seen.append(self.backbone.training)
        return encode(self, tokens)

    monkeypatch.setattr(ClipLora, "encode", watched)
    model, _ = fit(catalog, recipe(files, "vit", "tune=head"), Run(tmp_path / "run"))
    assert seen and not any(seen)


def test_each_way_of_fine_tuning_trains_another_model_that_loads_as_it_was(catalog, files, tmp_path):
    ways = [
        [],
        ["loss.focal=2.0", "metric.kind=supcon"],
        ["metric.kind=proxy-anchor", "mixing.mosaic=0.5"],
        ["train.balance=none", "train.layer_decay=0.5"],
        ["backbone.pooling=gem", "metric.kind=multi-similarity"],
    ]
    answers = []
    for i, assignments in enumerate(ways):
        run = Run(tmp_path / str(i))
        model, fitted = fit(catalog, recipe(files, "conv", "tune=full", "texts.contrast=0", "augment.blur=0", *assignments), run)
        completed(model, fitted, run)
        answers.append(model.classify(pixels()))
        assert torch.equal(ClipLora.load(run, model.recipe, TAXONOMY, CPU).classify(pixels()), answers[-1])
    assert not any(torch.equal(a, b) for k, a in enumerate(answers) for b in answers[:k])


def test_norms_of_pretrained_weights_stay_as_they_are_also_where_all_is_tuned(catalog, files, tmp_path):
    """A batch norm that is folded into the weights would lose the features with the statistics of a batch."""
    for freeze in ("true", "false"):
        made = recipe(files, "conv", "tune=full", "texts.contrast=0", "augment.blur=0", f"freeze_norm={freeze}")
        model, _ = fit(catalog, made, Run(tmp_path / freeze))
        now = model.backbone.visual.trunk.state_dict()
        moved = [not torch.equal(now[key], value) for key, value in load_file(files["conv-weights"]).items() if "running_" in key]
        assert moved and any(moved) == all(moved) == (freeze == "false")


def test_pooling_of_a_tower_of_tokens_cannot_be_exchanged(files):
    with pytest.raises(UsageError, match="pooling"):
        ClipLora(Architecture(CLIP), recipe(files, "vit", "backbone.pooling=gem"), TAXONOMY)
