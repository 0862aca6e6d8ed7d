"""Time and memory of `kyomei check` on a million rows of planted features, in a process of its own.

python bench/check.py --rows 1000000 --dim 384 --features 1500 --active 8
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import kyomei

BLOCK = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1_000_000), ("dim", 384), ("features", 1500), ("active", 8), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    planted = kyomei.Planted(
        n_features=args.features, dim=args.dim, active=args.active, noise=0.1, coefficient="uniform", seed=0
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(args.rows, args.dim))
        for start in range(0, args.rows, BLOCK):
            count = min(BLOCK, args.rows - start)
            rows[start : start + count] = planted.sample(count, seed=start + 1)[0].numpy()
        del rows
        command = [Path(sys.executable).with_name("kyomei"), "check", path, "--threads", str(args.threads), "--json"]
        began = time.perf_counter()
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kilobytes on Linux
    found = json.loads(done.stdout)
    number = next(premise for premise in found["premises"] if premise["name"] == "number of features")
    print(f"{args.rows:,} x {args.dim}: {seconds:.0f} s, {memory:.1f} GB, verdict {found['verdict']}")
    print(f"features {number['estimate']:.0f} {number['interval']} (planted {args.features}), expected {found['expected_frr']}")


if __name__ == "__main__":
    main()
