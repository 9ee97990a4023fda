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

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.pixels import load_pixels
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.texts import clean_text, finding_keys, is_vietnamese
from entrep_cli.errors import DataError, RunError, UsageError
from entrep_cli.methods.base import FitContext, Fitted, Inference, Method, Subject, load_tensors, save_tensors
from entrep_cli.methods.clip_lora import ClipLora
from entrep_cli.methods.clip_towers import ARCHITECTURE, Towers, check_texts
from entrep_cli.methods.prototype_towers import open_towers, say_towers
from entrep_cli.models.clip import ClipSettings
from entrep_cli.models.inputs import ImageSettings
from entrep_cli.models.prototypes import DEFAULT_TEMPERATURE, TEMPERATURES, Prototypes, fit_temperature, fuse, nearest
from entrep_cli.recipes.recipe import Recipe
from entrep_cli.training.validation import batched, classification_scores
from entrep_cli.workspace import Run, atomic_path, cache_dir, fingerprint

_LEAST = 1e-12  # a probability of 0 must not make a validation loss infinite, which JSON cannot hold


class PrototypeRecipe(Recipe):
    """The settings of `prototype`.

    Attributes:
        texts: text of an image: with `human` its description, or the first prompt of its class where it has none; with
            `fallback` always the prompt.
        language: language of descriptions and prompts.
        batch_size: images or texts per batch.
        image: of the towers; towers of a run come with its settings, and these are not used.
        backbone: the towers. `weights` may also be a complete clip-lora run, by name or folder: then the space is that of
            the run's image and text embeddings, and `name` is not used.
    """

    method: Literal["prototype"] = "prototype"
    texts: Literal["human", "fallback"] = "human"
    language: Literal["en", "vi"] = "en"
    batch_size: Annotated[int, Field(ge=1)] = 32
    image: ImageSettings = ImageSettings()
    backbone: ClipSettings = ClipSettings(name="hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224")


class Prototype(Method):
    """Two frozen towers and the prototypes; the trained model of the method.

    A run holds the prototypes and their temperatures alone; the towers are loaded again from where they
    came, and refused if they are not the same: they may be a gigabyte, and a run that serves as towers
    can be checked as a whole only where it stands. A run beside this one is found as well as by its name.
    """

    Recipe = PrototypeRecipe

    def __init__(self, towers: Towers, recipe: PrototypeRecipe, taxonomy: Taxonomy, prototypes: Prototypes) -> None:
        super().__init__()
        self.recipe = recipe
        self.taxonomy = taxonomy
        self.preprocess = towers.preprocess
        self.towers = towers
        self.prototypes = prototypes
        self.register_buffer("region_of", _region_of(taxonomy), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def reads_text(self) -> bool:
        return True

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> Inference:
        """(N, D) visual embeddings, for a query has no text, and (N, C) probabilities."""
        embeddings = self.towers(pixels)
        return Inference(embeddings, self.prototypes.class_probabilities(self.scores(embeddings)[0]))

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, D) unit rows. Texts that are cut, or not of the tower's language, are counted aloud; empty ones are a DataError."""
        check_texts(texts)
        self.towers.warn_of_texts(texts, "ask in English")
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

    def subjects(self, pixels: torch.Tensor, classes: Sequence[int]) -> list[Subject]:
        self.check_classes(classes)
        rows = self.prototypes.classes.float()
        return [self.towers.subject(lambda embeddings: embeddings @ rows.T, classes)]

    def text_subject(self, vector: torch.Tensor, n: int) -> Subject:
        return self.towers.subject(lambda embeddings: embeddings @ vector.T, [0] * n)

    def check_classes(self, classes: Sequence[int]) -> None:
        """UsageError that names the classes without a prototype."""
        if without := sorted({c for c in classes if not self.prototypes.classes[c].any()}):
            raise UsageError(
                "No prototype to explain.",
                faults=[f"{self.taxonomy.names[c]}: it had no training image" for c in without],
                hint="ask about another class",
            )

    def save(self, run: Run) -> None:
        if not isinstance(self.towers, ClipLora):  # a run has its own
            self.towers.save_architecture(run)
        save_tensors(run, self.prototypes.state_dict())

    @classmethod
    def load(cls, run: Run, recipe: PrototypeRecipe, taxonomy: Taxonomy, device: torch.device) -> Prototype:
        made_with = run.manifest["weights"]
        beside = [str(run.folder.parent / made_with["run"])] if "run" in made_with else []
        towers, origin = open_towers(recipe.backbone, recipe.image, device, run.path(ARCHITECTURE), beside, made_with.get("sha256"))
        if origin["sha256"] != made_with.get("sha256"):
            raise RunError(
                "The towers are not those that the prototypes were made with.",
                where=recipe.backbone.weights,
                hint=f"bring back {made_with.get('weights')}, or make the prototypes again: `entrep train prototype`",
            )
        return cls(towers, recipe, taxonomy, Prototypes(**load_tensors(run))).to(device)

    @classmethod
    def fit(cls, context: FitContext) -> Fitted:
        """Make the prototypes of `train` and fit the temperatures on `val`.

        Nothing is trained, so `precision` and `resume` change nothing; the towers compute in fp32.

        Raises:
            DataError: images that have no description, and whose class has no prompt.
            UsageError, WeightsError: the towers are not there, or are not whole.
        """
        started = time.monotonic()
        recipe, train, val, device = context.recipe, context.train, context.val, context.device
        texts = _texts(train, recipe)
        towers, origin = open_towers(recipe.backbone, recipe.image, device)
        say_towers(towers, origin, context.run)
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
        return Fitted(model.to(device), scores, 0, origin, seconds=time.monotonic() - started, precision="fp32")


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
            f"{len(without)} training images have neither a description nor a class prompt in {recipe.language!r}.",
            faults=[f"{name}: {without.count(name)} images" for name in names],
            hint=f"write prompts.{recipe.language} of these classes into taxonomy.toml, or --set language=LANGUAGE",
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
    model.towers.warn_of_texts(different, "--set language=en takes English ones")
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
    # What else shapes the towers: the recipe of a run, or how the features of a published one are pooled.
    own = towers.recipe.model_dump() if isinstance(towers, ClipLora) else model.recipe.backbone.pooling
    return ["towers", origin["sha256"], towers.architecture.config, own]


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
            said = f"{DEFAULT_TEMPERATURE}, for the validation split shows fewer than two to fit it on"
            console.say(f"Temperature of {what} probabilities: {said}.")
            continue
        getattr(prototypes, f"{what}_temperature").fill_(temperature)
        console.say(f"Temperature of {what} probabilities: {temperature:.4f} (fitted on the validation split).")
        if temperature > 0.99 * TEMPERATURES[1]:
            console.warn(
                f"The nearest {what} prototype is no better than a guess on the validation split; its probabilities are all alike."
            )
    probabilities = prototypes.class_probabilities(classes)
    scores = classification_scores(probabilities.clamp_min(_LEAST).log(), targets)
    right = nearest(embeddings, prototypes.regions)[0] == region_of[targets]
    return {**scores, "val_region_accuracy": float(right.float().mean())}


def _region_of(taxonomy: Taxonomy) -> torch.Tensor:
    """(C,) the region index of each class."""
    regions = taxonomy.regions
    return torch.tensor([regions.index(c.region) for c in taxonomy.classes])
