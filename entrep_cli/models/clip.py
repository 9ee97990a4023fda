"""CLIP models: any open_clip architecture, built without a network, its weights strictly loaded.

An architecture is an open_clip id (`ViT-B-16-quickgelu`), one of ours in `clip_configs/`, a hub
repository whose files are cached (`hf-hub:microsoft/...`), or a JSON file of open_clip's form. Weights
are a pretrained tag in the hub's cache, a file of a whole CLIP, or a file of the image tower alone: then
the text tower starts from random weights, so that text-to-image works where only an image model is available.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import entrep_cli.torchvision_ops  # noqa: F401 - before open_clip imports torchvision

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP, resize_pos_embed, resize_text_pos_embed
from open_clip.transformer import TextTransformer, text_global_pool
from torch import nn

from entrep_cli.errors import UsageError, WeightsError, first_line
from entrep_cli.models.backbones import GeneralisedMean, load_strictly, load_weights, read_weights
from entrep_cli.models.pretrained import HubFile, fetch_commands, weights_path
from entrep_cli.models.towers import replace_pooling, set_input_size, timm_trunk
from entrep_cli.recipes.recipe import Section
from entrep_cli.workspace import file_sha256

_CONFIGS = Path(__file__).parent / "clip_configs"
_HUB_CONFIG = "open_clip_config.json"
_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_HUB_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
# In the names of multilingual tokenizers; all others break Vietnamese into fragments.
_MULTILINGUAL = ("xlm", "multilingual", "mt5", "nllb", "i18n", "siglip2")
_OTHER_MODEL = "take a model that needs no such file, as --backbone ViT-B-16-quickgelu --weights FILE"
ENGLISH_ONLY = "has an English tokenizer: they reach it as letters and fragments"


class ClipSettings(Section):
    """The CLIP model of a recipe.

    Attributes:
        name: an open_clip model, a model of entrep (`tiny-clip`, `mobilenetv2-clip`), `hf-hub:owner/name`, or a JSON file.
        tag: the pretrained weights of an open_clip model, as in `openai`.
        weights: `hub` (the pretrained weights, only if they are cached), a file of a CLIP model or of its image tower, or
            `none` (random).
        pooling: of a convolutional image tower of timm: `default` of the model, or `gem`, the generalised mean (p = 3).
    """

    name: str = "ViT-B-16-quickgelu"
    tag: str = "openai"
    weights: str = "hub"
    pooling: Literal["default", "gem"] = "default"


@dataclass(frozen=True)
class Architecture:
    """What is needed to build a CLIP: open_clip's `model_cfg` and, from the hub, its mean and deviation."""

    config: dict[str, Any]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def multilingual(self) -> bool:
        """Whether the tokenizer is one of many languages, by its name."""
        name = (self.config["text_cfg"].get("hf_tokenizer_name") or "").lower()
        return any(word in name for word in _MULTILINGUAL)


def read_architecture(name: str) -> Architecture:
    """The architecture of a name; UsageError for an unknown one, WeightsError where hub files are not cached."""
    path = _CONFIGS / f"{name}.json"
    if name.startswith("hf-hub:"):
        otherwise = "give both files with --backbone CONFIG.json --weights FILE"
        path = _cached(name.removeprefix("hf-hub:"), _HUB_CONFIG, with_it=_HUB_WEIGHTS[:1], otherwise=otherwise)
    elif not path.is_file():
        path = Path(name)
    if not path.is_file():
        config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if config is None:
            known = [*open_clip.list_models(), *sorted(p.stem for p in _CONFIGS.glob("*.json"))]
            near = difflib.get_close_matches(name, known, 3)
            raise UsageError(
                f"No CLIP model is named {name!r}.",
                hint=(f"did you mean {', '.join(near)}? " if near else "") + "give an open_clip id, hf-hub:owner/name or a JSON file",
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


def build_clip(architecture: Architecture, size: int, pooling: str = "default") -> nn.Module:
    """The model with random weights, for square images of `size` pixels; `pooling` as in `ClipSettings`.

    Raises:
        UsageError: it cannot be built; WeightsError where the configuration of a hub's text tower is not cached.
    """
    config = json.loads(json.dumps(architecture.config))
    config["vision_cfg"] |= {"image_size": size, "timm_model_pretrained": False}
    text = config["text_cfg"]
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        text["hf_model_name"] = _snapshot(text["hf_model_name"], "config.json")
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    config.pop("custom_text", None)
    try:
        model = (CustomTextCLIP if custom else CLIP)(**config)
        set_input_size(model, size)
    except Exception as error:  # open_clip and timm raise anything for a configuration that does not hold
        raise UsageError(f"The CLIP model cannot be built: {first_line(error)}", hint="check its configuration and image.size") from error
    if pooling == "gem" and not replace_pooling(model, GeneralisedMean()):
        what = "The image tower is not a convolutional one of timm, whose pooling could be replaced."
        raise UsageError(what, hint="--set backbone.pooling=default")
    return model


def pixel_statistics(model: nn.Module, architecture: Architecture) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the channels that the image tower wants: the hub's, its trunk's, or OpenAI's."""
    if architecture.mean and architecture.std:
        return architecture.mean, architecture.std
    trunk = timm_trunk(model)
    if trunk is not None:
        return tuple(trunk.pretrained_cfg["mean"]), tuple(trunk.pretrained_cfg["std"])
    return tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD)


