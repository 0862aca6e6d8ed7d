"""The explorer's pages as files: vendored libraries are what they claim to be; everything is said in both languages."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kyomei.views.strings import LANGUAGES, STRINGS, catalogue

WEB = Path(__file__).parents[2] / "src" / "kyomei" / "views" / "web"
LIBRARIES: list[dict[str, Any]] = json.loads((WEB / "vendor.json").read_text())["libraries"]
REPORT_STAGE = WEB.parents[1] / "stages" / "report.py"
MODULES = sorted([*WEB.glob("*.js"), *WEB.glob("pages/*.js")])
FOREIGN = re.compile(r"""(?:https?:)?//[\w.-]+\.\w+""")
# Keys that are put together from data, such as the names of statuses.
MADE = re.compile(r"""\bt\(`([\w.]*)\$\{|\b(?:named\(|family=)"(\w+)\"""")
SAID = re.compile(r"""\b(?:t|rich)\("([\w.]+)\"""")
MADE_BY_VIEWS = re.compile(r"""\bf"([a-z_]+\.[a-z_.]*)\{|\bnamed\(\s*"([\w.]+)\"""")
KEY_LIKE = re.compile(r'"([a-z_]+\.[a-z_.]+)"')


def beginnings_in(text: str) -> list[str]:
    """Beginnings of keys that are put together while the page runs."""
    return [beginning or f"{family}." for beginning, family in MADE.findall(text)]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: f"{library['name']} {library['file']}")
def test_a_vendored_file_has_its_checksum_and_its_licence(library: dict[str, Any]) -> None:
    assert hashlib.sha256((WEB / library["file"]).read_bytes()).hexdigest() == library["sha256"]
    assert (WEB / library["licence_file"]).read_text().strip()
    assert library["version"] and library["licence"]


def test_every_vendored_file_is_named() -> None:
    named = {library["file"] for library in LIBRARIES} | {library["licence_file"] for library in LIBRARIES}
    assert {f"vendor/{path.name}" for path in (WEB / "vendor").iterdir()} == named


def test_both_languages_have_every_string_and_the_same_places_in_it() -> None:
    for key, said in STRINGS.items():
        assert len(said) == len(LANGUAGES) and all(text.strip() for text in said), key
        english, japanese = (set(re.findall(r"\{\w+\}", text)) for text in said)
        assert english == japanese, key


def test_pages_say_nothing_that_is_not_in_the_catalogue() -> None:
    known = set(catalogue("en"))
    for module in MODULES:
        text = module.read_text(encoding="utf-8")
        for key in SAID.findall(text):
            assert key in known, f"{module.name}: {key}"
        for beginning in beginnings_in(text):
            assert any(key.startswith(beginning) for key in known), f"{module.name}: {beginning}…"
        beginnings = {key.split(".")[0] for key in known}
        for key in KEY_LIKE.findall(text):
            assert key in known or key.split(".")[0] not in beginnings, f"{module.name}: {key}"


def test_the_catalogue_says_nothing_that_no_page_says() -> None:
    views = WEB.parent
    pages = "\n".join(module.read_text(encoding="utf-8") for module in (*MODULES, *views.glob("*.py"), REPORT_STAGE))
    made = {*beginnings_in(pages), *(beginning or f"{family}." for beginning, family in MADE_BY_VIEWS.findall(pages))}
    for key in json.loads((views / "strings.json").read_text(encoding="utf-8")):
        assert f'"{key}"' in pages or any(key.startswith(beginning) for beginning in made), key
    templates = "\n".join(path.read_text(encoding="utf-8") for path in views.glob("templates/*.j2"))
    made |= {*re.findall(r"""["']([a-z_]+\.)["'] ~""", templates)}
    made |= {f"{family}." for family in re.findall(r"""\|named\("(\w+)"\)""", templates)}
    for key in json.loads((views / "strings_report.json").read_text(encoding="utf-8")):
        said = re.search(rf"""["']{re.escape(key)}["']""", pages + templates)
        assert said or any(key.startswith(beginning) for beginning in made), key


def test_pages_ask_nobody_else_and_never_read_text_as_markup() -> None:
    for path in [*MODULES, WEB / "index.html", WEB / "style.css"]:
        text = path.read_text(encoding="utf-8")
        assert not FOREIGN.findall(text), path.name
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"):
            assert way not in text, f"{path.name}: {way}"


def test_the_page_has_no_script_or_style_that_its_policy_would_refuse() -> None:
    text = (WEB / "index.html").read_text(encoding="utf-8")
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
    assert "<style" not in text and "style=" not in text and not re.search(r"\son\w+=", text)
