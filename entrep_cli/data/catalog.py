"""The catalog: every image of a dataset once, with label, region, texts, findings and group.

Read from any layout (`layouts`), checked whole before anything is done with it, and never written
into the dataset folder.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from entrep_cli.data.duplicates import find_duplicates
from entrep_cli.data.files import odd_names
from entrep_cli.data.frames import pd
from entrep_cli.data.groups import (
    GROUPS_HINT,
    GroupRule,
    captured_group,
    clusters_of,
    group_pattern,
    joined_names,
    name_group,
    single_group,
    unknown_groups,
)
from entrep_cli.data.layouts import Row, Source, read_sources, taxonomy_of
from entrep_cli.data.pixels import probe_images
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.texts import casefold, clean_text, finding_keys
from entrep_cli.errors import DataError
from entrep_cli.workspace import fingerprint


@dataclass(frozen=True)
class NearDuplicates:
    """What pictures that show the same did to the groups of a catalog.

    Attributes:
        clusters: image names of each set of near-duplicates and mirrored copies.
        given: group of each image before; from `groups.csv`, its name, or itself.
    """

    clusters: tuple[tuple[str, ...], ...]
    given: dict[str, str]

    @property
    def joining(self) -> list[tuple[str, ...]]:
        """The clusters whose images were not of one group before."""
        return [cluster for cluster in self.clusters if len({self.given[image] for image in cluster}) > 1]

    def as_dict(self) -> dict[str, int]:
        return {
            "clusters": len(self.clusters),
            "images": sum(map(len, self.clusters)),
            "joining_clusters": len(self.joining),
            "joined_images": sum(map(len, self.joining)),
        }


@dataclass(frozen=True)
class Catalog:
    """The images of a dataset.

    Attributes:
        frame: one row an image, sorted by `image`:
            image     its name, the key everywhere else
            path      absolute path of the file
            label     class name, "" where it has none
            region    region of the label, ""
            text_en, text_vi   descriptions, ""
            findings  tuple of keys; images with a common one show the same finding
            group     the same for frames of one exam, patient or duplicate cluster; never ""
            source    the layout it came from
            digest    of its pixels
            width, height   of the file, in pixels
        taxonomy: its classes.
        layouts: "contest in data/train" and so on.
        notes: what a person should know, one line each.
        aliases: other names of an image whose pixels stand in the dataset more than once.
        group_rule: how the groups were made; see `read`.
        near_duplicates: what near-duplicates added to the groups; None where they were not looked for.
        root: the dataset folder; None where it was not read from one.
    """

    frame: pd.DataFrame
    taxonomy: Taxonomy
    layouts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    aliases: dict[str, str] | None = None
    group_rule: GroupRule = "auto"
    near_duplicates: NearDuplicates | None = None
    root: Path | None = None

    @classmethod
    def read(cls, root: Path, *, groups: GroupRule = "auto", near_duplicates: bool = True) -> Catalog:
        """Read and check a dataset folder.

        Args:
            groups: `auto`: from `groups.csv`, else the patient id in the name, and near-duplicates and
                mirrored copies are of one group; `exam`: from `groups.csv`, else the exam in the name;
                `none`: every image for itself. Anything else is a regular expression of one capture group:
                as `auto`, but a file name that it matches is of the group that it captures.
            near_duplicates: False leaves them out of `auto`, as splits did that know nothing of them.

        Raises:
            DataError: all faults of all sources at once: missing and unreadable images, unknown
                classes, names that clash, pictures that contradict each other.
            UsageError: `groups` is no rule, as `group_pattern`.
        """
        catalog, faults = cls.examine(root, groups=groups, near_duplicates=near_duplicates)
        lines = [line for of_kind in faults.values() for line in of_kind]
        if lines or catalog is None:
            raise DataError(
                f"The dataset has {len(lines)} fault{'s' * (len(lines) > 1)}.",
                where=root,
                faults=lines,
                hint="fix what is named above; nothing was written",
            )
        return catalog

    @classmethod
    def examine(
        cls, root: Path, *, groups: GroupRule = "auto", near_duplicates: bool = True
    ) -> tuple[Catalog | None, dict[str, list[str]]]:
        """What can be read of a dataset folder, and all its faults by kind; None where not one image can be.

        Kinds: sources, unreadable, names, classes, copies, labels. Near-duplicates are looked for only
        without a fault. For the arguments see `read`.

        Raises:
            DataError: nothing of a known layout, or `groups` matches none of its names.
            UsageError: `groups` is no rule, as `group_pattern`.
        """
        pattern = group_pattern(groups)
        sources = read_sources(root)
        rows = [(source, row) for source in sources for row in source.rows]
        if pattern and rows and not any(captured_group(pattern, row.image) for _, row in rows):
            raise DataError(
                f"The pattern {groups!r} finds a group in none of {len(rows)} file names.",
                where=root,
                hint=f"--groups with one that fits the names, as {rows[0][1].path.name!r}; or write groups.csv (image,group)",
            )
        labels = [row.label for _, row in rows if row.label]
        probes, unreadable = probe_images([row.path for _, row in rows])
        faults = {
            "sources": [f"{_place(s.folder, root)}: {fault}" for s in sources for fault in s.faults],
            "unreadable": [f"{_place(Path(e.where), root)}: {e.what}" for e in unreadable],
            "names": odd_names(text for _, row in rows for text in (row.image, row.label)),
            "classes": [],
        }
        try:
            taxonomy = taxonomy_of(root, sources)
            faults["classes"] += _class_faults(rows, taxonomy)
        except DataError as error:
            taxonomy = Taxonomy.derive(labels or ["none"])  # only to look for further faults
            faults["classes"] += [f"taxonomy.toml: {fault}" for fault in error.faults or [error.what]]
        regions = {c.name: c.region for c in taxonomy.classes}
        records = [_record(source, row, probe, regions.get(row.label, ""), groups) for (source, row), probe in zip(rows, probes) if probe]
        merged, aliases, notes, faults["copies"] = _merge(records)
        faults["labels"] = ["no image has a label"] if not labels and not any(faults.values()) else []
        if not merged:
            return None, faults
        merged.sort(key=lambda record: record["image"])
        alone = unknown_groups(merged) if groups != "none" else ""
        whole = groups not in ("exam", "none") and near_duplicates and not any(faults.values())
        joined = _join_near_duplicates(merged) if whole else None
        layouts = tuple(f"{s.layout} in {_place(s.folder, root)}" for s in sources)
        notes = (*(note for s in sources for note in s.notes), *notes, *([f"{alone}; {GROUPS_HINT}"] if alone else []))
        return cls(pd.DataFrame.from_records(merged), taxonomy, layouts, notes, aliases, groups, joined, root), faults

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def labelled(self) -> Catalog:
        """The images with a label."""
        return self._where(self.frame["label"] != "")

    def subset(self, images: Iterable[str]) -> Catalog:
        """These images, in catalog order; names of no image are passed over."""
        return self._where(self.frame["image"].isin(set(images)))

    def of_target(self, target: str) -> Catalog:
        """The images that a `target` is about, with its classes as labels; images without a label are left out.

        Raises:
            UsageError: as `Taxonomy.of_target`.
        """
        taxonomy, names = self.taxonomy.of_target(target), self.taxonomy.names_in_target(target)
        frame = self.frame[self.frame["label"].isin(list(names))].reset_index(drop=True)
        return replace(self, frame=frame.assign(label=frame["label"].map(names)), taxonomy=taxonomy)

    @property
    def images(self) -> list[str]:
        return self.frame["image"].tolist()

    @property
    def paths(self) -> list[Path]:
        return [Path(p) for p in self.frame["path"]]

    @property
    def digests(self) -> list[str]:
        return self.frame["digest"].tolist()

    @property
    def groups(self) -> np.ndarray:
        return self.frame["group"].to_numpy(dtype=object)

    @property
    def targets(self) -> np.ndarray:
        """(N,) int64 class indices; only for labelled images."""
        return np.array(self.taxonomy.indices(self.frame["label"]), dtype=np.int64)

    def counts(self) -> dict[str, int]:
        """Images a class, in taxonomy order."""
        counts = Counter(self.frame["label"])
        return {name: counts[name] for name in self.taxonomy.names}

    @property
    def fingerprint(self) -> str:
        """Changes when a labelled image, its label, group or pixels change."""
        columns = ["image", "label", "group", "digest"]
        return fingerprint(self.labelled.frame[columns].to_numpy().tolist())

    def _where(self, mask: pd.Series) -> Catalog:
        return replace(self, frame=self.frame[mask].reset_index(drop=True))


def finding_relevance(query_findings: Iterable, gallery_findings: Iterable) -> np.ndarray:
    """(Q, G) bool: whether query and gallery image have at least one finding in common."""
    query_findings, gallery_findings = list(query_findings), list(gallery_findings)
    vocabulary = {key: i for i, key in enumerate(sorted({k for keys in gallery_findings for k in keys}))}

    def indicator(findings: list) -> np.ndarray:
        matrix = np.zeros((len(findings), len(vocabulary)), dtype=np.float32)
        for i, keys in enumerate(findings):
            matrix[i, [vocabulary[key] for key in keys if key in vocabulary]] = 1
        return matrix

    return indicator(query_findings) @ indicator(gallery_findings).T > 0


def _record(source: Source, row: Row, probe: tuple[str, int, int], region: str, groups: GroupRule) -> dict:
    findings = [*finding_keys(row.text_en), *finding_keys(row.text_vi)]
    for text in row.findings:
        findings += [text] if text.startswith("pair:") else finding_keys(text)
    return {
        "image": row.image,
        "path": str(row.path.absolute()),
        "label": row.label,
        "region": region,
        "text_en": clean_text(row.text_en),
        "text_vi": clean_text(row.text_vi),
        "findings": tuple(dict.fromkeys(findings)),
        "group": "" if groups == "none" else row.group or name_group(row.image, groups),
        "source": source.layout,
        "digest": probe[0],
        "width": probe[1],
        "height": probe[2],
    }


def _merge(records: list[dict]) -> tuple[list[dict], dict[str, str], list[str], list[str]]:
    """One record for every distinct picture; copies lend it what it lacks, and their groups become one.

    Returns:
        the records, aliases, notes, and faults: names or labels that contradict each other.
    """
    by_digest: dict[str, dict] = {}
    by_name: dict[str, set[str]] = {}
    aliases: dict[str, str] = {}
    faults: list[str] = []
    copies = 0
    same_group: list[tuple[str, str]] = []
    for record in records:
        by_name.setdefault(record["image"], set()).add(record["digest"])
        first = by_digest.setdefault(record["digest"], record)
        if first is record:
            continue
        copies += record["path"] != first["path"]  # else two sources tell of one file
        if record["image"] != first["image"]:
            aliases[record["image"]] = first["image"]
        if first["label"] and record["label"] and first["label"] != record["label"]:
            faults.append(f"{record['image']} ({record['label']}) and {first['image']} ({first['label']}) are the same picture")
        if first["group"] and record["group"]:
            same_group.append((first["group"], record["group"]))
        for key in ("label", "region", "text_en", "text_vi", "group"):
            first[key] = first[key] or record[key]
        first["findings"] = tuple(dict.fromkeys((*first["findings"], *record["findings"])))
    faults += [f"{name}: {len(d)} different pictures have this name" for name, d in by_name.items() if len(d) > 1]
    joined = joined_names(same_group)
    for record in by_digest.values():
        record["group"] = joined.get(record["group"], record["group"]) or single_group(record["image"])
    notes = [f"pixel for pixel copies of other images, counted once: {copies}"] if copies else []
    return list(by_digest.values()), aliases, notes, faults


def _join_near_duplicates(records: list[dict]) -> NearDuplicates:
    """Make one group of the groups that near-duplicates connect; records in order of their names."""
    names = [record["image"] for record in records]
    given = {record["image"]: record["group"] for record in records}
    alike = find_duplicates([Path(record["path"]) for record in records], [record["digest"] for record in records])
    pairs = [*alike.near, *alike.mirrored]
    # A group that somebody has named lends its name to the images without one.
    connected = [(given[names[a]], given[names[b]]) for a, b in pairs]
    joined = joined_names(connected, order=lambda group: (group.startswith("image:"), group))
    for record in records:
        record["group"] = joined.get(record["group"], record["group"])
    return NearDuplicates(tuple(clusters_of(names, pairs)), given)


def _class_faults(rows: list[tuple[Source, Row]], taxonomy: Taxonomy) -> list[str]:
    """Labels that are no class, and classes that differ in nothing but case or blanks."""
    alike: dict[str, list[str]] = {}
    for name in taxonomy.names:
        alike.setdefault("".join(casefold(name).split()), []).append(name)
    faults = [f"classes {' and '.join(map(repr, names))} differ only in case or blanks" for names in alike.values() if len(names) > 1]
    known = set(taxonomy.names)
    unknown: dict[str, list[str]] = {}
    for _, row in rows:
        if row.label and row.label not in known:
            unknown.setdefault(row.label, []).append(row.image)
    for label, images in sorted(unknown.items()):
        near = difflib.get_close_matches(label, taxonomy.names, 1, 0.5)
        faults.append(
            f"unknown class {label!r} ({len(images)} image{'s' * (len(images) > 1)}, first {images[0]!r}); "
            + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(taxonomy.names)}, or those of a taxonomy.toml")
        )
    return faults


def _place(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return str(path)
