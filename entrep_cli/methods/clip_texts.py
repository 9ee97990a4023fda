"""The texts that `clip-lora` learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.texts import clean_text, finding_keys, names_a_side
from entrep_cli.errors import DataError
from entrep_cli.methods.clip_towers import Towers
from entrep_cli.recipes.recipe import Section


class TextSettings(Section):
    """The texts that a model learns from.

    Attributes:
        languages: languages of the class prompts and of the findings.
        contrast: weight of the contrastive loss between images and texts; 0 trains without texts.
        findings: also contrast each image with the texts of its findings, not only with the prompts of its class.
    """

    languages: Annotated[tuple[Literal["en", "vi"], ...], Field(min_length=1)] = ("en", "vi")
    contrast: Annotated[float, Field(ge=0)] = 0.5
    findings: bool = True


def class_prompts(taxonomy: Taxonomy, languages: Sequence[str]) -> list[list[str]]:
    """The prompts of every class, those of the first language first."""
    return [[p for language in languages for p in c.prompts.get(language, ()) if clean_text(p)] for c in taxonomy.classes]


class TrainingTexts:
    """The class prompts and finding texts of a training set, as tokens, and which finding is true of which image."""

    def __init__(self, towers: Towers, settings: TextSettings, train: Catalog) -> None:
        taxonomy = train.taxonomy
        prompts = class_prompts(taxonomy, settings.languages)
        self.settings = settings
        unnamed = [c.name for c, own in zip(taxonomy.classes, prompts) if not own]
        if unnamed and settings.contrast:
            keys = " or ".join(f"prompts.{language}" for language in settings.languages)
            raise DataError(
                f"{len(unnamed)} of {len(taxonomy)} classes have no prompt in {' or '.join(settings.languages)}.",
                where=f"taxonomy {taxonomy.name!r}",
                faults=unnamed,
                hint=f"write {keys} into taxonomy.toml (data/README.md shows how), or leave the texts out with --set texts.contrast=0",
            )
        self.class_of_prompt = torch.tensor([i for i, own in enumerate(prompts) for _ in own])
        flat = [p for own in prompts for p in own]
        self.prompt_tokens = towers.tokens(flat) if flat else None
        self.n_classes = len(taxonomy)
        keys = [self._keys(train, row, settings) for row in train.frame.to_dict("records")]
        vocabulary = sorted({key for own in keys for key in own})
        place = {key: i for i, key in enumerate(vocabulary)}
        self.finding_tokens = towers.tokens(vocabulary) if vocabulary else None
        self.sided = torch.tensor([names_a_side(key) for key in vocabulary], dtype=torch.bool)
        self.true_of = torch.zeros(len(train), len(vocabulary), dtype=torch.bool)
        for i, own in enumerate(keys):
            self.true_of[i, [place[key] for key in own]] = True
        if settings.contrast:
            hint = "leave them out with --set 'texts.languages=[\"en\"]'" if "vi" in settings.languages else None
            towers.warn_of_texts([*flat, *vocabulary], hint)

    @staticmethod
    def _keys(train: Catalog, row: dict, settings: TextSettings) -> list[str]:
        if not settings.findings or not settings.contrast:
            return []
        texts = [key for language in settings.languages for key in finding_keys(row.get(f"text_{language}") or "")]
        english = [key for key in row["findings"] if not key.startswith("pair:")] if "en" in settings.languages else []
        return list(dict.fromkeys([*texts, *english]))

    def batch(
        self, pick: torch.Tensor, targets: torch.Tensor, flipped: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of one finding a image, and (N, C + M) which class prompts and findings are true of the images.

        A finding that names a side is not true of a flipped image.
        """
        classes = F.one_hot(targets, self.n_classes).bool()
        true_of = self.true_of[pick] & ~(flipped[:, None] & self.sided)
        draws = torch.rand(true_of.shape, generator=generator).masked_fill(~true_of, -1)
        drawn = draws.argmax(dim=1)[true_of.any(dim=1)].unique() if true_of.shape[1] else torch.empty(0, dtype=torch.long)
        return drawn, torch.cat([classes, true_of[:, drawn]], dim=1)


def text_features(towers: Towers, texts: TrainingTexts, batch_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from drawn findings to (C + M, D) unit rows: class prompts averaged on the sphere, then findings.

    A text tower that does not learn is asked once.
    """
    visual = {id(p) for p in towers.backbone.visual.parameters()}
    learns = any(p.requires_grad for n, p in towers.backbone.named_parameters() if id(p) not in visual and n != "logit_scale")

    def encode(tokens: torch.Tensor | None) -> torch.Tensor:
        return torch.cat([towers.encode(part) for part in tokens.split(batch_size)])

    fixed = None
    if not learns and texts.settings.contrast:
        was = towers.training
        towers.eval()  # a dropout in the tower would be drawn once, for all of the training
        with torch.no_grad():
            fixed = encode(texts.prompt_tokens), None if texts.finding_tokens is None else encode(texts.finding_tokens)
        towers.train(was)

    def features(drawn: torch.Tensor) -> torch.Tensor:
        prompts = fixed[0] if fixed else towers.encode(texts.prompt_tokens)
        member = F.one_hot(texts.class_of_prompt, texts.n_classes).to(prompts)
        classes = F.normalize(member.T @ prompts, dim=1)
        if not len(drawn):
            return classes
        findings = fixed[1][drawn] if fixed else towers.encode(texts.finding_tokens[drawn])
        return torch.cat([classes, findings])

    return features
