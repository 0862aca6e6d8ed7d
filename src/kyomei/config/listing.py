"""The recipe to read and to edit: every setting with its default and its help."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml
from pydantic import BaseModel

from kyomei.config.keys import MECHANISM, settings_of
from kyomei.config.mechanisms import DEFAULT, MechanismSettings

LINE = 110


def settings_table(recipe: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Key, default and help of every setting; the help says whose a setting is that not every mechanism has."""
    rows = []
    for key, field, mechanisms in settings_of(recipe):
        default = DEFAULT if key == f"{MECHANISM}.name" else plain(field.get_default(call_default_factory=True))
        whose = f"{', '.join(mechanisms)}: " if mechanisms else ""
        rows.append((key, default, whose + help_of(key.rsplit(".", 1)[-1], field.description)))
    return rows


def commented(recipe: BaseModel) -> str:
    """A recipe in YAML, with its help in comments."""
    return "\n".join(["# A recipe of kyomei: kyomei train RUN --recipe FILE", *_lines(recipe)]) + "\n"


def _lines(section: BaseModel, indent: str = "") -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines += ["", *_comment(type(value).__doc__ or ""), f"{name}:", *_lines(value, "  ")]
        else:
            lines += [*_comment(help_of(name, field.description), indent), f"{indent}{name}: {plain(value)}"]
    return lines


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(" ".join(text.split()), LINE, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def plain(value: Any) -> str:
    """A value as YAML writes it on one line."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def help_of(name: str, description: str | None) -> str:
    """A setting's help on one line."""
    if name == "name":
        description = MechanismSettings.model_fields["name"].description
    return " ".join((description or "").split())
