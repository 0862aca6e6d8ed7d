"""Checkpoints from which training resumes to the same bytes, whenever and however it was stopped."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kyomei.atomic import sha256_of, sync_file, sync_folder
from kyomei.errors import RunError
from kyomei.learning.mesh import Mesh

SCHEMA_VERSION = 2
KEPT = 2
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
FULL = "a full disk"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """Everything the rest of a training depends on.

    Attributes:
        step: optimiser steps done; the position in the stream of batches follows from it.
        tensors: model, optimiser and mechanism, by name.
        identity: what training this is a state of, as plain JSON values.
        generators: states of the process's random generators, as `generator_states` gives them.
        parts: tensors that are some rows of a larger one, and which; those of the other rows are with other ranks.
    """

    step: int
    tensors: dict[str, Tensor]
    identity: dict[str, Any]
    generators: dict[str, Any]
    parts: dict[str, slice] = field(default_factory=dict)


_Read = TypeVar("_Read")


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


def save(folder: Path, checkpoint: Checkpoint, mesh: Mesh | None = None) -> Path:
    """Write a checkpoint so that it exists whole or not at all, then drop all but the newest two.

    Args:
        folder: of the training; the checkpoint becomes `checkpoints/step-00000200` in it.
        checkpoint: what to write; of a mesh, this rank's part, and every rank has to call. Each feature part is one file, so
            that no rank holds more than its own.
        mesh: the ranks that write together; none: this process alone.

    Returns:
        The checkpoint's folder.

    Raises:
        RunError: if the disk is full; older checkpoints are intact and training can be resumed.
    """
    mesh = mesh or Mesh()
    parent = folder / "checkpoints"
    final = parent / f"step-{checkpoint.step:08d}"
    temporary = parent / f".{final.name}.{mesh.tell(os.getpid())[0]}.tmp"
    failed: Exception | None = None
    try:
        if mesh.leads:
            parent.mkdir(parents=True, exist_ok=True)
            _drop_unfinished(parent)
            temporary.mkdir()
    except OSError as error:
        failed = error
    digests: dict[str, str] = {}
    told = mesh.tell(_reason(failed))
    try:
        if not any(told) and mesh.data_rank == 0:
            name = _tensors_name(mesh.feature_rank, mesh.features)
            digests[name] = _write_tensors(temporary / name, checkpoint.tensors)
    except (OSError, SafetensorError) as error:
        failed = error
    every = mesh.tell((_reason(failed), digests))
    told = [*told, *(reason for reason, _ in every)]
    try:
        if mesh.leads and not any(told):
            _write_state(temporary, checkpoint, {name: digest for _, own in every for name, digest in own.items()})
            if final.exists():  # what lies there was found damaged, or it would have been resumed from
                shutil.rmtree(final)
            os.replace(temporary, final)
            sync_folder(parent)
    except OSError as error:
        failed = error
    finally:
        if mesh.leads:
            shutil.rmtree(temporary, ignore_errors=True)
    reasons = [reason for reason in [*told, *mesh.tell(_reason(failed))] if reason]
    if reasons:
        raise _unwritable(final, reasons[0]) from failed
    if not mesh.leads:
        return final
    _prune(parent, checkpoint.step)
    return final


def load(folder: Path, parts: dict[str, slice] | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole.

    Args:
        folder: of the training.
        parts: rows to read of some tensors, on whatever mesh they were written; the others are read whole.

    Returns:
        The checkpoint, its tensors on the CPU; none if training never wrote one.

    Raises:
        RunError: if there are checkpoints and all are damaged, or one is of a newer Kyomei.

    Warns:
        UserWarning: for each damaged checkpoint passed over.
    """
    return _newest(folder, lambda path: _read(path, parts or {}))


def _newest(folder: Path, read: Callable[[Path], _Read]) -> _Read | None:
    found = list_checkpoints(folder)
    for path in reversed(found):
        try:
            return read(path)
        except _DamagedError as damage:
            warnings.warn(f"Checkpoint {path} is damaged ({damage}); falling back to the one before.", stacklevel=2)
    if found:
        raise RunError(f"a whole checkpoint in {folder / 'checkpoints'}", "only damaged ones", "start anew with --overwrite")
    return None


