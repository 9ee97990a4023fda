"""The components of a recipe, taken away one by one; trainings that are kept, and what their table says."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import make_split
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation.comparison import averaged, mean_score, permutation_test
from entrep_cli.evaluation.scored import scored_subset
from entrep_cli.evaluation.selection import select
from entrep_cli.evaluation.subsets import score_subset
from entrep_cli.experiments import ablation
from entrep_cli.experiments.ablation import run_ablation
from entrep_cli.experiments.ablation_table import Row
from entrep_cli.experiments.mlcf import rows
from entrep_cli.methods.clip_lora import ClipLoraRecipe
from entrep_cli.methods.runs import load_model
from entrep_cli.models.clip import Architecture, build_clip
from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe
from entrep_cli.retrieval.embeddings import read_embeddings
from entrep_cli.retrieval.sets import subset_embeddings
from entrep_cli.workspace import MANIFEST, open_run
from tests.tiny import make_contest

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def steps(recipe: ClipLoraRecipe) -> list[ClipLoraRecipe]:
    return [build_recipe(ClipLoraRecipe, recipe.model_dump(), *row.settings) for row in rows(recipe)]


def test_the_paper_has_five_steps_and_the_last_is_the_recipe():
    recipe = build_recipe(ClipLoraRecipe, read_recipe("mlcf"))
    made = steps(recipe)
    assert [row.name for row in rows(recipe)] == ["base, frozen", "+ LoRA", "+ levels", "+ slerp", "+ prompts, contrast"]
    assert [row.against for row in rows(recipe)] == [None, "base", "tuned", "levels", "slerp"]
    assert [s.tune for s in made] == ["head", "lora", "lora", "lora", "lora"]
    assert [s.fusion.levels for s in made] == [(12,), (12,), (3, 6, 9, 12), (3, 6, 9, 12), (3, 6, 9, 12)]
    assert [s.fusion.slerp for s in made] == [False, False, False, True, True]
    assert [s.texts.contrast > 0 for s in made] == [False, False, False, False, True]
    assert made[-1] == recipe
    # One budget: nothing else differs.
    assert len({(s.train.model_dump_json(), s.augment.model_dump_json(), s.image.model_dump_json()) for s in made}) == 1


def test_from_random_weights_there_is_nothing_to_freeze():
    recipe = build_recipe(ClipLoraRecipe, read_recipe("tiny"))
    assert [row.name for row in rows(recipe)] == ["base, all learned", "+ levels", "+ slerp", "+ prompts, contrast"]
    assert {s.tune for s in steps(recipe)} == {"full"}


def test_a_recipe_without_components_is_refused():
    bare = ["tune=head", "fusion.levels=[12]", "fusion.slerp=false", "texts.contrast=0"]
    with pytest.raises(UsageError, match="none of the components"):
        rows(build_recipe(ClipLoraRecipe, parse_assignments(bare)))


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A dataset, its split, and a recipe that trains in no time."""
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    made = make_contest(tmp_path / "data", per_class=10, tests=2, size=(32, 32))
    (tmp_path / "clip.json").write_text(json.dumps(CLIP))
    torch.manual_seed(3)
    save_file(build_clip(Architecture(CLIP), 32).state_dict(), tmp_path / "clip.safetensors")
    assignments = [f"backbone.name={tmp_path / 'clip.json'}", f"backbone.weights={tmp_path / 'clip.safetensors'}", "image.size=32"]
    assignments += ["fusion.levels=[1,2]", "train.epochs=1", "train.batch_size=14", "images_per_class=2"]
    catalog = Catalog.read(made.root)
    return made.root, catalog, make_split(catalog), build_recipe(ClipLoraRecipe, parse_assignments(assignments))


def trained(monkeypatch) -> list[str]:
    """Names of the runs that are trained from now on."""
    seen = []
    original = ablation.train_run

    def count(catalog, split, recipe, run, **more):
        seen.append(run.name)
        return original(catalog, split, recipe, run, **more)

    monkeypatch.setattr(ablation, "train_run", count)
    return seen


