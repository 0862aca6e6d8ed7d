"""Checkpoints are whole or absent, and a damaged one is passed over."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kyomei.errors import RunError
from kyomei.learning.checkpoint import (
    Checkpoint,
    generator_states,
    list_checkpoints,
    load,
    resume_step,
    save,
    set_generator_states,
    step_of,
)


def at(step: int, numel: int = 8) -> Checkpoint:
    tensors = {
        "weights": torch.randn(numel, generator=torch.Generator().manual_seed(step)),
        "half": torch.full((2, 2), step, dtype=torch.bfloat16),
        "count": torch.tensor(step),
        "fired": torch.tensor([True, False]),
    }
    return Checkpoint(step, tensors, {"seed": 1, "train.lr": 0.1}, generator_states())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_round_trip_is_exact_and_the_newest_two_stay(tmp_path: Path) -> None:
    assert load(tmp_path) is None and resume_step(tmp_path) == 0
    for step in (100, 200, 300):
        path = save(tmp_path, at(step))
    assert path == tmp_path / "checkpoints" / "step-00000300"
    assert names(tmp_path) == ["step-00000200", "step-00000300"]
    found, expected = load(tmp_path), at(300)
    assert found is not None and (found.step, found.identity) == (300, expected.identity)
    assert resume_step(tmp_path) == 300
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype
    assert [len(d) for d in json.loads((path / "state.json").read_text())["sha256"].values()] == [64]


def flip(path: Path) -> None:
    payload = bytearray((path / "tensors.safetensors").read_bytes())
    payload[-3] ^= 1
    (path / "tensors.safetensors").write_bytes(payload)


def truncate(name: str) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        os.truncate(path / name, (path / name).stat().st_size // 2)

    return cut


def foreign(path: Path) -> None:
    (path / "state.json").write_text("[]")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped byte": flip,
    "truncated tensors": truncate("tensors.safetensors"),
    "truncated state": truncate("state.json"),
    "missing tensors": lambda path: (path / "tensors.safetensors").unlink(),
    "missing state": lambda path: (path / "state.json").unlink(),
    "foreign state": foreign,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_and_is_replaced(tmp_path: Path, damage: str) -> None:
    save(tmp_path, at(100))
    DAMAGES[damage](save(tmp_path, at(200)))
    with pytest.warns(UserWarning, match="step-00000200 is damaged .*falling back"):
        found = load(tmp_path)
    assert found is not None and found.step == 100
    save(tmp_path, at(150))
    assert names(tmp_path) == ["step-00000100", "step-00000150"]  # the damaged one would otherwise count as newest
    DAMAGES[damage](save(tmp_path, at(200)))
    save(tmp_path, at(200))
    found = load(tmp_path)
    assert found is not None and found.step == 200


@pytest.mark.filterwarnings("ignore:Checkpoint")
def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    flip(save(tmp_path, at(100)))
    with pytest.raises(RunError, match=r"only damaged ones.*--overwrite"):
        load(tmp_path)


def test_a_newer_schema_is_refused_and_not_taken_for_damage(tmp_path: Path) -> None:
    state = save(tmp_path, at(100)) / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"schema_version": 3}))
    with pytest.raises(RunError, match=r"schema 2.*3 in .*newer Kyomei"):
        load(tmp_path)


def test_what_a_killed_writer_left_is_ignored_and_swept(tmp_path: Path) -> None:
    save(tmp_path, at(100))
    leftover = tmp_path / "checkpoints" / ".step-00000200.12345.tmp"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    found = load(tmp_path)
    assert found is not None and found.step == 100
    save(tmp_path, at(200))
    assert names(tmp_path) == ["step-00000100", "step-00000200"]


def test_a_full_disk_keeps_older_checkpoints_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, at(100))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"step-00000200.*a full disk.*Free space.*kyomei train --resume.*intact"):
            save(tmp_path, at(200))
    assert names(tmp_path) == ["step-00000100"]
    save(tmp_path, at(200))
    assert resume_step(tmp_path) == 200


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 16 KiB: the system itself refuses the write, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_system_cuts_short_leaves_no_trace(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    save(tmp_path, at(100))
    request.getfixturevalue("small_files")
    with pytest.raises(RunError, match=r"step-00000200.*too large.*older checkpoints are intact"):
        save(tmp_path, at(200, numel=50_000))
    assert names(tmp_path) == ["step-00000100"]


def test_generators_return_to_where_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))

    draw()  # leaves the second half of a Gaussian pair waiting in two of them
    states = json.loads(json.dumps(generator_states()))
    first = draw()
    draw()
    set_generator_states(states)
    assert draw() == first


def test_folders_are_listed_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (999_999_999, 5, 40):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-x").mkdir()
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [5, 40, 999_999_999]
