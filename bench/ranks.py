"""What a certificate, a step of training and a token of a harvest take on one and two processes of one thread, beside the plan.

    python bench/ranks.py --width 1024 4096

TopK from scratch on the embedded model, few steps: what is timed does not ask how good a dictionary is. Seconds are those of
the processor in the process that has most, so a machine with other work to do changes them little; what a process takes to
begin and to find all done is taken off. The plan's probe is timed by the processor as well. Waiting for others and for the disk
does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OWN = {"source.evidence_share": 0.5, "mechanism.name": "topk", "train.batch_rows": 512, "train.log_every": 1000}
FEW, MANY = 20, 80
"""Steps of two trainings, whose difference is that of steps alone."""


def settings(values: dict[str, object]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def seconds_of(line: list[str], ranks: int) -> float:
    """Processor time of a verb in the process that takes most."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    children = []
    for rank in range(ranks):
        own = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        command = [sys.executable, "-m", "kyomei", *line, "--threads", "1"]
        children.append(subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    taken = []
    for child in children:
        assert child.stderr is not None
        said = child.stderr.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"kyomei {' '.join(line)} did not run: {said[-800:]}")
        taken.append(usage.ru_utime + usage.ru_stime)
    return max(taken)


def planned(width: int, tokens: int) -> tuple[dict[int, float], float]:
    """Seconds of a certificate by the number of processes, and of a step of one."""
    import torch

    from kyomei.config import Recipe
    from kyomei.stages.plan import Probe

    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # type: ignore[assignment]
    recipe = Recipe().with_values({**OWN, "source.num_tokens": tokens, "dictionary.width": width})
    probe = Probe.of(recipe)
    print(probe.rates, file=sys.stderr, flush=True)
    return {ranks: probe.certify_seconds(recipe, ranks) for ranks in (1, 2)}, probe.rates.step


def certified(run: Path, into: Path, ranks: int) -> float:
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(run, into)
    first = seconds_of(["certify", str(into)], ranks)
    return first - seconds_of(["certify", str(into)], 1)


def stepped(tokens: int, into: Path, width: int, ranks: int) -> float:
    """Seconds of a step of training, of the five dictionaries that a run has."""
    taken = []
    for steps in (FEW, MANY):
        shutil.rmtree(into, ignore_errors=True)
        own = {**OWN, "source.num_tokens": tokens, "dictionary.width": width, "train.steps": steps}
        seconds_of(["harvest", str(into), *settings(own)], 1)  # processes train together on a run that has been harvested
        mesh = ["--mesh", f"1x{ranks}"] if ranks > 1 else []
        taken.append(seconds_of(["train", str(into), "--resume", *mesh], ranks))
    return (taken[1] - taken[0]) / (MANY - FEW) / 5


def harvested(tokens: int, into: Path, ranks: int) -> float:
    """Seconds of a harvested token, in the process that has most."""
    taken = []
    for count in (tokens, 4 * tokens):
        shutil.rmtree(into, ignore_errors=True)
        taken.append(seconds_of(["harvest", str(into), *settings({**OWN, "source.num_tokens": count})], ranks))
    return (taken[1] - taken[0]) / (3 * tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--tokens", type=int, nargs="+", default=[40_000])
    parser.add_argument("--work", nargs="+", choices=("harvest", "certify", "train"), default=["harvest", "certify", "train"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for tokens in asked.tokens:
            harvest = folder / f"harvest-{tokens}"
            seconds_of(["harvest", str(harvest), *settings({**OWN, "source.num_tokens": tokens})], 1)
            if "harvest" in asked.work:
                each = {ranks: harvested(tokens, folder / "rows", ranks) for ranks in (1, 2)}
                print(json.dumps({"tokens": tokens, "harvest": each}), flush=True)
            for width in asked.width:
                if asked.work == ["harvest"]:
                    continue
                certify, step = planned(width, tokens)
                found: dict[str, object] = {"tokens": tokens, "width": width, "planned": [certify, step]}
                if "train" in asked.work:
                    found["step"] = {ranks: stepped(tokens, folder / "steps", width, ranks) for ranks in (1, 2)}
                if "certify" in asked.work:
                    own = {"mechanism.name": "topk", "train.batch_rows": 512, "train.steps": FEW, "dictionary.width": width}
                    run = folder / f"run-{tokens}-{width}"
                    seconds_of(["train", str(run), "--from", str(harvest), *settings(own)], 1)
                    found["certify"] = {ranks: certified(run, folder / "run", ranks) for ranks in (1, 2)}
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
