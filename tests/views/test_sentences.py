"""What errors, premises and verdicts say in English has its sentence in the catalogue, so that pages can say it in Japanese."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyomei.views.strings import STRINGS

SOURCE = Path(__file__).parents[2] / "src" / "kyomei"
ERRORS = {"DataError", "RunError", "ModelError", "NotReady", "Missing", "Busy", "refusal", "Reason", "_premise"}
SAID_ON_PAGES = [
    *(f"views/server/{name}.py" for name in ("acting", "answers", "guard", "reading", "shelf")),
    *(f"views/{name}.py" for name in ("live", "interventions", "labels", "comparison")),
    "source/masking.py",
    "evidence/verdict.py",
    "evidence/check/premises.py",
]
PATTERNS = [
    re.compile("(.+?)".join(map(re.escape, re.split(r"\{\d\}", key.removeprefix("said.")))), re.DOTALL)
    for key in STRINGS
    if key.startswith("said.")
]


def texts(node: ast.expr, assigned: dict[str, list[ast.expr]]) -> Iterator[str]:
    """What an expression may say, with 7 for whatever is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "7" for part in node.values)  # type: ignore[misc]
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body, assigned)
        yield from texts(node.orelse, assigned)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from (f"{first}7" for first in texts(node.left, assigned))
    elif isinstance(node, ast.Name):
        for value in assigned.get(node.id, ()):
            yield from texts(value, {})


def said_in(path: Path) -> Iterator[str]:
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assigned: dict[str, list[ast.expr]] = {}
        for each in ast.walk(function):
            if isinstance(each, ast.Assign):
                for target in each.targets:
                    pairs = [(target, each.value)]
                    if isinstance(target, ast.Tuple) and isinstance(each.value, ast.Tuple):
                        pairs = list(zip(target.elts, each.value.elts, strict=True))
                    for name, value in pairs:
                        assigned.setdefault(getattr(name, "id", ""), []).append(value)
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ERRORS:
                for argument in call.args:
                    yield from texts(argument, assigned)


@pytest.mark.parametrize("name", SAID_ON_PAGES)
def test_every_sentence_is_in_the_catalogue(name: str) -> None:
    missing = []
    for text in set(said_in(SOURCE / name)):
        # One word, as the name of a premise or the side of a reason, and what is only put in, is no sentence.
        if " " not in text or not re.search("[a-z]{2}", text) or text in PREMISES:
            continue
        if not any(pattern.fullmatch(text) for pattern in PATTERNS):
            missing.append(text)
    assert not missing


PREMISES = {key.removeprefix("premise.").replace("_", " ") for key in STRINGS if key.startswith("premise.")} | {
    key.removeprefix("reason.").replace("_", " ") for key in STRINGS if key.startswith("reason.")
}


def test_no_sentence_stands_for_everything() -> None:
    """A sentence that is almost nothing but a place to fill in would swallow others."""
    for key in STRINGS:
        if key.startswith("said.") and "{1}" in key:
            assert len(re.sub(r"\{\d\}|\W", "", key.removeprefix("said."))) >= 3 or key in ("said.{1}: {2}",), key
