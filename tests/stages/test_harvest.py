"""Harvests through the verbs, in this process: what a refusal leaves behind, and what the summary shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kyomei.cli import app

SMALL = ["--tokens", "4000", "--set", "source.context=64", "--set", "source.spread=1", "--set", "source.replicas=2"]
SITES = ("model.layers.0.mlp", "model.layers.1.mlp")


def kyomei(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("runs") / "small"
    done = kyomei("harvest", folder, *SMALL, "--site", SITES[0], "--site", SITES[1])
    assert done.exit_code == 0, done.stderr
    return folder, done


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("harvest", ["--model", "./nothing-here"], "nothing at ./nothing-here"),
        ("train", ["--site", "blocks.2.hook_mlp_out"], "a near one: model.layers.2.mlp"),
        ("check", ["--text", "./nothing-here"], "nothing at ./nothing-here"),
        ("harvest", ["--text", "empty"], "documents. Found 0."),
        ("harvest", ["--text", "short.jsonl"], "window"),
    ],
)
def test_a_refused_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("short.jsonl").write_text("".join(json.dumps({"text": f"a few words, number {i}"}) + "\n" for i in range(8)))
    done = kyomei(verb, "run", *SMALL, *options)
    assert done.exit_code == 2 and said in done.stderr
    assert not Path("run").exists()


def test_a_refused_start_deletes_nothing(harvested: tuple[Path, Result]) -> None:
    folder, _ = harvested
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    refused = kyomei("train", folder, *SMALL, "--site", "model.layer.1.mlp", "--overwrite")
    assert refused.exit_code == 2 and "a near one: model.layers.1.mlp" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_every_site_is_shown(harvested: tuple[Path, Result]) -> None:
    folder, done = harvested
    assert all(done.stdout.count(site) == 3 for site in SITES)
    facts = json.loads(kyomei("harvest", folder, "--resume", "--json").stdout)
    assert facts["site"] == SITES[0] and list(facts["sites"]) == list(SITES)
    part = facts["sites"][SITES[1]]["parts"]["evidence"]
    assert part["rows"] > 900 and set(part) == {"rows", "dropped_special", "dropped_norm"}
