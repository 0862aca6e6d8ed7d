"""The examples for clusters: they parse, their options are ours, and what can start here is started."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kyomei.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = ("--tokens", "3000", "--set", "source.replicas=2", "--set", "source.context=64", "--set", "source.spread=1")
SHORT = ("mechanism.name=topk", "mechanism.k=4", "dictionary.width=64", "train.steps=8", "train.batch_rows=64")


def test_examples_fit_on_a_page() -> None:
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.iterdir() if path.is_file()}
    assert lines.keys() >= {"slurm.sh", "kubernetes.yaml", "ray_train.py"}
    assert all(count <= 60 for count in lines.values()), lines


def require_ours(arguments: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every option is one of the verb's: with a model that is not there, that is all that is refused."""
    monkeypatch.chdir(folder)
    named = [f"--model={folder / 'nothing'}" if word.startswith("--model=") else word for word in arguments]
    done = CliRunner().invoke(app, named)
    assert done.exit_code == 2 and "nothing at" in done.stderr, done.stderr


def test_the_job_of_kubernetes_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    arguments = pod["containers"][0]["args"]
    assert f"--nnodes={job['spec']['completions']}" in arguments
    assert f"--master-addr={job['metadata']['name']}-0.{pod['subdomain']}" in arguments
    verb = arguments[arguments.index("kyomei") + 1 :]
    require_ours([str(tmp_path / "run") if word == "/runs/wide" else word for word in verb], monkeypatch, tmp_path)


def test_the_job_of_slurm_starts_each_verb_with_options_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subprocess.run(["bash", "-n", str(EXAMPLES / "slurm.sh")], check=False).returncode == 0
    for name, does in {"srun": 'while [[ $1 == --* ]]; do shift; done; "$@"', "scontrol": "echo first; seq 100000"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
    for name in ("torchrun", "kyomei"):
        (tmp_path / name).write_text('#!/bin/bash\nprintf "%s\\n" "$(basename "$0")" "$@" =====\n')
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    known = {"SLURM_NNODES": "8", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-8]"}
    env = {**os.environ, **known, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = str(tmp_path / "run")
    done = subprocess.run(["bash", str(EXAMPLES / "slurm.sh"), run], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    calls = [call.split("\n") for call in done.stdout.strip().removesuffix("=====").split("=====\n")]
    verbs = [next(word for word in call if word in ("harvest", "train", "certify", "measure", "report")) for call in calls]
    assert verbs == ["harvest", "train", "certify", "measure", "report"]
    assert "first:29500" in calls[0] and "--nproc-per-node" in calls[0]
    assert "8x8" in calls[1]
    harvest = [word for word in calls[0][calls[0].index("harvest") :] if word]
    harvest[harvest.index("--model") : harvest.index("--model") + 2] = ["--model=X"]
    require_ours(harvest, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_the_example_for_ray_harvests_and_trains(tmp_path: Path) -> None:
    settings = [part for setting in SHORT for part in ("--set", setting)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    arguments = [sys.executable, str(EXAMPLES / "ray_train.py"), "2", str(tmp_path / "run"), *TINY, *settings, "--threads", "1"]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "run" / "replicas" / "1" / "sae.safetensors").exists()
