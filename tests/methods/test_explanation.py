"""Every method's models are looked into, the right class or text is asked for, and nothing of a model is changed by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import DataError, UsageError
from entrep_cli.methods.clip_lora import ClipLora, ClipLoraRecipe
from entrep_cli.methods.clip_towers import Towers
from entrep_cli.methods.dinov2 import Dinov2, Dinov2Recipe
from entrep_cli.methods.explanation import _standing_out, explain_images
from entrep_cli.methods.hybrid import Hybrid
from entrep_cli.methods.hybrid_components import HybridRecipe
from entrep_cli.methods.mics import Mics, MicsRecipe
from entrep_cli.methods.prototype import Prototype, PrototypeRecipe
from entrep_cli.models.attention import explicit_attention
from entrep_cli.models.attention_maps import hottest_fraction, record_attentions, rollout
from entrep_cli.models.backbones import Backbone
from entrep_cli.models.clip import Architecture
from entrep_cli.models.mics_encoders import create_encoders
from entrep_cli.models.mics_fusion import MicsClassifier
from entrep_cli.models.prototypes import Prototypes
from entrep_cli.models.towers import tower_of
from entrep_cli.recipes.recipe import build_recipe, parse_assignments
from tests.tiny import CLIP, CONV_CLIP

SIZE = 64
NAMES = (("left", "side"), ("right", "side"), ("top", "pole"))
TAXONOMY = Taxonomy("test", tuple(ClassInfo(n, i, region, n, {"en": (f"{n} edge",)}) for i, (n, region) in enumerate(NAMES)))
VIT = ("backbone.name=test_vit", "backbone.options={patch_size = 16}")
GRADIENTS, ROLLOUT = "gradient-weighted attention rollout", "attention rollout"
LAYERS, HIRES, CAM = "LayerCAM", "HiResCAM", "Grad-CAM"


def pixels(n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def dinov2(*settings: str, taxonomy: Taxonomy = TAXONOMY) -> Dinov2:
    recipe = build_recipe(Dinov2Recipe, parse_assignments([f"image.size={SIZE}", "backbone.weights=none", *settings]))
    return Dinov2(Backbone(recipe.backbone, SIZE), recipe, taxonomy).eval()


def clip_lora(config: dict, levels: str, *, explicit: bool = False) -> ClipLora:
    settings = [f"image.size={SIZE}", f"fusion.levels={levels}", "backbone.weights=none"]
    model = ClipLora(Architecture(config), build_recipe(ClipLoraRecipe, parse_assignments(settings)), TAXONOMY)
    if explicit:  # as merged adapters leave it
        explicit_attention(model.backbone)
    return model.requires_grad_(False).eval()


def prototype(config: dict = CLIP, without: Sequence[int] = ()) -> Prototype:
    recipe = build_recipe(PrototypeRecipe, parse_assignments([f"image.size={SIZE}"]))
    rows = nn.functional.normalize(torch.randn(3, 32), dim=1)
    rows[list(without)] = 0
    return Prototype(Towers(Architecture(config), recipe.backbone, recipe.image), recipe, TAXONOMY, Prototypes(rows, torch.eye(2, 32)))


def mics(*settings: str) -> Mics:
    base = [f"image.size={SIZE}", *VIT, "fusion.depth=1", "fusion.heads=4", *settings]
    recipe = build_recipe(MicsRecipe, parse_assignments(base))
    white, narrow, _ = create_encoders(recipe.backbone, SIZE)
    fusion = recipe.fusion if recipe.fuse else None
    return Mics(MicsClassifier(white, narrow, 3, fusion, frozen=recipe.tune == "head"), recipe, TAXONOMY).eval()


def hybrid(threshold: float) -> Hybrid:
    conv = ("backbone.name=test_resnet",)
    experts = {"side": dinov2(*VIT, "target=side", taxonomy=TAXONOMY.of_target("side"))}
    region = dinov2(*conv, "target=region", taxonomy=TAXONOMY.of_target("region"))
    return Hybrid(prototype(), region, experts, HybridRecipe(), threshold)


MODELS = {
    "dinov2, patches pooled": (lambda: dinov2(*VIT), GRADIENTS),
    "dinov2, class token": (lambda: dinov2(*VIT, "backbone.pooling=token"), GRADIENTS),
    "dinov2, conv": (lambda: dinov2("backbone.name=test_resnet"), LAYERS),
    "dinov2, conv, gem": (lambda: dinov2("backbone.name=test_efficientnet", "backbone.pooling=gem"), LAYERS),
    "clip-lora": (lambda: clip_lora(CLIP, "[1, 2]"), GRADIENTS),
    "clip-lora, explicit": (lambda: clip_lora(CLIP, "[1, 2]", explicit=True), GRADIENTS),
    "clip-lora, conv": (lambda: clip_lora(CONV_CLIP, "[4, 5]"), LAYERS),
    "prototype": (prototype, GRADIENTS),
    "prototype, conv": (lambda: prototype(CONV_CLIP), LAYERS),
    "prototype of clip-lora": (lambda: Prototype(clip_lora(CLIP, "[2]"), PrototypeRecipe(), TAXONOMY, prototype().prototypes), GRADIENTS),
    "mics": (mics, GRADIENTS),
    "mics, frozen, not fused": (lambda: mics("tune=head", "fuse=false"), GRADIENTS),
    "hybrid, stage 1": (lambda: hybrid(-1.0), GRADIENTS),
}


def state(model: nn.Module) -> list:
    return [
        *((type(m), m.training, len(m._forward_hooks), getattr(m, "fused_attn", None)) for m in model.modules()),
        *((p.requires_grad, p.grad is None) for p in model.parameters()),
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_explained_and_left_as_it_was(name):
    torch.manual_seed(0)
    make, default = MODELS[name]
    model, images = make(), pixels()
    before, weights, answers = state(model), {k: v.clone() for k, v in model.state_dict().items()}, model.infer(images)
    found = explain_images(model, images)
    assert found.by == default and set(found.ways) == {default}
    assert found.classes == tuple(answers[1].argmax(dim=1).tolist())
    for by, way in (("rollout", ROLLOUT), ("gradient-rollout", GRADIENTS), ("layer-cam", LAYERS), ("hires-cam", HIRES), ("grad-cam", CAM)):
        if default == LAYERS and "rollout" in by:
            with pytest.raises(UsageError, match="no attention over patches"):
                explain_images(model, images, by=by)
            continue
        with torch.inference_mode():  # as a caller may be in
            once, again = (explain_images(model, images, classes=[0, 1, 2], by=by) for _ in range(2))
        assert once.by == way and torch.equal(once.heat, again.heat)
        heat = once.heat
        assert heat.shape == (3, SIZE, SIZE) and heat.dtype == torch.float32 and heat.min() >= 0
        assert all(most in (0, 1) for most in heat.amax(dim=(1, 2)).tolist())
        # Cutting away what does not stand out can only concentrate what is left; by the two that are not cut it is the same.
        shown, whole = hottest_fraction(heat), torch.tensor(once.brightest_tenth)
        assert (shown[heat.any(dim=2).any(dim=1)] >= whole[heat.any(dim=2).any(dim=1)] - 1e-6).all()
        if by in ("hires-cam", "grad-cam"):
            torch.testing.assert_close(shown, whole.double(), atol=1e-5, rtol=1e-5)
        one_by_one = [explain_images(model, images[i : i + 1], classes=[c], by=by).heat for i, c in enumerate([0, 1, 2])]
        torch.testing.assert_close(torch.cat(one_by_one), heat, atol=1e-3, rtol=1e-3)
    assert state(model) == before and all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(model.infer(images)[:2], answers[:2]))


def test_a_model_in_training_is_asked_as_in_inference_and_goes_on_training():
    model = dinov2("backbone.name=test_resnet", "freeze_norm=false")
    wanted = explain_images(model, pixels()).heat
    before = state(model.train())
    assert torch.equal(explain_images(model, pixels()).heat, wanted) and state(model) == before


def test_a_failure_within_leaves_nothing_behind(monkeypatch):
    for model in (dinov2(*VIT), dinov2("backbone.name=test_resnet")):
        before = state(model.train())
        monkeypatch.setattr(model.backbone, "pool", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            explain_images(model, pixels(), classes=[0] * 3)
        assert state(model) == before


class Spot(nn.Module):
    """A head that reads one channel of the last map alone, for class 0, and its negative for class 1."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.stack([features[:, 0], -features[:, 0], features[:, 1]], dim=1)


