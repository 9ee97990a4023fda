"""The classes of a dataset: ids in submissions, regions, mirror pairs, prompts.

Three sources, in this order: `taxonomy.toml` in the dataset folder, the built-in ENTRep classes
where the labels are ENTRep's, else derived from the labels themselves.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from entrep_cli.errors import DataError, UsageError

_WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+")  # `NoseLeft`, `nose_left` and `LEFT nose` have two words
_SIDES = {"left": "right", "right": "left", "trái": "phải", "phải": "trái"}
_OTHER_SIDE = {**_SIDES, "l": "r", "r": "l"}  # one letter is a side only where both sides occur


@dataclass(frozen=True)
class ClassInfo:
    """One class.

    Attributes:
        name: the label in training files.
        id: the number in submissions.
        region: the coarse class.
        mirror: the class that a horizontally flipped image belongs to; None where that is unknown,
            and then images of this class are never flipped.
        prompts: texts that describe the class, by language code.
    """

    name: str
    id: int
    region: str
    mirror: str | None = None
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Taxonomy:
    """The classes in the order of their ids; a class index is a position in that order."""

    name: str
    classes: tuple[ClassInfo, ...]

    def __post_init__(self) -> None:
        faults = [
            f"class {c.name!r}: needs a name and an id of 0 or more, has id {c.id!r}"
            for c in self.classes
            if not c.name or type(c.id) is not int or c.id < 0
        ]
        if not faults:
            object.__setattr__(self, "classes", tuple(sorted(self.classes, key=lambda c: c.id)))
        for what, values in (("class name", self.names), ("class id", map(str, self.ids))):
            faults += [f"{what} {v!r} stands {n} times" for v, n in Counter(values).items() if n > 1]
        by_name = {c.name: c for c in self.classes}
        for c in self.classes:
            if c.mirror is not None and c.mirror not in by_name:
                faults.append(f"class {c.name!r}: its mirror {c.mirror!r} is no class")
            elif c.mirror is not None and by_name[c.mirror].mirror != c.name:
                faults.append(f"class {c.name!r}: its mirror {c.mirror!r} does not name it back")
        if not self.classes:
            faults.append("it has no classes")
        if faults:
            raise DataError(f"The taxonomy {self.name!r} does not hold.", faults=faults)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.classes]

    @property
    def ids(self) -> list[int]:
        return [c.id for c in self.classes]

    @property
    def regions(self) -> list[str]:
        """Region names in the order of their first class."""
        return list(dict.fromkeys(c.region for c in self.classes))

    def index(self, name: str) -> int:
        """Position of a class name; KeyError where it is none."""
        return self._indices()[name]

    def indices(self, names: Iterable[str]) -> list[int]:
        """Positions of many class names."""
        known = self._indices()
        return [known[name] for name in names]

    @property
    def mirrors(self) -> list[int]:
        """For each class index, the index after a horizontal flip; -1 where a flip must not happen."""
        known = self._indices()
        return [-1 if c.mirror is None else known[c.mirror] for c in self.classes]

    def of_regions(self) -> Taxonomy:
        """The coarse taxonomy: every region a class, with the prompts of all its classes (Foregut paper, section 4.1).

        Ids follow the order of `regions` (ours). Regions are mirrors where all classes of one have theirs in
        the other, and back, a region of itself just so; else a flip could leave the region, and it has no
        known mirror.
        """
        regions = self.regions
        mirrored: dict[str, set[str | None]] = {region: set() for region in regions}
        region_of = {c.name: c.region for c in self.classes}
        for c in self.classes:
            mirrored[c.region].add(None if c.mirror is None else region_of[c.mirror])

        def mirror(region: str) -> str | None:
            (other, *more) = mirrored[region]
            return None if more or other is None or mirrored[other] != {region} else other

        def prompts(region: str) -> dict[str, tuple[str, ...]]:
            merged: dict[str, dict[str, None]] = {}
            for language, texts in (item for c in self.classes if c.region == region for item in c.prompts.items()):
                merged.setdefault(language, {}).update(dict.fromkeys(texts))
            return {language: tuple(texts) for language, texts in merged.items()}

        classes = tuple(ClassInfo(region, i, region, mirror(region), prompts(region)) for i, region in enumerate(regions))
        return Taxonomy(f"{self.name}, regions", classes)

    def of_region(self, region: str) -> Taxonomy:
        """The classes of one region, with their ids; a mirror outside of the region is not known.

        Raises:
            UsageError: no such region, or one of a single class, in which nothing is to be told apart.
        """
        classes = [c for c in self.classes if c.region == region]
        names = {c.name for c in classes}
        several = [name for name in self.regions if sum(c.region == name for c in self.classes) > 1]
        if len(classes) < 2:
            what = (
                f"Region {region!r} has one class, {classes[0].name!r}: nothing to tell apart."
                if classes
                else f"No region named {region!r}."
            )
            known = f"those of several classes are {', '.join(several)}" if several else "none has several classes"
            raise UsageError(what, hint=f"{known}; target=class and target=region take all images")
        return Taxonomy(f"{self.name}, {region}", tuple(c if c.mirror in names else replace(c, mirror=None) for c in classes))

    def of_target(self, target: str) -> Taxonomy:
        """The taxonomy of what a model tells apart: `class`, `region`, or the classes of the region of that name.

        Raises:
            UsageError: as `of_region`; or `region`, of a taxonomy with one region.
        """
        if target == "class":
            return self
        if target != "region":
            return self.of_region(target)
        if len(self.regions) < 2:
            what = f"Taxonomy {self.name!r} has one region, {self.regions[0]!r}: nothing to tell apart."
            raise UsageError(what, hint="leave target at class")
        return self.of_regions()

    def names_in_target(self, target: str) -> dict[str, str]:
        """For each class name its name in `of_target`; classes that are none of its are left out."""
        if target == "region":
            return {c.name: c.region for c in self.classes}
        return {c.name: c.name for c in self.classes if target in ("class", c.region)}

    def as_dict(self) -> dict[str, Any]:
        """The form of `taxonomy.toml`; `Taxonomy.from_dict` reads it back."""
        return {
            "name": self.name,
            "classes": [
                {
                    "name": c.name,
                    "id": c.id,
                    "region": c.region,
                    **({} if c.mirror is None else {"mirror": c.mirror}),
                    "prompts": {language: list(texts) for language, texts in c.prompts.items()},
                }
                for c in self.classes
            ],
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: Path | None = None) -> Taxonomy:
        """Read the form of `taxonomy.toml`; DataError that lists every fault."""
        rows = table.get("classes", [])
        faults = [f"unknown key {key!r}" for key in sorted(set(table) - {"name", "classes"})]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            faults.append("classes must be tables, each under [[classes]]")
            rows = []
        classes = []
        for i, row in enumerate(rows):
            name = str(row.get("name", f"class number {i + 1}"))
            unknown = set(row) - {"name", "id", "region", "mirror", "prompts"}
            faults += [f"{name}: unknown key {key!r}" for key in sorted(unknown)]
            faults += [f"{name}: name is missing"] if "name" not in row else []
            faults += [
                f"{name}: {key} must be a text, not {row[key]!r}"
                for key in ("name", "region", "mirror")
                if not isinstance(row.get(key, ""), str)
            ]
            prompts = row.get("prompts", {})
            if not isinstance(prompts, dict) or not all(
                isinstance(texts, list) and all(isinstance(t, str) for t in texts) for texts in prompts.values()
            ):
                faults.append(f"{name}: prompts must be lists of texts by language, as in prompts.en")
                prompts = {}
            classes.append(
                ClassInfo(
                    name,
                    row.get("id"),
                    str(row.get("region", name)),
                    str(row["mirror"]) if "mirror" in row else None,
                    {language: tuple(texts) for language, texts in prompts.items()},
                )
            )
        try:
            taxonomy = cls(str(table.get("name", "custom")), tuple(classes))
        except DataError as error:
            raise DataError("The taxonomy does not hold.", where=where, faults=[*faults, *error.faults]) from error
        if faults:
            raise DataError("The taxonomy does not hold.", where=where, faults=faults)
        return taxonomy

    @classmethod
    def read(cls, path: Path) -> Taxonomy:
        """Read a `taxonomy.toml`."""
        try:
            table = tomllib.loads(path.read_text("utf-8-sig"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"The taxonomy cannot be read: {error}.", where=path) from error
        return cls.from_dict(table, path)

    @classmethod
    def entrep(cls) -> Taxonomy:
        """The seven classes of the challenge."""
        return cls.read(Path(__file__).with_name("entrep.toml"))

    @classmethod
    def derive(cls, labels: Iterable[str]) -> Taxonomy:
        """A taxonomy from nothing but labels (ours).

        Ids follow the sorted names. The region is the text before the first `-`, where another class
        has the same, else the name itself. If any label says left or right (trái or phải), or two differ
        only in l and r, the set knows sides: labels that differ only in the side are mirrors, and a
        class without a counterpart has no known mirror. If none does, every class is the mirror of itself.
        """
        known = set(labels)
        names = sorted(known)
        words = {word.lower() for name in names for word in _WORD.findall(name)}
        others = {name: other for name in names if (other := _other_side(name)) != name and other in known}
        knows_sides = bool(others or words & _SIDES.keys())
        prefixes = Counter(name.split("-", 1)[0] for name in names)

        def region(name: str) -> str:
            prefix = name.split("-", 1)[0]
            return prefix if prefixes[prefix] > 1 else name

        def prompt(name: str) -> str:
            return f"an endoscopic image of {re.sub('[-_]+', ' ', name)}"

        return cls(
            "derived from the labels",
            tuple(
                ClassInfo(name, i, region(name), others.get(name) if knows_sides else name, {"en": (prompt(name),)})
                for i, name in enumerate(names)
            ),
        )

    def _indices(self) -> dict[str, int]:
        return {c.name: i for i, c in enumerate(self.classes)}


def _other_side(name: str) -> str:
    """`name` with left and right exchanged, each word in its case; itself where it has no side."""

    def exchange(match: re.Match[str]) -> str:
        word = match[0]
        other = _OTHER_SIDE.get(word.lower(), word)
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _WORD.sub(exchange, name)


def choose_taxonomy(labels: Iterable[str], folder: Path | None = None) -> Taxonomy:
    """The taxonomy of a dataset from its labels (one an image) and its folder.

    `taxonomy.toml` wins; then ENTRep's where most images carry its labels, so that a typing mistake
    is an unknown class instead of a further class; else derived. Without any
    label it is ENTRep's.
    """
    if folder is not None and (folder / "taxonomy.toml").is_file():
        return Taxonomy.read(folder / "taxonomy.toml")
    counts = Counter(labels)
    entrep = Taxonomy.entrep()
    known = sum(counts[name] for name in entrep.names)
    if not counts or 2 * known > counts.total():
        return entrep
    return Taxonomy.derive(counts)