def test_a_table_is_finished_by_the_same_command_and_grows_with_seeds(setting, tmp_path, monkeypatch):
    root, catalog, split, recipe = setting
    table = [row for row in rows(recipe) if row.key in ("base", "tuned")]
    names = trained(monkeypatch)
    first = run_ablation("mlcf", catalog, split, table, recipe, root, seeds=1, precision="fp32").rows
    assert names == ["base-seed0", "tuned-seed0"]
    folder = tmp_path / "runs" / "ablations" / "mlcf"
    (folder / "tuned-seed0" / MANIFEST).unlink()  # as if its training had been killed
    names.clear()
    again = run_ablation("mlcf", catalog, split, table, recipe, root, seeds=2, precision="fp32").rows
    assert names == ["tuned-seed0", "base-seed1", "tuned-seed1"]
    assert {s.row.key: list(s.spread.values()) == [0.0] * len(s.spread) for s in first} == {"base": True, "tuned": True}
    document = json.loads((folder / "table.json").read_text())
    assert [len(row["runs"]) for row in document["rows"]] == [2, 2] and document["split"] == "test"
    assert document["rows"][0]["parameters"] < document["rows"][1]["parameters"]
    with open(folder / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["row"] for line in lines} == {"base, frozen", "+ LoRA"}
    assert float(lines[0]["value"]) == pytest.approx(again[0].scores["accuracy"].value, abs=1e-4)


def test_scores_of_a_row_are_means_and_changes_are_their_differences(setting, monkeypatch):
    root, catalog, split, recipe = setting
    table = [row for row in rows(recipe) if row.key in ("base", "tuned")]
    for split_name in ("queries", "val"):
        base, tuned = run_ablation("mlcf", catalog, split, table, recipe, root, seeds=2, split=split_name, precision="fp32").rows
        assert base.change == {}
        for name, change in tuned.change.items():
            assert change.value == pytest.approx(tuned.scores[name].value - base.scores[name].value)
            assert change.low <= change.value + 1e-9 and change.value <= change.high + 1e-9
        assert base.p == {} and set(tuned.p) == set(tuned.change) and all(0 < p <= 1 for p in tuned.p.values())
    kept = [json.loads((run.path("embeddings", "test", "manifest.json")).read_text())["images"] for run in base.runs]
    assert kept == [14, 14]
    predicted = [np.load(run.path("embeddings", "test", "probabilities.npy")).argmax(1) for run in tuned.runs]
    truth = np.repeat([catalog.taxonomy.index(c) for c in sorted(catalog.taxonomy.names)], 2)  # names of test images sort by class
    again = run_ablation("mlcf", catalog, split, table, recipe, root, seeds=2, split="queries", precision="fp32").rows[1]
    assert again.scores["accuracy"].value == pytest.approx(np.mean([(p == truth).mean() for p in predicted]))
    assert again.spread["accuracy"] == pytest.approx(np.std([(p == truth).mean() for p in predicted], ddof=1))
    groups = scored_subset(catalog, split, root, "queries", None).groups
    before = [np.load(run.path("embeddings", "test", "probabilities.npy")).argmax(1) for run in base.runs]
    of_rows = [averaged([mean_score(p == truth, groups) for p in own]) for own in (predicted, before)]
    assert again.p["accuracy"] == pytest.approx(permutation_test(*of_rows))  # of one row there is nothing to correct


def test_runs_of_other_settings_are_named_and_kept(setting, tmp_path):
    root, catalog, split, recipe = setting
    table = rows(recipe)[:1]
    run_ablation("mlcf", catalog, split, table, recipe, root, seeds=1)
    other = build_recipe(ClipLoraRecipe, recipe.model_dump(), {"train": {"epochs": 2}})
    with pytest.raises(RunError, match="started with other settings") as caught:
        run_ablation("mlcf", catalog, split, table, other, root, seeds=1)
    assert list(caught.value.faults) == ["base-seed0: other settings"]
    with pytest.raises(RunError, match="started with other settings") as caught:
        run_ablation("mlcf", catalog, make_split(catalog, seed=1), table, recipe, root, seeds=1)
    assert "another split" in caught.value.faults[0]
    found = run_ablation("mlcf", catalog, split, table, other, root, seeds=1, overwrite=True).rows
    assert found[0].runs[0].complete


def test_what_cannot_be_scored_is_told_before_anything_is_trained(setting, monkeypatch):
    root, catalog, split, recipe = setting
    names = trained(monkeypatch)
    with pytest.raises(UsageError, match="Nothing can be scored"):
        run_ablation("mlcf", catalog, split, rows(recipe), recipe, root, split="train")
    with pytest.raises(RunError, match="empty"):
        run_ablation("mlcf", catalog, make_split(catalog, ratios=(80, 20, 0)), rows(recipe), recipe, root)
    assert not names


