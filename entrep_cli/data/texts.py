"""Descriptions in English and Vietnamese, the findings they are made of, and names that mean the same."""

from __future__ import annotations

import re
import unicodedata

_SIDES = re.compile(r"\b(left|right|trái|phải)\b")
# A comma between two digits is a decimal one, as Vietnamese writes it.
_CUTS = re.compile(r"[\r\n，]+|,(?!(?<=\d,)\d)")


def fold(text: str) -> str:
    """`text` without its differences of case and unicode normal form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def has_control(text: str) -> bool:
    """Whether `text` holds a control character, a line separator or half of a surrogate pair."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in text)


def clean_text(text: str) -> str:
    """One line of text: Unicode NFC, invisible characters dropped, all kinds of blanks as single spaces."""
    seen = (c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) not in ("Cf", "Cs"))
    return " ".join("".join(seen).split())


def split_findings(text: str) -> list[str]:
    """The findings of a description, cut at line breaks and commas, in order, without repetition.

    >>> split_findings("Septal spur,\\r\\n watery\\u00a0discharge of 1,5 ml, septal spur")
    ['Septal spur', 'watery discharge of 1,5 ml']
    """
    findings = {}
    for part in _CUTS.split(text):
        part = clean_text(part).strip(" .;")
        if part:
            findings.setdefault(fold(part), part)
    return list(findings.values())


def names_a_side(text: str) -> bool:
    """Whether a text says left or right, in English or Vietnamese: it is not true of the flipped image."""
    return bool(_SIDES.search(fold(text)))


def finding_keys(text: str) -> list[str]:
    """The findings of a description as keys that compare without regard to case."""
    return [fold(finding) for finding in split_findings(text)]
