"""What measure or certify would refuse is refused before the first training; what they can do without is gone around."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.runs import Run, sha256_of
from kyomei.stages.harvested import site_of

SETTINGS = {
    "source.context": 32,
    "source.windows_per_shard": 24,
    "source.spread": 1,
    "source.replicas": 3,
    "resonance.neurons": 64,
    "resonance.steps": 3,
    "resonance.frequencies": "[0.02]",
    "dictionary.width": 48,
    "train.steps": 20,
    "train.batch_rows": 128,
}


def kyomei(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def harvest(folder: Path, **more: object) -> Path:
    values = {**SETTINGS, **{key.replace("__", "."): value for key, value in more.items()}}
    options = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    done = kyomei("harvest", folder, "--tokens", "16000", *options)
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return harvest(tmp_path_factory.mktemp("runs") / "run")


def rewrite(run: Path, part: str, change: object, rows: int | None = None) -> None:
    """Change the stored rows of a part, or keep only so many of each shard, as if they had been harvested so."""
    folder = run / "activations" / part / site_of(Run.open(run))
    index = json.loads((folder / "index.json").read_text())
    for entry in index["shards"]:
        held = {name: tensor[:rows].clone() for name, tensor in load_file(folder / entry["file"]).items()}
        if callable(change):
            change(held["activations"])
        save_file(held, folder / entry["file"])
        entry["sha256"], entry["num_rows"] = sha256_of(folder / entry["file"]), len(held["activations"])
    index["num_rows"] = sum(entry["num_rows"] for entry in index["shards"])
    (folder / "index.json").write_text(json.dumps(index))


def silence(x: torch.Tensor) -> None:
    x[:, [0, 5, 9]] = 0.0


def level(x: torch.Tensor) -> None:
    x[:] = 1.0


@pytest.mark.parametrize("part", ["replica-1", "evidence"])
@pytest.mark.parametrize(
    ("change", "rows", "message"), [(None, 3, "more rows than dimensions"), (level, None, "rows that differ")]
)
def test_what_would_be_refused_at_the_end_is_refused_before_training(
    harvested: Path, tmp_path: Path, part: str, change: object, rows: int | None, message: str
) -> None:
    shutil.copytree(harvested, tmp_path / "run")
    rewrite(tmp_path / "run", part, change, rows)
    done = kyomei("train", tmp_path / "run", "--resume")
    assert done.exit_code == 2, done.output
    assert message in done.stderr and f"in {part}" in done.stderr
    assert not list((tmp_path / "run").glob("replicas/*/*"))


def test_dead_units_are_gone_around_by_every_verb(harvested: Path, tmp_path: Path) -> None:
    """Some are dead in one replica only, some in the evidence only."""
    run = tmp_path / "run"
    shutil.copytree(harvested, run)
    for part in ("replica-0", "evidence"):
        rewrite(run, part, silence)
    trained = kyomei("train", run, "--resume")
    assert trained.exit_code == 0, trained.output
    dim = len(load_file(run / "replicas/0/sae.safetensors")["center"])
    assert f"left out: 3 of {dim} in replica-0, evidence at" in trained.stderr
    sae = load_file(run / "replicas/0/sae.safetensors")
    assert not sae["encoder"][:, [0, 5, 9]].any() and not sae["decoder"][:, [0, 5, 9]].any()
    for verb in (["check", run], ["certify", run, "--baseline", "topk"], ["measure", run], ["report", run]):
        done = kyomei(*verb)
        assert done.exit_code == 0, done.output
    evidence = json.loads((run / "evidence.json").read_text())
    assert (evidence["constant"], evidence["dim"]) == (3, dim)
    assert json.loads((run / "premises.json").read_text())["statistics"]["constant"] == 3
    assert f"Of {dim} coordinates 3 never change" in (run / "report.html").read_text()
    assert "NaN" not in (run / "evidence.json").read_text() + (run / "certificate.json").read_text()


def test_too_few_replicas_for_a_certificate_are_said_before_training(tmp_path: Path) -> None:
    harvest(tmp_path / "run", source__replicas=2)
    trained, certified = kyomei("train", tmp_path / "run", "--resume"), kyomei("certify", tmp_path / "run")
    assert trained.exit_code == 0
    refusal = certified.stderr.strip().splitlines()[-1].removeprefix("kyomei: ")
    assert certified.exit_code == 2
    assert f"certify will refuse this run. {refusal}" in trained.stderr