def resume_step(folder: Path) -> int:
    """The step from which a resumed training goes on; 0 where there is no checkpoint (raises as `load` does)."""
    found = _newest(folder, _read_state)
    return 0 if found is None else int(found["step"])


def delete(folder: Path) -> None:
    """Delete the checkpoints of a training whose result is saved."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a training, oldest first, unread."""
    paths = [path for path in (folder / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=step_of)


def _tensors_name(number: int, count: int) -> str:
    return TENSORS_FILE if count == 1 else f"tensors-{number:05d}-of-{count:05d}.safetensors"


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors to the disk itself; returns their file's sha256."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    sync_file(path)
    return sha256_of(path)


def _write_state(folder: Path, checkpoint: Checkpoint, digests: dict[str, str]) -> None:
    state = {
        "schema_version": SCHEMA_VERSION,
        "step": checkpoint.step,
        "sha256": digests,
        "sharded": sorted(checkpoint.parts),
        "identity": checkpoint.identity,
        "generators": checkpoint.generators,
    }
    path = folder / STATE_FILE
    path.write_text(json.dumps(state), encoding="utf-8")
    sync_file(path)
    sync_folder(folder)


def _read(path: Path, parts: dict[str, slice]) -> Checkpoint:
    state = _read_state(path)
    try:
        tensors = _read_tensors([path / name for name in sorted(state["sha256"])], set(state["sharded"]), parts)
        return Checkpoint(state["step"], tensors, state["identity"], state["generators"], parts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error


def _read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, once its tensors are known to be those that were written."""
    try:
        state: dict[str, Any] = json.loads((path / STATE_FILE).read_bytes())
        version = state["schema_version"]
        if version > SCHEMA_VERSION:
            raise RunError(f"a checkpoint of schema {SCHEMA_VERSION}", f"{version} in {path}", "resume with a newer Kyomei")
        for name, digest in state["sha256"].items():
            if sha256_of(path / name) != digest:
                raise _DamagedError(f"sha256 of {name} differs from {STATE_FILE}")
        return state
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error


def _read_tensors(files: list[Path], sharded: set[str], parts: dict[str, slice]) -> dict[str, Tensor]:
    """Tensors from the files of all feature parts, of some only the rows in `parts`."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        tensors = {}
        for name in opened[0].keys():  # noqa: SIM118  not a dict
            pieces = [file.get_slice(name) for file in (opened if name in sharded else opened[:1])]
            wanted = parts.get(name)
            tensors[name] = opened[0].get_tensor(name) if len(pieces) == 1 and wanted is None else _rows(pieces, wanted)
        return tensors


def _rows(pieces: list[Any], wanted: slice | None) -> Tensor:
    """Some rows of a tensor that lies in pieces, one under the other."""
    read: list[Tensor] = []
    first = 0
    for piece in pieces:
        last = first + piece.get_shape()[0]
        start = first if wanted is None else max(first, wanted.start)
        stop = last if wanted is None else min(last, wanted.stop)
        if start < stop or (not read and piece is pieces[-1]):
            read.append(piece[max(0, start - first) : max(0, stop - first)])
        first = last
    return torch.cat(read)


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


def _reason(error: Exception | None) -> str:
    """Why something could not be written, as plain text that ranks can tell each other; empty: it could."""
    if error is None:
        return ""
    # safetensors reports system errors as text only.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return FULL if full else str(error) or type(error).__name__


def _unwritable(path: Path, reason: str) -> RunError:
    do = "free space and go on with `kyomei train --resume`; older checkpoints are intact"
    return RunError(
        f"room to write the checkpoint {path}", reason, do if reason == FULL else do.replace("free space", "make it writable")
    )


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(path.name.removeprefix("step-"))


def _bytes_tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
