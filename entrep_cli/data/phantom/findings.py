"""The phantom's classes, and the findings of each region in both languages.

A synthetic test bench, not medicine. Class frequencies and vocabulary follow the ENTRep challenge; the
rest is ours.
"""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One visible finding, with its short clinical text in both languages."""

    region: str
    english: str
    vietnamese: str


CONTEST_IMAGES = {"nose-right": 325, "nose-left": 290, "ear-right": 156, "ear-left": 133, "vc-open": 159, "vc-closed": 147, "throat": 81}
"""Images of each class in the contest's training set: the phantom keeps the proportions."""

PHANTOM_CLASSES = tuple(CONTEST_IMAGES)

NORMAL = "normal"

FINDINGS = {
    NORMAL: Finding("any", "normal", "bình thường"),
    "septal-deviation": Finding("nose", "superior septal deviation", "vẹo vách ngăn phần cao"),
    "septal-spur": Finding("nose", "septal spur", "gai vách ngăn"),
    "turbinate-enlargement": Finding("nose", "inferior turbinate enlargement", "cuốn mũi dưới quá phát"),
    "pale-mucosa": Finding("nose", "pale oedematous nasal mucosa", "niêm mạc mũi phù nề nhợt màu"),
    "nasal-erythema": Finding("nose", "erythema of the nasal mucosa", "niêm mạc mũi sung huyết đỏ"),
    "watery-discharge": Finding("nose", "watery discharge on the nasal floor", "dịch trong loãng ở sàn mũi"),
    "whitish-mucus": Finding(
        "nose", "whitish mucus from the middle meatus to the nasopharynx", "dịch nhầy trắng từ khe giữa xuống vòm mũi họng"
    ),
    "nasal-polyp": Finding("nose", "suspected polyp in the middle meatus", "nghi ngờ polyp khe giữa"),
    "membrane-thickened": Finding("ear", "thickened tympanic membrane", "màng nhĩ dày"),
    "membrane-scar": Finding("ear", "scar in the posteroinferior quadrant of the tympanic membrane", "sẹo màng nhĩ ở góc sau dưới"),
    "canal-erythema": Finding("ear", "erythema of the ear canal", "ống tai ngoài sung huyết đỏ"),
    "cerumen": Finding("ear", "cerumen in the ear canal", "ráy tai trong ống tai ngoài"),
    "purulent-discharge": Finding("ear", "purulent discharge in the ear canal", "dịch mủ trong ống tai ngoài"),
    "foreign-body": Finding("ear", "foreign body in the ear canal", "dị vật ống tai ngoài"),
    "cord-oedema": Finding("vc", "oedema of both vocal cords", "phù nề hai dây thanh"),
    "cord-erythema": Finding("vc", "erythema of both vocal cords", "hai dây thanh sung huyết đỏ"),
    "arytenoid-oedema": Finding("vc", "oedema of the arytenoids", "phù nề sụn phễu hai bên"),
    "arytenoid-erythema": Finding("vc", "erythema of the arytenoids and interarytenoid area", "sung huyết đỏ sụn phễu và vùng liên phễu"),
    "posterior-commissure-hypertrophy": Finding("vc", "posterior commissure hypertrophy", "quá phát mép sau"),
    "endolaryngeal-mucus": Finding("vc", "thick endolaryngeal mucus", "dịch nhầy đặc trong lòng thanh quản"),
    "pyriform-mucus": Finding("vc", "mucus in the pyriform sinuses", "ứ đọng dịch nhầy xoang lê hai bên"),
    "omega-epiglottis": Finding("vc", "omega-shaped epiglottis", "nắp thanh môn hình omega"),
    "tonsillar-hypertrophy": Finding("throat", "tonsillar hypertrophy", "amidan quá phát"),
    "chronic-tonsillitis": Finding("throat", "chronic tonsillitis", "viêm amidan mạn tính"),
    "posterior-wall-mucus": Finding("throat", "mucus on the posterior oropharyngeal wall", "dịch nhầy ở thành sau họng miệng"),
    "posterior-wall-erythema": Finding("throat", "erythema of the posterior oropharyngeal wall", "thành sau họng miệng sung huyết đỏ"),
    "lingual-tonsillar-hypertrophy": Finding("throat", "lingual tonsillar hypertrophy", "quá phát amidan đáy lưỡi"),
}
"""Finding key to region, English and Vietnamese text; `normal` belongs to every region."""

CONTRARY = {frozenset(("pale-mucosa", "nasal-erythema"))}
"""Pairs that no patient shows at once."""


def region_of(label: str) -> str:
    """Region of a phantom class: `nose-left` gives `nose`."""
    if label not in PHANTOM_CLASSES:
        raise ValueError(f"no phantom class {label!r}; choose from {', '.join(PHANTOM_CLASSES)}")
    return label.split("-")[0]