def test_a_training_that_never_began_forbids_no_other_settings(setting, tmp_path):
    root, catalog, split, recipe = setting
    table = rows(recipe)[:1]
    without = build_recipe(ClipLoraRecipe, recipe.model_dump(), {"backbone": {"weights": str(tmp_path / "nowhere.safetensors")}})
    with pytest.raises(RunError, match="No such weights file"):
        run_ablation("mlcf", catalog, split, table, without, root, seeds=1)
    found = run_ablation("mlcf", catalog, split, table, recipe, root, seeds=1, precision="fp32").rows
    document = json.loads((tmp_path / "runs" / "ablations" / "mlcf" / "table.json").read_text())
    # What `--run` takes, and no place of this machine.
    (written,) = [run["run"] for row in document["rows"] for run in row["runs"]]
    assert written == "ablations/mlcf/base-seed0" and open_run(written).folder == found[0].runs[0].folder


def test_a_recipe_that_learns_a_head_alone_has_a_frozen_base():
    bare = build_recipe(ClipLoraRecipe, parse_assignments(["tune=head"]))
    assert [row.name for row in rows(bare)] == ["base, frozen", "+ levels", "+ slerp", "+ prompts, contrast"]


# ---------------------------------------------------------------- over folds


def test_over_folds_every_image_is_scored_by_a_model_that_left_it_out(setting, tmp_path, monkeypatch):
    root, catalog, _, recipe = setting
    split = make_split(catalog, folds=5)
    table = [row for row in rows(recipe) if row.key in ("base", "tuned")]
    names = trained(monkeypatch)
    how = {"seeds": 1, "precision": "fp32"}
    base, tuned = run_ablation("mlcf", catalog, split, table, recipe, root, folds=2, **how).rows
    assert names == ["base-fold0-seed0", "tuned-fold0-seed0", "base-fold1-seed0", "tuned-fold1-seed0"]
    truth, hits = dict(zip(catalog.images, catalog.targets)), []
    for fold, run in enumerate(tuned.runs):
        assert run.manifest["split"]["fold"] == fold
        seen = read_embeddings(run, "split-test")
        assert set(seen.items.image) == set(split.images("test", fold))
        hits.append([p == truth[image] for p, image in zip(seen.probabilities.argmax(1), seen.items.image)])
    assert tuned.scores["accuracy"].value == pytest.approx(np.mean(np.concatenate(hits)))
    assert [v["accuracy"] for v in tuned.values] == pytest.approx([np.mean(h) for h in hits])
    assert tuned.spread["accuracy"] == pytest.approx(np.std([np.mean(h) for h in hits], ddof=1))
    assert tuned.change["accuracy"].value == pytest.approx(tuned.scores["accuracy"].value - base.scores["accuracy"].value)
    document = json.loads((tmp_path / "runs" / "ablations" / "mlcf" / "table.json").read_text())
    assert document["folds"] == 2 and document["images"] == len(np.concatenate(hits))
    # One more fold adds to what is there.
    names.clear()
    run_ablation("mlcf", catalog, split, table[:1], recipe, root, folds=3, **how)
    assert names == ["base-fold2-seed0"]


def test_folds_that_cannot_be_scored_are_refused_before_training(setting):
    root, catalog, split, recipe = setting
    table, folded = rows(recipe)[:1], make_split(catalog, folds=3)
    wrong = [(split, {"folds": 2}), (folded, {"folds": 4}), (folded, {"folds": 2, "fold": 1}), (folded, {"folds": 2, "split": "queries"})]
    for given, more in wrong:
        with pytest.raises(UsageError, match="[Ff]old"):
            run_ablation("mlcf", catalog, given, table, recipe, root, **more)


def test_a_row_that_refines_trains_nothing_and_is_scored_on_what_is_there(setting, monkeypatch):
    root, catalog, _, recipe = setting
    split, base = make_split(catalog, ratios=(60, 20, 20)), rows(recipe)[0]
    refined = Row("refine", "expanded", [], against="base", refine=("qe", "whiten"))
    names = trained(monkeypatch)
    found = run_ablation("mlcf", catalog, split, [base, refined], recipe, root, seeds=1, precision="fp32").rows
    assert names == ["base-seed0"] and [run.name for run in found[1].runs] == ["base-seed0"]
    assert found[1].scores["accuracy"] == found[0].scores["accuracy"]
    run = found[0].runs[0]
    model, part = load_model(run), catalog.subset(split.images("test"))
    refinement = select(run, model, (catalog, split), refine=refined.refine).refinement.value
    scores = score_subset(part, subset_embeddings(run, model, part, catalog), refinement=refinement)
    assert found[1].scores["image Recall@1, class"].value == scores.retrieval["class, refined"].means["recall@1"].value
