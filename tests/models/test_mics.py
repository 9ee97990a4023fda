"""Pre-training on two modalities: losses against loops, masks, positions, gradients, pictures, weights."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from entrep_cli.errors import UsageError, WeightsError
from entrep_cli.models.backbones import BackboneSettings
from entrep_cli.models.mics import (
    DecoderSettings,
    LossWeights,
    MicsPretraining,
    PretrainingSettings,
    info_nce,
    patchify,
    random_keep,
    sincos_positions,
    unpatchify,
)
from entrep_cli.models.mics_encoders import create_encoders, encoder_state, load_encoders, patch_tokens
from entrep_cli.training.losses import multi_positive_contrast

SIZE, PATCH = 32, 8
ENCODER = BackboneSettings(name="test_vit", weights="none", options={"patch_size": PATCH, "depth": 2})
SMALL = {"decoder": DecoderSettings(width=32, depth=2, heads=4), "consistency_dim": 8, "alignment_dim": 16}


def make(seed: int = 0, size: int = SIZE, encoder: BackboneSettings = ENCODER, **settings) -> MicsPretraining:
    torch.manual_seed(seed)
    white, narrow, _ = create_encoders(encoder, size)
    return MicsPretraining(white, narrow, PretrainingSettings(**{**SMALL, **settings})).train()


def images(n: int = 3, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> MicsPretraining:
    return make()


# ---------------------------------------------------------------- the losses against loops


def reconstruction_by_loops(model: MicsPretraining, pixels: tuple, predictions: tuple, masked: tuple) -> float:
    """The mean squared error of the masked patches, number by number."""
    mean, std = model.white.statistics.values()
    errors = []
    for image_set, drawn, hidden in zip(pixels, predictions, masked):
        for i in range(len(image_set)):
            for place in range(hidden.shape[1]):
                if not hidden[i, place]:
                    continue
                top, left = place // (SIZE // PATCH) * PATCH, place % (SIZE // PATCH) * PATCH
                patch = image_set[i, :, top : top + PATCH, left : left + PATCH].double() / 255
                values = [((patch[c] - mean[c]) / std[c]).flatten().tolist() for c in range(3)]
                flat = [v for channel in values for v in channel]
                if model.settings.normalised_patches:
                    average = sum(flat) / len(flat)
                    variance = sum((v - average) ** 2 for v in flat) / (len(flat) - 1)
                    flat = [(v - average) / math.sqrt(variance + 1e-6) for v in flat]
                errors.append(sum((a - b) ** 2 for a, b in zip(drawn[i, place].tolist(), flat)) / len(flat))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("normalised", [True, False])
def test_reconstruction_is_the_error_of_the_masked_patches_alone(normalised):
    model = make(normalised_patches=normalised)
    white, narrow = images(2), images(2, 1)
    losses = model(white, narrow, seeded())
    wanted = reconstruction_by_loops(model, (white, narrow), losses.predictions, losses.masked)
    assert losses.reconstruction.item() == pytest.approx(wanted, rel=1e-5)


def info_nce_by_loops(a: list[list[float]], b: list[list[float]], temperature: float) -> float:
    def cosine(x: list[float], y: list[float]) -> float:
        return sum(p * q for p, q in zip(x, y)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))

    total = 0.0
    for rows, columns in ((a, b), (b, a)):
        for i, row in enumerate(rows):
            scores = [cosine(row, column) / temperature for column in columns]
            total -= scores[i] - math.log(sum(math.exp(s) for s in scores))
    return total / (2 * len(a))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_info_nce(n):
    a, b = torch.randn(n, 7, generator=seeded()), torch.randn(n, 7, generator=seeded(1))
    assert info_nce(a, b, 0.5).item() == pytest.approx(info_nce_by_loops(a.tolist(), b.tolist(), 0.5), abs=1e-5)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (a, b)]
    assert torch.allclose(info_nce(a, b, 0.07), multi_positive_contrast(*unit, torch.eye(n, dtype=torch.bool), 1 / 0.07), atol=1e-5)


def test_consistency_and_alignment_compare_the_means_of_the_visible_tokens(model):
    """By hand: embeddings of the visible patches, projections in plain products, batch norm from its definition."""
    white, narrow = images(4), images(4, 1)
    losses = model(white, narrow, seeded())
    pooled = []
    for encoder, pixels, hidden in zip(model.encoders, (white, narrow), losses.masked):
        keep = torch.stack([(~row).nonzero().flatten() for row in hidden])
        pooled.append(patch_tokens(encoder, pixels, keep).mean(dim=1))

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt()

    low = [x @ head.weight.T for x, head in zip(pooled, model.consistency)]
    assert losses.consistency.item() == pytest.approx(info_nce_by_loops(*(x.tolist() for x in low), 0.07), abs=1e-4)
    wide = [norm(norm(x @ head[0].weight.T).clamp(min=0) @ head[3].weight.T) for x, head in zip(pooled, model.alignment)]
    assert wide[0].shape == (4, 16)
    assert losses.alignment.item() == pytest.approx(info_nce_by_loops(*(x.tolist() for x in wide), 0.07), abs=1e-3)


def test_the_total_is_the_published_sum(model):
    losses = model(images(), images(seed=1), seeded())
    scores = losses.scores()
    assert scores["total"] == pytest.approx(10 * scores["reconstruction"] + scores["consistency"] + 0.1 * scores["alignment"], rel=1e-6)
    only = make(weights=LossWeights(reconstruction=0, alignment=0))(images(), images(seed=1), seeded())
    assert only.total.item() == only.consistency.item() == pytest.approx(scores["consistency"])
    with pytest.raises(ValidationError, match="left out"):
        LossWeights(reconstruction=0, consistency=0, alignment=0)


def test_the_losses_stay_in_float32_under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images(), images(seed=1), seeded())
    assert losses.predictions[0].dtype == torch.bfloat16
    assert {getattr(losses, name).dtype for name in losses.scores()} == {torch.float32}
    losses.total.backward()


# ---------------------------------------------------------------- what the released code gets wrong


def test_masked_patches_get_predictions_of_their_own(model):
    """The released decoder, without positions, gives all masked patches of an image the same one."""
    losses = model(images(), images(seed=1), seeded())
    for drawn, hidden in zip(losses.predictions, losses.masked):
        for patches in (drawn[i][hidden[i]] for i in range(len(drawn))):
            distances = torch.pdist(patches)
            assert len(patches) == 12 and distances.min() > 1e-3
    model.decoder.positions.zero_()
    blind = model(images(), images(seed=1), seeded())
    assert torch.pdist(blind.predictions[0][0][blind.masked[0][0]]).max() < 1e-4  # that fault, and how the test would show it


def test_the_decoder_knows_which_modality_it_draws(model):
    tokens, keep = torch.randn(2, 4, 64, generator=seeded()), torch.tensor([[0, 3, 5, 9], [1, 2, 8, 15]])
    assert (model.decoder(tokens, keep, 0) - model.decoder(tokens, keep, 1)).abs().max() > 1e-3


def test_visible_tokens_stand_at_their_places(model):
    """A token at another place changes the predictions as exchanged places do."""
    tokens = torch.randn(1, 2, 64, generator=seeded())
    one = model.decoder(tokens, torch.tensor([[2, 9]]), 0)
    assert torch.allclose(one, model.decoder(tokens.flip(1), torch.tensor([[9, 2]]), 0), atol=1e-6)
    assert not torch.allclose(one, model.decoder(tokens.flip(1), torch.tensor([[2, 9]]), 0), atol=1e-3)


def test_every_parameter_of_every_part_gets_a_gradient(model):
    model(images(4), images(4, 1), seeded()).total.backward()
    learning = dict(model.named_parameters())
    assert {name.split(".")[0] for name in learning} == {"white", "narrow", "decoder", "consistency", "alignment"}
    silent = [name for name, p in learning.items() if p.grad is None or not p.grad.abs().max() > 1e-9]
    assert all(p.requires_grad for p in learning.values()) and not silent


@pytest.mark.parametrize("name", ["test_vit2", "test_vit3"])  # register tokens, layer scale, and a norm or a pooler that is not used
def test_parts_that_no_gradient_reaches_are_frozen(name):
    model = make(size=64, encoder=BackboneSettings(name=name, weights="none", options={"depth": 1}))
    model(images(4, size=64), images(4, 1, 64), seeded()).total.backward()
    named = dict(model.named_parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in named.values() if p.requires_grad)
    frozen = {key.split(".")[2] for key, p in named.items() if not p.requires_grad}
    assert frozen == ({"fc_norm"} if name == "test_vit2" else {"attn_pool"})


def test_each_loss_reaches_both_encoders():
    for name in ("reconstruction", "consistency", "alignment"):
        model = make()
        getattr(model(images(4), images(4, 1), seeded()), name).backward()
        for encoder in model.encoders:
            assert encoder.model.patch_embed.proj.weight.grad.abs().max() > 0


def test_positions_are_the_sines_and_cosines_of_both_sides():
    rows, columns, width = 3, 5, 12
    positions = sincos_positions(width, rows, columns)
    assert positions.shape == (rows * columns, width)
    quarter = width // 4
    for place in range(rows * columns):
        for side, where in ((0, place // columns), (1, place % columns)):
            for i in range(quarter):
                angle = where / 10000 ** (4 * i / width)
                assert positions[place, side * 2 * quarter + i].item() == pytest.approx(math.sin(angle), abs=1e-6)
                assert positions[place, side * 2 * quarter + quarter + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_the_decoders_positions_are_fixed_and_not_kept(model):
    assert torch.equal(model.decoder.positions, sincos_positions(32, 4, 4))
    assert not any("positions" in key for key in model.state_dict()) and model.decoder.positions.requires_grad is False


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("n_patches", "ratio", "visible"), [(16, 0.75, 4), (576, 0.75, 144), (9, 0.75, 2), (10, 0.9, 1), (4, 0.99, 1), (4, 0.01, 3)]
)
def test_mask_ratio(n_patches, ratio, visible):
    keep = random_keep(5, n_patches, ratio, seeded())
    assert keep.shape == (5, visible) and (keep.diff(dim=1) > 0).all() and keep.min() >= 0 and keep.max() < n_patches


def test_every_patch_is_masked_as_often_as_the_others():
    counts = torch.bincount(random_keep(8000, 16, 0.75, seeded()).flatten(), minlength=16)
    assert (counts / 8000 - 0.25).abs().max() < 0.02


def test_masks_come_from_the_generator_and_differ_by_image_and_modality(model):
    first, again, other = (model(images(), images(seed=1), seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.stack(first.masked), torch.stack(again.masked)) and first.total.item() == again.total.item()
    assert not torch.equal(torch.stack(first.masked), torch.stack(other.masked))
    assert all((hidden.sum(dim=1) == 12).all() for hidden in first.masked)
    assert not torch.equal(*first.masked) and not torch.equal(first.masked[0][0], first.masked[0][1])
    torch.manual_seed(99)
    assert torch.equal(model(images(), images(seed=1), seeded()).masked[0], first.masked[0])


def test_an_encoder_does_not_see_what_is_masked(model):
    white, narrow = images(2), images(2, 1)
    losses = model(white, narrow, seeded())
    hidden = losses.masked[0].view(2, 1, 4, 4).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    changed = model(torch.where(hidden, 255 - white, white), narrow, seeded())
    assert torch.allclose(changed.predictions[0], losses.predictions[0], atol=1e-6)
    assert changed.reconstruction.item() != losses.reconstruction.item()


def test_all_patches_kept_is_the_plain_forward(model):
    model.eval()
    pixels = images(2)
    every = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        assert torch.allclose(patch_tokens(model.white, pixels, every), patch_tokens(model.white, pixels), atol=1e-5)
        assert torch.allclose(patch_tokens(model.white, pixels).mean(dim=1), model.white(pixels), atol=1e-6)


# ---------------------------------------------------------------- pictures


def test_patches_are_put_back_where_they_were():
    pixels = torch.rand(2, 3, 24, 16)
    patches = patchify(pixels, 8)
    assert patches.shape == (2, 6, 192) and torch.equal(patches[1, 3], pixels[1, :, 8:16, 8:16].flatten())
    assert torch.equal(unpatchify(patches, 8, (3, 2)), pixels)


@pytest.mark.parametrize("normalised", [True, False])
def test_pictures_show_the_image_and_the_predictions(normalised, monkeypatch):
    model = make(normalised_patches=normalised).eval()
    pixels = images(2), images(2, 1)
    masked = model(*pixels, seeded()).masked
    seen, drawn = model.reconstruct(*pixels, seeded())
    for own, grey, picture, hidden in zip(pixels, seen, drawn, masked):
        hidden = hidden.view(2, 1, 4, 4).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3).expand_as(own)
        assert picture.dtype == grey.dtype == torch.uint8 and picture.shape == own.shape
        assert torch.equal(picture[~hidden], own[~hidden]) and torch.equal(grey[~hidden], own[~hidden])
        assert (grey[hidden] == 128).all() and not torch.equal(picture[hidden], own[hidden])
    # A decoder that is right draws the image itself.
    monkeypatch.setattr(model, "_predict", lambda m, given, generator: (model.targets(m, given), torch.ones(2, 16, dtype=torch.bool), None))
    drawn = model.reconstruct(*pixels, seeded())[1]
    assert all(torch.equal(picture, own) for picture, own in zip(drawn, pixels))


def test_it_learns(model):
    white, narrow = images(4) // 2, images(4) // 3  # one view, darker
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = last = None
    for step in range(30):
        losses = model(white, narrow, seeded(step))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        first, last = first or losses.scores(), losses.scores()
    assert all(last[name] < first[name] for name in first)


# ---------------------------------------------------------------- weights and settings


@pytest.mark.parametrize("size", [SIZE, 48])
def test_encoders_load_from_a_pretraining_of_any_size(model, size, tmp_path):
    white, narrow, origin = create_encoders(ENCODER, size)
    assert origin["weights"] == "none" and not torch.equal(white.model.cls_token, model.white.model.cls_token)
    load_encoders(white, narrow, model.state_dict(), tmp_path)
    for loaded, own in zip((white, narrow), model.encoders):
        same, there = loaded.model.state_dict(), own.model.state_dict()
        assert all(torch.equal(value, there[key]) for key, value in same.items() if key != "pos_embed")
        assert torch.equal(same["pos_embed"], there["pos_embed"]) == (size == SIZE)
    if size == SIZE:
        assert torch.equal(white.eval()(images(2)), model.white.eval()(images(2)))
    assert not torch.equal(white.model.cls_token, narrow.model.cls_token)


def test_weights_without_the_encoders_are_refused(model, tmp_path):
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("narrow.")}
    with pytest.raises(WeightsError, match="no encoder 'narrow'"):
        load_encoders(*model.encoders, state, tmp_path)
    assert set(encoder_state(state)) == set(model.white.model.state_dict()) and not encoder_state(state, "narrow")
    other = make(encoder=ENCODER.model_copy(update={"options": {"patch_size": PATCH, "depth": 1}}))
    with pytest.raises(WeightsError, match="tensors differ"):
        load_encoders(*other.encoders, model.state_dict(), tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "size", "told"),
    [
        ("test_resnet", {}, 32, "no plain ViT"),
        ("test_vit", {"patch_size": 8}, 36, "cannot take images of 36"),
        ("test_vit", {"patch_size": 8, "dynamic_img_pad": True}, 36, "do not divide"),
        ("test_vit", {"patch_size": 32}, 32, "nothing can be masked"),
    ],
)
def test_models_that_cannot_be_masked_are_refused(name, options, size, told):
    with pytest.raises(UsageError, match=told):
        make(size=size, encoder=BackboneSettings(name=name, weights="none", options=options))


def test_other_refusals():
    with pytest.raises(UsageError, match="not 'token'"):
        create_encoders(ENCODER.model_copy(update={"pooling": "token"}), SIZE)
    with pytest.raises(ValidationError, match="heads"):
        DecoderSettings(width=32, heads=5)
    white, narrow = make().white, make(encoder=ENCODER.model_copy(update={"options": {"depth": 1}})).narrow
    with pytest.raises(UsageError, match="differ"):
        MicsPretraining(white, narrow, PretrainingSettings(**SMALL))


def test_the_published_figures_are_the_defaults():
    settings = PretrainingSettings()
    assert (settings.mask_ratio, settings.temperature, settings.alignment_dim) == (0.75, 0.07, 512)
    assert settings.weights == LossWeights(reconstruction=10, consistency=1, alignment=0.1)
