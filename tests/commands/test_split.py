"""`entrep split`: what it takes, what it says, and what it leaves behind."""

from __future__ import annotations

import json
import shlex

import pytest

from entrep_cli.data.splits import read_catalog_and_split, split_path
from entrep_cli.workspace import new_run, runs_dir
from tests.tiny import make_contest


@pytest.fixture
def contest(tmp_path, monkeypatch):
    """84 images whose names end in `_NNN.png`; no groups."""
    made = make_contest(tmp_path / "my data", per_class=12, size=(8, 6))
    monkeypatch.setenv("ENTREP_DATA", str(made.root))
    return made.root


def complete(name: str, fingerprint: str | None) -> None:
    new_run("dinov2", name).mark_complete({"method": "dinov2", "split": {"fingerprint": fingerprint}})


def test_it_names_the_dataset_and_what_is_not_known_of_it(entrep, contest):
    said = entrep("split").err
    assert f"Dataset: {contest}\n" in said and "Note: no exam or patient is known of 84 of 84 labelled images" in said
    assert "no exam or patient" not in entrep("split", "--groups", "none").err
    assert "unknown groups" in entrep("inspect").out


def test_groups_by_a_pattern_stay_so(entrep, contest):
    pattern = r"^(.*_\d\d)\d\."  # ten images a group
    done = entrep("split", "--groups", pattern, "--small-to-train", "--json")
    assert done.code == 0 and done.json["groups"] == 14 and json.loads(split_path().with_suffix(".json").read_text())["groups"] == pattern
    catalog, split = read_catalog_and_split(contest)
    assert len({(group, split.assignment[image]) for image, group in zip(catalog.images, catalog.groups)}) == 14
    assert "unknown groups" not in entrep("inspect").out


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["--groups", "patient"], 2, "No way to group images is called 'patient'"),
        (["--groups", "("], 2, "no regular expression"),
        (["--groups", "(nothing)"], 1, "in none of 84 file names"),
        (["--folds", "5", "--ratios", "70/15/15"], 2, "give --folds or --ratios"),
        (["--folds", "5", "--ratios", "80/10/10"], 2, "give --folds or --ratios"),
        (["--ratios", ""], 2, "are not numbers"),
    ],
)
def test_wrong_usage(entrep, contest, line, code, said):
    done = entrep("split", *line)
    assert done.code == code and said in done.err and "hint: " in done.err and not split_path().exists()


def test_runs_of_the_previous_split_are_named_with_how_to_restore_it(entrep, contest):
    assert entrep("split", "--folds", 4, "--seed", 3).code == 0
    first = split_path().read_bytes()
    fingerprint = read_catalog_and_split(contest)[1].fingerprint
    for name in "abcdefg":
        complete(name, fingerprint)
    complete("older", "another")
    complete("without", None)
    (runs_dir() / "damaged").mkdir()
    (runs_dir() / "damaged" / "run.json").write_text("{")
    new_run("dinov2", "incomplete")
    assert "trained on" not in entrep("split", "--folds", 4, "--seed", 3).err  # the same parts
    said = " ".join(entrep("split", "--json").err.split())
    assert "Warning: 7 runs were trained on the previous split (a, b, c, d, e and 2 more)" in said
    (command,) = [part for part in said.split("`") if part.startswith("entrep split")]
    assert shlex.split(command) == ["entrep", "split", "--folds", "4", "--seed", "3", "--data", str(contest)]
    assert split_path().read_bytes() != first
    assert "trained on" not in entrep(*shlex.split(command)[1:]).err and split_path().read_bytes() == first
    split_path().with_suffix(".json").write_text("{}")  # damaged: there is no way back to tell
    assert entrep("split").code == 0
