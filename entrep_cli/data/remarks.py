"""What is said of a dataset: remarks on its files, pictures, copies, leaks and split.

A remark is what `entrep inspect` noticed; a finding is what a physician saw. Each function looks at one
thing and returns remarks; none raises for what is wrong with the data, and none changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    """One kind of thing that was noticed.

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
        subset: "train", or the test folder's place in the dataset.
        label: "" where it has none, and for test images.
    """

    key: str
    name: str
    subset: str
    path: Path
    digest: str
    width: int
    height: int
    label: str = ""

    @property
    def is_test(self) -> bool:
        return self.subset != TRAIN


def counted(
    kind: str,
    details: Iterable[str],
    nouns: tuple[str, str],
    end: str = ".",
    *,
    hint: str,
    images: Iterable[Sequence[str]] = (),
    severity: Literal["must fix", "note"] = "note",
) -> list[Remark]:
    """A remark whose sentence counts its details, as "1 image ..." or "3 images ..."; none without details.

    Args:
        nouns: for one and for several.
        end: the rest of the sentence.
    """
    details = tuple(details)
    what = f"{len(details)} {nouns[len(details) != 1]}{end}"
    return [Remark(kind, severity, what, hint, details, tuple(map(tuple, images)))] if details else []


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
    remarks = []
    for key, lines in faults.items():
        kind, nouns, hint = _FILES[key]
        remarks += counted(kind, lines, nouns, hint=hint, severity="must fix")
    return remarks


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
    remarks = []
    for flag, (one, several, hint) in _QUALITY.items():
        keys = [key for key, flags in zip(frame["image"], frame["flags"]) if flag in flags]
        remarks += counted(f"quality: {flag}", keys, (one, several), hint=hint, images=[keys])
    modes = frame.loc[frame["mode"] != "", ["image", "mode"]]
    # A set that is grey or has a palette throughout is of one kind; a few odd ones are not.
    odd = modes[modes["mode"].map(frame["mode"].value_counts(normalize=True)) < 0.5]
    lines = [f"{key}: {mode}" for key, mode in zip(odd["image"], odd["mode"])]
    end = f" of another mode than plain RGB: {', '.join(sorted(set(odd['mode'])))}."
    hint = "nothing to do: read as RGB, transparency on black"
    return remarks + counted("modes", lines, ("image", "images"), end, hint=hint, images=[odd["image"]])


# ---------------------------------------------------------------- groups and copies


def of_groups(unknown: str) -> list[Remark]:
    """That exams and patients are not known, as `unknown_groups` says it."""
    return [Remark("unknown groups", "note", f"{unknown[0].upper()}{unknown[1:]}.", GROUPS_HINT)] if unknown else []


def of_copies(catalog: Catalog, pictures: Mapping[str, Picture], clusters: Clusters, mirrored: Sequence[tuple[str, str]]) -> list[Remark]:
    """Exact copies, near-duplicates and mirrored copies among the training images, and what their labels say.

    Args:
        clusters, mirrored: keys, of training and test pictures.
    """
    lines = [f"{name} = {first}" for name, first in sorted((catalog.aliases or {}).items())]
    nouns, end = ("image copies", "images copy"), " another pixel for pixel, under another name."
    remarks = counted("exact copies", lines, nouns, end, hint="nothing to do: they count once")

    groups = dict(zip(catalog.images, catalog.groups))
    labelled = {key: f"{key} ({pictures[key].label or 'no label'})" for key in groups}
    near = [members for cluster in clusters if len(members := tuple(key for key in cluster if key in groups)) > 1]
    apart = sum(len({groups[key] for key in cluster}) > 1 for cluster in near)
    nouns, end = ("cluster", "clusters"), f" of near-duplicates, {sum(map(len, near))} images; {apart} join groups that are apart."
    remarks += counted("near-duplicates", map(", ".join, near), nouns, end, hint="`entrep split` keeps them together", images=near)

    differ = [cluster for cluster in near if len({pictures[key].label for key in cluster} - {""}) > 1]
    lines = [", ".join(labelled[key] for key in cluster) for cluster in differ]
    kind, end = "near-duplicates of different classes", " of near-duplicates with different labels."
    remarks += counted(kind, lines, nouns, end, hint="look at them side by side", images=differ)

    pairs = [pair for pair in mirrored if set(pair) <= set(groups)]
    nouns, end = ("pair", "pairs"), " of images of which one is the other flipped left to right."
    hint = "let training flip, which knows the sides; `entrep split` keeps them together"
    remarks += counted("mirrored copies", [f"{labelled[a]} and {labelled[b]}" for a, b in pairs], nouns, end, hint=hint, images=pairs)

    mirror = {c.name: c.mirror for c in catalog.taxonomy.classes}
    wrong = [(a, b) for a, b in pairs if (two := pictures[b].label) and (mirror.get(pictures[a].label) or two) != two]
    lines = [f"{labelled[a]} and {labelled[b]}" for a, b in wrong]
    nouns, end = ("mirrored copy has", "mirrored copies have"), " another class than the mirror class: a flip changes the side."
    hint = "give the flipped copy the mirror class, or take it out"
    return remarks + counted("mirrored labels", lines, nouns, end, hint=hint, images=wrong, severity="must fix")


def of_embeddings(catalog: Catalog, vectors: np.ndarray, features: str, clusters: Clusters) -> list[Remark]:
    """Images that are alike by embedding, (N, D) unit rows of the catalog, and not by their pixels.

    Args:
        features: what the vectors are, in words.
        clusters: keys of near-duplicates by pixels.
    """
    cluster_of = {key: i for i, cluster in enumerate(clusters) for key in cluster}
    names = catalog.images

    def known(a: str, b: str) -> bool:
        return a in cluster_of and cluster_of[a] == cluster_of.get(b)

    more = clusters_of(names, [(a, b) for a, b in find_alike(vectors) if not known(names[a], names[b])])
    if 2 * sum(map(len, more)) > len(names):
        what = f"Most images are alike by embedding ({features}): it puts whole classes in one place, and shows no copies."
        return [Remark("alike by embedding", "note", what, "leave out --run, or name one that is not fine-tuned")]
    end = f" of images alike by embedding alone ({features}), {sum(map(len, more))} images."
    hint = "look at them: frames of one exam, perhaps"
    return counted("alike by embedding", map(", ".join, more), ("cluster", "clusters"), end, hint=hint, images=more)


# ---------------------------------------------------------------- leaks


def find_test_leaks(pictures: Sequence[Picture], alike: Alike, aliases: Mapping[str, str] = {}) -> dict[str, list[tuple[str, str]]]:
    """Training images that are among the test images.

    Args:
        alike: over `pictures`, in their order.
        aliases: other names under which training images stand in the dataset.

    Returns:
        pairs (training key, test key), each once, by the surest sign: `pixels`, the same under whatever name;
        `name`, the same file name without regard to case, other pixels; `near-duplicates`; `mirrored copies`.
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
    counted_before = {*pixels, *names}

    def across(pairs: Iterable[tuple[int, int]]) -> list[tuple[str, str]]:
        leaks = []
        for a, b in pairs:
            one, two = sorted((pictures[a], pictures[b]), key=lambda p: p.is_test)
            pair = (one.key, two.key)
            if two.is_test and not one.is_test and pair not in counted_before and one.digest != two.digest:
                counted_before.add(pair)
                leaks.append(pair)
        return leaks

    return {"pixels": pixels, "name": names, "near-duplicates": across(alike.near), "mirrored copies": across(alike.mirrored)}


