"""The doctor finds what is wrong, says what to do, and never fails itself."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.dictionary import hub
from kyomei.extras import EXTRAS
from kyomei.stages import doctor as module
from kyomei.stages.doctor import Check, doctor


@pytest.fixture
def answering() -> Iterator[str]:
    """The address of a server that refuses everything, as a hub may."""

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers at the hub's address unless a test says so."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def by_name(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in doctor(folder, 0.5)}


def test_all_is_well_here_and_every_extra_is_told(tmp_path: Path) -> None:
    found = by_name(tmp_path / "not" / "yet")
    assert {f"kyomei[{name}]" for name in EXTRAS} <= set(found)
    assert found["torch"].found == metadata.version("torch") and found["kyomei"].state == found["disk for runs"].state == "ok"
    assert found["embedded model"].state == "ok"
    assert all(check.do for check in found.values() if check.state != "ok")
    assert found["hub"].state == "note" and "does not answer" in found["hub"].found and "folders" in found["hub"].do


def test_a_hub_that_answers_or_is_not_to_be_asked(answering: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", answering)
    assert by_name(tmp_path)["hub"] == Check("hub", "ok", f"{answering} answers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert by_name(tmp_path)["hub"].found == f"{answering} is not asked: HF_HUB_OFFLINE is set"
    assert hub.access().problem is None


def test_what_is_missing_or_untested_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = ["numpy>=99", "no-such-package>=1", "duckdb>=1; extra == 'explore'"]
    monkeypatch.setattr(module.metadata, "requires", lambda name: wanted)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    found = by_name(tmp_path)
    assert found["numpy"].state == "note" and found["numpy"].do == "Run `pip install 'numpy>=99'`."
    assert found["no-such-package"].state == "fails" and "duckdb" not in found
    assert found["kyomei[explore]"].found == "no fastapi" and "kyomei[explore]" in found["kyomei[explore]"].do
    done = CliRunner().invoke(app, ["doctor", str(tmp_path), "--hub-seconds", "0.5", "--json"])
    facts = json.loads(done.stdout)
    assert done.exit_code == 1 and facts["fails"] and {"name", "state", "found", "do"} == set(facts["checks"][0])


def test_a_broken_torch_and_a_folder_that_cannot_be_written_are_findings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> Iterator[Check]:
        raise OSError("libtorch_cpu.so: cannot open\nshared object")

    def full(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "_devices", broken)
    monkeypatch.setattr(module.tempfile, "TemporaryFile", full)
    found = by_name(tmp_path)
    assert found["devices"].state == "fails" and found["devices"].found.startswith(
        "OSError: libtorch_cpu.so: cannot open shared"
    )
    assert found["disk for runs"].state == "fails" and "Permission denied" in found["disk for runs"].found
    done = CliRunner().invoke(app, ["doctor", str(tmp_path), "--hub-seconds", "0.5"])
    assert done.exit_code == 1 and "Traceback" not in done.output and "what to do" in done.stdout
