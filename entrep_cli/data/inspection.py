"""Everything that is to be known of a dataset before anything is trained on it, in one look.

Whatever is wrong with the data becomes a remark; nothing is raised for it, and nothing is changed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.duplicates import THUMBNAIL, Alike, Pairs, find_duplicates
from entrep_cli.data.frames import pd
from entrep_cli.data.groups import clusters_of, unknown_groups
from entrep_cli.data.label_errors import PIXEL_FEATURES, label_suspects, out_of_fold
from entrep_cli.data.pixels import measure_images, probe_images
from entrep_cli.data.quality import QUALITY, file_mode, quality_frame
from entrep_cli.data.remarks import (
    TRAIN,
    Picture,
    Remark,
    chained,
    counted,
    images_of_groups,
    of_copies,
    of_embeddings,
    of_files,
    of_groups,
    of_leaks,
    of_quality,
    of_split,
    place_of,
)
from entrep_cli.data.splits import split_groups
from entrep_cli.data.testsets import TestSet, find_test_sets
from entrep_cli.data.text_checks import looks_torn, of_texts
from entrep_cli.errors import DataError

Vectors = Callable[[Catalog], tuple[np.ndarray, str]]


@dataclass(frozen=True)
class Inspection:
    """What a dataset holds, and what is wrong with it.

    Attributes:
        root: the dataset folder.
        layouts: "contest in train" and so on.
        notes: on how the files were read, one line each.
        taxonomy: its name.
        counts: of images: all, labelled, and by class, region, language of the texts, subset, size, mode.
        groups: number of groups, those with several images, the largest.
        clusters: keys of near-duplicates, exact copies among them, of training and test together.
        mirrored: pairs of keys of which one is the other flipped.
        remarks: those that must be corrected first.
        quality: `quality.quality_frame` of all pictures, with their keys as `image`.
        pictures: by key.
        suspects: key, label, suggested, p_label, p_suggested, margin; None unless asked for.
        suspects_from: the features that the suspects were predicted from.
    """

    root: Path
    layouts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    taxonomy: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    clusters: tuple[tuple[str, ...], ...] = ()
    mirrored: tuple[tuple[str, str], ...] = ()
    remarks: tuple[Remark, ...] = ()
    quality: pd.DataFrame | None = None
    pictures: dict[str, Picture] = field(default_factory=dict)
    suspects: pd.DataFrame | None = None
    suspects_from: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing must be corrected."""
        return not any(remark.severity == "must fix" for remark in self.remarks)

    def of_kind(self, kind: str) -> Remark | None:
        return next((remark for remark in self.remarks if remark.kind == kind), None)

    def names(self, private: bool = False) -> dict[str, str]:
        """How each picture is called: its key, or a number that says nothing."""
        return {key: f"image {i}" if private else key for i, key in enumerate(self.pictures, 1)}

    def as_dict(self, private: bool = False) -> dict[str, Any]:
        """JSON. `private` leaves out names, texts and places; pictures are numbered."""
        names = self.names(private)
        counts = dict(self.counts)
        if private:
            subsets = enumerate(counts["subsets"].items())
            counts["subsets"] = {subset if subset == TRAIN else f"test folder {i}": n for i, (subset, n) in subsets}
        document = {
            "ok": self.ok,
            "data": "" if private else str(self.root),
            "layouts": [layout.split(" in ")[0] if private else layout for layout in self.layouts],
            "notes": [] if private else list(self.notes),
            "taxonomy": self.taxonomy,
            "counts": counts,
            "groups": self.groups,
            "remarks": [
                {
                    **vars(remark),
                    "details": [] if private else list(remark.details),
                    "images": [[names[key] for key in keys] for keys in remark.images],
                }
                for remark in self.remarks
            ],
            "near_duplicates": [[names[key] for key in cluster] for cluster in self.clusters],
            "mirrored": [[names[key] for key in pair] for pair in self.mirrored],
        }
        if self.quality is not None:
            flagged = self.quality[self.quality["flags"].map(bool)]
            document["quality"] = [
                {c: _plain(value) for c, value in row.items()} | {"image": names[row["image"]], "flags": list(row["flags"])}
                for row in flagged.to_dict("records")
            ]
        if self.suspects is not None:
            rows = self.suspects.to_dict("records")
            document["label_suspects"] = {
                "from": self.suspects_from,
                "ranked": [{**{k: _plain(v) for k, v in row.items()}, "image": names[row["image"]]} for row in rows],
            }
        return document


