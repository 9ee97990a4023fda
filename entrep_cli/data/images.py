"""Reading one image safely, and bringing it to the square that a model wants.

Images are untrusted: the format must be one we know, the size is checked from the header before
anything is decoded, and a truncated file is an error, never a half grey picture.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from entrep_cli.errors import DataError
from entrep_cli.workspace import fingerprint

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
LIT = 21  # grey level of 255, a twelfth; what is darker is the black surround of an endoscope's view
MAX_PIXELS = 64_000_000  # eight times a 4K frame; a decoded image then takes at most 192 MB

# What Pillow warns of is either refused below, with the file's name, or does no harm. Not inside
# `read_image`: warning filters belong to the process, and images are read in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(DataError):
    """One image cannot be used; `what` is the reason, `where` the file."""


def read_image(path: Path) -> Image.Image:
    """Decode an image file to RGB as a person would see it: EXIF orientation applied, 8 bit a channel.

    Raises:
        ImageError: missing, unknown format, more than `MAX_PIXELS`, truncated or damaged.
    """
    try:
        if not path.is_file():  # opening a named pipe would wait for ever
            raise ImageError("no such file", where=path)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=path) from error
    return _decoded(path, path)


def decode_image(content: bytes, name: str) -> Image.Image:
    """The same of an image file's bytes; `name` is the `where` of its errors."""
    return _decoded(io.BytesIO(content), name)


def _decoded(source: Path | io.BytesIO, where: Path | str) -> Image.Image:
    try:
        with Image.open(source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(
                    f"{width} x {height} pixels, more than the {MAX_PIXELS // 1_000_000} million allowed",
                    where=where,
                )
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        size = source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes
        what = f"not an image in a known format ({', '.join(FORMATS)})" if size else "the file is empty"
        raise ImageError(what, where=where) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"more pixels than the {MAX_PIXELS // 1_000_000} million allowed", where=where) from error
    except Exception as error:  # hostile bytes bring any exception out of a decoder, struct.error to TypeError
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"cannot be read: {error.strerror}", where=where) from error
        raise ImageError(f"damaged or truncated: {error or type(error).__name__}", where=where) from error


def pixel_digest(image: Image.Image) -> str:
    """Sixteen hex digits of the RGB pixels and their size: equal for equal pixels, whatever the file."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def field_of_view(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Bounding box of the endoscope's lit view on its black surround (ours).

    The surround is darker than a twelfth of full brightness along whole rows and columns; the box is
    where at least 2% of a row or column is brighter, so that single specks do not count.

    Args:
        pixels: (H, W, 3) uint8.

    Returns:
        left, top, right, bottom, right and bottom excluded; the whole image where the view would be
        smaller than an eighth of it, as in a nearly black frame.
    """
    height, width = pixels.shape[:2]
    lit = pixels.max(axis=2) > LIT
    columns = np.flatnonzero(lit.mean(axis=0) > 0.02)
    rows = np.flatnonzero(lit.mean(axis=1) > 0.02)
    if len(columns) and len(rows):
        left, right = int(columns[0]), int(columns[-1]) + 1
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        if (right - left) * (bottom - top) * 8 >= width * height:
            return left, top, right, bottom
    return 0, 0, width, height


@dataclass(frozen=True)
class Preprocess:
    """From a decoded image to the (3, size, size) uint8 square that a model takes.

    Attributes:
        size: side in pixels.
        fit: `pad` scales the long side to `size` and fills up with black, nothing is lost;
            `crop` scales the short side and cuts the middle out. Both keep the aspect ratio; `squash`
            scales each side to `size` by itself.
        field_of_view: cut to the lit circle first, so that black borders take no pixels.
        mean, std: of each channel, for the model's normalisation of pixels in [0, 1].
    """

    size: int
    fit: Literal["pad", "crop", "squash"] = "pad"
    field_of_view: bool = False
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """(3, size, size) uint8 of an RGB image."""
        if self.field_of_view:
            image = image.crop(field_of_view(np.asarray(image)))
        square = (self.size, self.size)
        if self.fit == "crop":
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            # Cut before scaling: the long side of a 1 x 60000 strip would not fit into memory.
            image = image.resize(square, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        elif self.fit == "squash":
            image = image.resize(square, Image.Resampling.BICUBIC)
        else:
            scale = self.size / max(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            scaled = image.resize((width, height), Image.Resampling.BICUBIC)
            image = Image.new("RGB", square)
            image.paste(scaled, ((self.size - width) // 2, (self.size - height) // 2))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    @property
    def fingerprint(self) -> str:
        """Changes with everything that changes the uint8 pixels; mean and std do not."""
        return fingerprint({"size": self.size, "fit": self.fit, "field_of_view": self.field_of_view, "version": 2})

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, table: dict) -> Preprocess:
        return cls(**{**table, "mean": tuple(table["mean"]), "std": tuple(table["std"])})


def raise_image_faults(faults: Sequence[ImageError], folder: Path) -> None:
    """One DataError for all images that cannot be used; nothing without any."""
    if faults:
        raise DataError(
            f"{len(faults)} image{'s' * (len(faults) > 1)} cannot be read.",
            where=folder,
            faults=[f"{Path(fault.where or '?').name}: {fault.what}" for fault in faults],
            hint="copy them again from the source, or take them out of the folder and its label files",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: deeper greys are scaled (Pillow would clip them), transparency lies on black."""
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        # Integers are 16-bit; floats are in [0, 1], or else 8-bit values that went through a program.
        scale = 1 / 257 if image.mode != "F" else 255 if values.max() <= 1 else 1
        image = Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    return image.convert("RGB")
