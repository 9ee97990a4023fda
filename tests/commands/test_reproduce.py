"""A paper's work from one command: its tables beside ours, and what is said where nothing can be run."""

from __future__ import annotations

import csv
import json

from entrep_cli.workspace import Run

RECIPE = """
method = "hybrid"
threshold = "tune"

[prototype.backbone]
weights = "clip-lora"

[baseline]
recipe = "dinov2-tiny"
settings = { image = { size = 32 }, backbone = { name = "test_resnet" }, train = { epochs = 2 } }

[experts]
views = 1
image = { size = 32 }
backbone = { name = "test_resnet", weights = "baseline" }
train = { epochs = 2 }
"""


def test_everything_from_an_unsplit_dataset_to_the_tables(trained_clip, entrep, tmp_path):
    fresh, recipe = trained_clip, tmp_path / "hybrid.toml"
    recipe.write_text(RECIPE)
    for file in ("split.csv", "split.json"):
        (fresh / file).unlink()
    done = entrep("reproduce", "foregut", "--recipe", recipe, "--precision", "fp32", "--json")
    assert done.code == 0, done.err
    found = done.json
    run = Run(fresh / "foregut")
    assert run.complete and (fresh / "split.csv").is_file()
    assert [t["table"] for t in found["tables"]] == list(range(4, 14))
    ours = found["ours"]
    assert json.loads(run.path("paper", "test.json").read_text())["tables"] == ours["tables"]
    assert run.path("paper", "test-map.png").stat().st_size > 10_000
    # What stands in the tables is what the scores say, and the stages are of all images.
    assert ours["tables"]["9"]["hybrid"]["accuracy"] == ours["classes"]["hybrid"]["accuracy"]["value"]
    assert ours["tables"]["8"]["accuracy"]["precision"] == ours["classes"]["hybrid"]["accuracy"]["value"]
    assert ours["tables"]["7"]["macro average"]["support"] == found["images"] == ours["stages"][-1]["images"]
    assert sum(row["images"] for row in ours["stages"][:-1]) == found["images"]
    assert ours["stages"][-1]["right"] == round(ours["classes"]["hybrid"]["accuracy"]["value"] * found["images"])
    rows = {row[0]: row[1:] for row in found["tables"][5]["rows"]}
    assert rows["hybrid"][0] == "0.9409" and rows["hybrid"][1] == f"{ours['tables']['9']['hybrid']['accuracy']:.4f}"
    assert all(cell == "not run" for table in found["tables"][7:] for row in table["rows"] for cell in row[2::2])
    # A class's rate of the hybrid at region level cannot be below that at class level.
    assert ours["regions"]["hybrid"]["accuracy"]["value"] >= ours["classes"]["hybrid"]["accuracy"]["value"]

    stages = entrep("evaluate", "--run", "foregut", "--json").json["stages"]
    assert stages == ours["stages"]
    predicted = entrep("predict", "--track", 1, "--run", "foregut", "--json").json
    assert predicted["stages"][-1]["images"] == predicted["queries"] == 42
    with open(run.path("submissions", "track1-stages.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 42 and {row["out of distribution"] for row in rows} == {"0"}
    nested = entrep("embed", "--run", "foregut/baseline")
    assert nested.code == 0 and "--run foregut/baseline" in nested.err

    again = entrep("reproduce", "foregut", "--recipe", recipe, "--json")
    assert again.json["tables"] == found["tables"] and "Training" not in again.err
    other = entrep("reproduce", "foregut", "--recipe", recipe, "--set", "abstain=0.5")
    assert other.code == 1 and "other settings" in other.err
    queries = entrep("reproduce", "foregut", "--run", "foregut", "--split", "queries", "--json")
    assert queries.json["images"] == 42 and run.path("paper", "queries.json").is_file()


def test_without_the_pretrained_weights_the_tables_say_so(fresh, entrep, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    done = entrep("reproduce", "foregut", "--json")
    assert done.code == 0 and done.json["run"] is None and done.json["ours"] is None
    assert all(cell in ("not run", "") for table in done.json["tables"] for row in table["rows"] for cell in row[2::2])
    assert "Nothing was trained" in done.err and "hf download" in done.err
    assert not (fresh / "foregut").exists()


def test_what_cannot_be_reproduced_is_refused(trained, entrep):
    for arguments, said in (
        (["mlcf"], "No paper named 'mlcf'"),
        (["foregut", "--run", "dinov2"], "not of hybrid"),
        (["foregut", "--run", "x", "--seed", "1"], "one or the other"),
        (["foregut", "--split", "train"], "Nothing can be scored"),
    ):
        done = entrep("reproduce", *arguments)
        assert done.code == 2 and said in done.err


def test_the_test_folder_is_a_part_to_evaluate(trained, phantom, entrep):
    by_part = entrep("evaluate", "--split", "queries", "--json").json["classification"]
    assert entrep("predict", "--track", 1).code == 0
    given = ["--submission", trained / "dinov2" / "submissions" / "track1.zip", "--truth", phantom / "test" / "truth_cls.json"]
    by_file = entrep("evaluate", *given, "--track", 1, "--json").json["classification"]
    assert by_part["accuracy"] == by_file["accuracy"] and by_part["confusion"] == by_file["confusion"]
