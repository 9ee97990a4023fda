"""Texts as queries: templates, and the class that a text tower sees in a text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import DataError, UsageError
from entrep_cli.methods.clip_lora import ClipLora, ClipLoraRecipe
from entrep_cli.models.clip import Architecture
from entrep_cli.recipes.recipe import build_recipe, parse_assignments
from entrep_cli.retrieval.pipeline import check_template, templated, text_probabilities, text_vectors
from tests.tiny import CLIP

PROMPTS = {"en": ("{} edge", "the {} side"), "vi": ("cạnh {}",)}
SIDES = Taxonomy(
    "sides",
    tuple(
        ClassInfo(name, i, "r", None, {language: tuple(p.format(name) for p in own) for language, own in PROMPTS.items()})
        for i, name in enumerate(["left", "right", "top"])
    ),
)


@pytest.fixture
def model(tmp_path) -> ClipLora:
    return make(tmp_path)


def make(tmp_path, *assignments: str, taxonomy: Taxonomy = SIDES) -> ClipLora:
    (tmp_path / "clip.json").write_text(json.dumps(CLIP))
    base = ["image.size=32", "fusion.levels=[1,2]", "tune=full", "batch_size=4", "backbone.weights=none"]
    base.append(f"backbone.name={tmp_path / 'clip.json'}")
    torch.manual_seed(3)
    return ClipLora(Architecture(CLIP), build_recipe(ClipLoraRecipe, parse_assignments([*base, *assignments])), taxonomy).eval()


def test_a_text_is_set_into_the_template_and_never_formatted():
    found = templated(["a {spur}", "wax {0}", "{}"], "an image of {}.")
    assert found == ["an image of a {spur}.", "an image of wax {0}.", "an image of {}."]
    assert templated(["wax"], "{x} 100% {} {{") == ["{x} 100% wax {{"]
    assert templated(["wax", " "], None) == ["wax", " "]
    assert templated([" ", "\u200b"], "an image of {}") == [" ", "\u200b"]  # so that an empty query is refused, not made up


@pytest.mark.parametrize("template", ["", "an image", "{0}", "{} and {}", "{finding}"])
def test_a_template_has_one_gap(template):
    for ask in (check_template, lambda t: templated(["wax"], t)):
        with pytest.raises(UsageError, match="one {} where the text goes") as caught:
            ask(template)
        assert "--template" in caught.value.hint
    check_template("{}")
    check_template(None)


def test_the_class_of_a_text_is_a_softmax_over_the_class_prompts(model):
    texts = ["left edge", "wax", "a spur on the septum", "cạnh top", "x"]
    rows = text_vectors(model, texts).astype(float)
    classes = []
    for c in SIDES.classes:
        own = text_vectors(model, [p for prompts in c.prompts.values() for p in prompts]).astype(float).sum(axis=0)
        classes.append(own / np.linalg.norm(own))
    scale = min(float(model.backbone.logit_scale.detach().exp()), 100)
    found = text_probabilities(model, texts)
    assert found.shape == (5, 3) and found.dtype == np.float32
    for row, query in zip(found, rows):
        powers = [np.exp(scale * float(query @ own)) for own in classes]
        assert row == pytest.approx([p / sum(powers) for p in powers], abs=1e-4)


def test_languages_and_the_length_of_a_batch(tmp_path):
    english = make(tmp_path, "texts.languages=['en']")
    texts = ["left edge", "cạnh left", "x", "y", "z", "the top side"]
    alone = Taxonomy("en", tuple(ClassInfo(c.name, c.id, "r", None, {"en": c.prompts["en"]}) for c in SIDES.classes))
    both, one = make(tmp_path), make(tmp_path, taxonomy=alone)
    assert np.allclose(text_probabilities(english, texts), text_probabilities(one, texts), atol=1e-6)
    assert not np.allclose(text_probabilities(english, texts), text_probabilities(both, texts), atol=1e-6)
    single = np.concatenate([text_probabilities(both, [text]) for text in texts])
    assert np.allclose(single, text_probabilities(both, texts), atol=1e-5)


def test_a_scale_beyond_the_clamp_gives_probabilities_all_the_same(model):
    model.backbone.logit_scale.data.fill_(50.0)
    found = text_probabilities(model, ["left edge", "wax"])
    assert np.isfinite(found).all() and np.allclose(found.sum(axis=1), 1)


def test_empty_texts_and_classes_without_prompts_are_named(tmp_path, model):
    with pytest.raises(DataError) as caught:
        text_probabilities(model, ["a", " ", "\u200b"])
    assert caught.value.faults == ("text 2 is empty", "text 3 is empty")
    with pytest.raises(DataError) as caught:
        text_probabilities(model, [])
    assert caught.value.faults == ("no text is given",)
    bare = Taxonomy("bare", (SIDES.classes[0], ClassInfo("right", 1, "r")))
    with pytest.raises(DataError) as caught:
        text_probabilities(make(tmp_path, taxonomy=bare), ["a"])
    assert caught.value.faults == ("class right has no prompt",)