def test_heat_lies_where_the_channel_that_counts_is_active():
    torch.manual_seed(0)
    model = dinov2("backbone.name=test_resnet")
    model.head = Spot()
    big = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    channel = model.backbone.model.forward_features(model.backbone.normalise(big))[:, 0].detach()
    assert (channel > 0).any() and channel.shape == (2, 4, 4)
    wanted = nn.functional.interpolate(channel.clamp_min(0)[:, None], (128, 128), mode="bilinear")[:, 0]
    wanted = wanted / wanted.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(explain_images(model, big, classes=[0, 0], by="grad-cam").heat, wanted, atol=1e-4, rtol=1e-4)
    assert not explain_images(model, big, classes=[1, 1], by="grad-cam").heat.any()  # a map of zero and more speaks against it everywhere


def test_plain_rollout_has_one_map_for_all_classes_and_the_others_have_not():
    torch.manual_seed(0)
    model = dinov2(*VIT)
    for by, alike in (("rollout", True), ("gradient-rollout", False), ("grad-cam", False)):
        first, second = (explain_images(model, pixels(), classes=[c] * 3, by=by).heat for c in (0, 1))
        assert torch.equal(first, second) == alike, by


def test_by_attention_what_stands_out_is_shown():
    torch.manual_seed(0)
    model = dinov2(*VIT, "backbone.pooling=token")
    with record_attentions(model.backbone.model) as attentions, torch.no_grad():
        model(pixels())
    tower = tower_of(model.backbone.model)
    n_prefix, grid = tower.n_prefix_tokens, tower.grid
    found = explain_images(model, pixels(), by="rollout").heat
    for image, shares in enumerate(rollout(attentions)[:, n_prefix:]):
        big = nn.functional.interpolate(shares.view(1, 1, *grid), (SIZE, SIZE), mode="bilinear")[0, 0].double().numpy()
        bound = big.mean() + min(2 * big.std(ddof=1), (big.max() - big.mean()) / 2)
        wanted = np.maximum(big - bound, 0) / (big.max() - bound)
        np.testing.assert_allclose(found[image].numpy(), wanted, atol=2e-3)


