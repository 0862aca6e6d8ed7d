"""One spelling of everything that a reader meets: in the catalogue, in what code says itself, and in the documentation."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyomei.evidence.intervals import as_percent
from kyomei.views.strings import LANGUAGES, catalogue

ROOT = Path(__file__).parents[2]
SHARES = {"en": r"[\d}]%", "ja": "[0-9}] %|\uff05"}
"""English writes "62 %", Japanese "62%"."""
SECOND = {
    "en": [
        SHARES["en"],
        "’",
        r"\brollout",
        r"(?i)\b(?!\w*(?:siz|priz|seiz))\w+iz(?:e|es|ed|ing|ation)\b",
        r"(?i)colou?r(?<!colour)",
    ],
    "ja": [
        SHARES["ja"],
        "閾値",
        "下さい",
        "レプリカ",
        "(?<![ァ-ヶー])ラン(?![ァ-ヶー])",
        r"[\d}]–",
        "[\uff10-\uff19\uff5e]",
        "[エデ]ンコーダー|フォルダー",
        r"[ぁ-んァ-ヶ一-龠][(),!?]",
    ],
}
"""What is spelt in another way than everywhere else, by language; what stands between backticks is left out."""
COMMANDS = re.compile(r"```.*?```|`[^`]*`|<!--.*?-->|\]\([^)]*\)", re.DOTALL)


def seconds(text: str, language: str, patterns: list[str] | None = None) -> list[str]:
    """Second spellings in a text, each with what is around it."""
    prose = COMMANDS.sub("_", text)
    found = [match for each in patterns or SECOND[language] for match in re.finditer(each, prose)]
    return [prose[max(0, match.start() - 30) : match.end() + 20] for match in found]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_catalogue_has_one_spelling(language: str) -> None:
    # Of the catalogue alone: on pages what follows such a sign may be an element of its own.
    patterns = [*SECOND[language], "[\uff08\uff09\uff1a、。] "]
    assert {key: found for key, said in catalogue(language).items() if (found := seconds(said, language, patterns))} == {}


def said_by(path: Path) -> Iterator[str]:
    """The strings of a module that are no docstrings, and formats that end in a percent sign of their own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield re.sub(r"\{[^{}]*%\}", "7%", node.value)
        elif isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            yield "".join(f"7{part.value[-1:]}" for part in node.format_spec.values if isinstance(part, ast.Constant))  # type: ignore[attr-defined]


def test_code_writes_shares_as_the_catalogue_does() -> None:
    modules = [path for path in (ROOT / "src").rglob("*.py") if "embedded" not in path.parts]
    assert {
        str(path): found for path in modules for said in said_by(path) if (found := seconds(said, "en", [SHARES["en"]]))
    } == {}
    assert [as_percent(0.62), as_percent(0.003, 1)] == ["62 %", "0.3 %"]


def test_the_documentation_writes_shares_as_pages_do() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    assert len(pages) > 40
    for page in pages:
        language = "ja" if "ja" in page.parts or ".ja." in page.name else "en"
        assert seconds(page.read_text("utf-8"), language, [SHARES[language]]) == [], page
