"""What starts without a heavy library: help, split, validate, and evaluate of a submission (which draws, with matplotlib)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.tiny import ENTREP, make_contest

HEAVY = ("torch", "torchvision", "timm", "open_clip", "peft", "transformers", "sklearn", "pymilvus", "accelerate")
CHILD = f"""
import json, sys
from entrep_cli.app import main
loaded = {{}}
for line in json.loads(sys.argv[1]):
    try:
        main(line)
    except SystemExit as ended:
        loaded[" ".join(line[:2])] = [ended.code or 0, sorted(set({HEAVY!r}) & set(sys.modules))]
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> dict[str, list]:
    """By command: its exit code and what it, or one before it, has imported."""
    from entrep_cli.submission.tracks import write_submission

    folder = tmp_path_factory.mktemp("start")
    made = make_contest(folder / "data", per_class=5, tests=2)
    ids = {name: i for i, name in enumerate(ENTREP)}
    answers = {name: ids[label] for name, label in made.test_labels.items()}
    write_submission(folder / "track1.zip", 1, answers, [(name, 1, answer, 1.0) for name, answer in answers.items()])
    data, truth = ["--data", str(made.root)], str(made.test / "truth_cls.json")
    lines = [
        ["--help"],
        ["split", *data],
        ["validate", str(folder / "track1.zip"), "--track", "1", *data],
        ["evaluate", "--submission", str(folder / "track1.zip"), "--truth", truth, "--track", "1", *data],
    ]
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(lines)],
        capture_output=True,
        text=True,
        env={**os.environ, "ENTREP_RUNS": str(folder / "runs")},
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", ["--help", "split --data", "validate", "evaluate --submission"])
def test_it_imports_nothing_heavy(loaded, command):
    ((code, found),) = [value for line, value in loaded.items() if line.startswith(command)]
    assert code == 0 and found == []
