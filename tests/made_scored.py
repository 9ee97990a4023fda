"""A run on a part without any training: made-up vectors and probabilities over images drawn on the spot.

scored = make_scored(tmp_path, per_class=4)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.images import Preprocess
from entrep_cli.data.splits import Split
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.evaluation.scored import Scored
from entrep_cli.retrieval.embeddings import Embeddings
from entrep_cli.retrieval.sets import catalog_items
from entrep_cli.workspace import Run
from tests.tiny import ENTREP, draw, write_json

MANIFEST = {
    "schema": 2,
    "entrep": "0.1.0",
    "method": "dinov2",
    "weights": {"name": "vit", "weights": "/home/someone/secret/w.safetensors", "sha256": "ab12"},
    "validation": {"val_loss": 0.5, "val_accuracy": 0.8},
    "epoch": 2,
    "data": {"layouts": ["contest in secret-folder"], "catalog": "c0ffee", "images": {"train": 80, "val": 10}},
    "split": {"seed": 3, "ratios": [80.0, 10.0, 10.0], "folds": 0, "fold": None, "fingerprint": "beef"},
    "device": "cpu",
    "precision": "fp32",
    "parameters": 12345,
    "seconds": 3725.0,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "files": {},
    "completed": "2026-01-02T03:04:05.000000+00:00",
}
METRICS = "epoch,train_loss,val_loss,val_accuracy,val_macro_f1\n1,1.5,1.2,0.5,0.4\n2,1.0,0.9,0.8,0.7\n3,0.7,1.0,0.7,0.6\n"


def make_scored(
    folder: Path,
    *,
    per_class: int = 4,
    classes: Sequence[str] = ENTREP,
    names: Sequence[str] = (),
    findings: Sequence[str] = (),
    skill: float = 1.5,
    taxonomy: Taxonomy | None = None,
    method: str = "dinov2",
    metrics: str = METRICS,
    manifest: dict | None = None,
    distinct: int | None = None,
    seed: int = 0,
) -> Scored:
    """A `Scored` whose images come two by two in groups.

    Args:
        names: of the first images, in the place of `<class>_<number>.png`.
        findings: texts that the images bear in turn.
        skill: how far vectors and probabilities know the class; 0 knows nothing.
        distinct: so many files are drawn, and the images share them; None for one each.
    """
    rng = np.random.default_rng(seed)
    labels = [name for name in classes for _ in range(per_class)]
    n = len(labels)
    images = [*names, *(f"{label}_{i:04}.png" for i, label in enumerate(labels))][:n]
    (folder / "imgs").mkdir(parents=True, exist_ok=True)
    paths = [folder / "imgs" / f"{i % (distinct or n)}.png" for i in range(n)]
    for i, path in enumerate(paths[: distinct or n]):
        draw(labels[i], seed=i).save(path)
    taxonomy = taxonomy or (Taxonomy.entrep() if set(classes) == set(ENTREP) else Taxonomy.derive(labels))
    region = {c.name: c.region for c in taxonomy.classes}
    frame = pd.DataFrame(
        {
            "image": images,
            "path": [str(path) for path in paths],
            "label": labels,
            "region": [region[label] for label in labels],
            "text_en": "",
            "text_vi": "",
            "findings": [(findings[i % len(findings)],) if findings else () for i in range(n)],
            "group": [f"exam-{i // 2}" for i in range(n)],
            "source": "made",
            "digest": [f"{i:016x}" for i in range(n)],
            "width": 64,
            "height": 48,
        }
    )
    part = Catalog(frame, taxonomy, ("made",))
    knows = np.eye(len(taxonomy))[part.targets] * skill
    logits = knows * 2 + rng.normal(size=(n, len(taxonomy)))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    vectors = np.concatenate([knows + rng.normal(size=knows.shape) * 0.4, rng.normal(size=(n, 9)) * 0.4], axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    seen = Embeddings(catalog_items(part), vectors.astype(np.float32), probabilities.astype(np.float32))
    run = Run(folder / "runs" / "made")
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.path("run.json"), {**MANIFEST, "method": method, **(manifest or {})})
    run.path("config.toml").write_text(f'method = "{method}"\nseed = 0\ntune = "lora"\n')
    if metrics:
        run.path("metrics.csv").write_text(metrics)
    model = SimpleNamespace(preprocess=Preprocess(32), taxonomy=taxonomy, recipe=SimpleNamespace(target="class"))
    split = Split(dict.fromkeys(images, "test"), 0, 3, (80.0, 10.0, 10.0), "c0ffee")
    assert json.loads(run.path("run.json").read_text())
    return Scored(run, model, part, split, "test", None, part, seen)
