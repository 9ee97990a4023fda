"""Texts as queries: verbatim, or set into a template; their vectors and, where asked, their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from entrep_cli.data.texts import clean_text
from entrep_cli.errors import UsageError

if TYPE_CHECKING:
    from entrep_cli.methods.base import Model

GAP = "{}"


def check_template(template: str | None) -> None:
    """UsageError where a template does not have exactly one `{}`; None is no template."""
    if template is not None and template.count(GAP) != 1:
        raise UsageError(
            f"A template has one {GAP} where the text goes; {template!r} has {template.count(GAP)}.",
            hint=f"--template 'an endoscopic image showing {GAP}'",
        )


def templated(texts: Sequence[str], template: str | None) -> list[str]:
    """What is embedded for each text: the template with the text in its gap, or the text itself.

    >>> templated(["a {spur}"], "an image of {}")
    ['an image of a {spur}']
    """
    check_template(template)
    # A text may hold braces itself, so it is set in and never formatted. An empty one stays empty, to be refused.
    return list(texts) if template is None else [template.replace(GAP, text) if clean_text(text) else text for text in texts]


def text_vectors(model: Model, texts: Sequence[str]) -> np.ndarray:
    """(M, D) float32 unit rows; UsageError where the model has no text tower."""
    return model.embed_texts(texts).float().cpu().numpy()


def text_probabilities(model: Model, texts: Sequence[str]) -> np.ndarray:
    """(M, C) float32 class probabilities of texts; UsageError where the model has no text tower, DataError where a class has no prompt."""
    return model.classify_texts(texts).float().cpu().numpy()
