"""Command-line options that are settings of the recipe: one table, and the recipe's own words as help.

Help has to be quick, so types, defaults and descriptions are read from the recipe's source: importing it needs pydantic. A test
compares them with the recipe itself.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from kyomei.errors import RecipeError

if TYPE_CHECKING:
    from kyomei.config import Recipe
    from kyomei.config.family import Family

OPTIONS = {
    "model": "source.model",
    "text": "source.text",
    "skip_bad_records": "source.skip_bad_records",
    "site": "source.sites",
    "tokens": "source.num_tokens",
    "width": "dictionary.width",
    "l0": "dictionary.l0",
    "mechanism": "mechanism.name",
    "steps": "train.steps",
    "seed": "seed",
    "device": "device",
    "dtype": "dtype",
}
"""The setting that each option gives a value to."""
SEVERAL = ("width", "l0", "mechanism")
"""Options that may be given several times: one run for each combination."""
SECTIONS = {
    "source": "SourceRecipe",
    "resonance": "ResonanceRecipe",
    "dictionary": "DictionaryRecipe",
    "mechanism": "MechanismSettings",
    "train": "TrainRecipe",
    "goals": "GoalsRecipe",
    "verdict": "VerdictRecipe",
    "": "Recipe",
}
"""The class of each section; the recipe's own settings are in none."""
TYPES = {"bool": bool, "int": int, "float": float, "str": str, "tuple": list[str], "Literal": str}


class Field(NamedTuple):
    """A setting as its source says it."""

    type: Any
    default: Any
    help: str


@functools.cache
def declared() -> dict[str, Field]:
    """Every setting that can be an option, by its dotted key, from the recipe's source."""
    names = {name: section for section, name in SECTIONS.items()}
    fields: dict[str, Field] = {}
    for path in sorted((Path(__file__).parent / "config").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name in names:
                section = names[node.name]
                fields |= {f"{section}.{key}".lstrip("."): field for key, field in _of_class(node)}
    return fields


def _of_class(node: ast.ClassDef) -> list[tuple[str, Field]]:
    """Annotated attributes of a class that a docstring follows."""
    found = []
    for line, after in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(after, ast.Expr)):
            continue
        names = [part.id for part in ast.walk(line.annotation) if isinstance(part, ast.Name)]
        if isinstance(after.value, ast.Constant) and "ClassVar" not in names:
            kind = next((TYPES[name] for name in names if name in TYPES), None)
            found.append((line.target.id, Field(kind, _default(line.value), inspect.cleandoc(str(after.value.value)))))
    return found


def _default(value: ast.expr | None) -> Any:
    """The value itself, or the first argument of `Field(…)`; none where it is no plain value."""
    first = value.args[0] if isinstance(value, ast.Call) and value.args else value
    try:
        return None if first is None else ast.literal_eval(first)
    except ValueError:
        return None


def option(name: str) -> Any:
    """The annotation of a verb's parameter that is an option of the table."""
    field = declared()[OPTIONS[name]]
    shown = field.default if field.default not in (None, (), False) else False
    kind = list[field.type] if name in SEVERAL else field.type  # type: ignore[name-defined]
    words = " ".join(field.help.split()) + (" Repeatable." if kind != field.type or kind == list[str] else "")
    info = typer.Option(f"--{name.replace('_', '-')}", help=words, show_default=shown if shown is False else str(shown))
    return Annotated[kind | None, info]


RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML file, as `kyomei recipe` writes.", show_default=False)]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Any setting, such as train.batch_rows=512. Repeatable.")]


@dataclass(frozen=True)
class Asked:
    """What a verb's options ask of the recipe.

    Attributes:
        file: a recipe.
        settings: what --set was given.
        options: values of named options by their dotted key, those that were given.
    """

    file: Path | None
    settings: list[str]
    options: dict[str, Any]

    def says_at_most(self, *keys: str) -> bool:
        """Whether nothing but some settings, or nothing at all, is given."""
        return self.file is None and not self.settings and self.options.keys() <= set(keys)

    def recipe(self, stored: Recipe | None = None) -> Recipe:
        """The file's recipe, then --set, then the named options.

        Args:
            stored: the recipe of a run that goes on: options build on it where no file is given; none: there is none.

        Raises:
            RecipeError: a setting is wrong, or has several values.
        """
        from kyomei.config.family import Family

        return self.family(None if stored is None else Family(stored)).only()

    def family(self, stored: Family | None = None) -> Family:
        """The same where a setting may have several values.

        Args:
            stored: of the run that goes on.
        """
        from kyomei.config import Recipe
        from kyomei.config.family import Family

        known = Family(Recipe.read(self.file)) if self.file is not None else stored or Family(Recipe())
        return known.updated({**self._settings(), **self.options})

    def dotted(self) -> dict[str, Any]:
        """All that is given, by file, --set or an option, by dotted key.

        Raises:
            RecipeError: a setting is wrong, or has several values.
        """
        from kyomei.config import Recipe

        recipe = self.recipe().model_dump(mode="json")
        by_file = {} if self.file is None else Recipe.read(self.file).model_dump(exclude_unset=True)
        keys = [f"{name}.{key}" for name, section in by_file.items() if isinstance(section, dict) for key in section]
        keys += [name for name, value in by_file.items() if not isinstance(value, dict)]
        return {key: functools.reduce(lambda at, name: at[name], key.split("."), recipe) for key in (*keys, *self.given())}

    def source(self) -> set[str]:
        """Names of the settings of the source that are given, by file, --set or an option."""
        from kyomei.config import Recipe

        by_file = set() if self.file is None else Recipe.read(self.file).source.model_fields_set
        return by_file | {key.removeprefix("source.") for key in self.given() if key.startswith("source.")}

    def given(self) -> list[str]:
        """Settings that --set or an option names, by dotted key."""
        return [*self._settings(), *self.options]

    def _settings(self) -> dict[str, Any]:
        """What --set was given, by dotted key."""
        import yaml

        dotted: dict[str, Any] = {}
        for setting in self.settings:
            key, separator, value = setting.partition("=")
            if not separator:
                raise RecipeError("key=value after --set", f"'{setting}'", "write for instance --set train.steps=500")
            dotted[key] = yaml.safe_load(value)
        return dotted


def recipe_options(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb all options of the recipe in place of its parameter `asked: Asked`.

    Args:
        left_out: names of options that say nothing there.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        names = [name for name in OPTIONS if name not in left_out]
        added = {"recipe": RecipeFile, **{name: option(name) for name in names}, "settings": Settings}

        @functools.wraps(verb)
        def called(**given: Any) -> None:
            values = {name: given.pop(name) for name in added}
            options = {OPTIONS[name]: values[name] for name in names if values[name] not in (None, [])}
            verb(asked=Asked(values["recipe"], values["settings"] or [], options), **given)

        parameters: list[inspect.Parameter] = []
        # Not get_type_hints: Python 3.10's wraps what defaults to None in an Optional, where nobody looks for the option.
        for parameter in inspect.signature(verb, eval_str=True).parameters.values():
            if parameter.name == "asked":
                kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
                parameters += [inspect.Parameter(name, kind, default=None, annotation=hint) for name, hint in added.items()]
            else:
                parameters.append(parameter)
        del called.__wrapped__
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
        return called

    return decorate
