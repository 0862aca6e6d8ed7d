"""The keys of a recipe: all there are, which mechanism has them, and what is said of a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kyomei.config.mechanisms import DEFAULT, SETTINGS
from kyomei.errors import RecipeError

MECHANISM = "mechanism"
MOVED = {
    "mechanism.l0": "mechanism.penalty",
    "mechanism.l1": "mechanism.penalty",
    "mechanism.highest_frequency": "mechanism.frequency",
}
"""Where a setting is now that had another name, or had it for another mechanism as well."""


class Setting(NamedTuple):
    """One key of a recipe.

    Attributes:
        key: dotted, such as "train.steps".
        field: its type, default and description.
        mechanisms: names of those that have it; empty: it does not depend on the mechanism.
    """

    key: str
    field: FieldInfo
    mechanisms: tuple[str, ...] = ()


def settings_of(recipe: type[BaseModel]) -> list[Setting]:
    """Every setting of a recipe, of all mechanisms, in the order of its sections."""
    found: list[Setting] = []
    for name, field in recipe.model_fields.items():
        if name == MECHANISM:
            found += _of_mechanisms()
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += [Setting(f"{name}.{key}", inner) for key, inner in field.annotation.model_fields.items()]
        else:
            found.append(Setting(name, field))
    return found


def _of_mechanisms() -> Iterator[Setting]:
    keys = dict.fromkeys(key for settings in SETTINGS.values() for key in settings.model_fields)
    for key in keys:
        having = {name: settings.model_fields[key] for name, settings in SETTINGS.items() if key in settings.model_fields}
        everyones = len(having) == len(SETTINGS)
        yield Setting(f"{MECHANISM}.{key}", next(iter(having.values())), () if everyones else tuple(having))


def unknown_key(key: str, recipe: type[BaseModel], mechanism: str = DEFAULT) -> RecipeError:
    """What is said of a key that a recipe with this mechanism does not have: whose it is, its new place, or the nearest."""
    known = {setting.key: setting for setting in settings_of(recipe)}
    moved = MOVED.get(key)
    if moved is not None and (key not in known or mechanism in known[moved].mechanisms):
        of = ", ".join(known[moved].mechanisms)
        return RecipeError("a key of the recipe", f"the old key '{key}'", f"it is '{moved}' now, a setting of {of}")
    if key in known:
        whose = ", ".join(known[key].mechanisms)
        found = f"'{key}', which is a setting of {whose}; this recipe has {mechanism}"
        return RecipeError(f"settings of {mechanism}", found, f"leave '{key}' out, or choose another mechanism.name")
    last = key.rsplit(".", 1)[-1]
    here = [name for name, setting in known.items() if not setting.mechanisms or mechanism in setting.mechanisms]
    by_last = {name.rsplit(".", 1)[-1]: name for name in here}
    near = difflib.get_close_matches(key, here, n=1) or [
        by_last[match] for match in difflib.get_close_matches(last, by_last, n=1, cutoff=0.5)
    ]
    do = f"did you mean '{near[0]}'" if near else "`kyomei recipe` lists all keys"
    return RecipeError("a key of the recipe", f"unknown key '{key}'", do)


def explain(error: ValidationError, recipe: type[BaseModel], values: dict[str, Any]) -> RecipeError:
    """The first fault of a recipe's values in a user's words."""
    first = error.errors()[0]
    place = list(first["loc"])
    section = values.get(MECHANISM)
    mechanism = section.get("name", DEFAULT) if isinstance(section, dict) else DEFAULT
    if place[:1] == [MECHANISM] and len(place) > 1:
        del place[1]  # the name by which pydantic chose the settings is no part of the key
    key = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        return unknown_key(key, recipe, mechanism)
    if first["type"] == "union_tag_invalid":
        return RecipeError(f"'{key}.name': one of {', '.join(SETTINGS)}", f"{mechanism!r}", f"correct {key}.name")
    message = first["msg"].removeprefix("Value error, ")
    found = f"{first['input']!r}" if key and not isinstance(first["input"], dict) else "a contradiction"
    return RecipeError(f"'{key}': {message}" if key else message, found, f"correct {key or 'the recipe'}")
