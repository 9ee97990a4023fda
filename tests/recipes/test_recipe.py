from __future__ import annotations

import tomllib
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from entrep_cli.errors import UsageError
from entrep_cli.methods import METHODS, method_class
from entrep_cli.recipes.recipe import Recipe, Section, build_recipe, parse_assignments, read_recipe, recipe_names, recipe_toml


class Head(Section):
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    sizes: tuple[int, ...] = (256, 128)


class Small(Recipe):
    method: Literal["small"] = "small"
    rate: float = 1e-3
    name: str = "x"
    deep: bool = False
    limit: int | None = None
    head: Head = Head()


def faults(*assignments: str) -> list[str]:
    with pytest.raises(UsageError) as error:
        build_recipe(Small, parse_assignments(assignments))
    return list(error.value.faults)


# ---------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("rate=0.5", {"rate": 0.5}),
        ("rate=1e-4", {"rate": 1e-4}),
        (" head.dropout = 0.1", {"head": {"dropout": 0.1}}),
        ("head.sizes=[1, 2]", {"head": {"sizes": [1, 2]}}),
        ("deep=true", {"deep": True}),
        ("name=vit_small.lvd142m", {"name": "vit_small.lvd142m"}),
        ('name="1e-4"', {"name": "1e-4"}),
        ("name=a=b", {"name": "a=b"}),
        ("name=C:\\weights\\x", {"name": "C:\\weights\\x"}),
        ("name=", {"name": ""}),
        ("name=1\nmethod=2", {"name": "1\nmethod=2"}),
    ],
)
def test_assignments(assignment, value):
    assert parse_assignments([assignment]) == value


def test_assignments_join_and_the_last_one_counts():
    assert parse_assignments(["head.dropout=0.1", "seed=1", "head.sizes=[3]", "seed=2"]) == {
        "head": {"dropout": 0.1, "sizes": [3]},
        "seed": 2,
    }


def test_every_faulty_assignment_is_listed():
    with pytest.raises(UsageError) as error:
        parse_assignments(["rate", "=3", "seed=1", "seed.x=2"])
    assert list(error.value.faults) == ["'rate' is not key=value", "'=3' is not key=value", "'seed.x': 'seed' is set to a value as well"]
    assert error.value.exit_code == 2


# ---------------------------------------------------------------- building


def test_later_tables_win_section_by_section():
    built = build_recipe(Small, {"rate": 1, "head": {"dropout": 0.1, "sizes": [8]}}, {"head": {"dropout": 0.2}}, {})
    assert built == Small(rate=1, head=Head(dropout=0.2, sizes=(8,)))


def test_every_fault_is_listed_with_the_nearest_key():
    found = faults(
        "hed.dropout=0.1", "dropout=0.1", "head.sices=[1]", "zebra=1", "rate=fast", "head.dropout=1.0", "seed=1.5", "method=mics"
    )
    assert sorted(found) == sorted(
        [
            "Unknown key: 'hed.dropout'; did you mean 'head.dropout'?",
            "Unknown key: 'dropout'; did you mean 'head.dropout'?",
            "Unknown key: 'head.sices'; did you mean 'head.sizes'?",
            "Unknown key: 'zebra'",
            "rate = 'fast': Input should be a valid number, unable to parse string as a number",
            "head.dropout = 1.0: Input should be less than 1",
            "seed = 1.5: Input should be a valid integer, got a number with a fractional part",
            "method = 'mics': Input should be 'small'",
        ]
    )


def test_a_value_for_a_section_and_numbers_that_are_none():
    assert faults("head=3") == ["head = 3: 'head' is a section; set its keys, as in head.dropout"]
    assert faults("rate=nan", "head.dropout=inf") == [
        "rate = nan: Input should be a finite number",
        "head.dropout = inf: Input should be a finite number",
    ]


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError):
        Small().seed = 3


# ---------------------------------------------------------------- files

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    recipe=st.builds(
        Small,
        seed=st.integers(0, 2**31),
        rate=NUMBERS,
        name=st.text(st.characters(exclude_categories=["Cs"])),
        deep=st.booleans(),
        limit=st.none() | st.integers(0, 9),
        head=st.builds(Head, dropout=st.floats(0, 1, exclude_max=True), sizes=st.lists(st.integers(-9, 9)).map(tuple)),
    )
)
def test_a_recipe_survives_its_file(recipe):
    assert build_recipe(Small, tomllib.loads(recipe_toml(recipe))) == recipe


def test_the_built_in_recipes_are_valid_and_survive_their_files():
    assert recipe_names()
    for name in recipe_names():
        table = read_recipe(name)
        built = build_recipe(method_class(table["method"]).Recipe, table)
        assert build_recipe(type(built), tomllib.loads(recipe_toml(built))) == built, name
    assert {read_recipe(name)["method"] for name in recipe_names()} <= set(METHODS)


def test_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "mine.toml").write_text("\ufeffseed = 3\n", "utf-8")
    assert read_recipe(str(tmp_path / "mine.toml")) == {"seed": 3}


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"seed = 1\nseed = 2\n"])
def test_a_broken_file_says_where(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not valid TOML") as error:
        read_recipe(str(path))
    assert error.value.where == str(path)


def test_no_such_recipe(tmp_path):
    known = recipe_names()[0]
    with pytest.raises(UsageError) as error:
        read_recipe(known + "x")
    assert f"did you mean {known!r}?" in error.value.hint and ", ".join(recipe_names()) in error.value.hint
    for name in ("", str(tmp_path), "../recipe"):
        with pytest.raises(UsageError):
            read_recipe(name)