def load_clip_weights(model: nn.Module, settings: ClipSettings) -> tuple[dict[str, Any], str | None]:
    """Load weights into a freshly built model.

    Returns:
        where they came from, {"name", "weights", "sha256", "towers"}, the last being the towers they filled, and the
        prefix of the parameters they filled: "" for all, "visual.trunk." for the image tower alone, None for none.

    Raises:
        WeightsError: not cached, unreadable, or of another model.
    """
    origin: dict[str, Any] = {"name": settings.name, "weights": settings.weights, "towers": []}
    if settings.weights == "none":
        return origin, None
    path = _pretrained(settings) if settings.weights == "hub" else weights_path(settings.weights)
    state = read_weights(path)
    # The file's name, not its path: a run may be shown to others.
    origin |= {"weights": path.name, "sha256": file_sha256(path), "towers": ["image", "text"]}
    if not any(key.startswith("visual.") for key in state):
        trunk = timm_trunk(model)
        if trunk is None:
            raise WeightsError(
                "The file holds an image tower, and that of the CLIP model is not one of timm.",
                where=path,
                hint="--backbone mobilenetv2-clip, or a JSON file with vision_cfg.timm_model_name",
            )
        load_weights(trunk, state, path)
        return {**origin, "towers": ["image"]}, "visual.trunk."
    _load_whole(model, state, path)
    return origin, ""


def make_tokenizer(settings: ClipSettings, architecture: Architecture) -> Callable[[Sequence[str]], torch.Tensor]:
    """Texts to (M, context) token ids; WeightsError where files of a hub tokenizer are not cached."""
    text = architecture.config["text_cfg"]
    length = text.get("context_length", 77)
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(context_length=length, **text.get("tokenizer_kwargs", {}))
    repository = text["hf_tokenizer_name"]
    _snapshot(repository, *_HUB_VOCABULARIES, with_it=["tokenizer_config.json"])
    # From its folder, not by its name: by that, transformers would ask the hub for what is not cached.
    folder = _snapshot(repository, "tokenizer_config.json")
    try:
        return open_clip.tokenizer.HFTokenizer(folder, context_length=length, **text.get("tokenizer_kwargs", {}))
    except Exception as error:  # transformers raises anything for files that are missing or damaged
        raise WeightsError(
            f"The tokenizer cannot be read: {first_line(error)}",
            where=f"{repository}, in {folder}",
            hint="with a network: "
            f"{fetch_commands(repository, ['tokenizer.json', 'tokenizer_config.json', 'config.json'])}; or {_OTHER_MODEL}",
        ) from error


