"""The section of a recipe that says how images are brought to a model's square."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from entrep_cli.recipes.recipe import Section


class ImageSettings(Section):
    """See `Preprocess`: side in pixels, padding or cropping, and the cut to the lit circle."""

    size: Annotated[int, Field(ge=16, le=2048)] = 224
    fit: Literal["pad", "crop"] = "pad"
    field_of_view: bool = False
