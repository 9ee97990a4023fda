"""What a dataset tells without an image being opened: test folders, groups, labels."""

from __future__ import annotations

import pytest

from entrep_cli.data.queries import known_images, lies_alone, named_test_set, only_test_set, read_groups
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
        (alone, "no images"),
        (tmp_path / "gone.csv", "no such folder"),
        (made.image("test_throat_000.png"), "An image is no"),
    ):
        with pytest.raises(DataError, match=said):
            named_test_set(place)


def test_groups(tmp_path):
    assert read_groups(tmp_path) == {}
    (tmp_path / "groups.csv").write_bytes("\ufeffImage;Group;note\r\na.png;1;x\r\n\r\nb.png;;\r\na.png;1;again\r\n".encode())
    assert read_groups(tmp_path) == {"a.png": "1"}


@pytest.mark.parametrize(
    "content, said, faults",
    [
        ("a.png,1\n", "needs a header", []),
        ("image,group\na,1\nb,2\na,2\nb,3\n", "cannot be used", ["line 4: 'a'", "line 5: 'b'"]),
        ("image,group\na,1,2\n", "cannot be used", ["groups.csv, line 2: 3 cells"]),
        ('image,group\n"a,1\n', "not valid CSV", []),
    ],
)
def test_groups_that_are_none(tmp_path, content, said, faults):
    (tmp_path / "groups.csv").write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        read_groups(tmp_path)
    assert len(caught.value.faults) == len(faults)
    assert all(fault.startswith(start) for fault, start in zip(caught.value.faults, faults))


def test_known_images(tmp_path):
    made = make_contest(tmp_path / "data", per_class=1, tests=1)
    (made.train / "imgs" / "new.png").write_bytes(b"")  # never opened
    images, taxonomy = known_images(made.root)
    assert images == made.labels | {"new.png": ""} and taxonomy.name == "entrep"
    assert known_images(made.test) == ({}, None)


@pytest.mark.parametrize("beside", ["", "train"])
def test_a_taxonomy_file_is_found_where_the_catalog_finds_it(tmp_path, beside):
    from entrep_cli.data.catalog import Catalog

    made = make_contest(tmp_path / "data", per_class=1, classes=["b", "a"])
    (made.root / beside / "taxonomy.toml").write_text('name = "mine"\n[[classes]]\nname = "b"\nid = 4\n[[classes]]\nname = "a"\nid = 7\n')
    _, taxonomy = known_images(made.root)
    assert taxonomy == Catalog.read(made.root).taxonomy and taxonomy.ids == [4, 7]
