"""Are the premises met? On shards, on a file of activations, or on a run's first replica."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors

from kyomei.errors import DataError
from kyomei.evidence.premises import Premises, check
from kyomei.learning.fit import choose_device
from kyomei.runs import Run
from kyomei.source.shards import Rows, TensorRows, open_rows
from kyomei.stages.harvest import activations, harvest_run
from kyomei.stages.watcher import Watcher

STAGE = "check"
PART = "replica-0"
FILE = "premises.json"


def check_run(run: Run, watcher: Watcher, *, seed: int | None = None, device: str | None = None) -> Premises:
    """Check the activations of a run's first replica, harvesting what is missing, and write premises.json.

    Args:
        run: where the activations are or go.
        watcher: shows progress.
        seed: none: the recipe's.
        device: none: the recipe's.
    """
    harvest_run(run, watcher)
    seed = run.recipe.seed if seed is None else seed
    premises = check_rows(activations(run, PART), watcher, seed=seed, device=device or run.recipe.device)
    run.write_json(FILE, premises.to_dict())
    run.record(FILE)
    run.finish(STAGE)
    return premises


def check_rows(rows: Rows, watcher: Watcher, *, seed: int, device: str) -> Premises:
    """Check rows, showing progress.

    Raises:
        DataError: too few rows, constant columns.
        Interrupted: the user asked for a stop.
    """
    with watcher.progress("check") as progress:

        def searched(done: int, total: int) -> None:
            progress(done, total)
            watcher.leave_if_asked("the check")

        return check(rows, seed=seed, device=choose_device(device), progress=searched)


def open_source(source: Path) -> Rows:
    """Rows of a .npy or .safetensors file, or of a folder of shards.

    Raises:
        DataError: there is nothing of the kind, it is damaged, or a value is not finite.
    """
    if source.suffix not in (".npy", ".safetensors") or source.is_dir():
        if source.is_file():
            found = f"{source}"
            raise DataError(
                "a .npy or .safetensors file, a folder of shards or a run", found, "convert the file to one of these"
            )
        return open_rows(source)
    if not source.exists():
        raise DataError("a file of activations", f"nothing at {source}", "check the path")
    return _read_npy(source) if source.suffix == ".npy" else _read_safetensors(source)


def _read_npy(path: Path) -> TensorRows:
    try:
        # Mapped, so that only the rows in use are in memory; copy-on-write, because torch wants its arrays writable.
        return TensorRows(np.load(path, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError("a .npy file of numbers", f"{path}: {error}", "save it again with numpy.save") from error


def _read_safetensors(path: Path) -> TensorRows:
    try:
        with safetensors.safe_open(path, "pt") as file:
            names = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == 2]  # noqa: SIM118  no mapping
            if "activations" not in names and len(names) != 1:
                found = f"{', '.join(names) or 'none'} in {path}"
                raise DataError("one matrix, or one called 'activations'", found, "save the activations under that name")
            return TensorRows(file.get_tensor("activations" if "activations" in names else names[0]))
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError("a .safetensors file", f"{path}: {error}", "save it again") from error