def inspect_dataset(
    root: Path,
    *,
    labels: bool = False,
    vectors: Vectors | None = None,
    read_queries: Callable[..., list[str]] | None = None,
) -> Inspection:
    """Look at a whole dataset folder.

    Args:
        labels: also rank suspected label errors, by predictions out of fold.
        vectors: gives (N, D) unit embeddings of the images of a catalog, and what they are; with them images
            that are alike by embedding are listed too, and `labels` learns on them instead of on pixels.
        read_queries: as `submission.tracks.read_queries`, to check query files by; it lies above this module.
    """
    remarks: list[Remark] = []
    catalog, notes = None, ()
    try:
        catalog, faults = Catalog.examine(root, groups=split_groups(root), near_duplicates=False)
        remarks += of_files(faults)
    except DataError as error:
        remarks.append(Remark("no dataset", "must fix", error.what, error.hint or "", tuple(error.faults)))
    if catalog is not None:
        unknown = unknown_groups(catalog.frame.to_dict("records"))
        remarks += of_groups(unknown)
        notes = tuple(note for note in catalog.notes if not unknown or not note.startswith(unknown))
        catalog = _with_unique_names(catalog, root)
    test_sets = _test_sets(root, remarks)
    remarks += _of_queries(test_sets, read_queries)
    pictures = [*_training_pictures(catalog), *_test_pictures(root, test_sets, remarks)]
    keys = [p.key for p in pictures]
    by_key = dict(zip(keys, pictures))
    alike, quality = _measured(pictures)
    clusters = clusters_of(keys, alike.near)
    mirrored = [(keys[a], keys[b]) for a, b in alike.mirrored]
    remarks += of_quality(quality)
    suspects, basis = None, ""
    if catalog is not None:
        remarks += of_copies(catalog, by_key, clusters, mirrored)
        remarks += of_leaks(root, catalog, test_sets, pictures, alike)
        remarks += of_split(catalog, clusters, mirrored)
        remarks += of_texts(catalog)
        features, basis = vectors(catalog) if vectors is not None else (None, "colours and edges of the pixels")
        if features is not None:
            remarks += of_embeddings(catalog, features, basis, clusters)
        if labels:
            suspects = _suspects(catalog, [*clusters, *mirrored], features, basis, remarks)
    return Inspection(
        root=root,
        layouts=catalog.layouts if catalog is not None else (),
        notes=notes,
        taxonomy=catalog.taxonomy.name if catalog is not None else "",
        counts=_counts(catalog, pictures, quality),
        groups=_groups(catalog),
        clusters=tuple(clusters),
        mirrored=tuple(mirrored),
        remarks=tuple(sorted(remarks, key=lambda remark: remark.severity != "must fix")),
        quality=quality,
        pictures=by_key,
        suspects=suspects,
        suspects_from=basis if labels else "",
    )


# ---------------------------------------------------------------- pictures


def _with_unique_names(catalog: Catalog, root: Path) -> Catalog:
    """The catalog in which pictures of the same name, which is a fault, are called by their places in the dataset."""
    frame = catalog.frame
    clashes = frame["image"].duplicated(keep=False)
    places = [os.path.relpath(path, root) if clash else name for name, path, clash in zip(frame["image"], frame["path"], clashes)]
    return replace(catalog, frame=frame.assign(image=places))


def _training_pictures(catalog: Catalog | None) -> list[Picture]:
    if catalog is None:
        return []
    columns = (catalog.frame[c].tolist() for c in ("image", "path", "digest", "width", "height", "label"))
    return [Picture(name, Path(name).name, TRAIN, Path(path), digest, w, h, label) for name, path, digest, w, h, label in zip(*columns)]


def _test_sets(root: Path, remarks: list[Remark]) -> list[TestSet]:
    try:
        return find_test_sets(root)
    except DataError as error:
        remarks.append(Remark("test folder", "must fix", error.what, error.hint or "", tuple(error.faults)))
        return []


def _test_pictures(root: Path, test_sets: Sequence[TestSet], remarks: list[Remark]) -> list[Picture]:
    pictures, lines = [], []
    for test_set in test_sets:
        place = place_of(test_set, root)
        probes, unreadable = probe_images(list(test_set.images.values()))
        lines += [f"{place}/{Path(fault.where or '?').name}: {fault.what}" for fault in unreadable]
        probed = zip(test_set.images.items(), probes)
        pictures += [Picture(f"{place}/{name}", name, place, path, *probe) for (name, path), probe in probed if probe]
    nouns, hint = ("test image that cannot be read", "test images that cannot be read"), "copy them again from the source"
    remarks += counted("unreadable test images", lines, nouns, hint=hint, severity="must fix")
    return pictures


def _of_queries(test_sets: Sequence[TestSet], read_queries: Callable[..., list[str]] | None) -> list[Remark]:
    faults, torn = [], []
    for test_set in test_sets if read_queries else ():
        for track, path in sorted(test_set.queries.items()):
            try:
                queries = read_queries(path, track, known_names=set(test_set.images))
            except DataError as error:
                faults += [f"{path.name}: {line}" for line in error.faults or [error.what]]
                continue
            torn += [f"{query!r} {why}" for query in queries if track == 3 and (why := looks_torn(query))]
    hint, as_is = "one query a line, verbatim, without a header", "answer them as they are: they are keys of the submission"
    return [
        *counted("query files", faults, ("fault", "faults"), " in query files.", hint=hint, severity="must fix"),
        *counted("debris in queries", torn, ("text query looks", "text queries look"), " like debris of cutting.", hint=as_is),
    ]