def encode_texts(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """(M, context) token ids to (M, D) features, as the model's `encode_text`, without the padding behind the longest text.

    A causal tower reads its answer off the end of the text, which sees nothing of what stands behind it. A finding
    has some ten tokens, of 77 places: without the rest most of the text tower's work falls away (ours).
    """
    tower = model if isinstance(model, CLIP) else model.text
    if not _is_causal(tower):
        return model.encode_text(tokens)
    length = int(tokens.argmax(dim=1).max()) + 1
    tokens = tokens[:, :length]
    x = tower.token_embedding(tokens).to(tower.transformer.get_cast_dtype())
    x = tower.transformer(x + tower.positional_embedding[:length].to(x), attn_mask=tower.attn_mask[:length, :length])
    x = text_global_pool(tower.ln_final(x), tokens, "argmax")
    if tower.text_projection is None:
        return x
    return tower.text_projection(x) if isinstance(tower.text_projection, nn.Linear) else x @ tower.text_projection


def _is_causal(tower: nn.Module) -> bool:
    """Whether a text tower is one of open_clip, causal, and read at the end token, which is the largest of its vocabulary."""
    if isinstance(tower, CLIP):
        return tower.text_pool_type == "argmax" and tower.attn_mask is not None
    plain = isinstance(tower, TextTransformer) and tower.cls_emb is None and not tower.use_pad_mask and not tower.output_tokens
    return plain and tower.pool_type == "argmax" and tower.attn_mask is not None


def texts_cut(tokenizer: Callable, texts: Sequence[str], context_length: int) -> int:
    """How many texts have more tokens than the context and are cut."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return sum(len(tokenizer.encode(text)) + 2 > context_length for text in texts)  # start and end take a place each
    return sum(len(tokenizer.tokenizer(text)["input_ids"]) > context_length for text in texts)


def _load_whole(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    wanted = model.state_dict()
    # BERT's position ids are a constant that some versions save and others do not.
    state = {key: value for key, value in state.items() if key in wanted or not key.endswith("position_ids")}
    load_strictly(model, state, path, "CLIP model")


def _pretrained(settings: ClipSettings) -> Path:
    """The cached file of pretrained weights; WeightsError names the exact file and how to fetch it."""
    if settings.name.startswith("hf-hub:"):
        repository, file = settings.name.removeprefix("hf-hub:"), ""
    else:
        # `owner/name/`, or `owner/name/file` where the file is called otherwise than open_clip's.
        hub = open_clip.get_pretrained_cfg(settings.name, settings.tag).get("hf_hub") or ""
        repository, _, file = hub.rpartition("/")
    if not repository:
        tags = open_clip.list_pretrained_tags_by_model(settings.name)
        raise WeightsError(
            f"open_clip knows no weights {settings.tag!r} of {settings.name!r}.",
            faults=[f"its tags: {', '.join(tags)}"] if tags else [],
            hint="--set backbone.tag=TAG, --weights FILE, or --weights none with --tune full",
        )
    otherwise = "give a file with --weights FILE; a small model from scratch is --recipe tiny"
    return _cached(repository, *([file] if file else _HUB_WEIGHTS), otherwise=otherwise)


def _snapshot(repository: str, *files: str, with_it: Sequence[str] = ()) -> str:
    """The folder that holds one of `files` of a tokenizer or a text tower: one that is named by its path, or in the hub's cache."""
    if any((Path(repository) / file).is_file() for file in files):
        return repository
    return str(_cached(repository, *files, with_it=with_it, otherwise=_OTHER_MODEL).parent)


def _cached(repository: str, *files: str, with_it: Sequence[str] = (), otherwise: str) -> Path:
    """The first of `files` that is in the hub's cache.

    Raises:
        WeightsError: none is. It names the first, the command that fetches it and what is needed `with_it`,
            what of the repository is cached, and what to do `otherwise`. UsageError: no such name can be.
    """
    from huggingface_hub import constants

    try:
        if path := HubFile(repository, files[0], files[1:]).local():
            return path
    except ValueError as error:
        raise UsageError(f"That is no repository of the hub: {first_line(error)}", hint="name it as owner/name") from error
    cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    cached = sorted(path for path in cache.glob("snapshots/*/*") if path.is_file())
    faults = [f"of another revision: {path}" for path in cached if path.name in files]
    if cached and not faults:
        faults.append(f"cached of it: {', '.join(dict.fromkeys(path.name for path in cached))}")
    if any(cache.glob("blobs/*.incomplete")):
        faults.append("a download of it was not completed")
    named = f"{files[0]} (or {', '.join(files[1:])})" if len(files) > 1 else files[0]
    raise WeightsError(
        "A file of the model is not on this machine, and nothing is downloaded unasked.",
        where=f"{repository}, file {named}",
        faults=faults,
        hint=f"with a network: {fetch_commands(repository, [files[0], *with_it])}; or {otherwise}",
    )
