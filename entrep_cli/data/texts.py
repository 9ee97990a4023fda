"""Descriptions in English and Vietnamese, the findings they are made of, and names that mean the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Generic, TypeVar

Value = TypeVar("Value")

_SIDES = re.compile(r"\b(left|right|trái|phải)\b")
# A comma between two digits is a decimal one, as Vietnamese writes it.
_CUTS = re.compile(r"[\r\n，]+|,(?!(?<=\d,)\d)")
# Of the decomposed text: đ, and the horn, hook, dot below and breve, which Western names do not have.
_VIETNAMESE_MARKS = frozenset("đ\u031b\u0309\u0323\u0306")
# Grave, acute, tilde and circumflex they have as well: then the whole word must be one Vietnamese syllable.
_SHARED_MARKS = re.compile("(?<=[aeiouy])[\u0300\u0301\u0302\u0303]+")
_SYLLABLE = re.compile(r"(?:ngh?|nh|ch|gh?|gi|kh?|ph?|qu|th?|tr|[bcdhlmnrsvx])?[aeiouy]{1,3}(?:ng?|nh|ch?|[mpt])?")


def casefold(text: str) -> str:
    """`text` without its differences of case and unicode normal form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


class Lookup(Generic[Value]):
    """Values by name, without regard to case and unicode form where no name is exactly the one asked for."""

    def __init__(self, items: Iterable[tuple[str, Value]] = ()) -> None:
        self._exact: dict[str, Value] = {}
        self._casefolded: dict[str, list[Value]] = {}
        for name, value in items:
            self._exact[name] = value
            self.add_alias(name, value)

    def add_alias(self, name: str, value: Value) -> None:
        """Another name of a value, for which an exact name of another one comes first."""
        values = self._casefolded.setdefault(casefold(name), [])
        if value not in values:
            values.append(value)

    def all(self, name: str) -> list[Value]:
        """The value of exactly this name, else all whose names differ from it only in case or unicode form."""
        return [self._exact[name]] if name in self._exact else self._casefolded.get(casefold(name), [])

    def get(self, name: str) -> Value | None:
        """The only one of `all`; None where it has none or several."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None

    def clashes(self) -> list[list[Value]]:
        """The values of names that differ in nothing but case or unicode form."""
        return [values for values in self._casefolded.values() if len(values) > 1]


def has_control(text: str) -> bool:
    """Whether `text` holds a control character, a line separator or half of a surrogate pair."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in text)


def clean_text(text: str) -> str:
    """One line of text: Unicode NFC, invisible characters dropped, all kinds of blanks as single spaces."""
    visible = (c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) not in ("Cf", "Cs"))
    return " ".join("".join(visible).split())


def split_findings(text: str) -> list[str]:
    """The findings of a description, cut at line breaks and commas, in order, without repetition.

    >>> split_findings("Septal spur,\\r\\n watery\\u00a0discharge of 1,5 ml, septal spur")
    ['Septal spur', 'watery discharge of 1,5 ml']
    """
    findings = {}
    for piece in _CUTS.split(text):
        if finding := clean_text(piece).strip(" .;"):
            findings.setdefault(casefold(finding), finding)
    return list(findings.values())


def names_a_side(text: str) -> bool:
    """Whether a text says left or right, in English or Vietnamese: it is not true of the flipped image."""
    return bool(_SIDES.search(casefold(text)))


def is_vietnamese(text: str) -> bool:
    """Whether a text shows by its diacritics that it is Vietnamese.

    What is written without them is not known from English; names such as `Ménière` do not count.

    >>> is_vietnamese("viêm tai giữa"), is_vietnamese("tai trái"), is_vietnamese("Ménière's disease")
    (True, True, False)
    """
    for word in re.findall(r"[^\W\d_]+", casefold(text)):
        letters = unicodedata.normalize("NFD", word)
        plain = _SHARED_MARKS.sub("", letters)
        if _VIETNAMESE_MARKS & set(letters) or plain != letters and _SYLLABLE.fullmatch(plain):
            return True
    return False


def finding_keys(text: str) -> list[str]:
    """The findings of a description as keys that compare without regard to case."""
    return [casefold(finding) for finding in split_findings(text)]
