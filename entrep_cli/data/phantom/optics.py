"""The phantom's endoscope: how a lit drawing becomes the frame that a moving hand takes.

A synthetic test bench; all of it is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from entrep_cli.data.phantom.scene import EXTENT, GRID


@dataclass(frozen=True)
class Optics:
    """Camera, lamp and dirt of one frame: all that changes while the patient stays the same.

    `turn` in radians, `shift` and `lamp` in radii of the view, `centre` and `radius` in pixels.
    """

    size: tuple[int, int]
    centre: tuple[float, float]
    radius: float
    turn: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    lamp: tuple[float, float] = (0.0, 0.0)
    exposure: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0
    noise: float = 0.0
    rim: float = 2.0
    notch: float | None = None
    dirt: np.random.Generator | None = None

    @classmethod
    def steady(cls, size: tuple[int, int]) -> Optics:
        """Centred, sharp and clean."""
        width, height = size
        return cls(size, ((width - 1) / 2, (height - 1) / 2), 0.47 * min(size))

    @classmethod
    def draw(cls, rng: np.random.Generator, size: tuple[int, int]) -> Optics:
        """A frame as a moving hand takes it."""
        width, height = size
        uniform = rng.uniform
        return cls(
            size=size,
            centre=(width * (0.5 + uniform(-0.03, 0.03)), height * (0.5 + uniform(-0.02, 0.02))),
            radius=min(size) * uniform(0.44, 0.485),
            turn=np.deg2rad(uniform(-12, 12)),
            zoom=uniform(0.94, 1.12),
            shift=(uniform(-0.07, 0.07), uniform(-0.07, 0.07)),
            lamp=(uniform(-0.25, 0.25), uniform(-0.25, 0.25)),
            exposure=uniform(0.82, 1.35),
            tint=(1 + uniform(-0.05, 0.07), 1 + uniform(-0.04, 0.04), 1 + uniform(-0.10, 0.08)),
            blur=max(0.0, uniform(-0.8, 1.1)),
            noise=uniform(1.0, 5.0),
            rim=uniform(1.0, 6.0),
            notch=uniform(0, 2 * np.pi) if rng.random() < 0.4 else None,
            dirt=rng,
        )

    def photograph(self, lit: np.ndarray) -> Image.Image:
        """The lit drawing (GRID, GRID, 3) as an RGB picture of `size`, black outside the view."""
        exposed = self.exposure * lit * np.array(self.tint, np.float32)
        # A soft shoulder, as a video processor has: only mirrors burn out.
        toned = 255 * (1 - np.exp(-2.0 * np.clip(exposed, 0, None) ** 1.25))
        drawing = Image.fromarray(toned.astype(np.uint8))
        if self.dirt:
            self._soil(drawing)
        if self.blur:
            drawing = drawing.filter(ImageFilter.GaussianBlur(self.blur))
        pixels = np.asarray(self._warp(drawing, Image.Resampling.BICUBIC), np.float32)
        if self.noise:
            grain = self.dirt.standard_normal(pixels.shape[:2], dtype=np.float32)
            pixels = pixels + self.noise * grain[..., None]
        pixels = pixels * self._view()[..., None]
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def project(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the drawing (GRID, GRID) as a boolean mask (height, width) inside the view."""
        warped = self._warp(Image.fromarray(mask.astype(np.uint8)), Image.Resampling.NEAREST)
        return np.asarray(warped, bool) & (self._distance() < self.radius)

    def _warp(self, drawing: Image.Image, resample: Image.Resampling) -> Image.Image:
        """Look at the drawing through this camera."""
        # From output pixel to drawing pixel: Pillow samples at pixel centres, hence the halves.
        step = (GRID - 1) / (2 * EXTENT) / (self.radius * self.zoom)
        cos, sin = step * np.cos(self.turn), step * np.sin(self.turn)
        middle = (GRID - 1) / 2 + 0.5
        x, y = self.centre[0] + 0.5, self.centre[1] + 0.5
        offset = [middle + shift * (GRID - 1) / (2 * EXTENT) for shift in self.shift]
        affine = (
            cos, sin, offset[0] - cos * x - sin * y,
            -sin, cos, offset[1] + sin * x - cos * y,
        )  # fmt: skip
        return drawing.transform(self.size, Image.Transform.AFFINE, affine, resample)

    def _distance(self) -> np.ndarray:
        """Distance of every pixel to the centre of the view (height, width), in pixels."""
        width, height = self.size
        x = np.arange(width, dtype=np.float32) - np.float32(self.centre[0])
        y = np.arange(height, dtype=np.float32) - np.float32(self.centre[1])
        return np.sqrt(x * x + y[:, None] * y[:, None])

    def _view(self) -> np.ndarray:
        """Light that reaches each pixel (height, width): the round view, darker to its rim."""
        distance = self._distance()
        view = np.clip((self.radius - distance) / self.rim + 0.5, 0, 1)
        view *= 1 - 0.35 * np.minimum(distance / self.radius, 1) ** 3
        if self.notch is not None:
            x = self.centre[0] + self.radius * np.cos(self.notch)
            y = self.centre[1] + self.radius * np.sin(self.notch)
            corner = Image.new("L", self.size, 1)
            ImageDraw.Draw(corner).regular_polygon((x, y, 0.05 * self.radius), 3, fill=0)
            view *= np.asarray(corner)
        return view

    def _soil(self, drawing: Image.Image) -> None:
        """A few specks and droplets on the lens, drawn into the drawing."""
        rng, pen = self.dirt, ImageDraw.Draw(drawing, "RGBA")
        spot = partial(rng.uniform, 0.15 * GRID, 0.85 * GRID)
        for _ in range(rng.integers(0, 7)):
            x, y, r = spot(), spot(), rng.uniform(0.6, 2.4)
            fill = (25, 12, 10, 150) if rng.random() < 0.5 else (255, 250, 245, 130)
            pen.ellipse((x - r, y - 0.8 * r, x + r, y + 0.8 * r), fill=fill)
        for _ in range(rng.integers(0, 4)):
            x, y, r = spot(), spot(), rng.uniform(2, 6)
            ring, glint = (255, 245, 240, 120), (255, 255, 255, 210)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 235, 30), outline=ring)
            pen.ellipse((x - 0.6 * r, y - 0.6 * r, x - 0.2 * r, y - 0.2 * r), fill=glint)
