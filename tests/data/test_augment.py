from __future__ import annotations

import entrep_cli.torchvision_ops  # noqa: F401 - before torchvision

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from entrep_cli.data.augment import (
    AugmentSettings,
    MixSettings,
    affine,
    augment,
    batch_views,
    blend,
    flip,
    gaussian_blur,
    luma,
    mix,
    mixup,
    mosaic,
    turn_hue,
)
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy

ENTREP = Taxonomy.entrep()
# The flips of a laterality-aware set whose `throat` says nothing of its mirror.
PARTLY = Taxonomy("partly", (ClassInfo("left", 0, "ear", "right"), ClassInfo("right", 1, "ear", "left"), ClassInfo("throat", 2, "throat")))
STILL = AugmentSettings(**dict.fromkeys(AugmentSettings.model_fields, 0))


def batch(n: int, height: int = 19, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def colours() -> torch.Tensor:
    """Float images with every kind of colour: noise, greys, pure and equal channels, black, white."""
    images = torch.rand(6, 3, 19, 24, generator=torch.Generator().manual_seed(1))
    images[1] = images[1, :1]
    images[2] = (images[2] > 0.5).float()
    images[3, 0] = images[3, 1]
    images[4, :, :, :8], images[4, :, :, 8:] = 0, 1
    return images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the flip and its label


@pytest.mark.parametrize("taxonomy", [ENTREP, PARTLY], ids=lambda t: t.name)
def test_flip_against_a_loop_over_names(taxonomy):
    pixels, targets = batch(24), torch.arange(24) % len(taxonomy)
    chosen = torch.rand(24, generator=generator()) < 0.5
    seen, wanted, flipped = flip(pixels, targets, chosen, taxonomy)
    for i in range(24):
        mirror = taxonomy.classes[targets[i]].mirror
        assert flipped[i] == (chosen[i] and mirror is not None)
        if flipped[i]:
            assert np.array_equal(seen[i].numpy(), pixels[i].numpy()[:, :, ::-1]) and taxonomy.names[wanted[i]] == mirror
        else:
            assert torch.equal(seen[i], pixels[i]) and wanted[i] == targets[i]


def test_a_flipped_left_nose_is_a_right_nose():
    pixels = torch.zeros(1, 3, 4, 6, dtype=torch.uint8)
    pixels[..., :2] = 255  # bright on the left
    seen, wanted, _ = flip(pixels, torch.tensor([ENTREP.index("nose-left")]), torch.tensor([True]), ENTREP)
    assert ENTREP.names[wanted[0]] == "nose-right" and seen[..., 4:].min() == 255 and seen[..., :4].max() == 0


def test_a_class_without_a_mirror_is_never_flipped():
    always = STILL.model_copy(update={"flip": 1.0})
    pixels, targets = batch(9), torch.arange(9) % 3
    seen, wanted, flipped = augment(pixels, targets, PARTLY, always, generator())
    assert flipped.tolist() == [True, True, False] * 3
    assert torch.equal(wanted, torch.tensor([1, 0, 2] * 3))
    assert torch.equal(seen[2::3], pixels[2::3]) and torch.equal(seen[::3], pixels[::3].flip(-1))


# ---------------------------------------------------------------- the whole


def test_the_generator_decides_and_nothing_else():
    pixels, targets = batch(11), torch.arange(11) % 7
    first = augment(pixels, targets, ENTREP, AugmentSettings(), generator())
    torch.manual_seed(99)
    again = augment(pixels, targets, ENTREP, AugmentSettings(), generator())
    other = augment(pixels, targets, ENTREP, AugmentSettings(), generator(1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].dtype == torch.uint8 and first[0].shape == pixels.shape
    assert torch.equal(pixels, batch(11)) and torch.equal(targets, torch.arange(11) % 7)  # what came in stays


def test_nothing_set_changes_nothing():
    pixels, targets = batch(9), torch.arange(9) % 7
    seen, wanted, flipped = augment(pixels, targets, ENTREP, STILL, generator())
    assert not flipped.any()
    assert torch.equal(seen, pixels) and torch.equal(wanted, targets)


def test_every_setting_does_something():
    pixels, targets = batch(9), torch.arange(9) % 7
    for name in AugmentSettings.model_fields:
        if name not in ("blur_sigma", "cutout_side", "naive_flip"):  # these say how another one is done
            settings = STILL.model_copy(update={name: 0.4, "blur_sigma": 1.0, "cutout_side": 0.5})
            assert not torch.equal(augment(pixels, targets, ENTREP, settings, generator())[0], pixels), name


def test_a_grey_image_has_equal_channels():
    settings = STILL.model_copy(update={"grey": 1.0})
    seen, *_ = augment(batch(3), torch.zeros(3, dtype=torch.long), ENTREP, settings, generator())
    assert torch.equal(seen[:, 0], seen[:, 1]) and torch.equal(seen[:, 0], seen[:, 2]) and seen.float().std() > 1


@pytest.mark.parametrize(
    "wrong", [{"zoom": 1.0}, {"brightness": 1.5}, {"flip": -0.1}, {"hue": 0.6}, {"rotation": float("nan")}, {"blur_sigma": 1e9}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        AugmentSettings(**wrong)


# ---------------------------------------------------------------- the steps, against torchvision's one image at a time
# Half a grey level of 255 is 0.002; these must be nearer.

FACTORS = torch.tensor([0.5, 0.75, 1.0, 1.25, 1.5, 0.0])


def each(function, images: torch.Tensor, *parameters) -> torch.Tensor:
    return torch.stack([function(image, *(p[i] for p in parameters)) for i, image in enumerate(images)])


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 1e-4


def test_affine():
    angles = torch.tensor([0.0, 15.0, -15.0, 7.0, 90.0, -33.0])
    shifts = torch.tensor([[0, 0], [3, -2], [0, 5], [-4.5, 1.25], [0, 0], [1, 1]])
    scales = torch.tensor([1, 0.9, 1.1, 1, 1.2, 0.8])

    def reference(image, angle, shift, scale):
        return oracle.affine(image, float(angle), shift.tolist(), float(scale), [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)

    near(affine(colours(), angles, shifts, scales), each(reference, colours(), angles, shifts, scales))


def test_brightness_contrast_saturation_and_grey():
    images = colours()
    means = luma(images).mean(dim=(2, 3), keepdim=True)
    near(blend(images, torch.zeros(()), FACTORS), each(lambda x, f: oracle.adjust_brightness(x, float(f)), images, FACTORS))
    near(blend(images, means, FACTORS), each(lambda x, f: oracle.adjust_contrast(x, float(f)), images, FACTORS))
    near(blend(images, luma(images), FACTORS), each(lambda x, f: oracle.adjust_saturation(x, float(f)), images, FACTORS))
    near(blend(images, luma(images), torch.zeros(6)), each(lambda x: oracle.rgb_to_grayscale(x, 3), images))


def test_hue():
    turns = torch.tensor([0.5, -0.03, 0.03, 0.1, -0.5, 0.0])
    for rolled in range(6):
        images = colours().roll(rolled, dims=0)
        near(turn_hue(images, turns), each(lambda x, f: oracle.adjust_hue(x, float(f)), images, turns))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 3.0])
def test_blur(sigma):
    size = 2 * int(2 * sigma + 0.5) + 1
    for image in colours():
        near(gaussian_blur(image, sigma), oracle.gaussian_blur(image, [size, size], [sigma, sigma]))


def test_a_kernel_wider_than_the_image_is_cut():
    assert gaussian_blur(torch.rand(3, 4, 5), 9.0).shape == (3, 4, 5)


def test_the_whole_against_torchvision():
    """The steps in the paper's order, each image by itself, with the factors that the generator gives."""
    pixels, targets = batch(13, 24, 24), torch.arange(13) % 7
    s = AugmentSettings(grey=0.3, blur=0.5, hue=0.1)
    seen, wanted, flipped = augment(pixels, targets, ENTREP, s, generator(4))
    draws = torch.rand(13, 13, generator=generator(4))

    def between(row: int, low: float, high: float) -> torch.Tensor:
        return draws[row] * (high - low) + low

    mirrored = draws[0] < s.flip
    assert torch.equal(flipped, mirrored)
    assert torch.equal(wanted, torch.where(mirrored, torch.tensor(ENTREP.mirrors)[targets], targets))
    for i, image in enumerate(pixels.float() / 255):
        image = image.flip(-1) if mirrored[i] else image
        image = oracle.affine(
            image,
            float(between(1, -s.rotation, s.rotation)[i]),
            [float(between(row, -s.shift, s.shift)[i] * 24) for row in (2, 3)],
            float(between(4, 1 - s.zoom, 1 + s.zoom)[i]),
            [0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        image = oracle.adjust_brightness(image, float(between(5, 1 - s.brightness, 1 + s.brightness)[i]))
        image = oracle.adjust_contrast(image, float(between(6, 1 - s.contrast, 1 + s.contrast)[i]))
        image = oracle.adjust_saturation(image, float(between(7, 1 - s.saturation, 1 + s.saturation)[i]))
        image = oracle.rgb_to_grayscale(image, 3) if draws[9][i] < s.grey else oracle.adjust_hue(image, float(between(8, -s.hue, s.hue)[i]))
        if draws[10][i] < s.blur:
            sigma = float(between(11, 0.1, s.blur_sigma)[i])
            image = oracle.gaussian_blur(image, [2 * int(2 * sigma + 0.5) + 1] * 2, [sigma] * 2)
        assert (seen[i].float() - image * 255).abs().max() < 0.51


def test_a_part_of_the_views_is_that_part_of_all():
    """What several processes rely on: the random numbers are those of the whole batch."""
    pixels, targets = batch(21), torch.arange(21) % 7
    views, wanted, flipped = augment(pixels, targets, ENTREP, AugmentSettings(), generator())
    for part in (slice(0, 10), slice(10, 21), slice(21, 21)):
        own, same, turned = augment(pixels, targets, ENTREP, AugmentSettings(), generator(), part)
        assert torch.equal(own, views[part]) and torch.equal(same, wanted) and torch.equal(turned, flipped)


# ---------------------------------------------------------------- crop, cutout, the naive flip


def test_a_crop_shows_a_part_of_the_image_at_full_size():
    """On a ramp the slope tells the scale and the middle the place: never outside of the image, and not always the same."""
    ramp = torch.linspace(0, 250, 64).round().to(torch.uint8).expand(12, 3, 64, 64)
    always = STILL.model_copy(update={"crop": 0.75})
    seen, _, _ = augment(ramp, torch.zeros(12, dtype=torch.long), ENTREP, always, generator())
    # Away from the border, where a ramp is interpolated with the black outside.
    left, right = seen[:, 0, 32, 4].float(), seen[:, 0, 32, 59].float()
    scales = (right - left) / (ramp[0, 0, 32, 59] - ramp[0, 0, 32, 4]).float()
    assert scales.min() > 0.47 and scales.max() < 1.03 and scales.std() > 0.05
    assert left.min() >= 0 and right.max() <= 250 and left.std() > 5
    assert torch.equal(seen[:, 0, 20:44], seen[:, 0, 20:21].expand(-1, 24, -1))  # upright


def test_a_cutout_is_one_black_square_and_the_rest_stays():
    pixels = batch(40, 24, 24).clamp(min=1)
    always = STILL.model_copy(update={"cutout": 1.0, "cutout_side": 0.5})
    seen, _, _ = augment(pixels, torch.zeros(40, dtype=torch.long), ENTREP, always, generator())
    black = (seen == 0).all(dim=1)
    assert torch.equal(seen, torch.where(black[:, None], 0, pixels))
    for image in black:
        rows, columns = image.any(dim=1), image.any(dim=0)
        assert torch.equal(image, rows[:, None] & columns[None]) and max(rows.sum(), columns.sum()) <= 13
    assert black.flatten(1).any(dim=1).float().mean() > 0.8
    few = STILL.model_copy(update={"cutout": 0.3, "cutout_side": 0.5})
    some, _, _ = augment(pixels, torch.zeros(40, dtype=torch.long), ENTREP, few, generator())
    assert 0.05 < (some != pixels).flatten(1).any(dim=1).float().mean() < 0.6


def test_a_naive_flip_keeps_the_label_and_the_same_views():
    pixels, targets = batch(24), torch.arange(24) % len(ENTREP)
    aware = augment(pixels, targets, ENTREP, AugmentSettings(), generator())
    naive = augment(pixels, targets, ENTREP, AugmentSettings(naive_flip=True), generator())
    assert torch.equal(naive[0], aware[0]) and torch.equal(naive[2], aware[2])
    assert torch.equal(naive[1], targets) and not torch.equal(aware[1], targets)


# ---------------------------------------------------------------- mixing within a class

TARGETS = torch.tensor([0, 1, 0, 2, 1, 0, 1, 1])  # class 2 has one image, which is alone
ALL = torch.ones(len(TARGETS), dtype=torch.bool)


def test_a_blend_is_of_the_image_and_one_other_of_its_class():
    pixels = batch(len(TARGETS), 9, 12, seed=5)
    mixed = mixup(pixels, TARGETS, ALL, generator())
    for i, target in enumerate(TARGETS):
        others = [j for j in range(len(TARGETS)) if j != i and TARGETS[j] == target]
        if not others:
            assert torch.equal(mixed[i], pixels[i])
            continue
        # The share that fits the pixels best, for each possible partner.
        fits = []
        for j in others:
            a, b, m = (x.double() for x in (pixels[i], pixels[j], mixed[i]))
            share = float(((m - b) * (a - b)).sum() / (a - b).square().sum())
            fits.append((float((share * a + (1 - share) * b - m).abs().max()), share))
        error, share = min(fits)
        assert error < 1 and 0.49 <= share <= 1


def test_a_mosaic_is_four_whole_images_of_the_class_at_half_their_side():
    pixels = batch(len(TARGETS), 8, 12, seed=5)
    made = mosaic(pixels, TARGETS, ALL, generator())
    small = F.interpolate(pixels.float(), (4, 6), mode="bilinear", antialias=True, align_corners=False)
    small = small.round().clamp(0, 255).to(torch.uint8)
    for i, target in enumerate(TARGETS):
        if target == 2:
            assert torch.equal(made[i], pixels[i])
            continue
        quarters = [made[i, :, y : y + 4, x : x + 6] for y in (0, 4) for x in (0, 6)]
        found = [[j for j in range(len(TARGETS)) if torch.equal(q, small[j])] for q in quarters]
        assert all(len(f) == 1 and TARGETS[f[0]] == target for f in found)
        shown = {f[0] for f in found}
        assert i in shown and len(shown) == min(4, int((TARGETS == target).sum()))


def test_odd_sides_are_filled_to_the_edge():
    pixels = torch.full((2, 3, 5, 7), 200, dtype=torch.uint8)
    assert torch.equal(mosaic(pixels, torch.tensor([0, 0]), ALL[:2], generator()), pixels)


def test_only_the_chosen_are_mixed_and_the_batch_given_stays():
    pixels = batch(len(TARGETS), 9, 12, seed=5)
    before, chosen = pixels.clone(), torch.arange(len(TARGETS)) < 3
    for made in (mixup(pixels, TARGETS, chosen, generator()), mosaic(pixels, TARGETS, chosen, generator())):
        assert torch.equal(made[3:], pixels[3:]) and not torch.equal(made[:3], pixels[:3])
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("settings", [MixSettings(mixup=0.5), MixSettings(mosaic=0.5), MixSettings(mixup=1.0, mosaic=0.5)])
def test_the_generator_decides_and_what_is_off_draws_nothing(settings):
    pixels = batch(len(TARGETS), 9, 12, seed=5)
    torch.manual_seed(1)
    first = mix(pixels, TARGETS, settings, generator())
    torch.manual_seed(2)
    assert torch.equal(mix(pixels, TARGETS, settings, generator()), first)
    assert not torch.equal(mix(pixels, TARGETS, settings, generator(3)), first)
    still = generator()
    state = still.get_state()
    assert mix(pixels, TARGETS, MixSettings(), still) is pixels and torch.equal(still.get_state(), state)


def test_shares_are_shares():
    pixels, targets = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8, generator=generator()), torch.zeros(400, dtype=torch.long)
    for settings in (MixSettings(mixup=0.25), MixSettings(mosaic=0.25)):
        changed = (mix(pixels, targets, settings, generator()) != pixels).flatten(1).any(dim=1)
        assert 0.17 < changed.float().mean() < 0.33


def test_a_part_of_mixed_views_is_that_part_of_all():
    """What several processes rely on: partners come from the whole batch."""
    pixels, targets = torch.arange(9 * 3 * 8 * 8).reshape(9, 3, 8, 8).to(torch.uint8), torch.arange(9) % 3
    for mixing in (MixSettings(), MixSettings(mixup=1.0, mosaic=0.5)):

        def views(part: slice, mixing=mixing):
            return batch_views(pixels, targets, ENTREP, AugmentSettings(), mixing, generator(1), part)

        whole, wanted, flipped = views(slice(None))
        for part in (slice(0, 4), slice(4, 9)):
            own, same, turned = views(part)
            assert torch.equal(own, whole[part]) and torch.equal(same, wanted) and torch.equal(turned, flipped)
