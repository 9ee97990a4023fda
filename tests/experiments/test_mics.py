"""The ablation of MICS: its rows, pre-trainings that rows share, and the linear probe."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import make_split
from entrep_cli.errors import RunError
from entrep_cli.experiments import mics
from entrep_cli.experiments.ablation import run_ablation
from entrep_cli.experiments.mics import FRACTIONS, linear_probe, loss_rows, rows
from entrep_cli.methods.mics import MicsRecipe
from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe
from entrep_cli.workspace import MANIFEST, Run, runs_dir
from tests.methods.test_mics import BASE
from tests.tiny import make_contest


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    made = make_contest(tmp_path / "data", per_class=8, tests=2, size=(32, 32))
    recipe = build_recipe(MicsRecipe, parse_assignments([*BASE, "train.epochs=1", "pretraining.train.epochs=1", "pretraining.pictures=0"]))
    catalog = Catalog.read(made.root)
    return made.root, catalog, make_split(catalog, ratios=(50, 25, 25)), recipe


def test_every_fraction_has_the_same_rows():
    recipe = build_recipe(MicsRecipe, read_recipe("mics"))
    found = {row.key: row for row in rows(recipe)}
    parts = ("scratch", "reconstruction", "consistency", "alignment", "all", "no-fusion", "no-shift")
    assert list(found) == [f"{part}-{percent}" for percent in ("5", "10", "100") for part in parts]
    made = {key: build_recipe(MicsRecipe, recipe.model_dump(), *row.settings) for key, row in found.items()}
    assert [made[f"all-{p}"].label_fraction for p in ("5", "10", "100")] == list(FRACTIONS)
    weights = {key: tuple(m.pretraining.weights.model_dump().values()) for key, m in made.items()}
    assert weights["reconstruction-5"] == (10, 0, 0) and weights["consistency-10"] == (0, 1, 0) and weights["alignment-100"] == (0, 0, 0.1)
    assert weights["all-5"] == weights["no-shift-5"] == (10, 1, 0.1)
    assert not made["no-fusion-5"].fuse and made["no-shift-5"].shift.scale == 0 and made["all-5"].fuse and made["all-5"].shift.scale == 1
    assert found["scratch-5"].before is None and found["all-10"].against == "scratch-10" and found["no-shift-10"].against == "all-10"
    assert {row.before.key for row in found.values() if row.before} == {f"pretrain-{key}" for key in (*parts[1:4], "all")}
    assert made["all-100"] == recipe


def test_rows_share_their_pretraining_and_the_same_command_finishes_the_table(setting, tmp_path, monkeypatch):
    root, catalog, split, recipe = setting
    seen = []
    original = mics.pretrain_run
    monkeypatch.setattr(mics, "pretrain_run", lambda *given, **more: (seen.append(given[3].name), original(*given, **more)))
    chosen = [row for row in rows(recipe) if row.key in ("scratch-10", "consistency-10", "all-10", "all-100", "no-shift-100")]
    how = {"seeds": 1, "device": "cpu", "precision": "fp32"}
    found = run_ablation("mics", catalog, split, chosen, recipe, root, **how).rows
    assert seen == ["pretrain-consistency", "pretrain-all"]
    folder = tmp_path / "runs" / "ablations" / "mics"
    table = json.loads((folder / "table.json").read_text())
    assert [row.get("before") for row in table["rows"]] == [None, "pretrain-consistency", "pretrain-all", "pretrain-all", "pretrain-all"]
    by_key = {s.row.key: s for s in found}
    assert not by_key["scratch-10"].change and by_key["all-10"].change and not by_key["all-100"].change  # its scratch row was not asked for
    started = {key: s.runs[0].manifest["weights"].get("run") for key, s in by_key.items()}
    shared = dict.fromkeys(("all-10", "all-100", "no-shift-100"), "pretrain-all")
    assert started == {"scratch-10": None, "consistency-10": "pretrain-consistency", **shared}
    # As if it had been killed: one pre-training half done, and the training that needs it.
    for name in ("pretrain-consistency", "consistency-10-seed0"):
        (folder / name / MANIFEST).unlink()
    seen.clear()
    again = run_ablation("mics", catalog, split, chosen, recipe, root, **how).rows
    assert seen == ["pretrain-consistency"]
    assert [s.scores["accuracy"].value for s in again] == [s.scores["accuracy"].value for s in found]
    other = build_recipe(MicsRecipe, recipe.model_dump(), {"pretraining": {"mask_ratio": 0.5}})
    with pytest.raises(RunError, match="started with other settings") as error:
        run_ablation("mics", catalog, split, chosen, other, root, **how)
    assert "pretrain-all: other settings" in error.value.faults


def test_the_probe_compares_the_features_before_and_after(setting, monkeypatch):
    _, catalog, split, recipe = setting
    made = recipe.for_pretraining()
    run = Run(runs_dir() / "pre")
    run.folder.mkdir(parents=True)
    mics._pretrain(catalog, split, made, run, device="cpu", precision="fp32", fold=None)
    probe = linear_probe(run, catalog, split, device="cpu")
    assert probe.before_name == "random encoders" and (probe.n_train, probe.n_val) == (28, 14)
    for score in mics.SHOWN:
        assert probe.difference[score].value == pytest.approx(probe.after[score].value - probe.before[score].value)
    assert json.loads(json.dumps(probe.as_dict()))["before is"] == "random encoders"
    # By hand: both features side by side, standardised, one regression.
    from sklearn.linear_model import LogisticRegression

    from entrep_cli.data.images import Preprocess
    from entrep_cli.data.modalities import pseudo_nbi
    from entrep_cli.data.pixels import load_pixels
    from entrep_cli.methods.mics import start_encoders

    white, narrow, _ = start_encoders(made.backbone.model_copy(update={"weights": "pre"}), 32)
    own = {}
    for part in ("train", "val"):
        images = catalog.subset(split.images(part))
        pixels = torch.from_numpy(
            np.array(load_pixels(images.paths, images.digests, Preprocess(32, "pad", False, **white.statistics), "images"))
        )
        with torch.no_grad():
            own[part] = torch.cat([white.eval()(pixels), narrow.eval()(pseudo_nbi(pixels))], dim=1).double().numpy(), images.targets
    mean, std = own["train"][0].mean(0), own["train"][0].std(0)
    regression = LogisticRegression(C=0.1, max_iter=2000).fit((own["train"][0] - mean) / std, own["train"][1])
    right = regression.predict((own["val"][0] - mean) / std) == own["val"][1]
    assert probe.after["accuracy"].value == pytest.approx(right.mean())
    rows_ = loss_rows(run)
    assert [row[0] for row in rows_][:2] == ["weighted sum, train", "weighted sum, held out"] and len(rows_) == 8
