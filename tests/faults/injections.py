"""Random faults in trainings of every mechanism; each has to end in the bytes of an undisturbed training, and never silently.

    python tests/faults/injections.py --count 200 --seed 0

A fault is a kill -9, a SIGTERM, a full disk while a checkpoint is written, or damage to the newest checkpoint after a kill.
Every training runs in a process of its own; the table at the end counts faults by kind and mechanism.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import warm

from kyomei.config import TrainRecipe
from kyomei.dictionary.mechanisms import (
    GBA,
    L1,
    Adaptation,
    BatchTopK,
    Gated,
    JumpReLU,
    MatryoshkaBatchTopK,
    Mechanism,
    TopK,
    geometric_targets,
)
from kyomei.errors import Interrupted, KyomeiError
from kyomei.learning import checkpoint
from kyomei.learning.latents import random_start
from kyomei.learning.training import train
from kyomei.learning.workplace import Workplace
from kyomei.source.rows import TensorRows

WIDTH, DIM, STEPS = 64, 16, 63
DONE, FAILED, INTERRUPTED, REFUSED = 0, 1, 130, 2
KINDS = ("kill", "term", "disk full", "damage")
MAKERS: dict[str, Callable[[], Mechanism]] = {
    "gba": lambda: GBA(*geometric_targets(WIDTH, 4, 0.3, 0.05), adaptation=Adaptation(adapt_every=3)),
    "topk": lambda: TopK(WIDTH, 4, auxk=0.1, dead_after=200),
    "batchtopk": lambda: BatchTopK(WIDTH, 4, auxk=0.1, dead_after=200),
    "matryoshka": lambda: MatryoshkaBatchTopK(WIDTH, 4),
    "l1": lambda: L1(WIDTH, 0.02),
    "jumprelu": lambda: JumpReLU(WIDTH, 1e-3, bandwidth=0.05, threshold=0.05),
    "gated": lambda: Gated(WIDTH, 0.02),
}


def training(folder: Path, name: str, full_at: int, pause: float) -> int:
    """One process's training; returns its exit status."""
    torch.set_num_threads(1)
    if full_at:
        fill_the_disk(full_at)
    x = torch.randn(400, DIM, generator=torch.Generator().manual_seed(0))
    settings = TrainRecipe(steps=STEPS, batch_rows=64, checkpoint_every=7, warmup_steps=5)

    def progress(done: int, total: int) -> None:
        (folder / "step").write_text(str(done))
        time.sleep(pause)

    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        sae = train(
            random_start(WIDTH, DIM, 0, tied=False),
            MAKERS[name](),
            TensorRows(x),
            settings,
            seed=0,
            workplace=Workplace(folder=folder, stop=lambda: bool(asked), progress=progress, resume=True),
        )
        sae.whole().save(folder)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return INTERRUPTED
    except KyomeiError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return FAILED
    return DONE


def fill_the_disk(at: int) -> None:
    """The at-th checkpoint finds room for half of its tensors."""
    whole, written = checkpoint.save_file, [0]

    def save_file(tensors: dict[str, Any], path: Path) -> None:
        whole(tensors, path)
        written[0] += 1
        if written[0] == at:
            os.truncate(path, os.path.getsize(path) // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    checkpoint.save_file = save_file  # type: ignore[assignment]


def begin(folder: Path, name: str, full_at: int = 0, pause: float = 0.0) -> BaseProcess:
    """Start a training in a new process."""
    return warm.begun(leave_with_status, folder, name, full_at, pause, err=folder / "log")


def leave_with_status(folder: Path, name: str, full_at: int, pause: float) -> None:
    sys.exit(training(folder, name, full_at, pause))


def digest(folder: Path) -> str:
    newest = max((folder / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{STEPS:08d}"
    return hashlib.sha256((folder / "sae.safetensors").read_bytes() + (newest / "tensors.safetensors").read_bytes()).hexdigest()


def wait_for(folder: Path, step: int, child: BaseProcess) -> None:
    """Until a training has done so many steps, or has ended."""
    while child.is_alive():
        with contextlib.suppress(OSError, ValueError):
            if int((folder / "step").read_text()) >= step:
                return
        time.sleep(0.001)


def damage(folder: Path, chance: random.Random) -> bool:
    """Spoil one file of the newest checkpoint; false if there is no other one to fall back to."""
    found = checkpoint.list_checkpoints(folder)
    if len(found) < 2:
        return False
    path = found[-1] / chance.choice(["tensors.safetensors", "state.json"])
    content = bytearray(path.read_bytes())
    way = chance.choice(["flip", "cut", "empty", "gone"])
    if way == "flip" and path.suffix == ".safetensors":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif way == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: 0 if way == "empty" else len(content) // 2])
    return True


def inject(kind: str, name: str, folder: Path, chance: random.Random) -> list[str]:
    """One fault in a new training, which then goes on until it is done; returns what went wrong."""
    wrong: list[str] = []
    step = chance.randint(1, STEPS - 1) if kind != "damage" else chance.randint(20, STEPS - 1)
    full_at = chance.randint(1, STEPS // 7) if kind == "disk full" else 0
    child = begin(folder, name, full_at, pause=0.0 if kind == "disk full" else 0.002)
    if kind in ("kill", "damage", "term"):
        wait_for(folder, step, child)
        time.sleep(chance.uniform(0, 0.01))
        child.terminate() if kind == "term" else child.kill()
    status = warm.ended(child)
    log = (folder / "log").read_text()
    if kind == "term" and status not in (INTERRUPTED, DONE):
        wrong.append(f"SIGTERM ended in status {status}: {log[-300:]}")
    if kind == "disk full" and (status != REFUSED or "a full disk" not in log):
        wrong.append(f"a full disk ended in status {status}: {log[-300:]}")
    damaged = kind == "damage" and status != DONE and damage(folder, chance)
    status = warm.ended(begin(folder, name))
    if status != DONE:
        wrong.append(f"resumed training ended in status {status}: {(folder / 'log').read_text()[-500:]}")
    if damaged and "falling back to the one before" not in (folder / "log").read_text():
        wrong.append("damage was not announced")
    return wrong


def campaign(count: int, seed: int, into: Path) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    """So many faults, kinds and mechanisms in turn; returns how many of each, and what went wrong."""
    chance = random.Random(seed)
    expected, counts, wrong = {}, collections.Counter[tuple[str, str]](), []
    for name in MAKERS:
        folder = into / f"undisturbed-{name}"
        folder.mkdir(parents=True)
        assert warm.ended(begin(folder, name)) == DONE, (folder / "log").read_text()
        expected[name] = digest(folder)
    cases = [(kind, name) for kind in KINDS for name in MAKERS]
    for number in range(count):
        kind, name = (
            cases[number % len(cases)] if count >= len(cases) else (KINDS[number % len(KINDS)], chance.choice([*MAKERS]))
        )
        folder = into / f"fault-{number}"
        folder.mkdir()
        found = inject(kind, name, folder, chance)
        if not found and digest(folder) != expected[name]:
            found = ["the bytes differ from those of an undisturbed training"]
        wrong += [f"{number} {kind} {name}: {text}" for text in found]
        counts[kind, name] += 1
        if not found:
            shutil.rmtree(folder)
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = campaign(args.count, args.seed, Path(folder))
    print("| fault | " + " | ".join(MAKERS) + " |\n|---|" + "---|" * len(MAKERS))
    for kind in KINDS:
        print(f"| {kind} | " + " | ".join(str(counts[kind, name]) for name in MAKERS) + " |")
    print(f"{sum(counts.values())} faults, {len(wrong)} of them lost or corrupted a training")
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
