"""The two towers of a CLIP, and the warnings about texts that they cannot read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from entrep_cli import console
from entrep_cli.data.images import Preprocess
from entrep_cli.data.texts import clean_text, is_vietnamese
from entrep_cli.errors import DataError
from entrep_cli.methods.base import Subject
from entrep_cli.models.clip import ENGLISH_ONLY, Architecture, ClipSettings, build_clip, make_tokenizer, pixel_statistics, texts_cut
from entrep_cli.models.inputs import ImageSettings, Normalise
from entrep_cli.models.towers import tower_of
from entrep_cli.workspace import Run, write_json_atomic

ARCHITECTURE = "clip.json"


class Towers(nn.Module):
    """Image and text tower of a CLIP as published; `ClipLora` is made of them.

    Calling it gives (N, D) unit rows of (N, 3, H, W) uint8 pixels; `tokens` and `encode` give those of texts.
    """

    def __init__(self, architecture: Architecture, settings: ClipSettings, image: ImageSettings) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = build_clip(architecture, image.size, settings.pooling)
        mean, std = pixel_statistics(self.backbone, architecture)
        self.preprocess = Preprocess(image.size, image.fit, image.field_of_view, mean, std)
        self.tokenizer = make_tokenizer(settings, architecture)
        self.context_length = architecture.config["text_cfg"].get("context_length", 77)
        self.normalise = Normalise(mean, std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.backbone.encode_image(self.normalise(pixels)).float(), dim=1)

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, context) token ids."""
        return self.tokenizer(list(texts)).to(self.normalise.shift.device)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """(M, context) token ids to (M, D) unit rows."""
        return F.normalize(self.backbone.encode_text(tokens).float(), dim=1)

    @property
    def no_vietnamese(self) -> str:
        """Why the text tower cannot know Vietnamese; "" where it may."""
        return "" if self.architecture.multilingual else f"the pretrained text tower {ENGLISH_ONLY}"

    def warn_of_texts(self, texts: Sequence[str], hint: str | None) -> None:
        """Count the texts that are longer than the context, and cut; with a hint also those in Vietnamese, where the tower cannot know it."""
        if n := texts_cut(self.tokenizer, texts, self.context_length):
            console.warn(f"{n} of {len(texts)} texts are longer than the {self.context_length} tokens of the text tower and are cut.")
        if hint and self.no_vietnamese and (n := sum(map(is_vietnamese, texts))):
            console.warn(f"{n} of {len(texts)} texts are Vietnamese, and {self.no_vietnamese}; {hint}.")

    def save_architecture(self, run: Run) -> None:
        """Write what `read_architecture` needs: the hub's own configuration may be gone later."""
        pixels = {"mean": self.preprocess.mean, "std": self.preprocess.std}
        write_json_atomic(run.path(ARCHITECTURE), {"model_cfg": self.architecture.config, "preprocess_cfg": pixels})

    def subject(self, answer: Callable[[torch.Tensor], torch.Tensor], columns: Sequence[int]) -> Subject:
        """For an explanation: `answer` makes scores of the unit rows of images."""
        visual = self.backbone.visual
        return Subject(visual, self, answer, columns, class_token=tower_of(visual).pools_class_token)


def check_texts(texts: Sequence[str]) -> None:
    """DataError where there is no text, or some are empty."""
    empty = [f"text {i}" for i, text in enumerate(texts, 1) if not clean_text(text)]
    if empty or not texts:
        what = f"{len(empty)} of {len(texts)} texts are empty." if texts else "No texts to embed."
        raise DataError(what, faults=empty, hint="a query needs at least a word")
