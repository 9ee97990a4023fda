"""Image backbones: any timm model by name, with pooled features out and weights from a file or the hub's cache."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import entrep_cli.torchvision_ops  # noqa: F401 - before timm imports torchvision

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from entrep_cli.errors import UsageError, WeightsError, first_line
from entrep_cli.models.inputs import Normalise
from entrep_cli.models.pretrained import HubFile, fetch_commands, weights_path
from entrep_cli.models.towers import n_prefix_positions, tower_of
from entrep_cli.recipes.recipe import Section
from entrep_cli.workspace import CONFIG, MODEL, Run, file_sha256, find_run, trained_on

# What checkpoints of other projects wrap their weights in.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "encoder")
_PREFIXES = ("module.", "backbone.", "encoder.", "model.", "_orig_mod.")
# Part of DINOv2's pre-training only; timm's model has no place for it.
_PRETRAINING_KEYS = ("mask_token",)
# Prefixes of the tensors of a timm model in a run: of dinov2, of clip-lora with a tower of timm, and of mics (its white light).
_IN_RUNS = ("backbone.model.", "backbone.visual.trunk.", "white.model.")


class BackboneSettings(Section):
    """The backbone of a recipe.

    Attributes:
        name: name of a timm model.
        weights: `hub` (pretrained weights of the hub, only if they are cached), a file, a complete run by name or folder, or
            `none` (random). A run gives its trained backbone: dinov2, clip-lora with the same timm model as image tower, or
            the white-light encoder of mics or of its pre-training.
        pooling: `auto` is the mean of the patch tokens for ViTs (Foregut paper, section 4.3.3) and the model's default
            otherwise; `mean` is that of all positions; `token` is the class token; `gem` is the generalised mean (p = 3).
        options: arguments of `timm.create_model`, as in `{pad_type = "same"}`.
    """

    name: str = "vit_small_patch14_dinov2.lvd142m"
    weights: str = "hub"
    pooling: Literal["auto", "mean", "token", "gem"] = "auto"
    options: dict[str, Any] = {}


class Backbone(nn.Module):
    """A timm model without its classifier.

    `forward` takes (N, 3, H, W) pixels, uint8 or float in 0..255, normalises them with the
    mean and deviation of the backbone, and returns (N, dim) float32 pooled features.
    """

    def __init__(self, settings: BackboneSettings, size: int) -> None:
        super().__init__()
        self.settings = settings
        self.model = _create(settings, size)
        config = self.model.pretrained_cfg
        self.statistics = {"mean": tuple(config["mean"]), "std": tuple(config["std"])}  # of pixels, as `Preprocess` takes them
        self.n_prefix_tokens = tower_of(self.model).n_prefix_tokens
        if settings.pooling == "token" and not self.n_prefix_tokens:
            raise UsageError(f"{settings.name!r} has no class token to pool.", hint="--set backbone.pooling=auto")
        self.normalise = Normalise(**self.statistics)
        with torch.no_grad():
            self.eval()
            self.dim = self(torch.zeros(1, 3, size, size)).shape[1]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.pool(self.features(pixels)).float()

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels to tokens (N, T, D), prefix tokens first, of a ViT, or a map (N, C, H, W), of Swin and its kin (N, H, W, C)."""
        return self.model.forward_features(self.normalise(pixels))

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """What `features` gives to (N, dim) pooled features."""
        pooling = self.settings.pooling
        if features.ndim == 3:  # (N, tokens, D) of a transformer
            patches = features[:, self.n_prefix_tokens :]
            if pooling == "token":
                return features[:, 0]
            return generalised_mean(patches, (1,)) if pooling == "gem" else patches.mean(dim=1)
        if pooling == "auto":
            return self.model.forward_head(features, pre_logits=True)
        # Most convolutional models are (N, C, H, W); Swin and its kin (N, H, W, C).
        dims = (2, 3) if features.shape[1] == self.model.num_features else (1, 2)
        return generalised_mean(features, dims) if pooling == "gem" else features.mean(dim=dims)

    def freeze_norm(self) -> None:
        """Keep batch statistics as they are, also while training."""
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def create_backbone(settings: BackboneSettings, size: int) -> tuple[Backbone, dict[str, Any]]:
    """A backbone with its weights, and where they came from: {"name", "weights", "sha256"}.

    Of a run also {"run", "trained_on"}: what it has learned from.

    Raises:
        WeightsError: not cached, unreadable, or of another model; UsageError: no such timm model;
        RunError: the run is half written or damaged.
    """
    backbone = Backbone(settings, size)
    origin: dict[str, Any] = {"name": settings.name, "weights": settings.weights}
    if settings.weights == "none":
        return backbone, origin
    path = _hub_file(backbone.model.pretrained_cfg, settings.name) if settings.weights == "hub" else weights_path(settings.weights)
    if settings.weights != "hub" and not path.is_file() and (run := find_run(settings.weights)):
        return backbone, {**origin, **_load_from_run(backbone.model, settings, run)}
    load_weights(backbone.model, read_weights(path), path)
    # The file's name, not its path: a run may be shown to others.
    return backbone, {**origin, "weights": path.name, "sha256": file_sha256(path)}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` or torch file, unwrapped from what checkpoints of other projects put round them.

    Raises:
        WeightsError: missing, damaged, or holding more than tensors (nothing in it is ever executed).
    """
    if not path.is_file():
        hint = "--weights FILE, a name of `entrep weights list`, hub, none for random weights, or a run (not for clip-lora)"
        raise WeightsError("No such weights file.", where=path, hint=hint)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the two readers raise many kinds; the file is at fault in all of them
        raise WeightsError(
            f"The weights cannot be read: {first_line(error)}",
            where=path,
            hint="use a .safetensors file, or a torch file that holds tensors only",
        ) from error
    while isinstance(state, Mapping):
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise WeightsError("The weights file has no tensors.", where=path)
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], where: Path) -> None:
    """Load strictly into a timm model, after dropping the classifier and resizing the position embedding.

    Raises:
        WeightsError: lists what is missing, what is too much and what has another shape.
    """
    classifiers = model.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    wanted = model.state_dict()
    left_out = (*(f"{c}." for c in classifiers), *_PRETRAINING_KEYS)
    state = {key: value for key, value in state.items() if key in wanted or not key.startswith(left_out)}
    position = state.get("pos_embed")
    if position is not None and "pos_embed" in wanted and position.shape != wanted["pos_embed"].shape and position.ndim == 3:
        state["pos_embed"] = resample_abs_pos_embed(
            position,
            new_size=list(model.patch_embed.grid_size),
            num_prefix_tokens=n_prefix_positions(model),
        )
    load_strictly(model, state, where, "backbone")


def load_strictly(model: nn.Module, state: Mapping[str, torch.Tensor], where: Path, whose: str) -> None:
    """Load a state dict that has all tensors of the model and no others.

    Raises:
        WeightsError: as `load_weights`; `whose` names the model.
    """
    wanted = model.state_dict()
    differing = {
        "missing": [key for key in wanted if key not in state],
        "not in the model": [key for key in state if key not in wanted],
        "another shape": [
            f"{key}, {tuple(state[key].shape)} in the file and {tuple(wanted[key].shape)} in the model"
            for key in wanted
            if key in state and state[key].shape != wanted[key].shape
        ],
    }
    if any(differing.values()):
        raise WeightsError(
            f"The weights are not those of the {whose}: {sum(map(len, differing.values()))} tensors differ.",
            where=where,
            # Two models differ in hundreds of tensors; a few of each kind tell which they are.
            faults=[
                f"{kind} ({len(keys)}): {'; '.join(keys[:4])}{'; ...' if len(keys) > 4 else ''}" for kind, keys in differing.items() if keys
            ],
            hint="name the model they belong to with --backbone",
        )
    model.load_state_dict(state, strict=True)


def _load_from_run(model: nn.Module, settings: BackboneSettings, run: Run) -> dict[str, Any]:
    """Load the backbone of a complete run, strictly; what `create_backbone` returns of it."""
    manifest = run.manifest
    run.check_files()
    path = run.path(MODEL)
    recipe = tomllib.loads(run.path(CONFIG).read_text("utf-8"))
    hint = "a complete run of dinov2, of mics or its pre-training, or of clip-lora with --tune full and an image tower of timm"
    if recipe.get("method") == "clip-lora" and recipe.get("tune") != "full":
        base = manifest["weights"].get("weights")
        raise WeightsError(
            f"Run {run.name!r} holds what it learned beside its base weights, and no whole image tower.",
            where=run.folder,
            hint=f"start from the base weights ({base}), or from {hint}",
        )
    state = read_weights(path)
    prefix = next((p for p in _IN_RUNS if any(key.startswith(p) for key in state)), None)
    if prefix is None:
        what = f"Run {run.name!r} ({manifest.get('method')}) has no image backbone of timm."
        raise WeightsError(what, where=run.folder, hint=f"name {hint}")
    name = recipe.get("backbone", {}).get("name", "")
    if (described := run.path("clip.json")).is_file():  # a clip-lora run, whose recipe names the whole CLIP
        name = json.loads(described.read_text("utf-8"))["model_cfg"]["vision_cfg"].get("timm_model_name", "")
    # What follows the dot names pretrained weights, and these are others.
    if name.split(".")[0] != settings.name.split(".")[0]:
        what = f"Run {run.name!r} has the backbone {name!r}, not {settings.name!r}."
        raise WeightsError(what, where=run.folder, hint=f"--backbone {name}")
    load_weights(model, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, path)
    return {"weights": f"run {run.name}", "run": run.name, "sha256": manifest["files"][MODEL], "trained_on": trained_on(manifest)}


def _create(settings: BackboneSettings, size: int) -> nn.Module:
    options = dict(settings.options)
    try:
        config = timm.get_pretrained_cfg(settings.name)
        if config is None and not timm.is_model(settings.name):
            raise RuntimeError(f"Unknown model {settings.name}")
        try:
            # Transformers are built for one size; convolutional models take any and refuse the word.
            return timm.create_model(settings.name, pretrained=False, num_classes=0, img_size=size, **options)
        except TypeError:
            return timm.create_model(settings.name, pretrained=False, num_classes=0, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if timm.is_model(settings.name.split(".")[0]):
            raise UsageError(
                f"The backbone {settings.name!r} cannot be built: {error}", hint="change backbone.options or image.size"
            ) from error
        near = difflib.get_close_matches(settings.name, timm.list_models(), 3)
        raise UsageError(
            f"timm has no model {settings.name!r}.",
            hint=f"did you mean {', '.join(near)}?" if near else "see timm.list_models() for their names",
        ) from error


def _hub_file(config: Mapping[str, Any], name: str) -> Path:
    """The pretrained weights of a timm model in the local hub cache; nothing is ever downloaded here."""
    repository = config.get("hf_hub_id")
    if not repository:
        raise WeightsError(f"timm names no pretrained weights for {name!r}.", hint="--weights FILE, or --weights none for random ones")
    named = config.get("hf_hub_filename")
    file = HubFile(repository, named) if named else HubFile(repository, "model.safetensors", ("pytorch_model.bin",))
    if path := file.local():
        return path
    raise WeightsError(
        f"The weights of {name!r} are not on this machine, and nothing is downloaded unasked.",
        where=f"{repository}, file model.safetensors",
        hint=f"with a network: {fetch_commands(repository, ['model.safetensors'])}; or give a file with --weights FILE",
    )


def generalised_mean(features: torch.Tensor, dims: tuple[int, ...], p: float = 3.0) -> torch.Tensor:
    """(mean of x^p over `dims`)^(1/p), of what is positive: between the mean (p = 1) and the maximum (p without end).

    Source: GeM (Radenović et al. 2018, eq. 3); p is fixed at the value from which they start to learn it.
    """
    return features.clamp(min=1e-6).pow(p).mean(dim=dims).pow(1 / p)


class GeneralisedMean(nn.Module):
    """(N, C, H, W) maps to (N, C) by `generalised_mean`, in place of a network's pooling."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return generalised_mean(features, (2, 3))
