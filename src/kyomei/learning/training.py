"""Training a sparse autoencoder: one step is score, activate, reconstruct, backpropagate, move, normalise, adapt."""

from __future__ import annotations

import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kyomei.config import TrainRecipe
from kyomei.dictionary.mechanisms import Mechanism
from kyomei.errors import AddressError, DataError, Interrupted, RecipeError, RunError
from kyomei.learning import checkpoint
from kyomei.learning.checkpoint import Checkpoint
from kyomei.learning.latents import Latents
from kyomei.learning.mesh import Mesh
from kyomei.learning.spaces import Normalisation
from kyomei.learning.spread import Spread, numbers, picked
from kyomei.learning.step import StepValues, Training, anchors_of, learning_rate, parts_of
from kyomei.learning.undisturbed import undisturbed
from kyomei.learning.workplace import EventSink, Workplace
from kyomei.source.order import BatchOrder, order_of
from kyomei.source.rows import Rows, near
from kyomei.source.shards import ShardFolder
from kyomei.source.stream import BufferOrder, StreamedRows

# What these keys change is written, not learnt, so a resumed training may have others.
_FREE_KEYS = ("log_every", "checkpoint_every")


class _Log:
    """Sends events; rates are counted from one event to the next."""

    def __init__(self, sink: EventSink, batch_rows: int, first_step: int) -> None:
        self.sink, self.batch_rows, self.last_step = sink, batch_rows, first_step
        self.last_time = time.perf_counter()

    def event(self, step: int, values: StepValues, dead: float, lr: float) -> None:
        """Send the event of the step just done."""
        now = time.perf_counter()
        self.sink.event(
            step,
            loss=values.loss,
            fvu=values.squared_error / values.variance,
            l0=values.l0,
            dead=dead,
            lr=lr,
            rows_per_second=(step - self.last_step) * self.batch_rows / max(now - self.last_time, 1e-9),
        )
        self.last_step, self.last_time = step, now


