"""The two towers that `prototype` stands on: a CLIP as published, or a trained clip-lora run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from entrep_cli import console
from entrep_cli.errors import UsageError, WeightsError
from entrep_cli.methods.clip_lora import ClipLora
from entrep_cli.methods.clip_towers import Towers
from entrep_cli.methods.runs import load_model, warn_of_leaks
from entrep_cli.models.clip import ClipSettings, load_clip_weights, read_architecture
from entrep_cli.models.inputs import ImageSettings
from entrep_cli.models.pretrained import weights_path
from entrep_cli.workspace import MODEL, Run, find_run, runs_dir, trained_on


def open_towers(
    settings: ClipSettings,
    image: ImageSettings,
    device: torch.device,
    architecture: Path | None = None,
    beside: Sequence[str] = (),
    sha256: str | None = None,
) -> tuple[Towers, dict[str, Any]]:
    """The towers of a recipe with their weights, and where these came from; `sha256` is always among it.

    Args:
        settings, image: of the recipe; `weights` may be a trained clip-lora run.
        architecture: the file in which a run kept it, for a hub's may be gone.
        beside: where else a run may stand that gave the towers.
        sha256: of its model, where it is known: of several runs the one that has it is taken.
    """
    weights = settings.weights
    if weights == "none":
        raise UsageError(
            "Prototypes need pretrained towers: nothing is trained, and random ones have no meaning.",
            hint="--weights FILE, hub, or a trained run: `entrep train clip-lora`, then --weights clip-lora",
        )
    if weights != "hub" and not weights_path(weights).is_file():
        return _open_run(weights, device, beside, sha256)
    name = str(architecture) if architecture and architecture.is_file() else settings.name
    towers = Towers(read_architecture(name), settings, image)
    origin, filled = load_clip_weights(towers.backbone, settings)
    if filled != "":
        raise UsageError(
            "The weights fill the image tower alone, and a text tower that starts fresh says nothing to fuse with it.",
            where=weights,
            hint="train a text tower beside it: `entrep train clip-lora --recipe mobilenetv2-clip`, then --weights clip-lora",
        )
    return towers.to(device), origin


def _open_run(weights: str, device: torch.device, beside: Sequence[str], sha256: str | None) -> tuple[ClipLora, dict[str, Any]]:
    """A trained CLIP as towers, checked as `load_model` checks it."""
    runs = [*filter(None, map(find_run, (weights, *beside)))]
    # Of that name another one may stand here, where a folder of runs was copied to.
    run = next((r for r in runs if sha256 and r.complete and r.manifest["files"].get(MODEL) == sha256), runs[0] if runs else None)
    if run is None:
        raise WeightsError(
            f"No weights file and no run named {weights!r}.",
            where=runs_dir(),
            hint="--weights FILE, hub, or the name or folder of a complete clip-lora run",
        )
    manifest = run.manifest
    if manifest["method"] != "clip-lora":
        raise UsageError(
            f"Run {run.name!r} is one of {manifest['method']}, and prototypes need the two towers of clip-lora.",
            where=run.folder,
            hint="`entrep train clip-lora`, then --weights clip-lora",
        )
    model = load_model(run, str(device))
    if not model.reads_text:
        raise UsageError(
            f"The text tower of run {run.name!r} was never trained, and says nothing to fuse with an image.",
            where=run.folder,
            hint="train it again with --set texts.contrast=0.5, or start from the weights of a whole CLIP",
        )
    origin = {"name": "clip-lora", "weights": f"run {run.name}", "run": run.name, "sha256": manifest["files"][MODEL]}
    return model, {**origin, "base": manifest["weights"], "trained_on": trained_on(manifest)}


def say_towers(towers: Towers, origin: dict[str, Any], run: Run) -> None:
    """Tell whose towers they are, and warn where they may have learned from images that are now scored."""
    if "run" in origin:
        size = f"{towers.preprocess.size} px"
        console.say(f"Towers: those of {origin['weights']}, with its image settings ({size}); image and backbone.name are not used.")
        warn_of_leaks(origin, run)