def _tracks_asking(test_sets: Sequence[TestSet], root: Path) -> dict[str, list[str]]:
    """For the key of each test image that is a query, its tracks; a file that cannot be read asks nothing."""
    asking: dict[str, list[str]] = {}
    for test_set in test_sets:
        for track, path in test_set.queries.items():
            try:
                lines = path.read_text("utf-8-sig").splitlines() if track != 3 else []
            except (OSError, ValueError):
                continue
            for name in {line.strip().strip('"') for line in lines if line.strip()}:
                asking.setdefault(f"{place_of(test_set, root)}/{name}", []).append(str(track))
    return asking


def of_leaks(root: Path, catalog: Catalog, test_sets: Sequence[TestSet], pictures: Sequence[Picture], alike: Alike) -> list[Remark]:
    """Training images among the test images, by pixels, names and likeness, and which of them are queries."""
    leaks = find_test_leaks(pictures, alike, catalog.aliases or {})
    asking = _tracks_asking(test_sets, root)
    labels = {p.key: p.label or "no label" for p in pictures}
    ours = " a training and a test image"
    remarks = []
    for kind, severity, one, several, end in (
        ("pixels", "must fix", "test image is a training image", "test images are training images", ", pixel for pixel"),
        ("name", "note", "test image has a training image's name", "test images have training images' names", ", and other pixels"),
        ("near-duplicates", "note", "near-duplicate pair of", "near-duplicate pairs of", ours),
        ("mirrored copies", "note", "mirrored pair of", "mirrored pairs of", ours),
    ):
        pairs = leaks[kind]
        lines = [f"{a} ({labels[a]}) and {b}" + (f", query of track {' and '.join(asking[b])}" if b in asking else "") for a, b in pairs]
        end += f"; {len({b for _, b in pairs if b in asking})} are queries."
        hint = "leave them out of training, or say so beside every score"
        remarks += counted(f"leak by {kind}", lines, (one, several), end, hint=hint, images=pairs, severity=severity)
    return remarks


