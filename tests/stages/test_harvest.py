"""Harvests through the verbs, in this process: what a refusal leaves behind, and what the summary shows."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.config import Recipe
from kyomei.runs import Run
from kyomei.stages.harvest import _kept_model, _which_model

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
        ("train", ["--site", "layers.2.mpl"], "a near one: model.layers.2.mlp"),
        ("check", ["--text", "./nothing-here"], "nothing at ./nothing-here"),
        ("harvest", ["--text", "empty"], "some text. Found none in"),
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


@pytest.mark.parametrize("verb", ["harvest", "train", "check"])
def test_a_run_whose_beginning_was_killed_is_resumed_as_it_was_asked(tmp_path: Path, verb: str) -> None:
    """A kill between its recipe and its manifest must not turn it into a run of the default recipe."""
    Recipe().with_values({"source.model": "./nothing-here"}).write(tmp_path / "recipe.yaml")
    done = kyomei(verb, tmp_path, "--resume")
    assert done.exit_code == 2 and "nothing at ./nothing-here" in done.stderr


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


TINY = {
    "source.context": 32,
    "source.spread": 1,
    "source.num_tokens": 6000,
    "source.text_field": "body",
    "mechanism.name": "topk",
    "mechanism.k": 4,
    "dictionary.width": 32,
    "train.steps": 20,
    "train.batch_rows": 64,
}


@pytest.mark.slow
def test_a_run_without_text_holds_no_stretch_of_it(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = [f"{a}{b}" for a in ("bel", "cor", "dam", "fen", "gil", "hop") for b in ("ato", "ine", "ugs", "ery", "olk")]
    texts = [" ".join(draw.choices(words, k=120)) for _ in range(60)]
    corpus, folder = tmp_path / "corpus.jsonl", tmp_path / "run"
    corpus.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    kept = kyomei("harvest", tmp_path / "kept", "--text", corpus, *settings)
    assert kept.exit_code == 0 and kept.stderr.count("holds the text of whole documents") == 1
    trained = kyomei("train", folder, "--text", corpus, *settings, "--set", "source.keep_text=false")
    assert trained.exit_code == 0 and "holds the text" not in trained.stderr
    for verb in ("certify", "measure", "report"):
        done = kyomei(verb, folder)
        assert done.exit_code == 0, done.stderr
    assert "not kept: tokens are shown by their ids" in (folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r"corpus.jsonl:\d+, character \d+: <\d+>", (folder / "examples.json").read_text())
    # Eight tokens of these texts are about four words; three words in a row are looked for.
    stretches = {" ".join(text.split()[i : i + 3]) for text in texts for i in range(118)}

    def leaks(where: Path) -> bool:
        held = [file.read_bytes().decode("latin-1") for file in where.rglob("*") if file.is_file()]
        held += [str(pq.read_table(file).to_pydict()) for file in where.rglob("*.parquet")]
        return any(stretch in content for content in held for stretch in stretches)

    assert leaks(tmp_path / "kept") and not leaks(folder)


@pytest.mark.parametrize("verb", ["report", "measure", "certify"])
def test_a_run_whose_harvest_has_not_ended_is_named(tmp_path: Path, verb: str) -> None:
    Run.create(tmp_path / "run", Recipe())
    done = kyomei(verb, tmp_path / "run")
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert "Expected a" in done.stderr and "--resume" in done.stderr


def test_replicas_that_stream_share_the_loaded_model() -> None:
    recipe = Recipe()
    kept = _kept_model(**_which_model(recipe, ()))
    assert _kept_model(**_which_model(recipe.with_values({"seed": 5, "source.streamed_tokens": 1000}), ())) is kept
    assert _kept_model(**_which_model(recipe.with_values({"source.random_weights_seed": 1}), ())) is not kept
