"""Truth files, and the test images that they label."""

from __future__ import annotations

import json

import pytest

from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.data.testsets import only_test_set
from entrep_cli.errors import DataError
from entrep_cli.evaluation.truth import labelled_test, read_truth
from tests.tiny import make_contest


@pytest.mark.parametrize(
    "content, said",
    [
        ("[1]", "not an object"),
        ("{}", "empty"),
        ("{", "not valid JSON"),
        ('{"a": "x", "a": "y"}', "stands twice"),
        ('{"a": 1.0}', "'a': 1.0"),
        ('{"a": true}', "'a': True"),
        ('{"a": ["x"], "b": null}', "'b': None"),
    ],
)
def test_a_truth_file_that_is_none(tmp_path, content, said):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_truth(tmp_path / "t.json")
    assert any(said in fault for fault in caught.value.faults)


def test_no_truth_file(tmp_path):
    with pytest.raises(DataError, match="No truth file"):
        read_truth(tmp_path / "t.json")


def test_test_images_without_a_truth_are_counted_aloud(tmp_path, capsys):
    made = make_contest(tmp_path / "data", per_class=2, tests=2)
    assert len(labelled_test(only_test_set(made.root), Taxonomy.entrep())) == len(made.test_labels)
    assert "left out" not in capsys.readouterr().err
    known = dict(list(made.test_labels.items())[3:])
    (made.test / "truth_cls.json").write_text(json.dumps(known))
    part = labelled_test(only_test_set(made.root), Taxonomy.entrep())
    assert dict(zip(part.images, part.frame["label"])) == known
    assert f"3 of {len(made.test_labels)} test images are not in truth_cls.json" in capsys.readouterr().err