def test_what_stands_out_by_hand():
    spike, half, flat = torch.zeros(3, 2, 8)
    spike[0, 0] = 16.0  # mean 1, deviation 4: above 1 + 7.5, half of the way, which is less than two deviations
    half[0] = 4.0  # nothing is two deviations above the mean of 2; half of the way is 3
    shown = _standing_out(torch.stack([spike, half, flat + 5]))
    assert shown[0].flatten().tolist() == pytest.approx([7.5] + [0.0] * 15)
    assert shown[1].tolist() == [[1.0] * 8, [0.0] * 8] and not shown[2].any()
    few = torch.zeros(1, 6, 6)
    few[0, 0, :3] = torch.tensor([3.0, 3.0, 12.0])  # mean 0.5, deviation 2.0908: above 4.6816, and half of the way would be 6.25
    assert _standing_out(few)[0, 0].tolist() == pytest.approx([0, 0, 12 - 4.6816, 0, 0, 0], abs=1e-3)


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize("name", ["clip-lora", "clip-lora, conv", "prototype", "hybrid, stage 1"])
def test_a_text_is_shown_on_the_image(name):
    torch.manual_seed(0)
    make, default = MODELS[name]
    model = make()
    spur, polyp = (explain_images(model, pixels(), text=text) for text in ("a spur", "some polyp"))
    assert spur.by == default and spur.classes == (-1,) * 3
    assert not torch.equal(spur.heat, polyp.heat)
    assert explain_images(model, pixels(), text="a spur", by="grad-cam").by == CAM


def test_what_cannot_be_asked_is_refused():
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="one place alone at 32 pixels"):
        explain_images(dinov2("backbone.name=test_resnet"), pixels()[..., :32, :32], by="grad-cam")
    clip = clip_lora(CLIP, "[1, 2]")
    with pytest.raises(UsageError, match="text tower"):
        explain_images(dinov2(*VIT), pixels(), text="a spur")
    with pytest.raises(UsageError, match="text tower"):
        explain_images(mics(), pixels(), text="a spur")
    with pytest.raises(DataError, match="empty"):
        explain_images(clip, pixels(), text=" ")
    with pytest.raises(UsageError, match="knows no text"):
        explain_images(clip, pixels(), text="a spur", by="rollout")
    with pytest.raises(UsageError, match="together with a class"):
        explain_images(clip, pixels(), text="a spur", classes=[0] * 3)
    with pytest.raises(UsageError, match="No way 'lime'"):
        explain_images(clip, pixels(), by="lime")
    with pytest.raises(UsageError, match="No prototype") as caught:
        explain_images(prototype(without=[1]), pixels(), classes=[0, 1, 2])
    assert caught.value.faults == ("right: it had no training image",)


# ---------------------------------------------------------------- parts


def test_of_mics_the_white_light_encoder_is_shown():
    assert set(explain_images(mics(), pixels()).components) == {"white-light encoder"}


def test_of_a_hybrid_what_decided_is_shown():
    torch.manual_seed(0)
    model, images = hybrid(-1.0), pixels(12)
    assert set(explain_images(model, images).components) == {"prototypes"}
    similarities = model.prototype.similarities(images).amax(dim=1)
    model.threshold = float(similarities.median())
    model.recipe = model.recipe.model_copy(update={"confidence": "similarity"})
    decisions = model.decide(images)
    found = explain_images(model, images)
    wanted = {1: "prototypes", 2: "region model", 3: "expert side"}
    assert found.components == tuple(wanted[s] for s in decisions.stages.tolist()) and len(set(found.components)) > 1
    assert all(way == (LAYERS if part == "region model" else GRADIENTS) for way, part in zip(found.ways, found.components))
    # Each part alone tells the same of its images.
    for i, part in enumerate(found.components):
        own = int(found.classes[i])
        if part == "prototypes":
            alone = explain_images(model.prototype, images[i : i + 1], classes=[own])
        elif part == "region model":
            alone = explain_images(model.region, images[i : i + 1], classes=[int(model.region_of[own])])
        else:
            alone = explain_images(model.experts[0], images[i : i + 1], classes=[own])
        torch.testing.assert_close(alone.heat[0], found.heat[i], atol=1e-3, rtol=1e-3)
    # A class of another region is the coarse model's doing.
    later = [i for i, stage in enumerate(decisions.stages.tolist()) if stage == 3]
    if later:
        assert set(explain_images(model, images[later], classes=[2] * len(later)).components) == {"region model"}
