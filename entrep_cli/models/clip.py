"""CLIP models: any open_clip architecture, built without a network, its weights strictly loaded.

An architecture is an open_clip id (`ViT-B-16-quickgelu`), one of ours in `clip_configs/`, a hub
repository whose files are cached (`hf-hub:microsoft/...`), or a JSON file of open_clip's form. Weights
are a published tag in the hub's cache, a file of a whole CLIP, or a file of the image tower alone: then
the text tower starts fresh, which is how text-to-image runs where only an image model is at hand.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrep_cli import mend_torchvision  # noqa: F401 - before open_clip imports torchvision

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP, resize_pos_embed, resize_text_pos_embed
from torch import nn

from entrep_cli.errors import UsageError, WeightsError, first_line
from entrep_cli.models.backbones import load_weights, read_weights
from entrep_cli.recipes.recipe import Section
from entrep_cli.workspace import file_sha256

_CONFIGS = Path(__file__).parent / "clip_configs"
_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
ENGLISH_ONLY = "was trained on English texts; Vietnamese ones reach it letter by letter"


class ClipSettings(Section):
    """The CLIP model of a recipe.

    Attributes:
        name: an open_clip id, one of ours (`tiny-clip`, `mobilenetv2-clip`), `hf-hub:owner/name`, or a
            JSON file.
        tag: which published weights of an open_clip id, as in `openai`.
        weights: `hub` (only if they are cached), a file of a CLIP or of its image tower, or `none`.
    """

    name: str = "ViT-B-16-quickgelu"
    tag: str = "openai"
    weights: str = "hub"


@dataclass(frozen=True)
class Architecture:
    """What is needed to build a CLIP: open_clip's `model_cfg` and, from the hub, its mean and deviation."""

    config: dict[str, Any]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_architecture(name: str) -> Architecture:
    """The architecture of a name; UsageError for an unknown one, WeightsError where hub files are not cached."""
    path = _CONFIGS / f"{name}.json"
    if name.startswith("hf-hub:"):
        path = _cached(name.removeprefix("hf-hub:"), "open_clip_config.json")
    elif not path.is_file():
        path = Path(name)
    if not path.is_file():
        config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if config is None:
            known = [*open_clip.list_models(), *sorted(p.stem for p in _CONFIGS.glob("*.json"))]
            near = difflib.get_close_matches(name, known, 3)
            raise UsageError(
                f"There is no CLIP model {name!r}.",
                mend=(f"did you mean {', '.join(near)}? " if near else "") + "give an open_clip id, hf-hub:owner/name or a JSON file",
            )
        return Architecture(config)
    try:
        table = json.loads(path.read_text("utf-8"))
        config = table.get("model_cfg", table)
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    except (ValueError, AttributeError) as error:
        raise UsageError(f"The CLIP configuration is not JSON of open_clip's form: {first_line(error)}", where=path) from error
    if missing:
        raise UsageError(f"The CLIP configuration lacks {', '.join(missing)}.", where=path)
    pixels = table.get("preprocess_cfg", {})
    return Architecture(config, *(tuple(pixels[key]) if key in pixels else None for key in ("mean", "std")))


def build_clip(architecture: Architecture, size: int) -> nn.Module:
    """The model with random weights, for square images of `size` pixels; UsageError where it cannot be built."""
    config = json.loads(json.dumps(architecture.config))
    config["vision_cfg"] |= {"image_size": size, "timm_model_pretrained": False}
    text = config["text_cfg"]
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    config.pop("custom_text", None)
    try:
        model = (CustomTextCLIP if custom else CLIP)(**config)
        trunk = getattr(model.visual, "trunk", None)
        if trunk is not None and hasattr(trunk, "set_input_size"):
            model.visual.set_input_size(size)
    except Exception as error:  # open_clip and timm raise anything for a configuration that does not hold
        raise UsageError(f"The CLIP model cannot be built: {first_line(error)}", mend="check its configuration and image.size") from error
    return model


def pixel_statistics(model: nn.Module, architecture: Architecture) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the channels that the image tower wants: the hub's, its trunk's, or OpenAI's."""
    if architecture.mean and architecture.std:
        return architecture.mean, architecture.std
    trunk = getattr(model.visual, "trunk", None)
    if trunk is not None:
        return tuple(trunk.pretrained_cfg["mean"]), tuple(trunk.pretrained_cfg["std"])
    return tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD)


