"""Descriptions in English and Vietnamese, and the findings they are made of."""

from __future__ import annotations

import re
import unicodedata

_CUTS = re.compile(r"[\r\n,，]+")


def clean_text(text: str) -> str:
    """One line of text: Unicode NFC, all kinds of blanks (non-breaking too) as single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def split_findings(text: str) -> list[str]:
    """The findings of a description, cut at line breaks and commas, in order, without repetition.

    >>> split_findings("Septal spur,\\r\\n watery\\u00a0discharge, septal spur")
    ['Septal spur', 'watery discharge']
    """
    findings = {}
    for part in _CUTS.split(text):
        part = clean_text(part).strip(" .;")
        if part:
            findings.setdefault(part.casefold(), part)
    return list(findings.values())


def finding_keys(text: str) -> list[str]:
    """The findings of a description as keys that compare without regard to case."""
    return [finding.casefold() for finding in split_findings(text)]
