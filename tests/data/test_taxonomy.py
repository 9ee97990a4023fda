from __future__ import annotations

import pytest

from entrep_cli.data.taxonomy import ClassInfo, Taxonomy, choose_taxonomy
from entrep_cli.errors import DataError, UsageError


def test_the_challenge_has_its_ids_regions_and_mirrors():
    entrep = Taxonomy.entrep()
    assert dict(zip(entrep.names, entrep.ids)) == {
        "nose-right": 0, "nose-left": 1, "ear-right": 2, "ear-left": 3, "vc-open": 4, "vc-closed": 5, "throat": 6,
    }  # fmt: skip
    assert entrep.regions == ["nose", "ear", "vc", "throat"]
    assert entrep.mirrors == [1, 0, 3, 2, 4, 5, 6]
    assert all(set(c.prompts) == {"en", "vi"} and all(c.prompts.values()) for c in entrep.classes)


def test_survives_its_own_form():
    for taxonomy in (Taxonomy.entrep(), Taxonomy.derive(["polyp-left", "polyp-right", "normal"])):
        assert Taxonomy.from_dict(taxonomy.as_dict()) == taxonomy


@pytest.mark.parametrize(
    ("labels", "mirrors"),
    [
        (["polyp", "ulcer"], ["polyp", "ulcer"]),
        (["ear-left", "ear-right", "throat"], ["ear-right", "ear-left", None]),
        (["EarLeft", "EarRight"], ["EarRight", "EarLeft"]),
        (["Left ear", "Right ear"], ["Right ear", "Left ear"]),
        (["LEFT", "RIGHT"], ["RIGHT", "LEFT"]),
        (["Left ear", "right ear"], [None, None]),
        (["ear_L", "ear_R"], ["ear_R", "ear_L"]),
        (["grade l", "grade m"], ["grade l", "grade m"]),
        (["tai phải", "tai trái"], ["tai trái", "tai phải"]),
        (["ear-left", "leftover"], [None, None]),
        (["bright", "leftover"], ["bright", "leftover"]),
    ],
)
def test_derived_mirrors(labels, mirrors):
    derived = Taxonomy.derive(labels)
    assert {c.name: c.mirror for c in derived.classes} == dict(zip(labels, mirrors))


def test_derived_ids_and_regions_follow_the_sorted_names():
    derived = Taxonomy.derive(["vc-open", "ear-wax", "vc-closed", "throat", "vc-open"])
    assert derived.names == ["ear-wax", "throat", "vc-closed", "vc-open"] and derived.ids == [0, 1, 2, 3]
    assert [c.region for c in derived.classes] == ["ear-wax", "throat", "vc", "vc"]


def test_choice(tmp_path):
    mostly = ["nose-left"] * 3 + ["throta"]
    assert choose_taxonomy(mostly).name == "entrep"
    assert choose_taxonomy(["polyp", "nose-left"]).names == ["nose-left", "polyp"]
    assert choose_taxonomy([]).name == "entrep"
    (tmp_path / "taxonomy.toml").write_text('\ufeffname = "mine"\n[[classes]]\nname = "a"\nid = 4\n', "utf-8")
    mine = choose_taxonomy(mostly, tmp_path)
    assert (mine.name, mine.names, mine.ids, mine.regions, mine.mirrors) == ("mine", ["a"], [4], ["a"], [-1])


GOOD = {"name": "a", "id": 0}


@pytest.mark.parametrize(
    ("table", "faults"),
    [
        ({}, ["it has no classes"]),
        ({"classes": 3}, ["classes must be tables, each under [[classes]]", "it has no classes"]),
        ({"classes": [1]}, ["classes must be tables, each under [[classes]]", "it has no classes"]),
        ({"clases": [], "classes": [GOOD]}, ["unknown key 'clases'"]),
        ({"classes": [GOOD, {"id": 1}]}, ["class number 2: name is missing"]),
        ({"classes": [{"name": "a"}]}, ["class 'a': needs a name and an id of 0 or more, has id None"]),
        ({"classes": [GOOD | {"id": True}]}, ["class 'a': needs a name and an id of 0 or more, has id True"]),
        ({"classes": [GOOD, GOOD | {"name": "b", "id": "1"}]}, ["class 'b': needs a name and an id of 0 or more, has id '1'"]),
        ({"classes": [GOOD, GOOD | {"name": "b", "id": [1]}]}, ["class 'b': needs a name and an id of 0 or more, has id [1]"]),
        ({"classes": [GOOD, GOOD]}, ["class name 'a' stands 2 times", "class id '0' stands 2 times"]),
        ({"classes": [GOOD | {"mirror": "b"}]}, ["class 'a': its mirror 'b' is no class"]),
        (
            {"classes": [GOOD | {"mirror": "b"}, {"name": "b", "id": 1, "mirror": "b"}]},
            ["class 'a': its mirror 'b' does not name it back"],
        ),
        ({"classes": [GOOD | {"mirror": ["a"]}]}, ["a: mirror must be a text, not ['a']", "class 'a': its mirror \"['a']\" is no class"]),
        (
            {"classes": [GOOD | {"colour": 1, "prompts": "x"}]},
            ["a: unknown key 'colour'", "a: prompts must be lists of texts by language, as in prompts.en"],
        ),
    ],
)
def test_every_fault_of_a_taxonomy_is_listed(table, faults):
    with pytest.raises(DataError) as error:
        Taxonomy.from_dict(table)
    assert list(error.value.faults) == faults


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe\x00", b"[[classes]]\nname = 'a'\nid = -1"])
def test_a_broken_file_says_where(tmp_path, content):
    path = tmp_path / "taxonomy.toml"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        Taxonomy.read(path)
    assert error.value.where == str(path)