class _Ahead:
    """Reads the next batch while a step computes, where rows lie on a disk; what else makes rows is asked when it is due."""

    def __init__(self, rows: Rows, order: BatchOrder, part: slice, steps: int, device: torch.device | str) -> None:
        self.rows = rows if isinstance(rows, StreamedRows) else near(rows, device)
        self.order, self.part, self.steps, self._stored = order, part, steps, isinstance(rows, ShardFolder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._next: tuple[int, Future[tuple[np.ndarray, Tensor]]] | None = None
        weakref.finalize(self, self._thread.shutdown, wait=False)

    def batch(self, step: int) -> tuple[np.ndarray, Tensor]:
        """Row numbers and rows of this rank's part of a step's batch."""
        held = self._next
        found = held[1].result() if held is not None and held[0] == step else self._read(step)
        more = step + 1 < self.steps and self._stored
        self._next = (step + 1, self._thread.submit(self._read, step + 1)) if more else None
        return found

    def _read(self, step: int) -> tuple[np.ndarray, Tensor]:
        index = self.order.indices(step)[self.part]
        if isinstance(self.order, BufferOrder) and isinstance(self.rows, StreamedRows):
            return index, self.rows.read(index, ahead=self.order.goes_on(step, self.steps))
        return index, self.rows.read(index)


@undisturbed
def train(
    start: Latents,
    mechanism: Mechanism,
    rows: Rows,
    recipe: TrainRecipe,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    normalisation: Normalisation | None = None,
    workplace: Workplace | None = None,
) -> Spread:
    """Train a sparse autoencoder by minimising ½ mean‖x̂ − x‖² + penalty on normalised rows.

    Args:
        start: initial weights, in normalised space: of several ranks, each one's share of the latents.
        mechanism: what makes the code sparse; it is changed in place.
        rows: activation rows.
        recipe: how to train.
        seed: of the order of rows; the same seed gives the same bytes.
        dtype: float32 or float64; bfloat16 multiplies in bfloat16 and keeps weights in float32.
        normalisation: of the rows; none: measured here.
        workplace: folder of checkpoints, listeners, ranks and device; none: this process alone, on the CPU, saving nothing.

    Returns:
        The autoencoder on raw input, on the workplace's device: of several ranks, this one's share of it.

    Raises:
        DataError: if there are fewer rows than dimensions, rows do not fit the start, or all are equal.
        RecipeError: if the mechanism or the settings do not fit the start.
        TrainingError: if the loss or a gradient is not finite, before the optimiser moves.
        RunError: if checkpoints cannot be written, are there without `resume`, or belong to other settings.
        AddressError: if rows are at an address that no longer answers; one process has saved the steps before.
        Interrupted: if `stop` said so.

    Source: arXiv:2506.14002, §3.
    """
    work = workplace or Workplace()
    folder, mesh = work.folder, work.mesh
    start = _part_of(start, mechanism.width, mesh)
    _check(start, mechanism, rows, recipe, dtype, mesh)
    identity = _identity(start, mechanism, rows, recipe, seed, dtype, mesh)
    saved = _saved(work, identity, parts_of(start, mechanism, recipe, mesh))
    space = _of_checkpoint(saved) or normalisation or Normalisation.measure(rows)
    training = Training(start, mechanism, space, recipe, work.device, dtype, mesh, seed)
    first, saved_step = 0, -1
    if saved is not None:
        training.load(saved.tensors)
        checkpoint.set_generator_states(saved.generators)
        first = saved_step = saved.step
    order = order_of(rows, recipe.batch_rows, seed)
    log = None if work.sink is None else _Log(work.sink, recipe.batch_rows, first)
    ahead = _Ahead(rows, order, mesh.rows(recipe.batch_rows), recipe.steps, work.device)
    asked = mesh.size == 1 and work.stop()
    with work.saving():
        for step in range(first, recipe.steps):
            if asked:
                if folder is not None and saved_step != step:
                    checkpoint.save(folder, training.at(step, identity), mesh)
                raise _interrupted(step, recipe.steps, folder)
            try:
                index, x = ahead.batch(step)
            except AddressError:
                # Rows come from elsewhere; the steps that were done are not lost with the connection.
                if folder is not None and saved_step != step and mesh.size == 1:
                    checkpoint.save(folder, training.at(step, identity), mesh)
                raise
            values = training.step(x, step, index, work.stop() if mesh.size > 1 else False)
            done = step + 1
            if done % recipe.log_every == 0 or done == recipe.steps:
                dead = training.dead_share
                if log is not None:
                    log.event(done, values, dead, learning_rate(recipe, step))
                mechanism.fired.zero_()
            if folder is not None and (done % recipe.checkpoint_every == 0 or done == recipe.steps):
                checkpoint.save(folder, training.at(done, identity), mesh)
                saved_step = done
            work.progress(done, recipe.steps)
            # Ranks have to leave before the same step: what one was asked reaches all of them with the values of a step.
            asked = values.stop if mesh.size > 1 else work.stop()
    return training.finish()


def _part_of(start: Latents, width: int, mesh: Mesh) -> Latents:
    """This rank's part of the latents in training, from the shares of all."""
    if mesh.size == 1 or sum(mesh.tell(start.width)) != width:
        return start
    wanted = numbers(mesh.latents(width))
    return start.joined(lambda rows: picked(rows, wanted, mesh))


def _check(start: Latents, mechanism: Mechanism, rows: Rows, recipe: TrainRecipe, dtype: torch.dtype, mesh: Mesh) -> None:
    own, dim = start.encoder.shape
    width = own * mesh.features
    if rows.dim != dim:
        raise DataError(f"rows of dimension {dim}, as the start has", f"dimension {rows.dim}", "start from the same site")
    if rows.num_rows < dim:
        raise DataError(f"at least as many rows as dimensions ({dim})", f"{rows.num_rows} rows", "harvest more tokens")
    if start.decoder.shape != start.encoder.shape:
        raise RecipeError(f"a decoder of shape {[own, dim]}", f"{list(start.decoder.shape)}", "correct the start")
    if start.hold.shape != (own,) or mechanism.width != width:
        found = f"hold of {start.hold.numel()}, a mechanism of {mechanism.width}"
        raise RecipeError(f"hold and a mechanism of the start's width {width}", found, "make them of one width")
    if start.anchor.shape != (own,) or (start.tied and bool((start.anchor > -1).any())):
        found = f"anchors of {start.anchor.numel()}, a decoder of {'tied rows' if start.tied else 'its own'}"
        raise RecipeError(f"one anchor for each of {own} untied decoder rows", found, "correct the start")
    if recipe.freeze != "none" and start.tied:
        do = "set dictionary.tied to false"
        raise RecipeError(f"an untied dictionary with train.freeze = {recipe.freeze}", "tied rows", do)
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise RecipeError("float32, float64 or bfloat16", f"{dtype}", "choose one of these with --dtype")


def _identity(
    start: Latents, mechanism: Mechanism, rows: Rows, recipe: TrainRecipe, seed: int, dtype: torch.dtype, mesh: Mesh
) -> dict[str, Any]:
    width, dim = mechanism.width, start.encoder.shape[1]
    return {
        "seed": seed,
        "dtype": str(dtype),
        "width": width,
        "dim": dim,
        "tied": start.tied,
        "held": int(mesh.whole(start.hold).sum()),
        "anchors": [part.tolist() for part in torch.unique(mesh.whole(anchors_of(start, recipe)), return_counts=True)],
        "num_rows": rows.num_rows,
        **{f"mechanism.{key}": value for key, value in mechanism.settings().items()},
        **{f"train.{key}": value for key, value in recipe.model_dump(mode="json").items() if key not in _FREE_KEYS},
    }


def _saved(work: Workplace, identity: dict[str, Any], parts: dict[str, slice]) -> Checkpoint | None:
    """The checkpoint to go on from, the same on all ranks."""
    if work.folder is not None and not work.resume and checkpoint.list_checkpoints(work.folder):
        do = "go on with --resume, or start anew with --overwrite"
        raise RunError(f"no checkpoints in {work.folder}", "those of an earlier training", do)
    saved = checkpoint.load(work.folder, parts) if work.folder is not None and work.resume else None
    if saved is not None and saved.identity != identity:
        keys = sorted(identity.keys() | saved.identity.keys())
        other = [key for key in keys if identity.get(key) != saved.identity.get(key)]
        found = ", ".join(f"{key} = {saved.identity.get(key)} there, {identity.get(key)} here" for key in other)
        do = "resume with its settings, or use --overwrite"
        raise RunError(f"checkpoints in {work.folder} of the same training", found, do)
    begun = work.mesh.tell(0 if saved is None else saved.step)
    if len(set(begun)) > 1:
        found = f"steps {', '.join(map(str, begun))}"
        raise RunError("one checkpoint for all ranks", found, "see which rank warned of damage, and delete that checkpoint")
    return saved


def _of_checkpoint(saved: Checkpoint | None) -> Normalisation | None:
    if saved is None:
        return None
    return Normalisation(saved.tensors["normalisation.mean"], float(saved.tensors["normalisation.scale"]))


def _interrupted(step: int, steps: int, folder: Path | None) -> Interrupted:
    if folder is None:
        return Interrupted(f"{steps} training steps", f"a stop after {step}, and no folder for checkpoints", "train again")
    do = "run the same command again, with --resume where it has that"
    return Interrupted(f"{steps} training steps", f"a stop after {step}, saved in {folder}", do)
