"""An opened run without training: a gallery of drawn images and a model that sees mean colours.

finder = make_finder(tmp_path)
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from entrep_cli.data.images import Preprocess, pixel_digest, read_image
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.methods.base import Inference, Model
from entrep_cli.retrieval.embeddings import Embeddings, Items
from entrep_cli.retrieval.index import build_shards
from entrep_cli.retrieval.search import Finder
from tests.tiny import draw

HOSTILE = "[red]<script>alert(1)</script>.png"  # its slash makes it a folder and a file in it
HOSTILE_LABEL = "<b>nose</b>[/]"


class Fake(Model):
    """A model without training; `infer` is left to the test.

    Args:
        method: as its recipe has it. `reads`: whether it reads texts.
    """

    def __init__(
        self, taxonomy: Taxonomy, preprocess: Preprocess, *, reads: bool = False, batch_size: int = 32, method: str = "fake"
    ) -> None:
        super().__init__()
        self.taxonomy, self.preprocess, self.reads = taxonomy, preprocess, reads
        self.recipe = SimpleNamespace(method=method, batch_size=batch_size, target="class")

    @property
    def reads_text(self) -> bool:
        return self.reads

    @property
    def target(self) -> str:
        return self.recipe.target


class Colours(Fake):
    """Embeds an image as the mean colours of its halves; `classes` prototypes of the same kind classify it."""

    def __init__(self, taxonomy: Taxonomy, text: bool) -> None:
        super().__init__(taxonomy, Preprocess(16), reads=text)
        self.prototypes = torch.nn.Parameter(torch.zeros(len(taxonomy), 6))

    def infer(self, pixels: torch.Tensor) -> Inference:
        halves = torch.cat([pixels[..., :8].float().mean((2, 3)), pixels[..., 8:].float().mean((2, 3))], 1)
        vectors = torch.nn.functional.normalize(halves - halves.mean(1, keepdim=True), dim=1)
        return Inference(vectors, (20 * vectors @ self.prototypes.T).softmax(1))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(6) for text in texts]
        return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=1)

    @torch.no_grad()
    def classify_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return (20 * self.embed_texts(texts) @ self.prototypes.T).softmax(1)


def make_finder(folder: Path, *, text: bool = True, index: bool = True, per_class: int = 4) -> Finder:
    """Three classes of `per_class` images, two a group, and two images without a label; the first has a hostile name."""
    labels = ["ear-left", "throat", HOSTILE_LABEL]
    rows = [(label, f"{i}-{number}.png", f"g{i}-{number // 2}") for i, label in enumerate(labels) for number in range(per_class)]
    rows += [("", f"unknown-{number}.png", "") for number in range(2)]
    rows[0] = (labels[0], HOSTILE, "[red]<i>g0</i>")
    paths = []
    for i, (label, name, _) in enumerate(rows):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(label or "vc-open", seed=i).save(path)
        paths.append(path)
    model = Colours(Taxonomy.derive(labels), text)
    pictures = [read_image(path) for path in paths]
    names, images, groups = ([name for name, *_ in rows], [row[1] for row in rows], [row[2] for row in rows])
    pixels = torch.from_numpy(np.stack([model.preprocess(picture) for picture in pictures]))
    with torch.no_grad():
        vectors = model.infer(pixels)[0]
        for c, name in enumerate(model.taxonomy.names):
            model.prototypes[c] = vectors[[i for i, label in enumerate(names) if label == name]].mean(0)
        probabilities = model.infer(pixels)[1]
    digests = [pixel_digest(picture) for picture in pictures]
    items = Items.of(image=images, path=[str(path) for path in paths], label=names, group=groups, digest=digests)
    run = SimpleNamespace(
        name="colours", reference="colours", manifest={"method": "clip-lora" if text else "dinov2", "reads_text": text, "target": "class"}
    )
    gallery = Embeddings(items, vectors.numpy(), probabilities.numpy())
    return Finder(run, model, gallery, list(build_shards(gallery.vectors)) if index else None)
