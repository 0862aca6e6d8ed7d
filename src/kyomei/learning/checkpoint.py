"""Checkpoints from which training resumes to the same bytes, whenever and however it was stopped."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kyomei.errors import RunError
from kyomei.runs import sha256_of

SCHEMA_VERSION = 1
KEPT = 2
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """Everything the rest of a training depends on.

    Attributes:
        step: optimiser steps done; the position in the stream of batches follows from it.
        tensors: model, optimiser and mechanism, by name.
        identity: what training this is a state of, as plain JSON values.
        generators: states of the process's random generators, as `generator_states` gives them.
    """

    step: int
    tensors: dict[str, Tensor]
    identity: dict[str, Any]
    generators: dict[str, Any]


class _DamagedError(Exception):
    """A checkpoint that cannot be read back as it was written."""


def generator_states() -> dict[str, Any]:
    """States of every process-wide random generator: Python's, NumPy's, and PyTorch's on the CPU and each accelerator."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if torch.cuda.is_available():
        states["cuda"] = [state.numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()]
    return states


def set_generator_states(states: dict[str, Any]) -> None:
    """Put every process-wide random generator back where `generator_states` found it."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes_tensor(states["torch"]))
    # A run may resume on a machine with fewer accelerators; theirs are the only states that can be lost.
    for device, state in enumerate(states.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_bytes_tensor(state), device)


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint so that it exists whole or not at all, then drop all but the newest two.

    Args:
        folder: of the training; the checkpoint becomes `checkpoints/step-00000200` in it.
        checkpoint: what to write.

    Returns:
        The checkpoint's folder.

    Raises:
        RunError: if the disk is full; older checkpoints are intact and training can be resumed.
    """
    parent = folder / "checkpoints"
    final = parent / f"step-{checkpoint.step:08d}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _drop_unfinished(parent)
        temporary = parent / f".{final.name}.{os.getpid()}.tmp"
        try:
            temporary.mkdir()
            _write(temporary, checkpoint)
            if final.exists():  # what lies there was found damaged, or it would have been resumed from
                shutil.rmtree(final)
            os.replace(temporary, final)
            _flush_folder(parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _unwritable(final, error) from error
    _prune(parent, checkpoint.step)
    return final


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole.

    Args:
        folder: of the training.

    Returns:
        The checkpoint, its tensors on the CPU; none if training never wrote one.

    Raises:
        RunError: if there are checkpoints and all are damaged, or one is of a newer Kyomei.

    Warns:
        UserWarning: for each damaged checkpoint passed over.
    """
    found = list_checkpoints(folder)
    for path in reversed(found):
        try:
            return _read(path)
        except _DamagedError as damage:
            warnings.warn(f"Checkpoint {path} is damaged ({damage}); falling back to the one before.", stacklevel=2)
    if found:
        raise RunError(f"a whole checkpoint in {folder / 'checkpoints'}", "only damaged ones", "start anew with --overwrite")
    return None


def resume_step(folder: Path) -> int:
    """The step from which a resumed training goes on; 0 where there is no checkpoint (raises as `load` does)."""
    found = load(folder)
    return 0 if found is None else found.step


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a training, oldest first, unread."""
    paths = [path for path in (folder / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=step_of)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, folder / TENSORS_FILE)
    state = {
        "schema_version": SCHEMA_VERSION,
        "step": checkpoint.step,
        "sha256": sha256_of(folder / TENSORS_FILE),
        "identity": checkpoint.identity,
        "generators": checkpoint.generators,
    }
    (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    for path in (folder / TENSORS_FILE, folder / STATE_FILE):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _flush_folder(folder)


def _read(path: Path) -> Checkpoint:
    try:
        state = json.loads((path / STATE_FILE).read_bytes())
        version = state["schema_version"]
        if version > SCHEMA_VERSION:
            raise RunError(f"a checkpoint of schema {SCHEMA_VERSION}", f"{version} in {path}", "resume with a newer Kyomei")
        if sha256_of(path / TENSORS_FILE) != state["sha256"]:
            raise _DamagedError(f"sha256 of {TENSORS_FILE} differs from {STATE_FILE}")
        tensors = load_file(path / TENSORS_FILE)
        return Checkpoint(state["step"], tensors, state["identity"], state["generators"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error


def _prune(parent: Path, newest: int) -> None:
    found = list_checkpoints(parent.parent)
    # Anything beyond the step just written was passed over as damaged when training resumed.
    kept = [path for path in found if step_of(path) <= newest][-KEPT:]
    for path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _drop_unfinished(parent: Path) -> None:
    for leftover in parent.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _unwritable(path: Path, error: Exception) -> RunError:
    # safetensors reports system errors as text only.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    found = "a full disk" if full else str(error)
    do = "free space and go on with `kyomei train --resume`; older checkpoints are intact"
    return RunError(f"room to write the checkpoint {path}", found, do if full else do.replace("free space", "make it writable"))


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(path.name.removeprefix("step-"))


def _bytes_tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
