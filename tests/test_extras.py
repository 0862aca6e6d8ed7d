"""Every optional package is in the table of extras, and a verb that lacks one says which, in one line, before it works."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.errors import DataError, ModelError, RecipeError
from kyomei.extras import EXTRAS, absent, installation, require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {
    "pyyaml": "yaml",
    "opentsne": "openTSNE",
    "huggingface-hub": "huggingface_hub",
    "scikit-learn": "sklearn",
    "prometheus-client": "prometheus_client",
}
"""Modules of distributions that are named otherwise."""
COMES_WITH = {"fsspec": "torch", "markupsafe": "jinja2", "packaging": "transformers", "starlette": "fastapi", "triton": "torch"}
"""Modules that a package of ours brings, by what brings them."""


def modules_of(lines: list[str]) -> set[str]:
    names = [Requirement(line).name.lower() for line in lines]
    return {IMPORTED_AS.get(name, name) for name in names}


def imported(source: str) -> set[str]:
    """Top-level modules that a file imports, those by name included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            found |= {str(node.args[0].value)} if isinstance(node.args[0], ast.Constant) else set()
    return {name.partition(".")[0] for name in found}


def test_the_table_says_what_pyproject_says() -> None:
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs", "all")}
    assert {name: set(extra.modules) for name, extra in EXTRAS.items()} == {
        name: modules_of(lines) for name, lines in extras.items()
    }
    (every,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(every).extras == set(EXTRAS)


def test_every_import_is_of_the_core_or_of_an_extra() -> None:
    known = modules_of(PROJECT["dependencies"]) | {module for extra in EXTRAS.values() for module in extra.modules}
    known |= {module for module, bringer in COMES_WITH.items() if bringer in known} | {"kyomei"} | sys.stdlib_module_names
    for path in sorted((ROOT / "src").rglob("*.py")):
        assert imported(path.read_text(encoding="utf-8")) <= known, path


def bar(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    for module in EXTRAS[extra].modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_is_named_with_what_it_is_for_and_how_to_get_it(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bar(monkeypatch, extra)
    assert absent(extra) == list(EXTRAS[extra].modules)
    with pytest.raises(RecipeError) as caught:
        require(extra, RecipeError)
    said = str(caught.value)
    assert said.startswith(f"Expected the packages for {EXTRAS[extra].use}. Found no {EXTRAS[extra].modules[0]}")
    assert f"pip install 'kyomei[{extra}]'" in said and said.count("\n") == 0


@pytest.mark.parametrize(
    ("extra", "verb"),
    [
        ("explore", ["explore", "nowhere"]),
        ("explore", ["index", "nowhere"]),
        ("explore", ["label", "nowhere", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"]),
        ("figures", ["reproduce", "certificates"]),
        ("figures", ["compare", "nowhere", "--out", "there"]),
    ],
)
def test_a_verb_without_its_extra_is_refused_in_one_line(
    extra: str, verb: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bar(monkeypatch, extra)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, verb)
    assert done.exit_code == 2 and re.fullmatch(r"kyomei: Expected the packages for .*\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_where_an_extra_is_met_while_reading_the_error_is_of_that_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kyomei.source.corpus import Corpus
    from kyomei.source.model import LanguageModel

    bar(monkeypatch, "datasets")
    bar(monkeypatch, "gguf")
    with pytest.raises(DataError, match=r"kyomei\[datasets\]'`, or save the text as \.jsonl"):
        list(Corpus("datasets:a/b"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelError, match=r"Found no gguf and no accelerate\. Run `pip install 'kyomei\[gguf\]'`"):
        LanguageModel.load(str(tmp_path / "x.gguf"))


def test_installation_is_what_the_documentation_says() -> None:
    for name in EXTRAS:
        assert installation(name) == f"run `pip install 'kyomei[{name}]'`"
