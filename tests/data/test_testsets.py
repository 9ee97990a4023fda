"""Folders of test images, and what `--queries` may name."""

from __future__ import annotations

import pytest

from entrep_cli.data.testsets import lies_alone, named_test_set, only_test_set
from entrep_cli.errors import DataError
from tests.tiny import make_contest


def test_the_only_test_folder(tmp_path):
    made = make_contest(tmp_path / "data", per_class=1, tests=1)
    assert only_test_set(made.root).folder == made.test
    for name in ("one", "two"):
        make_contest(tmp_path / "both" / name, per_class=1, tests=1)
    with pytest.raises(DataError, match="2 test folders") as caught:
        only_test_set(tmp_path / "both")
    assert len(caught.value.faults) == 2
    with pytest.raises(DataError, match="no test folder"):
        only_test_set(made.train)


def test_what_queries_may_name(tmp_path):
    made = make_contest(tmp_path / "data", per_class=1, tests=1)
    images = {path.name for path in (made.test / "imgs").iterdir()}
    for place in (made.test, made.test / "imgs", made.test / "i2i.csv"):
        assert set(named_test_set(place).images) == images
    alone = tmp_path / "mine" / "q.csv"
    alone.parent.mkdir()
    alone.write_text("a\n")
    assert lies_alone(alone) and not lies_alone(made.test / "cls.csv") and not lies_alone(made.test / "imgs" / "new.csv")
    assert set(named_test_set(alone, made.root).images) == images
    for place, said in (
        (alone, "No images"),
        (tmp_path / "gone.csv", "No such folder"),
        (made.image("test_throat_000.png"), "An image is no"),
    ):
        with pytest.raises(DataError, match=said):
            named_test_set(place)
