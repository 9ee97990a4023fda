"""The pictures of a page: each read once, small, in the page itself; none where they are private."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from entrep_cli.data.images import ImageError, read_image

SHEET_SIDE = 112  # pixels of the longer side in a contact sheet; some 3 kB
MAP_SIDE = 48


def data_uri(picture: Image.Image, quality: int = 80) -> str:
    """A picture as a `data:` address that stands in the page itself."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def thumbnail(picture: Image.Image | Path, longer_side: int) -> str:
    """A picture, or one in a file, scaled down to a `data:` address; "" where the file cannot be read."""
    try:
        small = read_image(picture) if isinstance(picture, Path) else picture.copy()
    except ImageError:
        return ""
    small.thumbnail((longer_side, longer_side))
    return data_uri(small)


class Pictures:
    """Thumbnails as `data:` addresses by image number; "" for one that is hidden or cannot be read.

    Args:
        paths, names: of the images.
        private: no picture, and numbers in the place of names.
        side: pixels of the longer side.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str], private: bool = False, side: int = SHEET_SIDE) -> None:
        self.paths, self.names, self.private, self.side = paths, names, private, side
        self._made: dict[int, str] = {}

    def name(self, i: int) -> str:
        return f"image {i + 1}" if self.private else self.names[i]

    def __call__(self, i: int) -> str:
        if i not in self._made:
            self._made[i] = "" if self.private else thumbnail(self.paths[i], self.side)
        return self._made[i]


def sprite(paths: Sequence[Path], columns: int, side: int = MAP_SIDE) -> str:
    """Many thumbnails as one JPEG, row by row: a tenth of the bytes that as many files have. "" for none.

    A picture that cannot be read stays black. Each is cut to its middle square.
    """
    if not paths:
        return ""
    from entrep_cli.data.pixels import map_threads

    sheet = Image.new("RGB", (columns * side, -(-len(paths) // columns) * side))
    for i, small in enumerate(map_threads(lambda path: _square(path, side), paths)):
        if not isinstance(small, ImageError):
            sheet.paste(small, (i % columns * side, i // columns * side))
    return data_uri(sheet, quality=70)


def _square(path: Path, side: int) -> Image.Image:
    picture = read_image(path)
    edge = min(picture.size)
    left, top = (picture.width - edge) / 2, (picture.height - edge) / 2
    return picture.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + edge, top + edge), reducing_gap=2)