def test_classes_stand_in_the_order_of_their_ids():
    assert Taxonomy("t", (ClassInfo("b", 5, "r"), ClassInfo("a", 9, "r"), ClassInfo("c", 0, "r"))).names == ["c", "b", "a"]
    assert Taxonomy.entrep().indices(["throat", "nose-right"]) == [6, 0]


def of(*rows: tuple[str, str, str | None]) -> Taxonomy:
    classes = (ClassInfo(name, 10 + i, region, mirror, {"en": (f"a {name}",)}) for i, (name, region, mirror) in enumerate(rows))
    return Taxonomy("t", tuple(classes))


def test_the_coarse_taxonomy_of_the_challenge():
    coarse = Taxonomy.entrep().of_target("region")
    assert (coarse.names, coarse.ids, coarse.regions) == (["nose", "ear", "vc", "throat"], [0, 1, 2, 3], ["nose", "ear", "vc", "throat"])
    assert coarse.mirrors == [0, 1, 2, 3]
    assert coarse.classes[1].prompts["en"][0] == "an endoscopic image of the right ear" and len(coarse.classes[1].prompts["vi"]) == 4
    assert Taxonomy.from_dict(coarse.as_dict()) == coarse
    assert Taxonomy.entrep().names_in_target("region")["vc-open"] == "vc"


@pytest.mark.parametrize(
    ("rows", "mirrors"),
    [
        ([("l", "a", "r"), ("r", "a", "l"), ("t", "b", "t")], ["a", "b"]),
        ([("l", "a", "r"), ("r", "b", "l")], ["b", "a"]),  # regions that are mirrors of each other
        ([("l", "a", "r"), ("x", "a", "x"), ("r", "b", "l")], [None, None]),  # a flip leaves the region, or does not
        ([("l", "a", None), ("r", "a", "r")], [None]),
        ([("l", "a", "r"), ("r", "b", "l"), ("y", "b", "z"), ("z", "c", "y")], [None, None, None]),
    ],
)
def test_mirrors_of_regions(rows, mirrors):
    assert [c.mirror for c in of(*rows).of_regions().classes] == mirrors


def test_the_classes_of_a_region_keep_ids_and_what_stays_inside():
    taxonomy = of(("l", "a", "r"), ("x", "a", "x"), ("n", "a", None), ("r", "b", "l"))
    own = taxonomy.of_target("a")
    assert (own.names, own.ids) == (["l", "x", "n"], [10, 11, 12]) and own.mirrors == [-1, 1, -1]
    assert taxonomy.names_in_target("a") == {"l": "l", "x": "x", "n": "n"}
    assert Taxonomy.entrep().of_region("ear").mirrors == [1, 0]
    assert taxonomy.of_target("class") is taxonomy and taxonomy.names_in_target("class") == {name: name for name in taxonomy.names}


@pytest.mark.parametrize(
    ("target", "why"),
    [("nosse", "No region named 'nosse'"), ("throat", "one class, 'throat'"), ("", "No region named ''"), ("ear-left", "No region")],
)
def test_a_target_that_is_none_says_why(target, why):
    with pytest.raises(UsageError, match=why) as caught:
        Taxonomy.entrep().of_target(target)
    assert "nose, ear, vc" in caught.value.hint


def test_one_region_alone_is_nothing_to_tell_apart():
    with pytest.raises(UsageError, match="one region, 'a'"):
        of(("l", "a", "r"), ("r", "a", "l")).of_target("region")
    with pytest.raises(UsageError, match="one class") as caught:
        Taxonomy.derive(["polyp", "ulcer"]).of_target("polyp")
    assert "none has several classes" in caught.value.hint
