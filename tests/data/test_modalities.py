"""Pseudo-NBI against a loop over pixels and by its properties, and real narrow-band partners by name."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from entrep_cli.data.augment import AugmentSettings, augment
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.modalities import NarrowBand, narrow_paths, pseudo_nbi
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import DataError
from tests.tiny import draw


def noise(n: int = 3, height: int = 32, width: int = 40, seed: int = 0, low: int = 0) -> torch.Tensor:
    return torch.randint(low, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- pseudo-NBI


def by_loops(image: torch.Tensor, contrast: float) -> torch.Tensor:
    """The formula of the docstring, pixel by pixel, for a small (3, H, W) image."""
    _, height, width = image.shape
    red, green, blue = (image[c].double() / 255 for c in range(3))
    sigma = max(min(height, width) / 48, 0.5)
    view = torch.zeros(3, height, width, dtype=torch.uint8)
    y = 0.2989 * green + 0.701 * blue
    lit = torch.maximum(torch.maximum(red, green), blue) > 21 / 255
    for r in range(height):
        for c in range(width):
            gain = 1.0
            if lit[r, c]:
                total = weight = 0.0
                for i in range(height):
                    for j in range(width):
                        if lit[i, j]:
                            w = math.exp(-((i - r) ** 2 + (j - c) ** 2) / (2 * sigma**2))
                            total, weight = total + w * float(y[i, j]), weight + w
                gain += contrast * (float(y[r, c]) - total / weight) / max(float(y[r, c]), 1 / 255)
            bands = (green[r, c], blue[r, c], blue[r, c])
            view[:, r, c] = torch.tensor([round(min(max(float(band) * gain, 0), 1) * 255) for band in bands])
    return view


@pytest.mark.parametrize("contrast", [0.0, 1.0, 2.5])
def test_pseudo_nbi_is_its_formula(contrast):
    image = noise(1, 9, 7)
    image[:, :, :, :2] = 3  # some surround
    difference = pseudo_nbi(image, contrast)[0].int() - by_loops(image[0], contrast).int()
    assert difference.abs().max() <= 1  # rounding


def test_shape_range_and_the_same_bytes_every_time():
    pixels = noise(11)
    before = pixels.clone()
    views = pseudo_nbi(pixels)
    assert views.shape == pixels.shape and views.dtype == torch.uint8 and torch.equal(pixels, before)
    torch.manual_seed(7)
    assert torch.equal(views, pseudo_nbi(pixels))
    assert pseudo_nbi(pixels[:0]).shape == (0, 3, 32, 40)
    one_by_one = torch.cat([pseudo_nbi(pixels[i : i + 1]) for i in range(11)])
    assert (one_by_one.int() - views.int()).abs().max() <= 1


def test_without_contrast_it_is_the_green_and_the_blue_channel():
    pixels = noise()
    bands = pseudo_nbi(pixels, contrast=0)
    assert torch.equal(bands[:, 0], pixels[:, 1]) and torch.equal(bands[:, 1], pixels[:, 2]) and torch.equal(bands[:, 2], pixels[:, 2])


def test_red_alone_says_nothing():
    pixels = noise(low=40)  # all lit, whatever the red
    other = pixels.clone()
    other[:, 0] = 255 - other[:, 0]
    assert torch.equal(pseudo_nbi(pixels), pseudo_nbi(other))
    views = pseudo_nbi(pixels)
    assert torch.equal(views[:, 1], views[:, 2])


def test_the_surround_stays_black_and_draws_no_rim():
    pixels = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    view = (x - 48) ** 2 + (y - 48) ** 2 < 40**2
    pixels[0, :, view] = torch.tensor([[180], [110], [90]], dtype=torch.uint8)
    seen = pseudo_nbi(pixels)[0]
    assert (seen[:, ~view] == 0).all()
    assert (seen[:, view].int() - torch.tensor([[110], [90], [90]])).abs().max() <= 1


def test_grey_stays_grey_and_flat_stays_flat():
    grey = noise()[:, :1].expand(-1, 3, -1, -1)
    views = pseudo_nbi(grey)
    assert torch.equal(views[:, 0], views[:, 1]) and torch.equal(views[:, 1], views[:, 2])
    flat = torch.full((1, 3, 20, 20), 77, dtype=torch.uint8)
    assert torch.equal(pseudo_nbi(flat), flat)


def test_vessels_stand_out():
    """A thin line that is darker in green and blue, as haemoglobin makes it, is darker still against its surroundings."""
    pixels = torch.empty(1, 3, 96, 96, dtype=torch.uint8)
    pixels[:] = torch.tensor([190, 120, 110], dtype=torch.uint8).view(3, 1, 1)
    pixels[:, :, :, 47:49] = torch.tensor([185, 90, 80], dtype=torch.uint8).view(3, 1, 1)
    bare, view = pseudo_nbi(pixels, 0)[0].float(), pseudo_nbi(pixels)[0].float()

    def contrast(image: torch.Tensor) -> torch.Tensor:
        return 1 - image[:, 50, 47] / image[:, 50, 20]

    assert (contrast(view) > 1.5 * contrast(bare)).all()


def test_a_flip_of_the_image_flips_the_view():
    pixels = noise()
    assert (pseudo_nbi(pixels.flip(-1)).int() - pseudo_nbi(pixels).flip(-1).int()).abs().max() <= 1


# ---------------------------------------------------------------- real partners


def save(root: Path, *names: str, size: tuple[int, int] = (40, 32)) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        draw(name, size, seed=i).save(root / name)


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    save(tmp_path, "polyp_WLI/a.png", "polyp_WLI/b.png", "polyp_WLI/only.png", "polyp_NBI/a.png", "polyp_NBI/B.PNG", "polyp_NBI/orphan.png")
    save(tmp_path, "normal_WLI/a.png", "plain/a.png")
    return tmp_path


def test_partners_go_by_folder_and_name(paired):
    catalog = Catalog.read(paired)
    assert dict(zip(catalog.images, catalog.frame["label"])) == {
        "normal_WLI/a.png": "normal",
        "plain/a.png": "plain",
        "polyp_WLI/a.png": "polyp",
        "polyp_WLI/b.png": "polyp",
        "polyp_WLI/only.png": "polyp",
    }
    found = dict(zip(catalog.images, narrow_paths(catalog.paths)))
    assert {name: path.relative_to(paired).as_posix() for name, path in found.items() if path} == {
        "polyp_WLI/a.png": "polyp_NBI/a.png",
        "polyp_WLI/b.png": "polyp_NBI/B.PNG",
    }
    assert narrow_paths([paired / "polyp_NBI" / "a.png", paired / "gone" / "a.png"]) == [None, None]


def test_the_second_modality_is_the_real_one_or_else_pseudo_nbi(paired):
    catalog, preprocess = Catalog.read(paired), Preprocess(24)
    narrow = NarrowBand.read(catalog, preprocess)
    assert narrow.real.tolist() == [False, False, True, True, False] and narrow.pixels.shape == (2, 3, 24, 24)
    white = torch.from_numpy(np.stack([preprocess(Image.open(path).convert("RGB")) for path in catalog.paths]))
    pick = torch.tensor([3, 0, 4, 2])
    batch = narrow.batch(pick, white[pick])
    for row, name in ((0, "B.PNG"), (3, "a.png")):
        assert torch.equal(batch[row], torch.from_numpy(preprocess(Image.open(paired / "polyp_NBI" / name).convert("RGB"))))
    assert torch.equal(batch[1:3], pseudo_nbi(white[pick[1:3]]))


def test_without_any_partner_all_is_pseudo_nbi(tmp_path):
    save(tmp_path, "a/1.png", "b/2.png")
    narrow = NarrowBand.read(Catalog.read(tmp_path), Preprocess(16))
    assert not narrow.real.any() and torch.equal(narrow.batch(torch.tensor([1, 0]), noise(2, 16, 16)), pseudo_nbi(noise(2, 16, 16)))


def test_a_partner_that_cannot_be_read_is_named(paired):
    (paired / "polyp_NBI" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError) as error:
        NarrowBand.read(Catalog.read(paired), Preprocess(16))
    assert "a.png" in error.value.faults[0]


def test_one_state_of_the_generator_turns_both_modalities_alike():
    """What `NarrowBand.batch` says of `augment`: the place that is lit in one view is lit in the other."""
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    pixels[:, :, 4:12, 4:12] = 200
    targets, taxonomy, settings = torch.zeros(4, dtype=torch.long), Taxonomy.derive(["polyp"]), AugmentSettings(flip=1)
    views = [augment(x, targets, taxonomy, settings, torch.Generator().manual_seed(3))[0] for x in (pixels, pseudo_nbi(pixels))]
    lit = [view.amax(dim=1) > 60 for view in views]
    assert lit[0].any() and (lit[0] != lit[1]).float().mean() < 0.01
