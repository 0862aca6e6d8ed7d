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
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "README.ja.md"]
WITH_COMMANDS = [page for page in PAGES if "reproduced" not in page.parts]
"""Those of `docs/reproduced` are written by the command that they name."""
FENCED = re.compile(r"(?P<before>[^\n]*)\n```(?:sh|bash|shell|console)\n(?P<commands>.*?)```", re.DOTALL)
INDENTED = re.compile(r"(?P<before>[^\n]*)\n\n(?P<commands>(?: {4}[^\n]*\n)+)")
PROGRAM = re.compile(r" {4}(?:[A-Z_]+=\S+ )*(?:kyomei|make|pip|python3?|torchrun|jupyter|git|docker|apt-get|curl)\b")
TAG = re.compile(r"<!-- (?:(?P<run>run)|run by: (?P<by>\S+)|not run: (?P<why>.+)) -->")
WHOLE_PAGE = re.compile(r"^<!-- all commands of this page (not run: .+) -->$", re.MULTILINE)


def blocks(page: Path) -> list[tuple[re.Match[str] | None, list[str]]]:
    """The tag of each block of shell commands, fenced or indented, and its commands; a page may have one for all."""
    text = page.read_text(encoding="utf-8")
    unfenced = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = (block for block in INDENTED.finditer(unfenced) if PROGRAM.match(block["commands"]))
    whole = WHOLE_PAGE.search(text)
    found = []
    for block in (*FENCED.finditer(text), *indented):
        commands = block["commands"].replace("\\\n", " ").strip().splitlines()
        found.append((TAG.fullmatch(f"<!-- {whole[1]} -->" if whole else block["before"].strip()), commands))
    return found


def words(command: str) -> list[list[str]]:
    """The words of each command of a line."""
    found: list[list[str]] = [[]]
    for word in shlex.split(command, comments=True):
        if word in ("&&", "|", ";"):
            found.append([])
        elif found[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            found[-1].append(word)
    return [each[each.index("kyomei", 1) :] if "-m" in each and "kyomei" in each[1:] else each for each in found]


def misspelt(commands: list[str]) -> set[str]:
    """Options that no verb of ours has, of the commands that are ours."""
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    found: set[str] = set()
    for name, *rest in filter(None, (each for command in commands for each in words(command))):
        if name == "kyomei":
            options = {option for one in verbs[rest[0]].params for option in (*one.opts, *one.secondary_opts)}
            found |= {word for word in rest if word.startswith("--")} - options
    return found


def test_blocks_of_commands_are_found_however_they_are_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say\n\n    make demo    # all\n\n<!-- run -->\n\n"
        "    A=1 kyomei train R \\\n        --threads 1 && kyomei measure R --no-such\n"
        "\n<!-- not run: x -->\n```sh\ntorchrun --n 4 -m kyomei train R --mesh 2x2\n```\n\n    import kyomei\n"
    )
    found = [(tag and tag[0], commands) for tag, commands in blocks(page)]
    assert [tag for tag, _ in found] == ["<!-- not run: x -->", None, "<!-- run -->"]
    assert words(found[0][1][0]) == [["kyomei", "train", "R", "--mesh", "2x2"]]
    assert words(found[2][1][0])[1] == ["kyomei", "measure", "R", "--no-such"]
    assert misspelt(found[2][1]) == {"--no-such"} and not misspelt(found[0][1])


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_says_whether_it_is_run_is_a_verb_and_those_to_run_run(page: Path) -> None:
    for tag, commands in blocks(page):
        assert tag is not None, f"no tag before {commands[0]}"
        assert not misspelt(commands), commands
        test = (ROOT / tag["by"]).read_text(encoding="utf-8") if tag["by"] else ""
        for name, *rest in (each for command in commands for each in words(command) if tag["by"]):
            # Through the command line, or the function behind it.
            run = name != "kyomei" or re.search(rf"[\"']{rest[0]}[\"']|\b{rest[0]}\w*\(", test)
            assert run, f"{tag['by']} does not run {rest[0]}"
        for name, *rest in (each for command in commands for each in words(command) if tag["run"]):
            assert name == "kyomei", f"only our own verbs are run here, not {name}"
            done = CliRunner().invoke(app, rest)
            assert done.exit_code == 0, done.output


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_commands_of_notebooks_are_verbs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells for line in cell["source"] if line[:1] == "!"]
    assert lines and not misspelt([line[1:].replace("2>", "# ") for line in lines])


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


def test_the_link_check_finds_what_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text('<a href="sub/a.html#there">x</a> <a href="#no"> <a href="https://example.org/no">')
    links = '<a href="../index.html"> <img src="no.png"> <a href="../no.html#x">'
    (tmp_path / "sub" / "a.html").write_text(f'<h2 id="there">x</h2> {links}')
    command = [sys.executable, str(ROOT / "tools" / "links.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout.startswith("5 links within the site, 3 of them broken; 1 addresses")
    assert sorted(done.stderr.splitlines()) == ["index.html: #no", "sub/a.html: ../no.html#x", "sub/a.html: no.png"]


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
    links = [sys.executable, str(ROOT / "tools" / "links.py"), str(tmp_path / "site")]
    checked = subprocess.run(links, capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and " 0 of them broken" in checked.stdout, checked.stdout + checked.stderr
    fetched = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="?(?:https?:)?//')
    for page in pages:
        assert not fetched.search(page.read_text(encoding="utf-8")), page
