"""The verbs of the explorer on a certified run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.views.explorer_samples import client_of
from tests.views.test_autolabel import StandIn
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.runs import Run
from kyomei.stages.explore import explorer_of


def kyomei(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_a_certified_run_says_why_and_beside_what_null(indexed: Run) -> None:
    explorer = explorer_of(indexed)
    for client in client_of(explorer, read_only=True):
        state = client.get("/api/state").json()
        assert state["dictionary"] == "replicas-0" and [note["key"] for note in state["notes"]] == ["state.read_only"]
        overview = client.get("/api/overview").json()
        assert overview["verdict"]["headline"] and overview["certificate"]["null"]["latents"] > 0
        row = client.get("/api/features", params={"sort": "status"}).json()["rows"][0]
        feature = client.get(f"/api/features/{row['latent']}").json()
        assert feature["status"] == row["status"] and "Asked:" in feature["why"] and feature["rule"]["encoder"] >= 0.7
        other = client.get("/api/state", params={"dictionary": "replicas-1"}).json()
        assert "state.no_certificate" in [note["key"] for note in other["notes"]]
        assert client.get("/api/overview", params={"dictionary": "replicas-1"}).json()["verdict"] is None


def test_the_verbs_export_and_label(indexed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(indexed.folder, folder)
    kyomei("explore", folder, "--index-only")
    kyomei("explore", folder, "--export", tmp_path / "site", "--lang", "ja")
    state = json.loads((tmp_path / "site" / "data" / "state.json").read_text(encoding="utf-8"))
    assert state["run"] == "run" and state["language"] == "ja" and len(state["dictionaries"]) >= 1
    stand_in = StandIn()
    monkeypatch.setenv("OTHER_KEY", "a key")
    asked = [
        "label",
        folder,
        "--endpoint",
        stand_in.url,
        "--model",
        "stand-in",
        "--latents",
        "3",
        "--key-variable",
        "OTHER_KEY",
    ]
    refused = CliRunner().invoke(app, [str(each) for each in asked], input="n\n")
    assert refused.exit_code == 0 and stand_in.requests == [] and stand_in.url in refused.stderr
    found = json.loads(kyomei(*asked, "--requests-per-minute", "100000", "--yes", "--json"))
    assert [entry["kind"] for entry in found["labels"]] == ["automatic"] * 3
    assert {headers["Authorization"] for headers in stand_in.headers} == {"Bearer a key"}
    stand_in.server.shutdown()
    for client in client_of(explorer_of(Run.open(folder)), read_only=True):
        assert len(client.get("/api/labels").json()["labels"]) == 3
