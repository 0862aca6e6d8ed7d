"""A family of recipes: several values of some settings, in every combination, on one harvest."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from kyomei.config import Recipe
from kyomei.config.keys import settings_of
from kyomei.errors import RecipeError

SITES = "source.sites"
_FIRST = (SITES, "mechanism.name", "dictionary.width", "dictionary.l0")
"""Settings in the order in which a member's name has them; others follow as they are given."""


@dataclass(frozen=True)
class Family:
    """One recipe, or all combinations of several values of some of its settings.

    Attributes:
        base: the recipe, with the first value of each of these settings. Its sites are all sites: they are harvested together.
        varied: several values by dotted key; empty, and one site: the family is the one recipe.
    """

    base: Recipe
    varied: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def updated(self, dotted: Mapping[str, Any]) -> Family:
        """The same with some settings replaced; a list, where a setting takes one value, gives several.

        Raises:
            RecipeError: a setting of the harvest has several values, or a member is no valid recipe.
        """
        one, varied = dict(dotted), {key: values for key, values in self.varied.items() if key not in dotted}
        for key, value in dotted.items():
            if isinstance(value, list) and not _takes_list(key):
                if not value:
                    raise RecipeError(f"a value of {key}", "an empty list", "give one or more values")
                if key.startswith("source."):
                    do = "harvest once for each, and train from each harvest with --from"
                    raise RecipeError(f"one value of {key}, since members of a family share a harvest", f"{value}", do)
                one[key] = value[0]
                values = tuple(v for number, v in enumerate(value) if v not in value[:number])
                varied.update({key: values} if len(values) > 1 else {})
        if isinstance(one.get(SITES), list):
            one[SITES] = list(dict.fromkeys(one[SITES]))
        family = Family(self.base.with_values(one), varied)
        family.members()  # a combination that is no recipe is refused before anything is done
        return family

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """What differs between members, sites included; empty for one recipe."""
        sites = self.base.source.sites
        axes = {**({SITES: sites} if len(sites) > 1 else {}), **self.varied}
        return {key: axes[key] for key in sorted(axes, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))}

    def members(self) -> dict[str, Recipe]:
        """Each member's recipe by its name, such as "topk_width-512"; the one recipe has an empty name."""
        axes, found = self.axes, dict[str, Recipe]()
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            recipe = self.base.with_values({key: [value] if key == SITES else value for key, value in chosen.items()})
            found["_".join(_part(key, value) for key, value in chosen.items())] = recipe
        if len(found) < len(list(itertools.product(*axes.values()))):
            listed = ", ".join(found)
            raise RecipeError("members with names of their own", f"two of one name among {listed}", "train them apart")
        return found

    def only(self) -> Recipe:
        """The one recipe.

        Raises:
            RecipeError: there are several.
        """
        if self.varied:
            key, values = next(iter(self.varied.items()))
            raise RecipeError(f"one value of {key} here", ", ".join(map(str, values)), "give one of them")
        return self.base


def _takes_list(key: str) -> bool:
    """Whether a setting's own value is a list."""
    annotations = (setting.field.annotation for setting in settings_of(Recipe) if setting.key == key)
    return any(tuple in (get_origin(kind), *map(get_origin, get_args(kind))) for kind in annotations)


def _part(key: str, value: Any) -> str:
    """A value as a part of a folder's name; sites and mechanisms speak for themselves."""
    shown = re.sub(r"[^\w.+-]+", "-", f"{value:g}" if isinstance(value, float) else str(value))
    return shown if key in (SITES, "mechanism.name") else f"{key.rsplit('.', 1)[-1].replace('_', '-')}-{shown}"