def _measured(pictures: Sequence[Picture]) -> tuple[Alike, pd.DataFrame]:
    """Near-duplicates and quality; each file is decoded once for both."""
    paths, digests = [p.path for p in pictures], [p.digest for p in pictures]
    try:
        _, measured = measure_images(paths, digests, [THUMBNAIL, QUALITY])
        alike = find_duplicates(paths, digests)
    except DataError:  # a file went away after it was read a moment ago
        measured, alike = np.full((len(pictures), *QUALITY.shape), np.nan), Alike(Pairs.none(), Pairs.none())
    sizes = [(p.width, p.height) for p in pictures]
    return alike, quality_frame([p.key for p in pictures], sizes, [file_mode(path) for path in paths], measured)


# ---------------------------------------------------------------- labels


def _suspects(
    catalog: Catalog, alike: Sequence[Sequence[str]], features: np.ndarray | None, basis: str, remarks: list[Remark]
) -> pd.DataFrame | None:
    """Suspected label errors, by logistic regression out of fold over groups joined by near-duplicates.

    Args:
        alike: sets of keys of near-duplicates and mirrored copies.
        features: of the catalog's images; None for those of the pixels. basis: what they are, in words.
    """
    rows = np.flatnonzero(catalog.frame["label"].isin(catalog.taxonomy.names))
    labelled = catalog.subset(catalog.frame["image"].iloc[rows])
    sets = [*alike, *images_of_groups(catalog).values()]
    group_of = {image: c[0] for c in clusters_of(catalog.images, chained(catalog.images, sets)) for image in c}
    try:
        if features is None:
            (features,) = measure_images(labelled.paths, labelled.digests, [PIXEL_FEATURES])
        else:
            features = np.asarray(features)[rows]
        groups = [group_of.get(image, image) for image in labelled.images]
        p = out_of_fold(features, labelled.targets, groups, len(labelled.taxonomy))
    except DataError as error:
        remarks.append(Remark("label suspects", "note", error.what, error.hint or ""))
        return None
    frame = label_suspects(p, labelled.targets)
    frame.insert(0, "image", [labelled.images[row] for row in frame.pop("row")])
    for column in ("label", "suggested"):
        frame[column] = [labelled.taxonomy.names[c] for c in frame[column]]
    right = float((p.argmax(axis=1) == labelled.targets).mean())
    columns = zip(*(frame[c] for c in ("image", "label", "p_label", "suggested", "p_suggested")))
    lines = [f"{image} is {label} ({given:.2f}), seems {other} ({best:.2f})" for image, label, given, other, best in columns]
    nouns, end = ("suspected label error", "suspected label errors"), f", ranked; judged by {basis}, right out of fold in {right:.0%}."
    hint = "look at the first ones; nothing is changed"
    remarks += counted("label suspects", lines, nouns, end, hint=hint, images=frame[["image"]].itertuples(index=False, name=None))
    return frame


# ---------------------------------------------------------------- counts


def _counts(catalog: Catalog | None, pictures: Sequence[Picture], quality: pd.DataFrame | None) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "images": sum(not p.is_test for p in pictures),
        "labelled": sum(bool(p.label) for p in pictures),
        "subsets": dict(Counter(p.subset for p in pictures)),
        "sizes": dict(Counter(f"{p.width} x {p.height}" for p in pictures).most_common()),
    }
    if quality is not None:
        counts["modes"] = dict(Counter(mode or "RGB" for mode in quality["mode"]).most_common())
        counts["grey_pictures"] = int((quality["colour"] < 2).sum())
        counts["view"] = round(float(quality["view"].median()), 3) if len(quality) else None
    if catalog is not None:
        frame = catalog.frame
        en, vi = frame["text_en"] != "", frame["text_vi"] != ""
        counts["classes"] = catalog.counts()
        counts["regions"] = {region: int((frame["region"] == region).sum()) for region in catalog.taxonomy.regions}
        languages = {"English": en & ~vi, "Vietnamese": vi & ~en, "both": en & vi, "none": ~en & ~vi}
        counts["texts"] = {name: int(rows.sum()) for name, rows in languages.items()}
        counts["findings"] = len({key for keys in frame["findings"] for key in keys if not key.startswith("pair:")})
    return counts


def _groups(catalog: Catalog | None) -> dict[str, int]:
    if catalog is None:
        return {}
    sizes = Counter(catalog.groups.tolist())
    return {"groups": len(sizes), "several_images": sum(n > 1 for n in sizes.values()), "largest": max(sizes.values(), default=0)}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
