from __future__ import annotations

import unicodedata

import pytest

from entrep_cli.data.phantom.findings import FINDINGS
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.texts import casefold, clean_text, finding_keys, has_control, is_vietnamese, names_a_side, split_findings


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("", []),
        (" ,\r\n, ", []),
        ("normal", ["normal"]),
        ("Septal spur,\r\nwatery\u00a0discharge ,  pale mucosa.", ["Septal spur", "watery discharge", "pale mucosa"]),
        ("a\nb\rc，d", ["a", "b", "c", "d"]),
        ("Normal, normal", ["Normal"]),
        ("polyp of 1,5 cm, no. 2, 3 more", ["polyp of 1,5 cm", "no. 2", "3 more"]),
        ("vẹo vách ngăn,gai", ["vẹo vách ngăn", "gai"]),
    ],
)
def test_a_description_is_cut_at_lines_and_commas(text, findings):
    assert split_findings(text) == findings


def test_keys_compare_whatever_the_case_form_and_blanks():
    vietnamese = "Vẹo vách ngăn"
    written = unicodedata.normalize("NFD", f"  {vietnamese.upper()}\u00a0\ufeff\u200b")
    assert finding_keys(written) == finding_keys(vietnamese) == ["vẹo vách ngăn"]


def test_clean_text_keeps_one_line():
    assert clean_text("a\u2003b\r\n\tc\ufeff") == "a b c"
    assert clean_text("half \ud800 a pair").encode()


def test_fold_is_stable():
    for text in ("İstanbul", "Straße", "ǰ", "ΐ", "Phải", "a\u0323\u0302"):
        assert casefold(casefold(text)) == casefold(text) == casefold(unicodedata.normalize("NFD", text))


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "a\u2028b", "\udcff.png", "\x00"])
def test_control_characters_are_seen(text):
    assert has_control(text) and not has_control("Vẹo (1)_Image04.png")


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("Polyp, LEFT middle meatus", True),
        (unicodedata.normalize("NFD", "Tai Phải"), True),
        ("bright cone", False),
        ("leftover wax", False),
        ("normal", False),
    ],
)
def test_texts_that_name_a_side(text, side):
    assert names_a_side(text) == side


@pytest.mark.parametrize(
    ("text", "vietnamese"),
    [
        ("viêm tai giữa", True),
        ("TAI TRÁI", True),
        (unicodedata.normalize("NFD", "não, mũi"), True),
        ("ù tai", True),
        ("tai trai", False),
        ("", False),
        ("Ménière's disease, Bárány chair, crème, rôle, señor", False),
        ("Sjögren, naïve, façade", False),
    ],
)
def test_vietnamese_is_known_by_its_diacritics(text, vietnamese):
    assert is_vietnamese(text) == vietnamese


def test_what_the_toolkit_brings_is_told_apart():
    prompts = [c.prompts for c in Taxonomy.entrep().classes]
    assert all(is_vietnamese(f.vietnamese) and not is_vietnamese(f.english) for f in FINDINGS.values())
    assert all(is_vietnamese(text) for own in prompts for text in own["vi"])
    assert not any(is_vietnamese(text) for own in prompts for text in own["en"])
