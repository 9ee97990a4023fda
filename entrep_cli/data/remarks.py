"""What is said of a dataset: remarks on its files, pictures, copies, leaks and parts.

A remark is what `entrep inspect` found; a finding is what a physician saw. Each function looks at one
thing and returns remarks; none raises for what is wrong with the data, and none changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.duplicates import Alike, find_alike
from entrep_cli.data.frames import pd
from entrep_cli.data.groups import GROUPS_HINT, clusters_of
from entrep_cli.data.splits import read_assignment
from entrep_cli.data.testsets import TestSet
from entrep_cli.data.texts import casefold

Clusters = Sequence[tuple[str, ...]]
TRAIN = "train"


@dataclass(frozen=True)
class Remark:
    """One kind of thing that was found.

    Attributes:
        kind: a few words, its key.
        severity: `must fix`: numbers made with it would be wrong, or a command will stop at it.
        what: a sentence without any name, file or text of the dataset in it.
        hint: what to do about it.
        details: one line each, with names and texts.
        images: sets of picture keys to be looked at side by side.
    """

    kind: str
    severity: Literal["must fix", "note"]
    what: str
    hint: str = ""
    details: tuple[str, ...] = ()
    images: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Picture:
    """An image of the training or of a test folder.

    Attributes:
        key: unique in the dataset; the name of a training image, folder and name of a test image.
        name: of the file.
        part: "train", or the test folder's place in the dataset.
        label: "" where there is none, and for test images.
    """

    key: str
    name: str
    part: str
    path: Path
    digest: str
    width: int
    height: int
    label: str = ""

    @property
    def is_test(self) -> bool:
        return self.part != TRAIN


def counted(n: int, one: str, several: str) -> str:
    """`1 image` or `3 images`."""
    return f"{n} {one if n == 1 else several}"


# ---------------------------------------------------------------- files and pictures

_FILES = {
    "sources": ("label files", ("fault", "faults"), "fix the label files, or put the missing images where they are named"),
    "unreadable": ("unreadable images", ("image that cannot be read", "images that cannot be read"), "copy them again, or take them out"),
    "names": ("odd names", ("odd name", "odd names"), "rename in the folder and in the label files"),
    "classes": ("unknown classes", ("fault of classes", "faults of classes"), "fix the labels, or write a taxonomy.toml"),
    "copies": ("contradicting copies", ("contradiction", "contradictions"), "keep the right label or name, or take both pictures out"),
    "labels": ("no labels", ("dataset without labels", "datasets without labels"), "add cls.json, data.json, a CSV or class folders"),
}


def of_files(faults: Mapping[str, Sequence[str]]) -> list[Remark]:
    """The faults of `Catalog.examine`."""
    return [
        Remark(_FILES[kind][0], "must fix", f"{counted(len(lines), *_FILES[kind][1])}.", _FILES[kind][2], tuple(lines))
        for kind, lines in faults.items()
        if lines
    ]


_QUALITY = {
    "dark": ("dark image", "dark images", "look at them: a frame before the lamp was on teaches nothing"),
    "overexposed": ("overexposed image", "overexposed images", "look at them: what is white shows nothing"),
    "blurred": ("blurred image", "blurred images", "look at them: a frame in motion may show no class"),
    "empty": ("image of little information", "images of little information", "look at them: a plain picture shows no class"),
    "small view": ("image with a small lit view", "images with a small lit view", "cut to it: --set image.field_of_view=true"),
    "tiny": ("tiny image", "tiny images", "look where they come from: thumbnails instead of pictures, perhaps"),
    "other size": ("image of quite another size", "images of quite another size", "look where they come from"),
    "other shape": ("image of quite another shape", "images of quite another shape", "keep the proportions: image.fit=pad, the default"),
}


def of_quality(frame: pd.DataFrame) -> list[Remark]:
    """The flags of `quality_frame`; notes, for no threshold knows what a physician needs."""
    found = []
    for flag, (one, several, hint) in _QUALITY.items():
        keys = tuple(key for key, flags in zip(frame["image"], frame["flags"]) if flag in flags)
        if keys:
            found.append(Remark(f"quality: {flag}", "note", f"{counted(len(keys), one, several)}.", hint, keys, (keys,)))
    modes = frame.loc[frame["mode"] != "", ["image", "mode"]]
    # A set that is grey or has a palette throughout is of one kind; a few odd ones are not.
    odd = modes[modes["mode"].map(frame["mode"].value_counts(normalize=True)) < 0.5]
    if len(odd):
        lines = tuple(f"{key}: {mode}" for key, mode in zip(odd["image"], odd["mode"]))
        what = f"{counted(len(odd), 'image', 'images')} of another mode than plain RGB: {', '.join(sorted(set(odd['mode'])))}."
        found.append(Remark("modes", "note", what, "nothing to do: read as RGB, transparency on black", lines, (tuple(odd["image"]),)))
    return found


# ---------------------------------------------------------------- groups and copies


def of_groups(unknown: str) -> list[Remark]:
    """That exams and patients are not known, as `unknown_groups` says it."""
    return [Remark("unknown groups", "note", f"{unknown[0].upper()}{unknown[1:]}.", GROUPS_HINT)] if unknown else []


def of_copies(catalog: Catalog, pictures: Mapping[str, Picture], clusters: Clusters, mirrored: Sequence[tuple[str, str]]) -> list[Remark]:
    """Exact copies, near-duplicates and mirrored copies among the training images, and what their labels say.

    Args:
        clusters, mirrored: keys, of training and test pictures.
    """
    found = []
    if catalog.aliases:
        what = f"{counted(len(catalog.aliases), 'image copies', 'images copy')} another pixel for pixel, under another name."
        lines = tuple(f"{name} = {first}" for name, first in sorted(catalog.aliases.items()))
        found.append(Remark("exact copies", "note", what, "nothing to do: they count once", lines))
    groups = dict(zip(catalog.images, catalog.groups))
    near = own_sets(clusters, groups)
    labelled = {key: f"{key} ({pictures[key].label or 'no label'})" for key in groups}
    if near:
        apart = sum(len({groups[key] for key in cluster}) > 1 for cluster in near)
        n = counted(len(near), "cluster", "clusters")
        what = f"{n} of near-duplicates, {sum(map(len, near))} images; {apart} join groups that are apart."
        hint, lines = "`entrep split` keeps them together", tuple(map(", ".join, near))
        found.append(Remark("near-duplicates", "note", what, hint, lines, tuple(near)))
    differ = [cluster for cluster in near if len({pictures[key].label for key in cluster} - {""}) > 1]
    if differ:
        lines = tuple(", ".join(labelled[key] for key in cluster) for cluster in differ)
        what = f"{counted(len(differ), 'cluster', 'clusters')} of near-duplicates with different labels."
        found.append(Remark("near-duplicates of different classes", "note", what, "look at them side by side", lines, tuple(differ)))
    pairs = [pair for pair in mirrored if set(pair) <= set(groups)]
    if pairs:
        lines = tuple(f"{labelled[a]} and {labelled[b]}" for a, b in pairs)
        what = f"{counted(len(pairs), 'pair', 'pairs')} of images of which one is the other flipped left to right."
        hint = "let training flip, which knows the sides; `entrep split` keeps them together"
        found.append(Remark("mirrored copies", "note", what, hint, lines, tuple(pairs)))
    mirror = {c.name: c.mirror for c in catalog.taxonomy.classes}
    wrong = [(a, b) for a, b in pairs if (two := pictures[b].label) and (mirror.get(pictures[a].label) or two) != two]
    if wrong:
        lines = tuple(f"{labelled[a]} and {labelled[b]}" for a, b in wrong)
        n = counted(len(wrong), "mirrored copy has", "mirrored copies have")
        what = f"{n} another class than the mirror class: a flip changes the side."
        hint = "give the flipped copy the mirror class, or take it out"
        found.append(Remark("mirrored labels", "must fix", what, hint, lines, tuple(wrong)))
    return found


def of_embeddings(catalog: Catalog, vectors: np.ndarray, told_by: str, clusters: Clusters) -> list[Remark]:
    """Images that are alike by embedding, (N, D) unit rows of the catalog, and not by their pixels."""
    cluster_of = {key: i for i, cluster in enumerate(clusters) for key in cluster}
    names = catalog.images

    def known(a: str, b: str) -> bool:
        return a in cluster_of and cluster_of[a] == cluster_of.get(b)

    more = clusters_of(names, [(a, b) for a, b in find_alike(vectors) if not known(names[a], names[b])])
    if not more:
        return []
    if 2 * sum(map(len, more)) > len(names):
        what = f"Most images are alike by embedding ({told_by}): it puts whole classes in one place, and tells no copies."
        return [Remark("alike by embedding", "note", what, "leave out --run, or name one that is not fine-tuned")]
    n = counted(len(more), "cluster", "clusters")
    what = f"{n} of images alike by embedding alone ({told_by}), {sum(map(len, more))} images."
    hint, lines = "look at them: frames of one exam, perhaps", tuple(map(", ".join, more))
    return [Remark("alike by embedding", "note", what, hint, lines, tuple(more))]


# ---------------------------------------------------------------- leaks


@dataclass(frozen=True)
class TestLeaks:
    """Pairs (training key, test key), each told once, by the surest sign.

    Attributes:
        by_pixels: the same pixels, under whatever name.
        by_name: the same file name without regard to case, other pixels.
        near: near-duplicates. mirrored: one is the other flipped.
    """

    __test__ = False  # no test for pytest to collect

    by_pixels: list[tuple[str, str]]
    by_name: list[tuple[str, str]]
    near: list[tuple[str, str]]
    mirrored: list[tuple[str, str]]


def find_test_leaks(pictures: Sequence[Picture], alike: Alike, aliases: Mapping[str, str] = {}) -> TestLeaks:
    """What training and test folders share.

    Args:
        alike: over `pictures`, in their order.
        aliases: other names under which training images stand in the dataset.
    """
    train = [p for p in pictures if not p.is_test]
    by_digest = {p.digest: p.key for p in train}
    by_name = {casefold(p.name): p.key for p in train} | {casefold(Path(name).name): key for name, key in aliases.items()}
    pixels, names = [], []
    for p in pictures:
        if p.is_test and p.digest in by_digest:
            pixels.append((by_digest[p.digest], p.key))
        elif p.is_test and casefold(p.name) in by_name:
            names.append((by_name[casefold(p.name)], p.key))
    told = {*pixels, *names}

    def across(pairs) -> list[tuple[str, str]]:
        found = []
        for a, b in pairs:
            one, two = sorted((pictures[a], pictures[b]), key=lambda p: p.is_test)
            if two.is_test and not one.is_test and (one.key, two.key) not in told and one.digest != two.digest:
                told.add((one.key, two.key))
                found.append((one.key, two.key))
        return found

    return TestLeaks(pixels, names, across(alike.near), across(alike.mirrored))


def query_names(test_set: TestSet) -> dict[int, set[str]]:
    """For each track that asks of images the names of its queries; a file that cannot be read asks nothing."""
    found = {}
    for track, path in test_set.queries.items():
        if track != 3:
            try:
                found[track] = {line.strip().strip('"') for line in path.read_text("utf-8-sig").splitlines() if line.strip()}
            except (OSError, ValueError):
                found[track] = set()
    return found


def straddling(sets: Mapping[str, Sequence[str]], component_of: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """The sets of images that stand in more than one part: their images by part.

    >>> straddling({"exam 1": ["a", "b"], "exam 2": ["c"]}, {"a": "train", "b": "test", "c": "test"})
    {'exam 1': {'train': ['a'], 'test': ['b']}}
    """
    found = {}
    for name, images in sets.items():
        parts: dict[str, list[str]] = {}
        for image in images:
            if image in component_of:
                parts.setdefault(component_of[image], []).append(image)
        if len(parts) > 1:
            found[name] = parts
    return found


def of_leaks(root: Path, catalog: Catalog, test_sets: Sequence[TestSet], pictures: Sequence[Picture], alike: Alike) -> list[Remark]:
    """Training images among the test images, by pixels, names and likeness; which of them are asked for is told."""
    shared = find_test_leaks(pictures, alike, catalog.aliases or {})
    asked: dict[str, list[str]] = {}
    for test_set in test_sets:
        for track, names in query_names(test_set).items():
            for name in names:
                asked.setdefault(f"{place_of(test_set, root)}/{name}", []).append(str(track))
    labels = {p.key: p.label or "no label" for p in pictures}
    found = []
    for kind, pairs, severity, one, several in (
        ("leak by pixels", shared.by_pixels, "must fix", "test image is a training image", "test images are training images"),
        ("leak by name", shared.by_name, "note", "test image has a training image's name", "test images have training images' names"),
        ("leak by near-duplicates", shared.near, "note", "near-duplicate pair of", "near-duplicate pairs of"),
        ("leak by mirrored copies", shared.mirrored, "note", "mirrored pair of", "mirrored pairs of"),
    ):
        if pairs:
            ends = {"leak by pixels": ", pixel for pixel", "leak by name": ", and other pixels"}
            queries = len({b for _, b in pairs if b in asked})
            what = f"{counted(len(pairs), one, several)}{ends.get(kind, ' a training and a test image')}; {queries} are queries."
            hint = "leave them out of training, or say so beside every score"
            lines = [f"{a} ({labels[a]}) and {b}" + (f", query of track {' and '.join(asked[b])}" if b in asked else "") for a, b in pairs]
            found.append(Remark(kind, severity, what, hint, tuple(lines), tuple(pairs)))
    return found


def of_split(catalog: Catalog, clusters: Clusters, mirrored: Sequence[tuple[str, str]]) -> list[Remark]:
    """Groups and near-duplicates that stand in several parts of the split of these images, if there is one."""
    read = read_assignment(catalog.images)
    if read is None:
        return []
    component_of, made = read
    groups: dict[str, list[str]] = {}
    for image, group in zip(catalog.images, catalog.groups):
        groups.setdefault(group, []).append(image)
    near = clusters_of(catalog.images, chained(catalog.images, [*clusters, *mirrored]))
    found = []
    kinds = (
        ("split groups", groups, "group stands", "groups stand"),
        ("split near-duplicates", {c[0]: c for c in near}, "cluster of near-duplicates stands", "clusters of near-duplicates stand"),
    )
    for kind, sets, one, several in kinds:
        apart = straddling(sets, component_of)
        if apart:
            told = {name: "; ".join(f"{part}: {', '.join(those)}" for part, those in parts.items()) for name, parts in apart.items()}
            lines = [f"{name}: {parts}" for name, parts in told.items()]
            shown = tuple(tuple(image for those in parts.values() for image in those) for parts in apart.values())
            what = f"{counted(len(apart), one, several)} in several subsets of the split, which was made with --groups {made['groups']}."
            found.append(Remark(kind, "must fix", what, "split again: `entrep split`", tuple(lines), shown))
    return found


def place_of(test_set: TestSet, root: Path) -> str:
    """A test folder's place in the dataset."""
    return test_set.folder.relative_to(root).as_posix() if test_set.folder != root else "."


def own_sets(sets: Clusters, own: Mapping[str, object]) -> list[tuple[str, ...]]:
    """Of each set what is ours, where that is more than one."""
    kept = (tuple(key for key in those if key in own) for those in sets)
    return [those for those in kept if len(those) > 1]


def chained(names: Sequence[str], sets: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Pairs of rows of `names` that connect the members of each set; what is no name is left out."""
    place = {name: i for i, name in enumerate(names)}
    own = [[place[key] for key in those if key in place] for those in sets]
    return [(those[0], row) for those in own for row in those[1:]]
