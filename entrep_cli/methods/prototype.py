"""`prototype`: the nearest fused image-text prototype, nothing trained (*Fusion at the Foregut*, 4.2).

The towers of a pretrained CLIP, BiomedCLIP in the paper, embed each training image and its text; the two
are fused, and the mean of a class is its prototype (`models.prototypes`). A text belongs to an image only
while prototypes are made: **a query has no description, so its embedding is the visual one alone**, z = v.
That is why its similarity to a prototype is far from the 0.99 that the paper's hybrid asks of it.

Prototypes of the seven classes and of the four regions are two classifiers, as in the paper's Tables 4
and 5, and may disagree: `classify_regions` asks the region prototypes, `regions_of` sums the class
probabilities and always agrees with them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.texts import clean_text, finding_keys, is_vietnamese
from entrep_cli.errors import DataError, RunError, UsageError, WeightsError
from entrep_cli.methods import Fit
from entrep_cli.methods.clip_lora import ClipLora
from entrep_cli.methods.clip_texts import say_cut, say_vietnamese
from entrep_cli.models.clip import (
    ENGLISH_ONLY,
    Architecture,
    ClipSettings,
    build_clip,
    load_clip_weights,
    make_tokenizer,
    pixel_statistics,
    read_architecture,
)
from entrep_cli.models.inputs import ImageSettings, Normalise
from entrep_cli.models.prototypes import DEFAULT_TEMPERATURE, TEMPERATURES, Prototypes, fit_temperature, fuse, nearest
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.training.validation import batched, classification_scores
from entrep_cli.workspace import MODEL, Run, atomic_path, cache_dir, find_run, fingerprint, runs_dir, write_bytes_atomic, write_json_atomic

_ARCHITECTURE = "clip.json"
_BEGUN = "begun.json"  # `runs.train_run` leaves there what the training was begun on
_LEAST = 1e-12  # a probability of 0 must not make a validation loss infinite, which JSON cannot hold


class PrototypeRecipe(Recipe):
    """The settings of `prototype`.

    Attributes:
        texts: `human` takes an image's own description where it has one, else the fallback; `fallback`
            always the first prompt of its class.
        language: of descriptions and prompts.
        batch_size: images or texts at a time.
        image: of the towers; a run has its own, and this one is not used.
        backbone: the towers. `weights` may also be a complete clip-lora run, by name or folder: then its
            own image and text embeddings are the space, and `name` is not used.
    """

    method: Literal["prototype"] = "prototype"
    texts: Literal["human", "fallback"] = "human"
    language: Literal["en", "vi"] = "en"
    batch_size: Annotated[int, Field(ge=1)] = 32
    image: ImageSettings = ImageSettings()
    backbone: ClipSettings = ClipSettings(name="hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224")

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_trained(cls, table: Any) -> Any:
        # `entrep train` gives every recipe a `train` section for its --epochs, empty where none are asked for.
        return {key: value for key, value in table.items() if key != "train" or value} if isinstance(table, dict) else table


class Towers(nn.Module):
    """Image and text tower of a CLIP as published. `ClipLora` answers to the same names, and serves as well.

    Calling it gives (N, D) unit rows of (N, 3, H, W) pixels; `tokens` and `encode` give those of texts.
    """

    def __init__(self, architecture: Architecture, recipe: PrototypeRecipe) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = build_clip(architecture, recipe.image.size, recipe.backbone.pooling)
        mean, std = pixel_statistics(self.backbone, architecture)
        self.preprocess = Preprocess(recipe.image.size, recipe.image.fit, recipe.image.field_of_view, mean, std)
        self.tokenizer = make_tokenizer(recipe.backbone, architecture)
        self.context_length = architecture.config["text_cfg"].get("context_length", 77)
        self.normalise = Normalise(mean, std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.backbone.encode_image(self.normalise(pixels)).float(), dim=1)

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        return self.tokenizer(list(texts)).to(self.normalise.shift.device)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.backbone.encode_text(tokens).float(), dim=1)


class Prototype(nn.Module):
    """Two frozen towers and the prototypes; the trained model of the method.

    A run holds the prototypes and their temperatures alone; the towers are loaded again from where they
    came, and refused if they are not the same: they may be a gigabyte, and a run that serves as towers
    can be checked as a whole only where it stands. A run beside this one is found as well as by its name.
    """

    Recipe = PrototypeRecipe
    has_text_tower = True

    def __init__(self, towers: Towers | ClipLora, recipe: PrototypeRecipe, taxonomy: Taxonomy, prototypes: Prototypes) -> None:
        super().__init__()
        self.recipe = recipe
        self.taxonomy = taxonomy
        self.preprocess = towers.preprocess
        self.towers = towers
        self.prototypes = prototypes
        self.register_buffer("region_of", _region_of(taxonomy), persistent=False)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, D) visual embeddings, for a query has no text, and (N, C) probabilities."""
        embeddings = self.towers(pixels)
        return embeddings, self.prototypes.class_probabilities(self.scores(embeddings)[0])

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.infer(pixels)[0]

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.infer(pixels)[1]

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, D) unit rows. Texts that are cut, or not of the tower's language, are counted aloud; empty ones are a DataError."""
        empty = [f"text {i}" for i, text in enumerate(texts, 1) if not clean_text(text)]
        if empty or not texts:
            what = f"{len(empty)} of {len(texts)} texts are empty." if texts else "There are no texts to embed."
            raise DataError(what, faults=empty, mend="a query needs at least a word")
        _say_texts(self.towers, texts, "ask in English")
        return _encode(self, texts)

    @torch.inference_mode()
    def classify_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, C) probabilities of texts by their cosines to the class prototypes; the temperature is that of images."""
        return self.prototypes.class_probabilities(self.scores(self.embed_texts(texts))[0])

    @torch.inference_mode()
    def scores(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C) class and (N, R) region cosines of embeddings, so that the towers run once.

        They are -inf where there is no prototype. `prototypes.class_probabilities` and
        `prototypes.region_probabilities` make probabilities of them.
        """
        return self.prototypes(embeddings)

    def similarities(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, C) cosines to the class prototypes, -inf where there is none: their maximum is the hybrid's confidence."""
        return self.scores(self.embed_images(pixels))[0]

    def region_similarities(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, R) cosines to the region prototypes, in the order of `taxonomy.regions`; -inf where there is none."""
        return self.scores(self.embed_images(pixels))[1]

    def classify_regions(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, R) probabilities by the region prototypes, with a temperature of their own."""
        return self.prototypes.region_probabilities(self.region_similarities(pixels))

    def regions_of(self, probabilities: torch.Tensor) -> torch.Tensor:
        """(N, C) class probabilities summed to (N, R): consistent with `classify`, unlike `classify_regions`."""
        sums = probabilities.new_zeros(len(probabilities), len(self.taxonomy.regions))
        return sums.index_add_(1, self.region_of, probabilities)

    def save(self, run: Run) -> None:
        from safetensors.torch import save

        if isinstance(self.towers, Towers):
            pixels = {"mean": self.preprocess.mean, "std": self.preprocess.std}
            write_json_atomic(run.path(_ARCHITECTURE), {"model_cfg": self.towers.architecture.config, "preprocess_cfg": pixels})
        write_bytes_atomic(run.path(MODEL), save({k: v.contiguous().cpu() for k, v in self.prototypes.state_dict().items()}))

    @classmethod
    def load(cls, run: Run, recipe: PrototypeRecipe, taxonomy: Taxonomy, device: torch.device) -> Prototype:
        from safetensors.torch import load_file

        made_with = run.manifest["weights"]
        beside = [str(run.folder.parent / made_with["run"])] if "run" in made_with else []
        towers, found = _open_towers(recipe, device, run.path(_ARCHITECTURE), beside, made_with.get("sha256"))
        if found["sha256"] != made_with.get("sha256"):
            raise RunError(
                "The towers are not those that the prototypes were made with.",
                where=recipe.backbone.weights,
                mend=f"bring back {made_with.get('weights')}, or make the prototypes again: `entrep train prototype`",
            )
        kept = load_file(run.path(MODEL))
        return cls(towers, recipe, taxonomy, Prototypes(**kept)).to(device)

    @classmethod
    def fit(
        cls,
        train: Catalog,
        val: Catalog,
        recipe: PrototypeRecipe,
        run: Run,
        *,
        device: torch.device,
        precision: str = "fp32",
        resume: bool = False,
    ) -> tuple[Prototype, Fit]:
        """Make the prototypes of `train` and fit the temperatures on `val`.

        Nothing is trained, so `precision` and `resume` change nothing; the towers compute in fp32.

        Raises:
            DataError: images that have no description, and whose class has no prompt.
            UsageError, WeightsError: the towers are not there, or are not whole.
        """
        started = time.monotonic()
        texts = _texts(train, recipe)
        towers, origin = _open_towers(recipe, device)
        _say_towers(towers, origin, run)
        dim = towers.architecture.config["embed_dim"]
        regions = train.taxonomy.regions
        model = cls(towers, recipe, train.taxonomy, Prototypes(torch.zeros(len(train.taxonomy), dim), torch.zeros(len(regions), dim)))
        model.to(device)
        fused = fuse(_image_rows(model, origin, train, "training images"), _text_rows(model, origin, texts))
        targets, region_of = torch.from_numpy(train.targets), _region_of(train.taxonomy)
        model.prototypes = Prototypes.of(fused, targets, region_of)
        missing = [name for name, n in train.counts().items() if not n]
        if missing:
            console.warn(f"{len(missing)} classes have no training images, so no prototype, and are never predicted: {', '.join(missing)}.")
        seen = _image_rows(model, origin, val, "validation images")
        scores = _calibrate(model.prototypes, seen, torch.from_numpy(val.targets), region_of)
        return model.to(device), Fit(scores, 0, origin, seconds=time.monotonic() - started)


