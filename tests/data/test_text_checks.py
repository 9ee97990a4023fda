from __future__ import annotations

import pytest

from entrep_cli.data.phantom.findings import FINDINGS
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.text_checks import english_words, is_normal, looks_torn, organ_words, organs_named, wrong_language

ENGLISH = [f.english for f in FINDINGS.values()]
VIETNAMESE = [f.vietnamese for f in FINDINGS.values()]
WORDS = organ_words(Taxonomy.entrep())


@pytest.mark.parametrize(
    "text", ["toward the nasopharynx", "obscuring the tympanic membrane", "oedema of the", "và phù nề", "cord (left", "...", "x"]
)
def test_debris(text):
    assert looks_torn(text)


@pytest.mark.parametrize(
    "text", [*ENGLISH, *VIETNAMESE, "earwax obstructing the external auditory canal", "bleeding polyp (left)", "no polyp"]
)
def test_whole_findings_are_not_debris(text):
    assert not looks_torn(text)


@pytest.mark.parametrize("english, vietnamese", list(zip(ENGLISH, VIETNAMESE)))
def test_each_language_in_its_column_and_exchanged(english, vietnamese):
    known = english_words(ENGLISH, VIETNAMESE)
    assert not wrong_language(english, vietnamese, known)
    assert "text_en" in wrong_language(vietnamese, english, known)
    assert "text_vi" in wrong_language(vietnamese, english, known) or len(english.split()) == 1


def test_vietnamese_without_its_marks_is_not_called_english():
    assert not wrong_language("", "viem tai giua", english_words(ENGLISH, VIETNAMESE))


@pytest.mark.parametrize("finding", [f for f in FINDINGS.values() if f.region != "any"])
def test_no_finding_names_another_organ_than_its_own(finding):
    for text in (finding.english, finding.vietnamese):
        named = organs_named([text.casefold()], WORDS)
        assert not named or finding.region in named, (text, named)


@pytest.mark.parametrize(
    "text, region",
    [("erythema of the ear canal", "ear"), ("septal spur", "nose"), ("màng nhĩ dày", "ear"), ("hai dây thanh sung huyết", "vc"),
     ("tonsillar hypertrophy", "throat"), ("amidan quá phát", "throat"), ("arytenoid oedema", "vc")],
)  # fmt: skip
def test_organs_are_named_in_both_languages(text, region):
    assert organs_named([text], WORDS) == [region]


@pytest.mark.parametrize("text", ["no nasal discharge", "without tonsillitis", "không có dịch mũi", "normal"])
def test_what_is_denied_is_not_named(text):
    assert organs_named([text], WORDS) == []


def test_other_taxonomies_have_words_of_their_own():
    words = organ_words(Taxonomy.derive(["stomach-ulcer", "stomach-normal", "colon-polyp", "colon-normal"]))
    assert "stomach" in words["stomach"] and "colon" in words["colon"] and "normal" not in words["colon"]
    assert organs_named(["polyp of the colon"], words) == ["colon"]
    assert "vocal" in organ_words(Taxonomy.derive(["ear-wax", "vc-open", "vc-closed"]))["vc"]


def test_normal_is_said_in_both_languages():
    assert is_normal("Normal") and is_normal("màng nhĩ bình thường") and not is_normal("abnormal")
