"""The documentation holds: links lead somewhere, commands are tagged, quoted messages are those of the code, words agree."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from kyomei.cli import app

ROOT = Path(__file__).parents[1]
GUIDE = [*sorted((ROOT / "docs" / "guide").glob("*.md")), *sorted((ROOT / "docs" / "ja").glob("*.md")), ROOT / "README.ja.md"]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "README.ja.md"]
SHELL = re.compile(r"(?P<before>[^\n]*)\n```(?:sh|bash|shell|console)\n(?P<commands>.*?)```", re.DOTALL)
TAG = re.compile(r"<!-- (?:(?P<run>run)|run by: (?P<by>\S+)|not run: (?P<why>.+)) -->")


def blocks(page: Path) -> list[tuple[re.Match[str] | None, list[str]]]:
    """The tag of each shell block, and its commands."""
    found = SHELL.finditer(page.read_text(encoding="utf-8"))
    return [(TAG.fullmatch(block["before"].strip()), block["commands"].strip().splitlines()) for block in found]


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_says_whether_it_is_run(page: Path) -> None:
    for tag, commands in blocks(page):
        assert tag is not None, f"no tag before {commands[0]}"
        assert tag["by"] is None or (ROOT / tag["by"]).is_file(), tag["by"]


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_is_a_verb_with_its_options_and_those_to_run_run(page: Path, tmp_path: Path) -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for tag, commands in blocks(page):
        for command in commands:
            name, *words = shlex.split(command, comments=True)
            if name != "kyomei":
                continue
            options = {option for one in verbs[words[0]].params for option in (*one.opts, *one.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= options, command
            if tag is not None and tag["run"]:
                done = CliRunner().invoke(app, words)
                assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http:", "https:", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_messages_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `Expected ([^`]+)`", page, flags=re.MULTILINE)
    assert len(quoted) > 5
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    for message in quoted:
        for piece in filter(None, (part.strip() for part in message.split("…"))):
            assert piece in code, piece


def test_the_glossary_agrees_with_the_pages() -> None:
    strings = json.loads((ROOT / "src" / "kyomei" / "views" / "strings.json").read_text(encoding="utf-8"))
    glossary = (ROOT / "docs" / "guide" / "glossary.md").read_text(encoding="utf-8")
    for status in ("certified", "split", "merged", "unstable", "dead"):
        english, japanese = strings[f"status.{status}"]
        assert re.search(rf"^\| {english} \| {japanese} \|", glossary, flags=re.MULTILINE), status


@pytest.mark.slow
def test_the_site_is_built_strictly_and_fetches_nothing_when_it_is_read(tmp_path: Path) -> None:
    """`make test-all` builds it in any case; here where its packages are."""
    pytest.importorskip("mkdocs", reason="the documentation's packages come with kyomei[docs]: make docs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 15
    fetched = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="?(?:https?:)?//')
    for page in pages:
        assert not fetched.search(page.read_text(encoding="utf-8")), page