# ---------------------------------------------------------------- texts


def _texts(train: Catalog, recipe: PrototypeRecipe) -> list[str]:
    """The text of each training image; DataError that lists the classes of images that have none."""
    fallback = [_sentence((c.prompts.get(recipe.language) or ("",))[0]) for c in train.taxonomy.classes]
    human = [_description(row, recipe.language) if recipe.texts == "human" else "" for row in train.frame.to_dict("records")]
    texts = [own or fallback[target] for own, target in zip(human, train.targets)]
    without = [label for label, text in zip(train.frame["label"], texts) if not text]
    if without:
        names = [name for name in train.taxonomy.names if name in without]
        raise DataError(
            f"{len(without)} training images have neither a description of their own nor a class prompt in {recipe.language!r}.",
            faults=[f"{name}: {without.count(name)} images" for name in names],
            mend=f"write prompts.{recipe.language} of these classes into taxonomy.toml, or --set language=LANGUAGE",
        )
    n = sum(map(bool, human))
    console.say(f"Texts: {n} of {len(texts)} training images have a human description, {len(texts) - n} their class's fallback.")
    return texts


def _description(row: dict[str, Any], language: str) -> str:
    """The human text of an image, "" where it has none: its description, or findings tied to it alone, as in t2i.json.

    Those findings are English ones (challenge.md), and stand in the catalog beside what was cut out of
    the descriptions.
    """
    text = clean_text(row.get(f"text_{language}") or "")
    if text or language != "en":
        return text
    of_vietnamese = finding_keys(row.get("text_vi") or "")
    own = (key for key in row.get("findings", ()) if not key.startswith("pair:") and key not in of_vietnamese)
    return ", ".join(key for key in own if not is_vietnamese(key))


