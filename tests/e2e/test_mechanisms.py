"""Every mechanism through the verbs, from text to report."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import kyomei
from kyomei.cli import app
from kyomei.config import SETTINGS
from kyomei.evidence.certificate import Certificate

TINY = {
    "source.num_tokens": 10_000,
    "source.context": 64,
    "source.windows_per_shard": 24,
    "source.spread": 1,
    "resonance.neurons": 32,
    "resonance.rounds": 1,
    "resonance.steps": 2,
    "resonance.frequencies": [0.02],
    "resonance.min_stability": 0.3,
    "dictionary.width": 64,
    "dictionary.l0": 4,
    "train.steps": 10,
    "train.batch_rows": 128,
}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"mechanism.name": name} for name in SETTINGS},
    "gba, random start": {"mechanism.start": "random"},
    "topk from resonance": {"mechanism.name": "topk", "mechanism.start": "resonance"},
    "batchtopk from resonance": {"mechanism.name": "batchtopk", "mechanism.start": "resonance"},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short documents, so that few tokens still have several in every part."""
    source = Path(argparse.__file__).read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    parts = (source[at : at + 1000] for at in range(0, len(source), 1000))
    path.write_text("\n".join(json.dumps({"text": part}) for part in parts), encoding="utf-8")
    return path


def verb(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_mechanism_goes_all_the_way(case: str, text: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", {**TINY, "source.text": str(text), **CASES[case]}
    name = str(options.get("mechanism.name", "gba"))
    settings = [part for key, value in options.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    for tail in ((), ("--json",)):
        train = verb("train", run, *(settings if not tail else ["--resume"]), *tail)
        # A baseline of the run's own mechanism is one among others.
        certify = verb("certify", run, "--baseline", name, *tail)
        measure = verb("measure", run, *tail)
        report = verb("report", run, *tail)
        if tail:
            assert {"harvest", "arms"} <= json.loads(train).keys()
            assert [*json.loads(certify)["certificates"]][1] == f"baseline {name}"
            mechanisms = json.loads(measure)["mechanisms"]
            assert len(mechanisms) == 2 and all(figures["fidelity"] for figures in mechanisms.values())
            assert Path(json.loads(report)["report"]).exists()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert SETTINGS[name].title in page and f"{SETTINGS[name].title}, baseline" in page


@pytest.mark.slow
def test_a_run_is_certified_in_a_thread_and_in_an_event_loop(text: Path, tmp_path: Path) -> None:
    options = {**TINY, "source.text": str(text), "mechanism.name": "topk"}
    verb(
        "train", tmp_path / "run", *(part for key, value in options.items() for part in ("--set", f"{key}={json.dumps(value)}"))
    )
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")

    async def within() -> Certificate:
        return kyomei.certify(copy)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(kyomei.certify, tmp_path / "run").result()
        # In a thread, too: the one that runs the tests may have a loop that a browser test left running.
        within_loop = pool.submit(lambda: asyncio.run(within())).result()
    assert found.width == 64
    assert within_loop.shares == found.shares
