"""The recipe: one strict description of a run."""

from __future__ import annotations

import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from kyomei.atomic import write_atomic
from kyomei.config.keys import explain, settings_of, unknown_key
from kyomei.config.mechanisms import (
    DEFAULT,
    SETTINGS,
    AdaptingSettings,
    AnyMechanism,
    BASettings,
    BatchTopKSettings,
    GatedSettings,
    GBASettings,
    JumpReLUSettings,
    L1Settings,
    MatryoshkaSettings,
    MechanismSettings,
    SelectionSettings,
    TopKSettings,
)
from kyomei.config.sections import (
    DictionaryRecipe,
    GoalsRecipe,
    ResonanceRecipe,
    Section,
    SourceRecipe,
    TrainRecipe,
    VerdictRecipe,
)
from kyomei.errors import RecipeError

__all__ = [
    "SETTINGS",
    "AdaptingSettings",
    "BASettings",
    "BatchTopKSettings",
    "DictionaryRecipe",
    "GBASettings",
    "GatedSettings",
    "GoalsRecipe",
    "JumpReLUSettings",
    "L1Settings",
    "MatryoshkaSettings",
    "MechanismSettings",
    "Recipe",
    "ResonanceRecipe",
    "Section",
    "SelectionSettings",
    "SourceRecipe",
    "TopKSettings",
    "TrainRecipe",
    "VerdictRecipe",
]


class Recipe(Section):
    """One strict description of a run; without arguments it suits any data.

        Recipe.of({"seed": 1, "train.steps": 5000, "mechanism": {"name": "topk", "k": 16}})

    `kyomei recipe` says what each setting does and what its default is.

    Raises:
        RecipeError: from `of`, `parse`, `read` and `with_values`, with the key, what was expected and the nearest right key.
    """

    seed: int = Field(0, ge=0)
    """Seed from which every random draw derives."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where tensors live: auto, cpu, cuda or mps."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision of training: float32, float64 or bfloat16."""
    source: SourceRecipe = SourceRecipe()
    resonance: ResonanceRecipe = ResonanceRecipe()
    dictionary: DictionaryRecipe = DictionaryRecipe()
    mechanism: AnyMechanism = GBASettings()
    train: TrainRecipe = TrainRecipe()
    goals: GoalsRecipe = GoalsRecipe()
    verdict: VerdictRecipe = VerdictRecipe()

    @field_validator("mechanism", mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return {"name": DEFAULT, **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _frequencies_and_groups(self) -> Recipe:
        for p in self.resonance.frequencies:
            if not 0 < p < 1:
                raise ValueError(f"resonance.frequencies must lie in (0, 1), found {p}")
        if self.dictionary.width is not None:
            self.mechanism.check_width(self.dictionary.width)
        if self.dictionary.unit_rows and self.source.streamed_tokens:
            raise ValueError("dictionary.unit_rows asks for stored rows; set source.streamed_tokens to 0")
        return self

    @property
    def search(self) -> ResonanceRecipe:
        """How directions are found for this recipe's dictionary: no more than it has room for, unless asked."""
        return self.resonance.model_copy(update={"enough": self.resonance.enough or self.dictionary.width})

    @property
    def sha256(self) -> str:
        """Digest of every setting that a dictionary depends on, in hexadecimal: equal for equal recipes."""
        learnt = self.model_dump(mode="json", exclude={"verdict": True, "source": {"text_licence", "model_licence", "store"}})
        return hashlib.sha256(json.dumps(learnt, sort_keys=True).encode()).hexdigest()

    @classmethod
    def of(cls, asked: Recipe | Mapping[str, Any] | None) -> Recipe:
        """A recipe as it is; the default one with some settings, nested or by dotted keys; or the default one."""
        if isinstance(asked, Recipe):
            return asked
        if not isinstance(asked, Mapping | None):
            raise RecipeError("a Recipe or a dict of settings", type(asked).__name__, 'pass for instance {"train.steps": 500}')
        return cls().with_values(dict(_dotted(asked or {})))

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Recipe:
        """A recipe from nested plain values."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise explain(error, cls, values) from error

    @classmethod
    def read(cls, path: Path | str) -> Recipe:
        """A recipe from a YAML file."""
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RecipeError("a recipe file", f"nothing at {path}", "check the path") from error
        except yaml.YAMLError as error:
            raise RecipeError("YAML", f"{path}: {error}", "correct the file's syntax") from error
        if not isinstance(values, dict | None):
            raise RecipeError("a mapping of sections", f"{type(values).__name__} in {path}", "write `section: {key: value}`")
        return cls.parse(values or {})

    def to_yaml(self) -> str:
        """The recipe with every default filled in."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    def write(self, path: Path | str) -> None:
        """Write the recipe, with every default filled in, as a YAML file."""
        write_atomic(path, self.to_yaml().encode())

    def with_values(self, dotted: dict[str, Any]) -> Recipe:
        """A copy in which dotted keys such as "train.steps" are replaced, validated anew.

        Where "mechanism.name" changes, settings that the other mechanism does not have are left out.
        """
        values = self.model_dump(mode="json")
        named = SETTINGS.get(dotted.get("mechanism.name", self.mechanism.name))
        if named is not None:
            values["mechanism"] = {key: value for key, value in values["mechanism"].items() if key in named.model_fields}
        for key, value in dotted.items():
            *sections, last = key.split(".")
            target = values
            for section in sections:
                if not isinstance(target.get(section), dict):
                    raise unknown_key(key, Recipe)
                target = target[section]
            target[last] = value
        return Recipe.parse(values)


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _described() -> str:
    """The recipe's docstring with the names of all settings, by section."""
    by_section: dict[str, list[str]] = {}
    for setting in settings_of(Recipe):
        section, _, name = setting.key.rpartition(".")
        by_section.setdefault(section, []).append(name)
    lines = [
        textwrap.fill(f"{section}: {', '.join(names)}" if section else ", ".join(names), 112, subsequent_indent="    ")
        for section, names in by_section.items()
    ]
    return inspect.cleandoc(Recipe.__doc__ or "") + "\n\nSettings:\n" + textwrap.indent("\n".join(lines), "    ")


Recipe.__doc__ = _described()
Recipe.__signature__ = inspect.Signature(  # the whole of every default would fill the screen
    [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in Recipe.model_fields]
)
