"""Two modalities of one view: white light, and narrow-band imaging (NBI), real or pseudo-NBI.

Real narrow-band images lie beside the white-light ones: `polyp_NBI/a.png` belongs to
`polyp_WLI/a.png`. Where an image has none, `pseudo_nbi` makes a second view out of its green and blue
channels. That is a drawing of what narrow-band optics show, not a measurement; it is called pseudo-NBI
wherever it is named, and never NBI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.files import Names
from entrep_cli.data.images import LIT, Preprocess, raise_image_faults
from entrep_cli.data.layouts import NARROW, WHITE, split_modality
from entrep_cli.data.pixels import load_pixels, probe_images
from entrep_cli.data.texts import casefold

_SIGMA = 1 / 48  # of the shorter side: wider than a vessel, narrower than a fold of the mucosa


def pseudo_nbi(pixels: torch.Tensor, contrast: float = 1.0) -> torch.Tensor:
    """A pseudo-NBI view of white-light images: (N, 3, H, W) uint8 in and out, on the device of `pixels`.

    Narrow-band optics keep 415 nm (blue) and 540 nm (green), where haemoglobin absorbs most, and their
    display shows the 540 nm image in red and the 415 nm image in green and blue: capillaries near the
    surface come out brown, deeper vessels cyan. Here, of every pixel,

        R' = G,  G' = B,  B' = B                            the two bands, red is dropped
        y  = 0.2989 R' + 0.587 G' + 0.114 B'                their luminance
        y' = y + contrast * (y - blur(y))                   vessels against what surrounds them
        (R', G', B') * y' / y, clamped to 0..255            hue stays

    `blur` is a Gaussian with a sigma of 1/48 of the shorter side that averages lit pixels only, so
    that no bright rim grows along the black surround, which is left alone. Black stays black, a grey image
    grey, and a flip of the image flips the view. Nothing is drawn at random.

    Source: the bands and what vessels look like, Gono, Clin Endosc 2015;48:476, and Gono et al., J Biomed Opt
    2004;9:568. The substitution of channels (red <- green, green <- blue) has been read beside real NBI on white-light
    images of the oesophagus ("RGB channel substitution", an abstract on riss.kr). The contrast, its width and the
    mask are ours. A camera's blue channel is broad: what the mucosa does not show in it, this cannot bring out.

    Args:
        contrast: 0 leaves the bare bands.
    """
    views = torch.empty_like(pixels)
    height, width = pixels.shape[-2:]
    rows, columns = (_gaussian(side, max(min(height, width) * _SIGMA, 0.5)).to(pixels.device) for side in (height, width))
    # A few images at a time stay in the processor's cache.
    for few in torch.arange(len(pixels)).split(8):
        image = pixels[few].float().div_(255)
        bands = image[:, [1, 2, 2]]
        luminance = 0.2989 * bands[:, :1] + 0.701 * bands[:, 1:2]
        lit = (image.amax(dim=1, keepdim=True) > LIT / 255).float()
        around = (rows @ (luminance * lit) @ columns) / (rows @ lit @ columns).clamp_min(1e-6)
        gain = 1 + contrast * lit * (luminance - around) / luminance.clamp_min(1 / 255)
        views[few] = bands.mul_(gain).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    return views


def narrow_paths(paths: Sequence[Path]) -> list[Path | None]:
    """The real narrow-band image of each white-light image, None where the dataset has none.

    `<class>_WLI/NAME` has its partner in `<class>_NBI/NAME` beside that folder, by names alone and without
    regard to case, as `layouts` reads them; nothing is decoded.
    """
    partners = {folder: _partner(folder) for folder in dict.fromkeys(path.parent for path in paths)}
    return [names.find(path.name) if (names := partners[path.parent]) else None for path in paths]


@dataclass(frozen=True)
class NarrowBand:
    """The second modality of every image of a catalog, in its order: real NBI where the dataset has it, else pseudo-NBI.

    Attributes:
        real: (N,) bool, which images have a real one.
        pixels: (n, 3, size, size) uint8 of the real ones, n of them; a read-only memory map.
        place: (N,) where in `pixels` that of an image stands, -1 where it has none.
    """

    real: np.ndarray
    pixels: np.ndarray
    place: np.ndarray

    @classmethod
    def read(cls, catalog: Catalog, preprocess: Preprocess) -> NarrowBand:
        """Find and decode the real ones; the pixel cache holds them under their digests.

        Raises:
            DataError: names every one that cannot be read.
        """
        paths = narrow_paths(catalog.paths)
        available = [path for path in paths if path]
        probes, faults = probe_images(available)
        raise_image_faults(faults, available[0].parent.parent if available else Path())
        shape = (0, 3, preprocess.size, preprocess.size)
        digests = [probe[0] for probe in probes if probe]
        pixels = load_pixels(available, digests, preprocess, "narrow-band images") if available else np.zeros(shape, np.uint8)
        real = np.array([path is not None for path in paths], dtype=bool)
        return cls(real, pixels, np.where(real, np.cumsum(real) - 1, -1))

    def batch(self, images: torch.Tensor, white: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) uint8: the second modality of the images at (n,) indices with these white-light pixels.

        Give both modalities of a batch to `augment` with a generator in the same state: the views then
        show the same place, turned and flipped alike.
        """
        places = self.place[images.numpy()]
        # Only what has no real one is drawn.
        views = torch.empty_like(white)
        drawn = torch.from_numpy(places < 0)
        views[drawn] = pseudo_nbi(white[drawn])
        views[~drawn] = torch.from_numpy(self.pixels[places[places >= 0]])
        return views


def _partner(folder: Path) -> Names | None:
    """The images of the narrow-band folder beside a white-light one."""
    label, ending = split_modality(folder.name)
    if ending != WHITE:
        return None
    wanted = casefold(label + NARROW)
    beside = sorted(f for f in folder.parent.iterdir() if casefold(f.name) == wanted and f.is_dir())
    return Names(beside[0], [f.name for f in beside[0].iterdir() if not f.name.startswith(".")]) if beside else None


def _gaussian(side: int, sigma: float) -> torch.Tensor:
    """(side, side) weights of a Gaussian along one side, sigma in pixels, not normalised.

    A product with it is many times as fast as a convolution of one channel on a CPU.
    """
    places = torch.arange(side, dtype=torch.float32)
    return torch.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
