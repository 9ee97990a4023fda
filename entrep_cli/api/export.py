"""`export`: a run's towers as ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from entrep_cli import console
from entrep_cli.results import Result, Table
from entrep_cli.workspace import Run, open_run

if TYPE_CHECKING:
    import torch

    from entrep_cli.methods.base import Model

_N_COMPARED = 4  # images


@dataclass(frozen=True)
class Exported(Result):
    """What was exported, as its manifest describes it, and how far the results of ONNX Runtime are from those of torch."""

    run: Run
    manifest: dict[str, Any]

    def tables(self) -> list[Table]:
        rows = [
            (name, f"{parity['difference']:.1e}" if parity else "not compared", f"{parity['cosine']:.6f}" if parity else "")
            for name, parity in self.manifest["parity"].items()
        ]
        title = f"Exported run {self.run.name} (opset {self.manifest['opset']})"
        return [Table(title, ["file", "largest difference", "smallest cosine"], rows)]

    def to_dict(self) -> dict[str, Any]:
        return {"folder": str(self.run.path("export")), **self.manifest}


def export(*, run: str | None = None, to: Literal["onnx"] = "onnx") -> Exported:
    """Write the image tower of a run, and its text tower if it has one, as ONNX files into the run's `export` folder.

    Args:
        run: name or folder of a run; by default the one that completed last.
        to: the format.

    Raises:
        UsageError: packages are missing, or ONNX lacks an operation of the model.
        RunError: the results of ONNX Runtime differ from those of torch.
    """
    from entrep_cli.methods.exporting import INSTALL, export_onnx
    from entrep_cli.methods.runs import load_model

    opened = open_run(run)
    model = load_model(opened, "cpu")
    pixels, what = _some_pixels(opened, model)
    result = Exported(opened, export_onnx(opened, model, pixels))
    if all(result.manifest["parity"].values()):
        console.say(f"Compared on {what}.")
    else:
        console.warn(f"ONNX Runtime is not installed, so nothing was compared with torch: {INSTALL}")
    return result


def _some_pixels(run: Run, model: Model) -> tuple[torch.Tensor, str]:
    """A few images that the run has embedded, or noise where none can be read, and which of the two."""
    import numpy as np
    import torch

    from entrep_cli.data.images import ImageError, read_image
    from entrep_cli.errors import RunError
    from entrep_cli.retrieval.embeddings import embedded_sets, read_embeddings

    for name in embedded_sets(run):
        try:
            paths = read_embeddings(run, name).items.path[:_N_COMPARED]
            images = [model.preprocess(read_image(Path(path))) for path in paths]
        except (ImageError, RunError):
            continue
        if len(images) > 1:
            return torch.from_numpy(np.stack(images)), f"{len(images)} images of {name}"
    side = model.preprocess.size
    noise = torch.randint(0, 256, (_N_COMPARED, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return noise, "noise, as the run has embedded no images"
