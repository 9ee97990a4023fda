"""What can be wrong with texts: the wrong language, debris of cutting, an organ that the label does not name.

All of it is a suspicion, shown with the text; nothing is ever changed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.remarks import Remark, counted
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.texts import casefold, is_vietnamese, split_findings

# What stands at the torn edge of a finding that was cut out of a sentence (challenge.md, What the texts say).
_TORN_HEADS = frozenset(
    "toward towards to from of and or with in into on at by over under near as that which while causing obscuring covering extending"
    " blocking obstructing reaching involving filling protruding running draining và hoặc với kèm của từ đến tới vào xuống lan che gây"
    " làm nhưng".split()
)
_TORN_TAILS = frozenset(
    "toward towards to from of and or with without in into on at by over the a an và hoặc với kèm của từ đến tới vào ở".split()
)
_NORMAL = re.compile(r"\b(normal|healthy|unremarkable|bình thường|khỏe|khoẻ)\b")
_NEGATED = re.compile(r"\b(no|not|without|absent|absence|free|negative|rule out|không|chưa|loại trừ)\b")
_WORDS = re.compile(r"[^\W\d_]+")

# The organs that ENT endoscopy sees: the words by which a taxonomy names a region, then the words and the
# phrases of its findings.
_ORGANS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "nose": (
        "nose nasal mũi",
        "nostril turbinate turbinates septum septal sinonasal",
        ("vách ngăn", "cuốn mũi", "cuốn dưới", "cuốn giữa", "khe giữa"),
    ),
    "ear": (
        "ear otoscopy tai",
        "ears tympanic eardrum auditory cerumen earwax otitis",
        ("màng nhĩ", "ráy tai", "ống tai"),
    ),
    "larynx": (
        "vc larynx laryngoscopy vocal glottis",
        "laryngeal glottic subglottic arytenoid arytenoids interarytenoid epiglottis endolaryngeal",
        ("dây thanh", "thanh quản", "thanh môn", "sụn phễu"),
    ),
    "throat": (
        "throat oropharynx",
        "oropharyngeal tonsil tonsils tonsillar tonsillitis",
        ("amidan", "amiđan", "họng miệng", "thành sau họng"),
    ),
}
# Words of prompts that name no organ.
_GENERAL = frozenset(
    "an a the of in with and image images endoscopic endoscopy view showing left right both open opened closed state region posterior"
    " anterior superior inferior upper lower wall canal cavity passage side normal abnormal".split()
)
# English that stands in clinical texts whatever else a dataset says.
_ENGLISH = frozenset("the of with and both left right normal mucus oedema edema erythema membrane discharge".split())


def is_normal(text: str) -> bool:
    """Whether a text says that all is well, which can be said of any organ."""
    return bool(_NORMAL.search(casefold(text)))


def looks_torn(finding: str) -> str:
    """Why a finding looks like debris of cutting a sentence; "" where it does not.

    >>> looks_torn("toward the nasopharynx"), looks_torn("septal spur")
    ("begins with 'toward'", '')
    """
    text = casefold(finding).strip()
    words = _WORDS.findall(text)
    if not words:
        return "has no word"
    if words[0] in _TORN_HEADS and text.startswith(words[0]):
        return f"begins with {words[0]!r}"
    if len(words) > 1 and words[-1] in _TORN_TAILS and text.endswith(words[-1]):
        return f"ends with {words[-1]!r}"
    if any(text.count(a) != text.count(b) for a, b in ("()", "[]")):
        return "has a bracket that does not close"
    return "is one letter" if len("".join(words)) == 1 else ""


def english_words(texts_en: Iterable[str], texts_vi: Iterable[str]) -> frozenset[str]:
    """Words that stand in English texts and in no Vietnamese one, and the commonest of clinical English."""
    english = {word for text in texts_en if not is_vietnamese(text) for word in _WORDS.findall(casefold(text))}
    other = {word for text in texts_vi if is_vietnamese(text) for word in _WORDS.findall(casefold(text))}
    return (_ENGLISH | english) - other


def wrong_language(text_en: str, text_vi: str, english: frozenset[str]) -> list[str]:
    """Which of the two texts of an image seems to be in the other language: `text_en`, `text_vi`.

    Vietnamese shows by its diacritics; English where at least half of the words are English ones.
    """
    columns = ["text_en"] if text_en and is_vietnamese(text_en) else []
    words = _WORDS.findall(casefold(text_vi))
    if len(words) > 1 and not is_vietnamese(text_vi) and 2 * sum(word in english for word in words) >= len(words):
        columns.append("text_vi")
    return columns


def organ_words(taxonomy: Taxonomy) -> dict[str, tuple[str, ...]]:
    """For each region the words and phrases that name it, and no other region, in both languages.

    From the regions, class names and prompts of the taxonomy: where those name an organ of ENT
    endoscopy, the words of that organ's findings are added; words of several regions are left out.
    """
    words: dict[str, set[str]] = {}
    for region in taxonomy.regions:
        classes = [c for c in taxonomy.classes if c.region == region]
        texts = [region, *(text for c in classes for text in (c.name, *chain.from_iterable(c.prompts.values())))]
        texts = [casefold(text) for text in texts]
        said = {word for text in texts for word in _WORDS.findall(text.replace("_", " "))}
        organs = [(names, more, phrases) for names, more, phrases in _ORGANS.values() if said & set(names.split())]
        if len(organs) == 1:
            ((names, more, phrases),) = organs
            words[region] = {*names.split(), *more.split(), *phrases}
        else:
            # English alone: a Vietnamese word has several syllables, each of which stands in many words.
            plain = [t for t in texts if not is_vietnamese(t)]
            words[region] = {w for t in plain for w in _WORDS.findall(t) if len(w) > 3} - _GENERAL
    return {
        region: tuple(sorted(of_region - {word for other, those in words.items() if other != region for word in those}))
        for region, of_region in words.items()
    }


def organs_named(findings: Iterable[str], words: Mapping[str, Sequence[str]]) -> list[str]:
    """The regions that findings name without denying it: `no nasal discharge` names none."""
    regions = dict.fromkeys(
        region
        for finding in map(casefold, findings)
        for region, of_region in words.items()
        for word in of_region
        if (match := re.search(rf"(?<!\w){re.escape(word)}(?!\w)", finding)) and not _NEGATED.search(finding[: match.start()])
    )
    return list(regions)


def of_texts(catalog: Catalog) -> list[Remark]:
    """Remarks on descriptions and on the findings tied to images; none without texts."""
    frame = catalog.frame
    findings = [[key for key in keys if not key.startswith("pair:")] for keys in frame["findings"]]
    rows = list(zip(frame["image"], frame["label"], frame["region"], frame["text_en"], frame["text_vi"], findings))
    has_en, has_vi = any(frame["text_en"]), any(frame["text_vi"])

    # The contest ties a text to one image; descriptions are missed only where other images have them.
    empty = [image for image, _, _, en, vi, _ in rows if (has_en or has_vi) and not en and not vi]
    nouns, hint = ("image without a description", "images without a description"), "nothing to do: they teach as images alone"
    remarks = counted("empty texts", empty, nouns, hint=hint)
    half = [image for image, _, _, en, vi, _ in rows if has_en and has_vi and bool(en) != bool(vi)]
    nouns = "image described in one language alone", "images described in one language alone"
    remarks += counted("texts in one language", half, nouns, hint="translate them, or leave it so")

    english = english_words(frame["text_en"], frame["text_vi"])
    columns = {"text_en": "English", "text_vi": "Vietnamese"}
    wrong = [(image, c, en if c == "text_en" else vi) for image, _, _, en, vi, _ in rows for c in wrong_language(en, vi, english)]
    lines = [f"{image}, {columns[column]} column: {text!r}" for image, column, text in wrong]
    nouns = "text in the column of the other language", "texts in the column of the other language"
    remarks += counted("wrong language", lines, nouns, hint="exchange them")

    whole: dict[str, str] = {}
    for *_, en, vi, keys in rows:
        whole.update({casefold(finding): finding for text in (en, vi) for finding in split_findings(text)})
        whole.update({key: key for key in keys if key not in whole})
    torn = [f"{text!r} {why}" for _, text in sorted(whole.items()) if (why := looks_torn(text))]
    nouns = "finding that looks like debris of cutting", "findings that look like debris of cutting"
    remarks += counted("debris", torn, nouns, hint="join them to what they were cut from")

    region_of = {c.name: c.region for c in catalog.taxonomy.classes}
    classes: dict[str, Counter[str]] = {}
    for _, label, _, _, _, keys in rows:
        for key in keys if label in region_of else ():
            classes.setdefault(key, Counter())[label] += 1
    # Both sides of one organ may well show the same; two organs have little in common but being normal.
    many = [key for key, labels in classes.items() if len({region_of[label] for label in labels}) > 1 and not is_normal(key)]
    many.sort(key=lambda key: (-len(classes[key]), key))
    lines = [f"{key!r}: {', '.join(f'{label} {n}' for label, n in classes[key].most_common())}" for key in many]
    nouns = "text under several regions", "texts under several regions"
    remarks += counted("same text under many classes", lines, nouns, hint="look whether text or label is wrong")

    words = organ_words(catalog.taxonomy)
    lines, images = [], []
    for image, label, region, _, _, keys in rows:
        organs = organs_named(keys, words) if region else []
        if organs and region not in organs:
            lines.append(f"{image} is {label}, its text names {' and '.join(organs)}: {'; '.join(keys)!r}")
            images.append([image])
    nouns = "text names another organ than the label", "texts name another organ than the label"
    hint = "look at the pictures: text or label is wrong"
    return remarks + counted("texts of another organ", lines, nouns, hint=hint, images=images)
