"""What every page is made with: the template engine, and pictures that are written into the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from entrep_cli.console import visible


def render(template: str, **content: Any) -> str:
    """A template of this folder, filled; all texts are escaped by the engine.

    `|visible` in a template also makes control characters visible, for names and texts that come from users.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    engine = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    engine.filters["visible"] = visible
    return engine.get_template(template).render(**content)


def stylesheet(*files: str) -> str:
    """Style sheets of this folder as one, for a page that is served and need not hold them itself."""
    return "\n".join((Path(__file__).parent / file).read_text("utf-8") for file in files)


def data_uri(picture: Image.Image, longer_side: int) -> str:
    """A picture, scaled down, as a `data:` address that stands in the page itself."""
    small = picture.copy()
    small.thumbnail((longer_side, longer_side))
    file = io.BytesIO()
    small.convert("RGB").save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
