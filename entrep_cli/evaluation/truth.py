"""Truth files: `{"query": class or file name, ...}`, and the test images that one of classes labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.files import read_json
from entrep_cli.data.frames import pd
from entrep_cli.data.groups import read_findings
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.testsets import TestSet
from entrep_cli.data.tracks import track_of
from entrep_cli.errors import DataError
from entrep_cli.retrieval.sets import folder_items


def read_truth(path: Path) -> dict[str, str | int]:
    """A truth file: a flat JSON object; DataError that lists every fault."""
    if not path.is_file():
        raise DataError("No truth file.", where=path, hint="--truth truth_cls.json, truth_i2i.json or truth_t2i.json")
    faults: list[str] = []
    value = read_json(path, dict, faults)
    if not faults and not value:
        faults.append("it is empty")
    faults += [f"{k!r}: {v!r:.60} is no name and no class id" for k, v in value.items() if type(v) not in (str, int)]
    if faults:
        raise DataError("The truth file cannot be used.", where=path, faults=faults, hint='write {"query": class or file name, ...}')
    return value


def class_truth(path: Path, track: int) -> tuple[Path, dict[str, str | int]]:
    """The truth file of classes, that of track 1 itself or `truth_cls.json` beside it, and what it holds: nothing where it is missing.

    Raises:
        DataError: as `read_truth`; of track 1 it may not be missing.
    """
    classes = path if track == 1 else path.with_name(track_of(1).truth_file)
    return classes, read_truth(classes) if track == 1 or classes.is_file() else {}


def truth_classes(truth: Mapping[str, str | int], taxonomy: Taxonomy, where: Path) -> dict[str, str]:
    """The class name of each entry, given by name or id; DataError that lists each value that is neither."""
    named = {c.id: c.name for c in taxonomy.classes} | {name: name for name in taxonomy.names}
    strange = Counter(value for value in truth.values() if value not in named)
    if strange:
        listed = ", ".join(f"{c.name} ({c.id})" for c in taxonomy.classes)
        raise DataError(
            f"The truth file has classes that the taxonomy {taxonomy.name!r} does not.",
            where=where,
            faults=[f"{value!r:.60}, {n} time{'s' * (n > 1)}" for value, n in strange.items()],
            hint=f"is it the truth of another track or of another dataset? The classes are {listed}",
        )
    return {query: named[value] for query, value in truth.items()}


def labelled_test(test_set: TestSet, taxonomy: Taxonomy, root: Path | None = None) -> Catalog:
    """The images of a test folder that its truth file knows, as a catalog to be scored; never to learn from.

    Findings come from the texts of its `groups.csv`, groups are those of `image_groups`.

    Raises:
        DataError: no truth file, one that knows none of the images, or images that cannot be read.
    """
    path = test_set.folder / track_of(1).truth_file
    labels = truth_classes(read_truth(path), taxonomy, path)
    items, findings = folder_items(test_set, root), read_findings(test_set.folder)
    regions = {c.name: c.region for c in taxonomy.classes}
    frame = pd.DataFrame(
        {
            "image": image,
            "path": place,
            "label": labels[image],
            "region": regions[labels[image]],
            "findings": tuple(sorted(findings.get(image, ()))),
            "group": group or f"image:{image}",
            "digest": digest,
        }
        for image, place, _, group, digest in items.rows()
        if image in labels
    )
    if frame.empty:
        raise DataError("The truth file knows none of the test images.", where=path, hint="is it of another test set?")
    if unknown := len(items) - len(frame):
        console.warn(f"{unknown} of {len(items)} test images are not in {path.name}, and are left out")
    return Catalog(frame, taxonomy)
