"""What every page is made with: the template engine, and style sheets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from entrep_cli.console import visible

HERE = Path(__file__).parent


def render(template: str, **content: Any) -> str:
    """A template of this folder, filled; all texts are escaped by the engine.

    `|visible` in a template also makes control characters visible, for names and texts that come from users.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    engine = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    engine.filters["visible"] = visible
    return engine.get_template(template).render(**content)


def stylesheet(*files: str) -> str:
    """Style sheets of this folder as one, for a page that is served and need not hold them itself."""
    return "\n".join((HERE / file).read_text("utf-8") for file in files)
