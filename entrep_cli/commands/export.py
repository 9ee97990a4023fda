"""`entrep export`: a run's towers as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.workspace import Run, open_run

if TYPE_CHECKING:
    import torch

    from entrep_cli.methods.base import Model

_COMPARED = 4  # images


def export(
    run: Annotated[
        str | None, typer.Argument(help="A run by name or folder (default: the one that completed last).", show_default=False)
    ] = None,
    to: Annotated[Literal["onnx"], typer.Option("--to", help="The format.")] = "onnx",
) -> dict[str, Any]:
    """Example: entrep export

    Write the image tower of a run, and its text tower where it has one, as ONNX files that other
    programs can run, into runs/NAME/export; and say how far ONNX Runtime is from torch. Uint8 pixels go
    in, resized as the manifest says; `entrep embed --engine onnx` uses the file.
    """
    from entrep_cli.methods.exporting import INSTALL, export_onnx
    from entrep_cli.methods.runs import load_model

    opened = open_run(run)
    model = load_model(opened, "cpu")
    pixels, what = _some_pixels(opened, model)
    manifest = export_onnx(opened, model, pixels)
    rows = [
        (name, f"{found['difference']:.1e}" if found else "not compared", f"{found['cosine']:.6f}" if found else "")
        for name, found in manifest["parity"].items()
    ]
    console.table(f"Exported run {opened.name} (opset {manifest['opset']})", ["file", "largest difference", "smallest cosine"], rows)
    if not all(manifest["parity"].values()):
        console.warn(f"ONNX Runtime is not installed, so nothing was compared with torch: {INSTALL}")
    else:
        console.say(f"Compared on {what}.")
    console.next_commands(f"entrep embed --engine onnx{options.flags(run=opened.reference)}")
    return {"folder": str(opened.path("export")), **manifest}


def _some_pixels(run: Run, model: Model) -> tuple[torch.Tensor, str]:
    """A few images that the run has embedded, or noise where none can be read, and which of the two."""
    import numpy as np
    import torch

    from entrep_cli.data.images import ImageError, read_image
    from entrep_cli.errors import RunError
    from entrep_cli.retrieval.embeddings import embedded_sets, read_embeddings

    for name in embedded_sets(run):
        try:
            paths = read_embeddings(run, name).items.path[:_COMPARED]
            found = [model.preprocess(read_image(Path(path))) for path in paths]
        except (ImageError, RunError):
            continue
        if len(found) > 1:
            return torch.from_numpy(np.stack(found)), f"{len(found)} images of {name}"
    side = model.preprocess.size
    noise = torch.randint(0, 256, (_COMPARED, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return noise, "noise, as the run has embedded no images"
