"""The pictures of a report: each read once, small, in the page itself; none where they are private."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from entrep_cli.data.images import ImageError, read_image
from entrep_cli.reporting.pages import data_uri

SHEET_SIDE = 112  # pixels of the longer side in a contact sheet; some 3 kB
MAP_SIDE = 48
_QUALITY = 70


class Pictures:
    """Thumbnails as `data:` addresses by image number; "" for one that is hidden or cannot be read.

    Args:
        paths: of the images of a part.
        names: of the same.
        private: no picture, and numbers in the place of names.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str], private: bool = False) -> None:
        self.paths, self.names, self.private = paths, names, private
        self._made: dict[int, str] = {}

    def name(self, i: int) -> str:
        return f"image {i + 1}" if self.private else self.names[i]

    def __call__(self, i: int) -> str:
        if self.private:
            return ""
        if i not in self._made:
            try:
                self._made[i] = data_uri(read_image(self.paths[i]), SHEET_SIDE)
            except ImageError:
                self._made[i] = ""
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
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _square(path: Path, side: int) -> Image.Image:
    picture = read_image(path)
    edge = min(picture.size)
    left, top = (picture.width - edge) / 2, (picture.height - edge) / 2
    return picture.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + edge, top + edge), reducing_gap=2)