def _sentence(prompt: str) -> str:
    """A prompt with a capital and a full stop: for ENTRep's classes these are the texts of the paper's Table 3."""
    prompt = clean_text(prompt)
    return prompt and prompt[0].upper() + prompt[1:] + "." * (prompt[-1] not in ".!?")


# ---------------------------------------------------------------- towers


def _open_towers(
    recipe: PrototypeRecipe, device: torch.device, architecture: Path | None = None, beside: Sequence[str] = (), sha256: str | None = None
) -> tuple[Towers | ClipLora, dict[str, Any]]:
    """The towers of a recipe with their weights, and where these came from; `sha256` is always among it.

    Args:
        architecture: the file in which a run kept it, for a hub's may be gone.
        beside: where else a run may stand that gave the towers.
        sha256: of its model, where it is known: of several runs the one that has it is taken.
    """
    weights = recipe.backbone.weights
    if weights == "none":
        raise UsageError(
            "Prototypes need pretrained towers: nothing is trained, and random ones have no meaning.",
            mend="--weights FILE, hub, or a trained run: `entrep train clip-lora`, then --weights clip-lora",
        )
    if weights != "hub" and not Path(weights).is_file():
        return _open_run(weights, device, beside, sha256)
    name = str(architecture) if architecture and architecture.is_file() else recipe.backbone.name
    towers = Towers(read_architecture(name), recipe)
    origin, filled = load_clip_weights(towers.backbone, recipe.backbone)
    if filled != "":
        raise UsageError(
            "The weights fill the image tower alone, and a text tower that starts fresh says nothing to fuse with it.",
            where=weights,
            mend="train a text tower beside it: `entrep train clip-lora --recipe mobilenetv2-clip`, then --weights clip-lora",
        )
    return towers.to(device), origin


