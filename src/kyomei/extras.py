"""What Kyomei can do with packages that it does not need: one table of the extras, and one hint where one is missing."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

from kyomei.errors import KyomeiError


@dataclass(frozen=True)
class Extra:
    """Packages that one kind of use needs.

    Attributes:
        use: what a user does with them, as a noun phrase.
        modules: names that they are imported by.
        instead: what can be done without them, as an imperative; none: nothing.
    """

    use: str
    modules: tuple[str, ...]
    instead: str | None = None


EXTRAS = {
    "explore": Extra("the explorer: `kyomei explore`, `index` and `label`", ("duckdb", "openTSNE", "fastapi", "uvicorn")),
    "goals": Extra("the search for a goal's features: `kyomei goals`", ("sklearn",)),
    "figures": Extra("figures in files of their own: `kyomei reproduce`, and `kyomei compare --out`", ("matplotlib",)),
    "datasets": Extra("text from data sets of the hub: `--text datasets:NAME`", ("datasets",), "save the text as .jsonl"),
    "gguf": Extra("language models in .gguf files", ("gguf", "accelerate")),
    "devices": Extra("a language model that is larger than one GPU: `source.devices=all`", ("accelerate",)),
    "pdf": Extra("printing reports: `kyomei report --pdf`", ("playwright",), "print the page from a browser"),
    "tensorboard": Extra("events of a training in TensorBoard", ("tensorboard",)),
    "watch": Extra("figures for Prometheus: `kyomei watch --prometheus`", ("prometheus_client",), "leave --prometheus out"),
    "wandb": Extra("events of a training in Weights & Biases", ("wandb",)),
}
"""By the name that pip knows an extra by; `pyproject.toml` says the same of their packages."""


def absent(extra: str) -> list[str]:
    """Modules of an extra that are not installed, in the table's order."""
    return [module for module in EXTRAS[extra].modules if not _is_installed(module)]


def installation(extra: str) -> str:
    """What to do about a missing extra, as an imperative."""
    return f"run `pip install 'kyomei[{extra}]'`"


def require(extra: str, kind: type[KyomeiError] = KyomeiError) -> None:
    """Refuse to go on without an extra, before any time is spent.

    Args:
        extra: its name in the table.
        kind: of the error.

    Raises:
        KyomeiError: of that kind; a package of the extra is not installed.
    """
    missing = absent(extra)
    if missing:
        wanted, instead = EXTRAS[extra], EXTRAS[extra].instead
        found = " and ".join(f"no {module}" for module in missing)
        do = installation(extra) + (f", or {instead}" if instead else "")
        raise kind(f"the packages for {wanted.use}", found, do)


def _is_installed(module: str) -> bool:
    # A module that is loaded is there, whatever its origin says; one that is barred stands as None.
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
