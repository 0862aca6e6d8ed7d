"""`kyomei harvest` and `kyomei train` under torchrun: what several processes make of a run, also after one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.warm import begun, command_line, ended, ranks, verb

import kyomei
from kyomei.evidence.certificate import Certificate

SETTINGS = ("--tokens", "24000", "--set", "source.replicas=2", "--set", "source.context=64", "--set", "source.spread=1")
TRAINING = ("train.steps=60", "train.batch_rows=256", "train.checkpoint_every=10", "dictionary.width=256", "dictionary.l0=16")
SEARCH = ("resonance.neurons=128", "resonance.steps=4", "resonance.rounds=1", "resonance.frequencies=[0.01]")


def harvested(folder: Path) -> Path:
    chosen = [part for value in (*TRAINING, *SEARCH) for part in ("--set", value)]
    in_one_process("harvest", folder, *SETTINGS, *chosen)
    return folder


def in_one_process(*arguments: str | Path) -> None:
    done = verb(*arguments, "--threads", "1")
    assert done.returncode == 0, done.stderr[-3000:]


def torchrun(folder: Path, mesh: str, *, restarts: int = 0) -> subprocess.Popen[str]:
    return ranks_of(2, "train", str(folder), "--mesh", mesh, restarts=restarts)


def ranks_of(count: int, *line: str, restarts: int = 0) -> subprocess.Popen[str]:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", f"--max-restarts={restarts}"]
    arguments = ["-m", "kyomei", *line, "--threads", "1", "--json"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *start, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_rank_that_is_killed_is_restarted_and_the_run_ends_as_in_one_process(tmp_path: Path) -> None:
    folder = harvested(tmp_path / "one")
    subprocess.run(["cp", "-r", str(folder), str(tmp_path / "two")], check=True)
    in_one_process("train", folder, "--resume")
    spread = tmp_path / "two"
    process = torchrun(spread, "1x2", restarts=2)
    kill_a_worker(process, spread / "replicas" / "0")
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    assert output.count('"arms"') == 1, "one rank prints the summary"
    one, two = kyomei.load(folder / "replicas" / "0"), kyomei.load(spread / "replicas" / "0")
    x = torch.randn(500, one.dim, generator=torch.Generator().manual_seed(0))
    assert one.width == two.width == 256
    # The same batches and the same rule; rounding differs, and near a threshold it decides.
    differing = ((one.encode(x) > 0) != (two.encode(x) > 0)).float().mean()
    assert float(differing) < 0.01
    assert (spread / "controls" / "gaussian" / "gba" / "1" / "sae.safetensors").exists()


def kill_a_worker(process: subprocess.Popen[str], folder: Path, once: str = "**/step-*") -> None:
    """Kill one worker of torchrun once there is such a file, by default a checkpoint of a training."""
    for _ in range(6000):
        if list(folder.glob(once)):
            break
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)


HARVEST = (*SETTINGS, "--set", "source.windows_per_shard=16", "--set", "source.windows_per_batch=4")


def rows_and_tokens(folder: Path) -> dict[str, bytes]:
    paths = [path for kind in ("activations", "tokens") for path in (folder / kind).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_a_harvest_on_ranks_has_the_bytes_of_one_process_also_after_a_rank_is_killed(tmp_path: Path) -> None:
    in_one_process("harvest", tmp_path / "1", *HARVEST)
    expected = rows_and_tokens(tmp_path / "1")
    assert sum("shard-" in name for name in expected) > 20
    folder = tmp_path / "3"
    process = ranks_of(3, "harvest", str(folder), *HARVEST, restarts=2)
    kill_a_worker(process, folder, "activations/replica-0/*/progress-*")
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]
    assert output.count('"sites"') == 1, "one rank prints the summary"
    assert rows_and_tokens(folder) == expected


CERTIFIED = (
    "source.replicas=3",
    "source.context=64",
    "source.spread=1",
    "mechanism.name=topk",
    "mechanism.start=random",
    "dictionary.width=66",
    "dictionary.l0=6",
    "train.steps=30",
    "train.batch_rows=64",
)


def side_by_side(count: int, place: Path, *line: str) -> tuple[list[int], str, str]:
    """A verb in processes that are told what torchrun would tell them: their statuses, and what all wrote."""
    out, err = place / "out", place / "err"
    started = [begun(command_line, *line, "--threads", "1", "--json", err=err, out=out, env=env) for env in ranks(count)]
    return [ended(rank) for rank in started], out.read_text(), err.read_text()


@pytest.mark.slow
def test_a_certificate_of_several_processes_is_that_of_one(tmp_path: Path) -> None:
    chosen = [part for value in CERTIFIED for part in ("--set", value)]
    in_one_process("train", tmp_path / "one", "--tokens", "12000", *chosen)
    subprocess.run(["cp", "-r", str(tmp_path / "one"), str(tmp_path / "two")], check=True)
    in_one_process("certify", tmp_path / "one")
    statuses, output, errors = side_by_side(2, tmp_path, "certify", str(tmp_path / "two"))
    assert statuses == [0, 0], errors[-3000:]
    assert output.count('"certificates"') == 1, "one rank prints the summary"
    one, two = (Certificate.read(tmp_path / name / "certificate.json") for name in ("one", "two"))
    assert [feature["status"] for feature in one.features] == [feature["status"] for feature in two.features]
    assert one.rule == pytest.approx(two.rule, abs=1e-6) and one.fidelity == pytest.approx(two.fidelity, abs=1e-6)
    for name in ("count", "activation", "explained variance"):
        for kind, shares in one.shares[name].items():
            assert shares == pytest.approx(two.shares[name][kind], abs=1e-6)
    assert kyomei.load(tmp_path / "two" / "replicas" / "0").provenance["certificate"]["latents"] == 66
    statuses, _, errors = side_by_side(2, tmp_path, "certify", str(tmp_path / "two"), "--baseline", "topk")
    assert "certify those in one process" in errors.lower() and 0 not in statuses


def test_a_run_that_is_not_harvested_is_refused_on_a_mesh(tmp_path: Path) -> None:
    statuses, _, errors = side_by_side(2, tmp_path, "train", str(tmp_path / "new"), "--mesh", "1x2")
    assert 0 not in statuses
    assert "Expected a harvested run on a mesh" in errors and "`kyomei harvest`" in errors.lower()
