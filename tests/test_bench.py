"""Measurements are not run by tests; that what they ask of the package is there, is."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(path for folder in ("bench", "tools") for path in (Path(__file__).parents[1] / folder).rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_a_script_takes_from_the_package_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kyomei":
            module = importlib.import_module(str(node.module))
            for each in node.names:
                if not hasattr(module, each.name):
                    importlib.import_module(f"{node.module}.{each.name}")


@pytest.mark.parametrize("script", ["default", "frontier"])
def test_the_tables_of_what_is_on_record_are_printed(script: str) -> None:
    command = [sys.executable, str(SCRIPTS[0].parents[1] / "bench" / f"{script}.py"), "table"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout.splitlines()
    assert len({line.count(" | ") for line in printed if not line.startswith("|---")}) == 1
    # Random weights predict nothing that silencing the site could cost.
    assert any("embedded-2-768-random | default" in line and " – " in line for line in printed)
