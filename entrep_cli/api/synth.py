"""`synth`: a phantom dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrep_cli import console
from entrep_cli.results import Result, Table


@dataclass(frozen=True)
class Phantom(Result):
    """A phantom dataset; `summary` holds `folder`, `seed`, and for each subset the exams and the images of each class."""

    summary: dict[str, Any]

    def tables(self) -> list[Table]:
        images, exams = self.summary["images"], self.summary["exams"]
        rows = [(name, images["train"][name], images["test"][name]) for name in images["train"]]
        title = f"Phantom dataset in {self.summary['folder']} ({exams['train']} training exams, {exams['test']} test exams)"
        return [Table(title, ["class", "train", "test"], [*rows, ("total", *(sum(images[s].values()) for s in ("train", "test")))])]

    def to_dict(self) -> dict[str, Any]:
        return self.summary


def synth(folder: Path | str, *, images: int = 700, test_images: int = 210, seed: int = 0) -> Phantom:
    """Draw a phantom ENT dataset in the layout of the challenge into a new or empty folder.

    Args:
        folder: the new dataset folder.
        images: number of labelled images.
        test_images: number of test images.
        seed: seed of all random numbers.

    Raises:
        DataError: the folder is not empty.
        UsageError: too few images for every class.
    """
    from entrep_cli.data.phantom import write_phantom

    with console.progress("Drawing", images + test_images) as advance:
        drawn = 0

        def follow(done: int, total: int) -> None:
            nonlocal drawn
            advance(done - drawn)
            drawn = done

        return Phantom(write_phantom(Path(folder), images=images, test_images=test_images, seed=seed, progress=follow))
