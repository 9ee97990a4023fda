"""Images mixed within their classes: from what they are made, for whom, and by whose random numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from entrep_cli.data.augment import AugmentSettings
from entrep_cli.data.mixing import MixSettings, batch_views, mix, mixup, mosaic
from entrep_cli.data.taxonomy import Taxonomy

TARGETS = torch.tensor([0, 1, 0, 2, 1, 0, 1, 1])  # class 2 has one image, which is alone
ALL = torch.ones(len(TARGETS), dtype=torch.bool)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(height: int = 9, width: int = 12) -> torch.Tensor:
    return torch.randint(0, 256, (len(TARGETS), 3, height, width), dtype=torch.uint8, generator=generator(5))


def test_a_blend_is_of_the_image_and_one_other_of_its_class():
    pixels = batch()
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
    pixels = batch(8, 12)
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
    pixels = batch()
    before, chosen = pixels.clone(), torch.arange(len(TARGETS)) < 3
    for made in (mixup(pixels, TARGETS, chosen, generator()), mosaic(pixels, TARGETS, chosen, generator())):
        assert torch.equal(made[3:], pixels[3:]) and not torch.equal(made[:3], pixels[:3])
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("settings", [MixSettings(mixup=0.5), MixSettings(mosaic=0.5), MixSettings(mixup=1.0, mosaic=0.5)])
def test_the_generator_decides_and_what_is_off_draws_nothing(settings):
    pixels = batch()
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
            return batch_views(pixels, targets, Taxonomy.entrep(), AugmentSettings(), mixing, torch.Generator().manual_seed(1), part)

        whole, wanted, flipped = views(slice(None))
        for part in (slice(0, 4), slice(4, 9)):
            own, same, turned = views(part)
            assert torch.equal(own, whole[part]) and torch.equal(same, wanted) and torch.equal(turned, flipped)
