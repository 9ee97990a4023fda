"""An ensemble is exactly what its members make of it: combined, embedded, flipped, read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from entrep_cli.data.images import Preprocess
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation.calibration import with_temperature
from entrep_cli.methods.base import Inference
from entrep_cli.methods.ensemble import Ensemble, EnsembleRecipe, Weights, members_of
from entrep_cli.models.inputs import resized
from entrep_cli.retrieval.embeddings import Items, embed_items, embeddings_of, texts_beside
from entrep_cli.workspace import MODEL, Run
from tests.finders import Fake

SIDED = Taxonomy.from_dict(
    {"classes": [{"name": "a", "id": 0, "mirror": "b"}, {"name": "b", "id": 1, "mirror": "a"}, {"name": "c", "id": 2, "mirror": "c"}]}
)


class Linear(Fake):
    """Embeddings and classes by fixed random matrices of the pixels; texts by their length, where it reads any."""

    def __init__(self, size: int, dim: int, seed: int, reads: bool = False, fit: str = "pad") -> None:
        super().__init__(SIDED, Preprocess(size, fit), reads=reads, batch_size=2)
        self.dim = dim
        generator = torch.Generator().manual_seed(seed)
        self.matrix = nn.Parameter(torch.randn(3 * size * size, dim + 3, generator=generator))
        self.n_seen = 0

    def infer(self, pixels):
        assert pixels.dtype == torch.uint8 and pixels.shape[-1] == self.preprocess.size
        self.n_seen += len(pixels)
        made = (pixels.float().flatten(1) / 255 - 0.5) @ self.matrix
        return Inference(F.normalize(made[:, 3:], dim=1), made[:, :3].softmax(dim=1))

    def embed_texts(self, texts):
        assert self.reads_text
        return F.normalize(torch.tensor([[len(t), 1.0, *[0.5] * (self.dim - 2)] for t in texts]), dim=1)

    def classify_texts(self, texts):
        return torch.tensor([[len(t) % 2, 1.0, self.dim] for t in texts]).softmax(dim=1)


def ensemble(members, classes=(1, 1), ranking=(1, 1), temperatures=None, runs=None) -> Ensemble:
    weights = Weights(classes, ranking, temperatures or (1.0,) * len(members), tuple(m.dim for m in members))
    return Ensemble(members, runs or [Run(Path(f"no-{i}")) for i in range(len(members))], EnsembleRecipe(), weights)


@pytest.fixture
def items(tmp_path) -> Items:
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(5)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / name)
    return Items.of(image=names, path=[str(tmp_path / n) for n in names], digest=[f"d{i}" for i in range(5)])


def completed(folder, **manifest) -> Run:
    run = Run(folder)
    run.folder.mkdir(parents=True)
    run.path(MODEL).write_bytes(folder.name.encode())
    run.mark_complete({"taxonomy": {}, **manifest})
    return run


def test_it_equals_the_members_own_answers_each_with_its_own_preprocessing(items):
    """Cosines are the weighted mean of the members' cosines, probabilities of their probabilities at their temperatures."""
    members = [Linear(8, 4, 0), Linear(16, 6, 1, fit="crop")]
    seen = embed_items(ensemble(members, (3, 1), (1, 4), (0.5, 2.0)), items)
    own = [embed_items(member, items) for member in members]
    assert np.allclose(np.linalg.norm(seen.vectors, axis=1), 1, atol=1e-6)
    cosines = [one.vectors @ one.vectors.T for one in own]
    assert np.allclose(seen.vectors @ seen.vectors.T, 0.2 * cosines[0] + 0.8 * cosines[1], atol=1e-6)
    wanted = 0.75 * with_temperature(own[0].probabilities, 0.5) + 0.25 * with_temperature(own[1].probabilities, 2.0)
    assert np.allclose(seen.probabilities, wanted, atol=1e-6)


def test_one_member_alone_and_twice_the_same_are_that_member(items):
    member = Linear(8, 4, 0)
    own = embed_items(member, items)
    for made in (ensemble([member, Linear(8, 4, 1)], (1, 0), (1, 0)), ensemble([member, member])):
        seen = embed_items(made, items)
        assert np.allclose(seen.probabilities, own.probabilities, atol=1e-6)
        assert np.allclose(seen.vectors @ seen.vectors.T, own.vectors @ own.vectors.T, atol=1e-6)


def test_an_ensemble_of_ensembles(items):
    a, b, c = (Linear(8, 4, seed) for seed in range(3))
    inner = ensemble([a, b], (1, 3), (1, 3))
    inner.dim = 8
    nested, flat = embed_items(ensemble([inner, c]), items), embed_items(ensemble([a, b, c], (1, 3, 4), (1, 3, 4)), items)
    assert np.allclose(nested.probabilities, flat.probabilities, atol=1e-6) and np.allclose(nested.vectors, flat.vectors, atol=1e-6)


def test_pixels_of_the_largest_size_are_scaled_down_for_the_others():
    members = [Linear(8, 4, 0), Linear(16, 6, 1)]
    made = ensemble(members)
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    assert made.preprocess.size == 16
    wanted = made.combine([members[0].infer(resized(pixels, 8)), members[1].infer(pixels)])
    assert all(torch.equal(a, b) for a, b in zip(made.infer(pixels)[:2], wanted[:2]))
    assert torch.equal(made.embed_images(pixels), wanted[0]) and torch.equal(made.classify(pixels), wanted[1])
    with pytest.raises(UsageError, match="cut in different ways"):
        ensemble([members[0], Linear(16, 6, 1, fit="crop")]).infer(pixels)