# ---------------------------------------------------------------- the split


def straddling(sets: Mapping[str, Sequence[str]], subset_of: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """The sets of images that stand in more than one subset: their images by subset.

    >>> straddling({"exam 1": ["a", "b"], "exam 2": ["c"]}, {"a": "train", "b": "test", "c": "test"})
    {'exam 1': {'train': ['a'], 'test': ['b']}}
    """
    divided: dict[str, dict[str, list[str]]] = {}
    for name, images in sets.items():
        subsets: dict[str, list[str]] = {}
        for image in images:
            if image in subset_of:
                subsets.setdefault(subset_of[image], []).append(image)
        if len(subsets) > 1:
            divided[name] = subsets
    return divided


def of_split(catalog: Catalog, clusters: Clusters, mirrored: Sequence[tuple[str, str]]) -> list[Remark]:
    """Groups and near-duplicates that stand in several subsets of the split of these images, if it was made."""
    read = read_assignment(catalog.images)
    if read is None:
        return []
    subset_of, made = read
    near = clusters_of(catalog.images, chained(catalog.images, [*clusters, *mirrored]))
    remarks = []
    for kind, sets, nouns in (
        ("split groups", images_of_groups(catalog), ("group stands", "groups stand")),
        ("split near-duplicates", {c[0]: c for c in near}, ("cluster of near-duplicates stands", "clusters of near-duplicates stand")),
    ):
        divided = straddling(sets, subset_of)
        where = {name: (f"{subset}: {', '.join(those)}" for subset, those in subsets.items()) for name, subsets in divided.items()}
        lines = [f"{name}: {'; '.join(places)}" for name, places in where.items()]
        shown = [[image for those in subsets.values() for image in those] for subsets in divided.values()]
        end = f" in several subsets of the split, which was made with --groups {made['groups']}."
        remarks += counted(kind, lines, nouns, end, hint="split again: `entrep split`", images=shown, severity="must fix")
    return remarks


def place_of(test_set: TestSet, root: Path) -> str:
    """A test folder's place in the dataset."""
    return test_set.folder.relative_to(root).as_posix() if test_set.folder != root else "."


def images_of_groups(catalog: Catalog) -> dict[str, list[str]]:
    """The images of each group."""
    images: dict[str, list[str]] = {}
    for image, group in zip(catalog.images, catalog.groups):
        images.setdefault(group, []).append(image)
    return images


def chained(names: Sequence[str], sets: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Pairs of rows of `names` that connect the members of each set; what is no name is left out."""
    place = {name: i for i, name in enumerate(names)}
    rows = [[place[key] for key in those if key in place] for those in sets]
    return [(those[0], row) for those in rows for row in those[1:]]
