"""Training killed by SIGKILL at random moments and resumed gives the bytes of an undisturbed training."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from tests.warm import begun, ended

from kyomei.config import TrainRecipe
from kyomei.dictionary.mechanisms import GBA, Adaptation, geometric_targets
from kyomei.learning.latents import random_start
from kyomei.learning.training import train
from kyomei.learning.workplace import Workplace
from kyomei.source.rows import TensorRows

STEPS, KILLS = 400, 10


def training(folder: Path) -> None:
    """One process's training, which prints each step that it has done."""
    torch.set_num_threads(1)
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    sae = train(
        random_start(64, 16, 0, tied=True),
        GBA(*geometric_targets(64, 4, 0.3, 0.05), adaptation=Adaptation(adapt_every=3)),
        TensorRows(x),
        TrainRecipe(steps=STEPS, batch_rows=64, checkpoint_every=2),
        seed=0,
        workplace=Workplace(folder, resume=True, progress=lambda done, steps: print(done, flush=True)),
    )
    sae.whole().save(folder)


def finish(folder: Path) -> None:
    said = folder.with_suffix(".said")
    assert ended(begun(training, folder, err=said)) == 0, said.read_text()[-3000:]


def kill_in_training(folder: Path, moment: random.Random) -> int:
    """Kill a training a few steps after it started; returns the last step it reported."""
    out, err = folder.with_suffix(".out"), folder.with_suffix(".err")
    out.write_text("")
    process = begun(training, folder, err=err, out=out)
    steps = moment.randint(1, 20)
    while len(out.read_text().split()) < steps:
        assert process.is_alive(), err.read_text()[-3000:]
        time.sleep(0.001)
    time.sleep(moment.uniform(0, 0.01))
    process.kill()
    assert ended(process) == -signal.SIGKILL
    return int(out.read_text().split()[-1])


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every tensor's bytes, read without the code under test."""
    found = {}
    for path in (folder / "sae.safetensors", folder / "checkpoints" / f"step-{STEPS:08d}" / "tensors.safetensors"):
        payload = path.read_bytes()
        length = int.from_bytes(payload[:8], "little")
        for name, entry in json.loads(payload[8 : 8 + length]).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                found[f"{path.name}:{name}"] = hashlib.sha256(payload[8 + length + first : 8 + length + last]).hexdigest()
    return found


@pytest.mark.slow
def test_killed_training_ends_in_the_same_bytes(tmp_path: Path) -> None:
    finish(tmp_path / "undisturbed")
    moment = random.Random(0)
    reached = [kill_in_training(tmp_path / "killed", moment) for _ in range(KILLS)]
    assert max(reached) < STEPS, "every kill came before the end"
    assert max(reached) > reached[0], "killed trainings went on from one another"
    finish(tmp_path / "killed")
    expected = digests(tmp_path / "undisturbed")
    assert len(expected) > 10
    assert digests(tmp_path / "killed") == expected