def load_clip_weights(model: nn.Module, settings: ClipSettings) -> tuple[dict[str, Any], str | None]:
    """Load weights into a freshly built model.

    Returns:
        where they came from, {"name", "weights", "sha256"}, and how the names of the parameters begin
        that they filled: "" for all, "visual.trunk." for the image tower alone, None for none.

    Raises:
        WeightsError: not cached, unreadable, or of another model.
    """
    origin: dict[str, Any] = {"name": settings.name, "weights": settings.weights}
    if settings.weights == "none":
        return origin, None
    path = _published(settings) if settings.weights == "hub" else Path(settings.weights)
    state = read_weights(path)
    origin |= {"weights": path.name, "path": str(path), "sha256": file_sha256(path)}
    if not any(key.startswith("visual.") for key in state):
        trunk = getattr(model.visual, "trunk", None)
        if trunk is None:
            raise WeightsError(
                "The file holds an image tower, and the CLIP model's own tower is not one of timm.",
                where=path,
                mend="--backbone mobilenetv2-clip, or a JSON file with vision_cfg.timm_model_name",
            )
        load_weights(trunk, state, path)
        return origin, "visual.trunk."
    _load_whole(model, state, path)
    return origin, ""


def make_tokenizer(settings: ClipSettings, architecture: Architecture) -> Callable[[Sequence[str]], torch.Tensor]:
    """Texts to (M, context) token ids; WeightsError where a hub tokenizer is not cached."""
    text = architecture.config["text_cfg"]
    length = text.get("context_length", 77)
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(context_length=length, **text.get("tokenizer_kwargs", {}))
    repository = text["hf_tokenizer_name"]
    _cached(repository, "tokenizer_config.json")
    return open_clip.tokenizer.HFTokenizer(repository, context_length=length, **text.get("tokenizer_kwargs", {}))


def texts_cut(tokenizer: Callable, texts: Sequence[str], context_length: int) -> int:
    """How many texts have more tokens than the context and are cut."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return sum(len(tokenizer.encode(text)) + 2 > context_length for text in texts)  # start and end take a place each
    return sum(len(tokenizer.tokenizer(text)["input_ids"]) > context_length for text in texts)


def _load_whole(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    own = model.state_dict()
    # BERT's position ids are a constant that some versions save and others do not.
    state = {key: value for key, value in state.items() if key in own or not key.endswith("position_ids")}
    faults = [f"missing: {key}" for key in own if key not in state] + [f"not in the model: {key}" for key in state if key not in own]
    faults += [f"another shape: {key}" for key in own if key in state and own[key].shape != state[key].shape]
    if faults:
        raise WeightsError(
            f"The weights are not those of the CLIP model: {len(faults)} tensors differ.",
            where=path,
            faults=[*faults[:8], *(["..."] if len(faults) > 8 else [])],
            mend="name the model they belong to with --backbone",
        )
    model.load_state_dict(state, strict=True)


def _published(settings: ClipSettings) -> Path:
    """The cached file of published weights; WeightsError names the exact file and how to fetch it."""
    if settings.name.startswith("hf-hub:"):
        repository, known = settings.name.removeprefix("hf-hub:"), True
    else:
        found = open_clip.get_pretrained_cfg(settings.name, settings.tag)
        repository, known = (found.get("hf_hub") or "").strip("/"), bool(found)
    if not known or not repository:
        tags = open_clip.list_pretrained_tags_by_model(settings.name)
        raise WeightsError(
            f"open_clip knows no weights {settings.tag!r} of {settings.name!r}.",
            faults=[f"its tags: {', '.join(tags)}"] if tags else [],
            mend="--set backbone.tag=TAG, --weights FILE, or --weights none with --tune full",
        )
    return _cached(repository, *_HUB_WEIGHTS)


def _cached(repository: str, *files: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        path = try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return Path(path)
    raise WeightsError(
        "A file of the model is not on this machine, and nothing is downloaded unasked.",
        where=f"{repository}, file {files[0]}",
        mend=f"where there is a network: `hf download {repository} {files[0]}`; or give a file with --weights FILE",
    )
