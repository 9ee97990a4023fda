"""Pictures with structure of their own in a round lit view, each unlike every other: what duplicates are told by."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def scene(seed: int, size: tuple[int, int] = (160, 120), *, round_view: bool = True) -> Image.Image:
    """One picture: smooth noise at five scales, reddish, on black."""
    rng = np.random.default_rng(seed)
    width, height = size
    grey = np.zeros((height, width))
    for cells, strength in ((4, 40), (9, 30), (18, 25), (36, 15), (90, 12)):
        noise = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
        grey += strength * np.asarray(noise.resize(size, Image.Resampling.BICUBIC))
    pixels = (120 + grey)[..., None] * np.array([1.1, 0.8, 0.7])
    if round_view:
        y, x = np.mgrid[:height, :width]
        pixels *= ((x - width / 2) ** 2 + (y - height / 2) ** 2 < (0.48 * min(size)) ** 2)[..., None]
        return Image.fromarray(np.where(pixels > 0, pixels.clip(40, 250), 0).astype(np.uint8))
    return Image.fromarray(pixels.clip(40, 250).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def crop(image: Image.Image, share: float) -> Image.Image:
    """Without so much of every side."""
    w, h = image.size
    return image.crop((round(w * share), round(h * share), w - round(w * share), h - round(h * share)))