def _open_run(weights: str, device: torch.device, beside: Sequence[str], sha256: str | None) -> tuple[ClipLora, dict[str, Any]]:
    """A trained CLIP as towers, checked as `load_model` checks it."""
    from entrep_cli.methods.runs import load_model

    runs = [*filter(None, map(find_run, (weights, *beside)))]
    # Of that name another one may stand here, where a folder of runs was copied to.
    run = next((r for r in runs if sha256 and r.complete and r.manifest["files"].get(MODEL) == sha256), runs[0] if runs else None)
    if run is None:
        raise WeightsError(
            f"There is neither a weights file nor a run {weights!r}.",
            where=runs_dir(),
            mend="--weights FILE, hub, or the name or folder of a complete clip-lora run",
        )
    manifest = run.manifest
    if manifest["method"] != "clip-lora":
        raise UsageError(
            f"Run {run.name!r} is one of {manifest['method']}, and prototypes need the two towers of clip-lora.",
            where=run.folder,
            mend="`entrep train clip-lora`, then --weights clip-lora",
        )
    model = load_model(run, str(device))
    if not model.has_text_tower:
        raise UsageError(
            f"The text tower of run {run.name!r} was never trained, and says nothing to fuse with an image.",
            where=run.folder,
            mend="train it again with --set texts.contrast=0.5, or start from the weights of a whole CLIP",
        )
    data, split = manifest.get("data", {}), manifest.get("split", {})
    trained_on = {"catalog": data.get("catalog"), "split": split.get("fingerprint"), "fold": split.get("fold")}
    origin = {"name": "clip-lora", "weights": f"run {run.name}", "run": run.name, "sha256": manifest["files"][MODEL]}
    return model, {**origin, "base": manifest["weights"], "trained_on": trained_on}


def _say_towers(towers: Towers | ClipLora, origin: dict[str, Any], run: Run) -> None:
    if "run" in origin:
        size = f"{towers.preprocess.size} px"
        console.say(f"Towers: those of {origin['weights']}, with its image settings ({size}); image and backbone.name are not used.")
        begun = json.loads(run.path(_BEGUN).read_text("utf-8")) if run.path(_BEGUN).is_file() else {}
        if any(key in begun and begun[key] != value for key, value in origin["trained_on"].items()):
            console.warn(
                f"{origin['weights']} was trained on other data, another split or another fold: where it has learned from images "
                "that are now validation or test ones, the scores are too good."
            )


def _say_texts(towers: Towers | ClipLora, texts: Sequence[str], mend: str) -> None:
    """Tell how many texts are cut, and how many are Vietnamese where the text tower cannot know it."""
    say_cut(towers, texts)
    if isinstance(towers, ClipLora):
        say_vietnamese(towers, texts, mend)
    elif not towers.architecture.multilingual and (n := sum(map(is_vietnamese, texts))):
        console.warn(f"{n} of {len(texts)} texts are Vietnamese, and the pretrained text tower {ENGLISH_ONLY}; {mend}.")


