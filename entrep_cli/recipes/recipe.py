"""A recipe is the typed configuration of one training: defaults, then a TOML file, then `--set`.

Sections are pydantic models that live beside the code which reads them; a method composes them into
its own `Recipe`. The effective recipe is saved as `config.toml` in the run, and can be given back
with `--recipe runs/NAME/config.toml`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from entrep_cli.errors import UsageError


class Section(BaseModel):
    """A section of a recipe: typed and immutable; unknown keys and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Recipe(Section):
    """What every recipe has; methods add their sections.

    Attributes:
        seed: seed of all random numbers of the training.
    """

    method: str
    seed: int = 0


R = TypeVar("R", bound=Recipe)


def recipe_names() -> list[str]:
    """The built-in recipes, by name."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The raw table of a built-in recipe (by name) or of a TOML file (by path)."""
    path = Path(__file__).parent / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"No recipe named {name!r}.",
            hint=f"{_nearest(name, recipe_names())}choose one of {', '.join(recipe_names())}, or give a TOML file",
        )
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The recipe is not valid TOML: {error}.", where=path) from error
    except OSError as error:
        raise UsageError(f"The recipe cannot be read: {error.strerror}.", where=path) from error


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["head.dropout=0.5"]` as a nested table; values are TOML, anything else is a string.

    Raises:
        UsageError: an assignment without `=`; every faulty one is listed.
    """
    table: dict[str, Any] = {}
    faults = []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            faults.append(f"{assignment!r} is not key=value")
            continue
        try:
            lines = tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            lines = {}
        parsed = lines["value"] if len(lines) == 1 else value.strip()
        *sections, last = key.strip().split(".")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                faults.append(f"{key.strip()!r}: {section!r} is set to a value as well")
                break
        else:
            place[last] = parsed
    if faults:
        raise UsageError("--set takes key=value.", faults=faults, hint="for example --set head.dropout=0.5")
    return table


def build_recipe(kind: type[R], *tables: dict[str, Any]) -> R:
    """Check and build a recipe from tables, later ones over earlier ones.

    Raises:
        UsageError: unknown keys (with the nearest known one) and wrong values, all at once.
    """
    # The method's own defaults lie under the tables: a section given incompletely keeps its other defaults.
    merged = kind().model_dump()
    for table in tables:
        merged = _merge(merged, table)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        faults = [_fault(kind, item) for item in error.errors()]
        raise UsageError(
            "The recipe has settings that do not hold.",
            faults=faults,
            hint=f"`entrep train {kind.model_fields['method'].default} --show-recipe` lists every key",
        ) from error


def recipe_toml(recipe: Recipe) -> str:
    """The whole recipe as TOML, defaults included; None is left out, as TOML has no null."""
    import tomli_w

    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _known_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in kind.model_fields.items():
        inner = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        keys += _known_keys(inner[0], f"{prefix}{name}.") if inner else [prefix + name]
    return keys


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    # A bare "dropout" means "head.dropout": try the whole key first, then its last component.
    match = difflib.get_close_matches(name, known, 1) or [
        key for key in known if difflib.get_close_matches(name.split(".")[-1], [key.split(".")[-1]], 1)
    ]
    return f"did you mean {match[0]!r}? " if match else ""


def _fault(kind: type[BaseModel], item: Any) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        if isinstance(item["input"], dict) and item["input"]:  # a whole section: its first key tells more
            key += f".{next(iter(item['input']))}"
        return f"Unknown key: {key!r}; {_nearest(key, _known_keys(kind))}".rstrip("; ")
    if item["type"] in ("model_type", "model_attributes_type"):
        inner = next((known for known in _known_keys(kind) if known.startswith(f"{key}.")), f"{key}.KEY")
        return f"{key} = {item['input']!r:.60}: {key!r} is a section; set its keys, as in {inner}"
    return f"{key} = {item['input']!r:.60}: {item['msg']}"


def short_settings(
    *,
    backbone: str | None = None,
    weights: str | None = None,
    tune: str | None = None,
    label_fraction: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """The settings of a recipe that have options of their own, as a table over it."""
    backbone_table = {key: value for key, value in (("name", backbone), ("weights", weights)) if value is not None}
    return {
        **({"backbone": backbone_table} if backbone_table else {}),
        **({} if epochs is None else {"train": {"epochs": epochs}}),
        **{key: value for key, value in (("seed", seed), ("tune", tune), ("label_fraction", label_fraction)) if value is not None},
    }
