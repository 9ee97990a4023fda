"""A run's towers as ONNX files, for other programs and for `embed --engine onnx`.

`<run>/export/` holds `image.onnx`, where the method reads texts `text.onnx` too, and, written last, `manifest.json`:
the hashes of the files and of the run's model, what goes in and comes out, and how far ONNX Runtime is from torch.

Preprocessing: the resizing to a square stays outside (`preprocess` in the manifest); uint8 pixels go in, the
normalisation is inside. Of texts token ids go in: the tokenizer stays ours.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from entrep_cli import console
from entrep_cli.data.images import Preprocess
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import RunError, UsageError, first_line
from entrep_cli.methods import method_class
from entrep_cli.methods.base import Inference, Model
from entrep_cli.workspace import METRICS, Run, atomic_path, file_sha256, write_json_atomic

if TYPE_CHECKING:
    from entrep_cli.recipes.recipe import Recipe

OPSET = 18
ENGINE = "onnx"
INSTALL = "pip install '.[onnx]', in the checkout"
_FOLDER = "export"
_IMAGE, _TEXT = "image.onnx", "text.onnx"
# Of unit rows and of probabilities: float32 in another order of additions stays a hundred times below.
_TOLERANCE = 1e-3


class _ImageTower(nn.Module):
    """(N, 3, S, S) uint8 to (N, D) unit rows and (N, C) probabilities: `infer` without its inference mode, which cannot be traced."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inspect.unwrap(type(self.model).infer)(self.model, pixels)[:2]


def export_onnx(run: Run, model: Model, pixels: torch.Tensor) -> dict[str, Any]:
    """Write the towers of a run's model, on the CPU in float32, and compare them with torch; the manifest.

    Args:
        pixels: (N, 3, S, S) uint8, the images that are compared. Texts are the class prompts.

    Raises:
        UsageError: the packages are missing, or the model has steps that ONNX does not.
        RunError: ONNX Runtime answers otherwise than torch; what was written is no export then.
    """
    _require("onnx", "onnxscript")
    folder = run.path(_FOLDER)
    (folder / "manifest.json").unlink(missing_ok=True)
    side = model.preprocess.size
    towers: dict[str, dict[str, Any]] = {
        _IMAGE: {
            "inputs": {"pixels": ["images", 3, side, side, "uint8"]},
            "outputs": {"embeddings": "unit rows, float32", "probabilities": "over the classes, float32"},
        }
    }
    parity = {_IMAGE: _export(_ImageTower(model), pixels, folder / _IMAGE, "images", ("pixels",), ("embeddings", "probabilities"))}
    prompts = [prompt for c in model.taxonomy.classes for own in c.prompts.values() for prompt in own][:8] or ["nose", "ear"]
    text = model.text_graph(prompts) if model.reads_text else None
    if text:
        graph, tokens = text
        towers[_TEXT] = {
            "inputs": {"tokens": ["texts", tokens.shape[1], "int64"]},
            "outputs": {"embeddings": "unit rows, float32"},
        }
        parity[_TEXT] = _export(graph, tokens, folder / _TEXT, "texts", ("tokens",), ("embeddings",))
    elif model.reads_text:
        console.warn(f"The text tower of {model.name} is that of the run or weights it was made from: not exported here.")
    manifest = {
        "run": run.name,
        "model": _model_hashes(run),
        "opset": OPSET,
        "precision": "fp32",
        "preprocess": model.preprocess.as_dict(),
        "classes": list(model.taxonomy.names),
        "towers": towers,
        "parity": parity,
        "sha256": {name: file_sha256(folder / name) for name in towers},
    }
    write_json_atomic(folder / "manifest.json", manifest)
    return manifest