# ---------------------------------------------------------------- embeddings


def _image_rows(model: Prototype, origin: dict[str, Any], part: Catalog, what: str) -> torch.Tensor:
    """(N, D) unit visual embeddings, kept on disk by pixels, towers and preprocessing."""

    def compute() -> torch.Tensor:
        pixels = load_pixels(part.paths, part.digests, model.preprocess, what)
        rows = []
        with console.progress(f"Embedding {what}", len(part)) as advance, torch.inference_mode():
            for batch in batched(pixels, model.recipe.batch_size):
                rows.append(model.towers(batch.to(model.region_of.device)).float().cpu())
                advance(len(batch))
        return torch.cat(rows)

    return _kept([*_identity(model, origin), model.preprocess.as_dict(), part.digests], len(part), compute)


def _text_rows(model: Prototype, origin: dict[str, Any], texts: Sequence[str]) -> torch.Tensor:
    """(N, D) unit text embeddings, each different text embedded once; kept on disk by texts and towers."""
    different = list(dict.fromkeys(texts))
    _say_texts(model.towers, different, "--set language=en takes English ones")
    rows = _kept([*_identity(model, origin), different], len(different), lambda: _encode(model, different).cpu())
    place = {text: i for i, text in enumerate(different)}
    return rows[[place[text] for text in texts]]


@torch.inference_mode()
def _encode(model: Prototype, texts: Sequence[str]) -> torch.Tensor:
    size = model.recipe.batch_size
    with console.progress("Embedding texts", len(texts), "texts") as advance:
        rows = []
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            rows.append(model.towers.encode(model.towers.tokens(part)))
            advance(len(part))
    return torch.cat(rows)


def _identity(model: Prototype, origin: dict[str, Any]) -> list[Any]:
    """What the embedding of an image or a text hangs on, beside it: equal tensors can be two models."""
    towers = model.towers
    return ["towers", origin["sha256"], towers.architecture.config, towers.recipe.model_dump() if isinstance(towers, ClipLora) else None]


def _kept(key: list[Any], n: int, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Rows from the cache, else computed and kept there."""
    path = cache_dir("features") / f"{fingerprint(key)}.npy"
    try:
        rows = np.load(path, allow_pickle=False)
        if len(rows) == n:
            return torch.from_numpy(rows)
    except FileNotFoundError:
        pass
    except (ValueError, EOFError):  # damaged: computed again
        path.unlink()
    rows = compute().numpy()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, rows)
    return torch.from_numpy(rows)


# ---------------------------------------------------------------- validation


def _calibrate(prototypes: Prototypes, embeddings: torch.Tensor, targets: torch.Tensor, region_of: torch.Tensor) -> dict[str, float]:
    """Fit both temperatures, in place, on visual embeddings of the validation part; its scores."""
    classes, regions = prototypes(embeddings)
    for what, similarities, wanted in (("class", classes, targets), ("region", regions, region_of[targets])):
        temperature = fit_temperature(similarities, wanted)
        if temperature is None:
            said = f"{DEFAULT_TEMPERATURE}, for the validation part shows fewer than two to fit it on"
            console.say(f"Temperature of {what} probabilities: {said}.")
            continue
        getattr(prototypes, f"{what}_temperature").fill_(temperature)
        console.say(f"Temperature of {what} probabilities: {temperature:.4f} (fitted on the validation part).")
        if temperature > 0.99 * TEMPERATURES[1]:
            console.warn(f"The nearest {what} prototype is no better than a guess on the validation part; its probabilities are all alike.")
    probabilities = prototypes.class_probabilities(classes)
    scores = classification_scores(probabilities.clamp_min(_LEAST).log(), targets)
    right = nearest(embeddings, prototypes.regions)[0] == region_of[targets]
    return {**scores, "val_region_accuracy": float(right.float().mean())}


def _region_of(taxonomy: Taxonomy) -> torch.Tensor:
    """(C,) the region index of each class."""
    regions = taxonomy.regions
    return torch.tensor([regions.index(c.region) for c in taxonomy.classes])
