"""Which images belong together: `groups.csv`, and pictures that show the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrep_cli.data.groups import clusters_of, joined_names, read_groups
from entrep_cli.errors import DataError


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


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20))
def test_clusters_against_a_plain_closure(pairs):
    names = [f"{i:02}" for i in range(13)]
    sets = [{name} for name in names]
    for a, b in pairs:
        one, two = (next(s for s in sets if names[i] in s) for i in (a, b))
        if one is not two:
            sets.remove(two)
            one |= two
    wanted = sorted(tuple(sorted(s)) for s in sets if len(s) > 1)
    touched = [c for c in clusters_of(names, pairs) if len(c) > 1]
    assert sorted(touched) == wanted and touched == sorted(touched)


def test_a_long_chain_is_one_set():
    pairs = [(f"{i:05}", f"{i - 1:05}") for i in range(5000, 0, -1)]
    assert joined_names(pairs) == {f"{i:05}": "00000" for i in range(5001)}


def test_a_set_has_the_least_of_its_names():
    order = {"c": 0, "b": 1, "a": 2, "e": 3, "d": 4}
    pairs = [("a", "b"), ("d", "e"), ("b", "c"), ("e", "e"), ("f", "f")]
    assert joined_names(pairs, order=order.get) == {**dict.fromkeys("abc", "c"), **dict.fromkeys("de", "e")}
    assert joined_names([]) == {}