def test_flips_keep_sides_apart(items, tmp_path):
    """Probabilities go to the mirror classes; image is compared with image, and flip with flip."""
    members = [Linear(8, 4, 0), Linear(16, 6, 1)]
    turned = tmp_path / "turned"
    turned.mkdir()
    for name, path in zip(items.image, items.path):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(turned / name)
    places, digests = [str(turned / name) for name in items.image], [f"mirrored {digest}" for digest in items.digest]
    mirrored = Items.of(image=list(items.image), path=places, digest=digests)
    for model in (members[0], ensemble(members, (3, 1), (1, 4), (0.5, 2.0))):
        plain, flipped, both = embed_items(model, items), embed_items(model, mirrored), embed_items(model, items, flip=True)
        assert np.allclose(both.probabilities, (plain.probabilities + flipped.probabilities[:, [1, 0, 2]]) / 2, atol=1e-6)
        wanted = (plain.vectors @ plain.vectors.T + flipped.vectors @ flipped.vectors.T) / 2
        assert np.allclose(both.vectors @ both.vectors.T, wanted, atol=1e-6)
        text = texts_beside(plain.vectors[:1], both.vectors)  # a text asks the images as they are
        assert np.allclose(text @ both.vectors.T * 2**0.5, plain.vectors[:1] @ plain.vectors.T, atol=1e-6)


def test_what_a_member_has_embedded_is_not_embedded_again(items, tmp_path):
    members = [Linear(8, 4, 0), Linear(16, 6, 1)]
    runs = [completed(tmp_path / "a"), completed(tmp_path / "b")]
    made = ensemble(members, runs=runs)
    fresh = embed_items(made, items)
    embeddings_of(runs[0], "train", items, members[0])
    seen = [member.n_seen for member in members]
    part = items.take([3, 1])
    again = embed_items(made, part)
    assert [member.n_seen for member in members] == [seen[0], seen[1] + 2]
    assert np.allclose(again.vectors, fresh.vectors[[3, 1]], atol=1e-6)
    assert not runs[1].path("embeddings").exists()  # nothing is written into a member
    changed = Items.of(image=list(items.image), path=list(items.path), digest=[*items.digest[:4], "other"])
    embed_items(made, changed)
    assert members[0].n_seen == seen[0] + 5
    embed_items(made, items, flip=True)
    assert members[0].n_seen == seen[0] + 15


def test_texts_are_read_by_the_members_that_can(items):
    reader, blind = Linear(8, 4, 0, reads=True), Linear(16, 6, 1)
    made = ensemble([blind, reader], (1, 3), (1, 3))
    assert made.reads_text
    texts = ["a", "some longer text"]
    vectors = made.embed_texts(texts)
    assert vectors.shape == (2, 10) and torch.allclose(vectors.norm(dim=1), torch.ones(2))
    cosines = vectors.numpy() @ embed_items(made, items).vectors.T
    own = reader.embed_texts(texts).numpy() @ embed_items(reader, items).vectors.T
    assert np.allclose(cosines, 0.75**0.5 * own, atol=1e-6)  # the same ranking
    assert torch.allclose(made.classify_texts(texts), reader.classify_texts(texts))
    assert torch.allclose(ensemble([blind, reader], (1, 0)).classify_texts(texts), reader.classify_texts(texts))


@pytest.mark.parametrize("ranking, reads, reason", [((1, 1), False, "No member"), ((1, 0), True, "no weight in its rankings")])
def test_texts_that_no_member_can_rank_are_refused(ranking, reads, reason):
    made = ensemble([Linear(8, 4, 0), Linear(8, 4, 1, reads=reads)], ranking=ranking)
    assert not made.reads_text
    for ask in (made.embed_texts, made.classify_texts):
        with pytest.raises(UsageError, match=reason):
            ask(["a text"])


@pytest.mark.parametrize("wrong", [(1,), (0, 0), (-1, 2), (float("nan"), 1)])
def test_weights_that_are_none(wrong):
    with pytest.raises(ValueError):
        Weights(wrong, (1, 1), (1.0, 1.0), (4, 4))
    assert Weights((2, 6), (1, 1), (1.0, 1.0), (4, 4)).classes == (0.25, 0.75)


def test_members_are_found_again_and_every_one_that_is_gone_or_changed_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    whole = Run(tmp_path / "runs" / "e")
    runs = [completed(tmp_path / "runs" / name) for name in "abc"] + [completed(whole.path("fold-0"))]
    members = [Linear(8, 4, seed) for seed in range(4)]
    ensemble(members, (1,) * 4, (1,) * 4, runs=runs).save(whole)
    assert [told["run"] for told in json.loads(whole.path("members.json").read_text())] == ["a", "b", "c", "./fold-0"]
    assert [run.folder.resolve() for run in members_of(whole)] == [run.folder.resolve() for run in runs]
    moved = Run(whole.folder.rename(whole.folder.with_name("moved")))  # what lies inside goes with it
    assert members_of(moved)[-1].folder == moved.path("fold-0")
    runs[0].mark_complete({"taxonomy": {}, "again": True})
    runs[1].folder.rename(tmp_path / "elsewhere")
    runs[2].path("run.json").unlink()
    runs[2].path("config.toml").write_text("")
    with pytest.raises(RunError) as caught:
        members_of(moved)
    assert len(caught.value.faults) == 3
    told = [fault.split(" is ")[1] for fault in caught.value.faults]
    assert told == ["another run now: it was trained anew", "missing", "not complete"]
