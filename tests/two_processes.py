"""What each of two processes does in `test_processes`: python -m tests.two_processes FOLDER COMMAND_LINES_JSON"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from entrep_cli import processes
from entrep_cli.app import main
from entrep_cli.training.gathering import average_gradients, gathered
from entrep_cli.training.losses import multi_positive_contrast
from entrep_cli.workspace import Run


def contrast_gradients(part: slice) -> list[torch.Tensor]:
    """Gradients of a contrast of 5 images with 4 texts, a tower before the gathering and a scale after it."""
    generator = torch.Generator().manual_seed(0)
    pixels, texts = torch.randn(5, 6, generator=generator), torch.randn(4, 3, generator=generator)
    positives = torch.rand(5, 4, generator=generator) > 0.5
    torch.manual_seed(1)
    model = torch.nn.ModuleDict({"tower": torch.nn.Linear(6, 3), "texts": torch.nn.Linear(3, 3), "unused": torch.nn.Linear(2, 2)})
    scale = torch.nn.Parameter(torch.tensor(2.0))
    model.register_parameter("scale", scale)
    unit = torch.nn.functional.normalize
    images = gathered(unit(model["tower"](pixels[part]), dim=1), 5)
    multi_positive_contrast(images, unit(model["texts"](texts), dim=1), positives, scale).backward()
    average_gradients(model)
    assert model["unused"].weight.grad is None
    return [p.grad for p in model.parameters() if p.grad is not None]


if __name__ == "__main__":
    folder, lines = Path(sys.argv[1]), json.loads(sys.argv[2])
    assert processes.on_main(processes.rank) == 0
    assert processes.gather(processes.rank()) == ([0, 1] if processes.is_main() else None)
    torch.save(contrast_gradients(processes.portion(5)), folder / f"gradients-{processes.rank()}.pt")
    mark_complete = Run.mark_complete

    def noted(run: Run, manifest: dict) -> None:
        (folder / f"completed-{processes.rank()}.txt").write_text(str(run.folder.resolve()))
        mark_complete(run, manifest)

    Run.mark_complete = noted
    for line in lines:
        try:
            main(line)
        except SystemExit as ended:
            assert not ended.code, line