def open_exported(run: Run) -> ExportedModel:
    """The exported image tower of a run.

    Raises:
        RunError: nothing was exported, it is damaged, or it is of another model than the run's now.
        UsageError: ONNX Runtime is not installed.
    """
    _require("onnxruntime")
    folder = run.path(_FOLDER)
    hint = f"`entrep export --run {run.reference}`"
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        hashes = manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"Run {run.name!r} was not exported.", where=folder, hint=hint) from error
    run.check_files()
    if manifest.get("model") != _model_hashes(run):
        raise RunError(f"The export is not of the model that run {run.name!r} has now.", where=folder, hint=hint)
    # A hash of our own manifest, before anything parses the file.
    if not (folder / _IMAGE).is_file() or file_sha256(folder / _IMAGE) != hashes.get(_IMAGE):
        raise RunError("The export is damaged.", where=folder / _IMAGE, hint=hint)
    return ExportedModel(run, folder / _IMAGE, hashes[_IMAGE])


class ExportedModel(Model):
    """An exported image tower in ONNX Runtime on the CPU, which embeds images as the run's model does."""

    def __init__(self, run: Run, path: Path, sha256: str) -> None:
        super().__init__()
        import tomllib

        from entrep_cli.recipes.recipe import build_recipe
        from entrep_cli.workspace import CONFIG

        manifest = run.manifest
        kind = method_class(manifest["method"])
        self.recipe: Recipe = build_recipe(kind.Recipe, tomllib.loads(run.path(CONFIG).read_text("utf-8")))
        self.taxonomy = Taxonomy.from_dict(manifest["taxonomy"])
        self.preprocess = Preprocess.from_dict(manifest["preprocess"])
        self.engine = f"{ENGINE} {sha256[:16]}"
        self._session = _session(path)

    def infer(self, pixels: torch.Tensor) -> Inference:
        embeddings, probabilities = self._session.run(None, {"pixels": pixels.cpu().numpy()})
        return Inference(torch.from_numpy(embeddings), torch.from_numpy(probabilities))


def _export(
    tower: nn.Module, example: torch.Tensor, path: Path, batch: str, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> dict[str, Any] | None:
    """Write one tower and compare its answers with torch's; None where ONNX Runtime is not there to ask."""
    tower = tower.eval()
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                tower,
                (example,),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim(batch, min=1)},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
            )
    except Exception as error:  # the exporter raises many kinds for a step that it does not know
        raise UsageError(f"The model has a step that cannot be exported: {first_line(error)}", hint="--engine torch") from error
    with atomic_path(path) as temporary, _quiet():
        program.save(str(temporary), external_data=False)
    if not _installed("onnxruntime"):
        return None
    session = _session(path)
    compared = [_compared(tower, session, inputs[0], some) for some in (example, example[:1])]
    worst = {"difference": max(c["difference"] for c in compared), "cosine": min(c["cosine"] for c in compared), "rows": len(example)}
    if not worst["difference"] <= _TOLERANCE:
        raise RunError(f"ONNX Runtime is {worst['difference']:.1e} from torch (allowed: {_TOLERANCE:.0e}).", where=path)
    return worst


@torch.no_grad()
def _compared(tower: nn.Module, session: Any, name: str, example: torch.Tensor) -> dict[str, float]:
    """The largest absolute difference of any output, and the smallest cosine of two embeddings."""
    wanted = tower(example)
    wanted = [value.numpy() for value in (wanted if isinstance(wanted, tuple) else (wanted,))]
    found = session.run(None, {name: example.numpy()})
    difference = max(float(np.abs(a - b).max()) for a, b in zip(found, wanted))
    return {"difference": difference, "cosine": float((found[0] * wanted[0]).sum(axis=1).min())}


def _session(path: Path) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _model_hashes(run: Run) -> dict[str, str]:
    return {name: sha256 for name, sha256 in run.manifest["files"].items() if name != METRICS}


def _require(*packages: str) -> None:
    if missing := [name for name in packages if not _installed(name)]:
        raise UsageError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.", hint=INSTALL)


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its steps on stdout, in warnings and in its log."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
