"""What `kyomei plan` says beside what `kyomei train` takes, on settings small enough to be run to their end.

    python bench/plan.py

Each is planned and then trained, harvest included, in processes of their own; memory is the largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = {
    "default": ["--tokens", "150000", "--set", "resonance.neurons=1024"],
    "width 1,024": ["--tokens", "300000", "--set", "dictionary.width=1024", "--set", "resonance.rounds=1"],
    "TopK": ["--tokens", "200000", "--set", "mechanism.name=topk", "--set", "dictionary.width=2048"],
}


def planned(options: list[str], threads: int) -> dict[str, float]:
    own = [sys.executable, "-m", "kyomei", "plan", *options, "--threads", str(threads), "--json"]
    found = json.loads(subprocess.run(own, check=True, capture_output=True, text=True).stdout)
    return {"seconds": found["total_seconds"], "bytes": found["memory_bytes"], **found["seconds"]}


def taken(options: list[str], threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        own = [sys.executable, "-m", "kyomei", "train", str(Path(folder) / "run"), *options, "--threads", str(threads)]
        began = time.perf_counter()
        child = subprocess.Popen(own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert child.stderr is not None
        log = child.stderr.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"kyomei train did not run: {log[-800:]}")
        print(log, file=sys.stderr)
        return {"seconds": time.perf_counter() - began, "bytes": usage.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print("| setting | planned s | taken s | ratio | planned MB | taken MB | ratio |\n|---|---|---|---|---|---|---|")
    for name in args.only:
        plan, run = planned(SETTINGS[name], args.threads), taken(SETTINGS[name], args.threads)
        time_ratio, memory_ratio = plan["seconds"] / run["seconds"], plan["bytes"] / run["bytes"]
        megabytes = plan["bytes"] / 2**20, run["bytes"] / 2**20
        print(
            f"| {name} | {plan['seconds']:.0f} | {run['seconds']:.0f} | {time_ratio:.2f} "
            f"| {megabytes[0]:,.0f} | {megabytes[1]:,.0f} | {memory_ratio:.2f} |",
            flush=True,
        )
        parts = {part: round(value) for part, value in plan.items() if part not in ("seconds", "bytes")}
        print(f"  planned: {parts}", file=sys.stderr)


if __name__ == "__main__":
    main()
