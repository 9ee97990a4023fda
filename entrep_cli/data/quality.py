"""What can be wrong with a picture as a picture: dark, overexposed, blurred, empty, of another size or mode.

All is measured inside the lit view, so that the black surround of an endoscope is no darkness. The
thresholds are ours; each stands with its reason, and none of them takes an image out of anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from entrep_cli.data.frames import pd
from entrep_cli.data.images import FORMATS, LIT, field_of_view
from entrep_cli.data.pixels import Measure

DARK = 25.0  # mean grey level of 255 inside the view: shapes cannot be told apart on a screen
GLARE = 0.3  # fraction of the view at 250 and more; a wet mucosa in good light reflects from some 5%
BLURRED = 4.5  # variance of the Laplacian at 256 pixels; under a blur of 2% of the width at most 4 is left
EMPTY = 3.5  # bits of entropy of the grey levels in the view, of 8; tissue has 5 to 7.5
SMALL_VIEW = 0.35  # fraction of the picture that the view takes
TINY = 64  # pixels of the short side
OTHER_SIZE = 4.0  # times more or fewer pixels than the median image, and
OTHER_SHAPE = 1.5  # times wider or narrower than it, and
RARE = 0.05  # fraction of the images of about that size or shape: a second camera is no outlier
_SIDE = 256  # blur is measured at one size, for the same blur has fewer pixels in a small copy
_MEASURED = ("brightness", "glare", "sharpness", "entropy", "view", "colour")
_MODES = {"1": "black and white", "L": "grey", "LA": "grey with alpha", "P": "palette", "PA": "palette with alpha", "RGBA": "alpha"}


def measure_quality(image: Image.Image) -> np.ndarray:
    """(6,) float32 of a decoded RGB image, as named in `quality_frame`."""
    times = max(1, min(image.size) // 200)
    box = tuple(times * edge for edge in field_of_view(np.asarray(image.reduce(times))))
    view = image.crop((*box[:2], min(box[2], image.width), min(box[3], image.height)))
    fraction = view.width * view.height / (image.width * image.height)
    if max(view.size) > _SIDE:
        scale = _SIDE / max(view.size)
        view = view.resize(tuple(max(1, round(side * scale)) for side in view.size), Image.Resampling.BOX)
    grey = np.asarray(view.convert("L"), np.float32)
    lit = grey > LIT
    if lit.mean() < 0.125:
        lit[:] = True  # a nearly black frame has no view: it is judged whole
    histogram = np.bincount(grey[lit].astype(np.uint8), minlength=256) / lit.sum()
    entropy = -(histogram[histogram > 0] * np.log2(histogram[histogram > 0])).sum()
    sharpness = 0.0
    if min(grey.shape) >= 3:
        laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
        # The edge of the view is sharp in every frame.
        deep = lit[1:-1, 1:-1] & lit[:-2, 1:-1] & lit[2:, 1:-1] & lit[1:-1, :-2] & lit[1:-1, 2:]
        sharpness = float(laplacian[deep].var()) if deep.any() else 0.0
    channels = np.asarray(view.resize((32, 32), Image.Resampling.BOX), np.float32)
    colour = np.ptp(channels, axis=2).mean()
    return np.array([grey[lit].mean(), (grey[lit] >= 250).mean(), sharpness, entropy, fraction, colour], np.float32)


QUALITY = Measure("quality-1", (len(_MEASURED),), "f4", measure_quality)


def file_mode(path: Path) -> str:
    """How a file holds its pixels where that is not plain RGB; from its header. "" for plain RGB."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            remarks = [_MODES.get(image.mode, "" if image.mode == "RGB" else f"mode {image.mode}")]
            if image.mode in ("P", "RGB", "L") and image.has_transparency_data:
                remarks.append("transparency")
            if getattr(image, "n_frames", 1) > 1:
                remarks.append(f"{image.n_frames} frames, of which the first is read")
            if image.getexif().get(0x0112, 1) != 1:
                remarks.append("turned by EXIF")
            return ", ".join(filter(None, remarks))
    except Exception:
        return ""


def quality_frame(names: Sequence[str], sizes: Sequence[tuple[int, int]], modes: Sequence[str], measured: np.ndarray) -> pd.DataFrame:
    """One row an image: what was measured, and a tuple of flags.

    Args:
        sizes: width and height in pixels.
        modes: of the files, as from `file_mode`.
        measured: (N, 6) as from `measure_quality`.

    Returns:
        image, width, height, mode, brightness (mean grey level inside the view), glare (fraction of
        the view at 250 and more), sharpness (variance of the Laplacian), entropy (bits), view (fraction of the
        picture), colour (mean spread of the channels), flags (of dark, overexposed, blurred, empty, small
        view, tiny, other size, other shape).
    """
    frame = pd.DataFrame({"image": list(names), "mode": list(modes)})
    frame["width"], frame["height"] = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
    for column, values in zip(_MEASURED, np.asarray(measured, np.float64).reshape(-1, len(_MEASURED)).T):
        frame[column] = values
    area, shape = frame["width"] * frame["height"], frame["width"] / frame["height"]
    dark, empty = frame["brightness"] < DARK, frame["entropy"] < EMPTY

    def apart(values: pd.Series, times: float) -> pd.Series:
        ratio = values / values.median()
        kind = np.log2(values).round(1)
        return ((ratio > times) | (ratio < 1 / times)) & (kind.map(kind.value_counts(normalize=True)) < RARE)

    flags = {
        "dark": dark,
        "overexposed": frame["glare"] > GLARE,
        # Nothing is sharp in the dark, and nothing in an empty picture: one reason is enough.
        "blurred": (frame["sharpness"] < BLURRED) & ~dark & ~empty,
        "empty": empty & ~dark,
        "small view": frame["view"] < SMALL_VIEW,
        "tiny": frame[["width", "height"]].min(axis=1) < TINY,
        "other size": apart(area, OTHER_SIZE),
        "other shape": apart(shape, OTHER_SHAPE),
    }
    frame["flags"] = [tuple(name for name, column in flags.items() if column[i]) for i in range(len(frame))]
    return frame
