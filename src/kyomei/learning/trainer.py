"""Training a sparse autoencoder: one step is score, activate, reconstruct, backpropagate, move, normalise, adapt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import TrainRecipe
from kyomei.dictionary import kernels
from kyomei.dictionary.mechanisms import Mechanism, Objective
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError, Interrupted, RecipeError, RunError, TrainingError
from kyomei.learning import checkpoint
from kyomei.learning.checkpoint import Checkpoint
from kyomei.source.shards import BatchOrder, Rows

# What these keys change is written, not learnt, so a resumed training may have others.
_FREE_KEYS = ("log_every", "checkpoint_every")

SOFT_FROZEN_COSINE = 0.8
"""A soft-frozen decoder row keeps at least this cosine to its start (arXiv:2602.14111)."""


class EventSink(Protocol):
    """Takes the values of a step, as every sink in `kyomei.sinks` does."""

    def event(self, step: int, **values: Any) -> None: ...


class NonFiniteError(TrainingError):
    """A step whose loss or gradient is not finite; the weights are as before it.

    Attributes:
        step: the step, from 0.
        rows: row numbers of its batch.
    """

    def __init__(self, step: int, rows: Int64[np.ndarray, " batch"], what: str, broken: list[int]) -> None:
        shown = ", ".join(str(row) for row in (broken or rows.tolist())[:8])
        rest = "" if len(broken or rows) <= 8 else f" and {len(broken or rows) - 8} more"
        culprit = f"whose input rows {shown}{rest} are not finite" if broken else f"over rows {shown}{rest}"
        do = "repair these rows" if broken else "lower train.lr; the weights and the last checkpoint are those before this step"
        super().__init__("a finite loss and gradient", f"{what} at step {step}, {culprit}", do)
        self.step, self.rows = step, rows


@dataclass(frozen=True)
class Start:
    """Weights from which training starts, in normalised space.

    Attributes:
        encoder: encoder rows [width, dim].
        decoder: decoder rows [width, dim]; none: tied to the encoder.
        hold: encoders (tied: also decoders) that are not trained [width].
        anchor: least cosine of each decoder row to its start, untied only; −1 is free [width]. None: all are free.
        centre: b_pre [dim]; none: zero.
    """

    encoder: Float[Tensor, "width dim"]
    decoder: Float[Tensor, "width dim"] | None
    hold: Bool[Tensor, " width"]
    anchor: Float[Tensor, " width"] | None = None
    centre: Float[Tensor, " dim"] | None = None


def random_start(width: int, dim: int, seed: int, tied: bool) -> Start:
    """Random unit rows; an untied decoder starts as a copy of the encoder.

    Args:
        width: number of latents.
        dim: dimension of the input.
        seed: seed of the draw.
        tied: whether encoder and decoder share their rows.
    """
    generator = torch.Generator().manual_seed(seed)
    encoder = normalize(torch.randn(width, dim, generator=generator), dim=1)
    return Start(encoder, None if tied else encoder.clone(), torch.zeros(width, dtype=torch.bool))


@dataclass(frozen=True)
class Normalisation:
    """Centring and one global scale, x_n = (x − mean) / scale, so that E‖x_n‖² = 1.

    Attributes:
        mean: mean row [dim], float64.
        scale: root mean square of ‖x − mean‖.
    """

    mean: Float[Tensor, " dim"]
    scale: float

    @classmethod
    def measure(cls, rows: Rows) -> Normalisation:
        """The normalisation of rows, from one pass in float64.

        Raises:
            DataError: if a row is not finite, or all rows are equal.
        """
        # Sums are taken around the first row, so that a large common offset does not cancel digits.
        origin: Tensor | None = None
        total, squares, count = torch.zeros(rows.dim, dtype=torch.float64), 0.0, 0
        for block in rows.blocks():
            values = block.to("cpu", torch.float64)
            origin = values[0] if origin is None else origin
            shifted = values - origin
            square = shifted.square().sum().item()
            if not math.isfinite(square):
                row = count + int((~torch.isfinite(values).all(dim=1)).nonzero()[0])
                raise DataError("finite activations", f"a value that is not, in row {row}", "remove or repair that row")
            total, squares, count = total + shifted.sum(dim=0), squares + square, count + len(values)
        shift = total / max(count, 1)
        variance = squares / max(count, 1) - shift.square().sum().item()
        if origin is None or squares == 0 or variance <= 1e-14 * squares / count:
            raise DataError("rows that differ", f"{count} rows that are all equal", "check what these activations come from")
        return cls(origin + shift, math.sqrt(variance))

    def to(self, like: Tensor) -> Normalisation:
        """The same in the dtype and on the device of another tensor."""
        return Normalisation(self.mean.to(like.dtype).to(like.device), self.scale)

    def apply(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """Normalised rows, in the dtype and on the device of the mean."""
        return (x.to(self.mean.device, self.mean.dtype) - self.mean) / self.scale

    def fold(
        self, encoder: Tensor, decoder: Tensor | None, centre: Float[Tensor, " dim"], mechanism: Mechanism
    ) -> SparseAutoencoder:
        """The autoencoder on raw input that does what these normalised weights and mechanism do."""
        finish = mechanism.finish()
        center = self.mean + self.scale * centre.detach().cpu().double()
        scale = encoder.new_ones(len(encoder)) if finish.scale is None else finish.scale.to(encoder)
        if decoder is None and finish.scale is not None:
            decoder = encoder
        return SparseAutoencoder(
            scale[:, None] * encoder.detach(),
            None if decoder is None else decoder.detach().clone(),
            (self.scale * scale * finish.threshold.detach()).to(encoder),
            center.to(encoder.dtype).to(encoder.device),
            activation=finish.activation,
            k=finish.k,
            offset=None if finish.offset is None else (self.scale * finish.offset).to(encoder),
        )


class _StepValues(NamedTuple):
    """What a step leaves for its event."""

    loss: Tensor
    squared_error: Tensor
    xn: Tensor
    num_active: int


class _Training:
    """The state that steps change: weights, optimiser, mechanism."""

    def __init__(
        self,
        start: Start,
        mechanism: Mechanism,
        normalisation: Normalisation,
        recipe: TrainRecipe,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        # bfloat16 has too few digits for small updates: weights stay in float32 and the products are autocast.
        self.autocast = torch.bfloat16 if dtype == torch.bfloat16 else None
        kept = torch.float32 if dtype == torch.bfloat16 else dtype
        self.mechanism, self.recipe = mechanism, recipe
        mechanism.to(device, kept)
        self.encoder = start.encoder.detach().to(device, kept, copy=True)
        self.decoder = self.encoder if start.decoder is None else start.decoder.detach().to(device, kept, copy=True)
        centre = torch.zeros(self.encoder.shape[1]) if start.centre is None else start.centre
        self.centre = centre.detach().to(device, kept, copy=True)
        self.tied = start.decoder is None
        self.normalisation, self.normalise = normalisation, normalisation.to(self.encoder).apply
        self.decoder.copy_(normalize(self.decoder, dim=1))
        hold = torch.ones_like(start.hold) if recipe.freeze == "encoder" else start.hold
        self.held = hold.nonzero().flatten().to(device)
        self.held_rows = self.encoder[self.held].clone()
        anchor = _anchors(start, recipe)
        self.anchored = (anchor > -1).nonzero().flatten().to(device)
        self.anchor = anchor.to(device, kept)[self.anchored, None]
        self.anchor_rows = self.decoder[self.anchored].clone()
        matrices = [self.encoder] if self.tied else [self.encoder, self.decoder]
        self.weights = [*matrices, self.centre]
        self.parameters = [*self.weights, *mechanism.parameters()]
        for tensor in self.parameters:
            tensor.requires_grad_(True)
        self.optimizer = self._optimizer(matrices, self.parameters[len(matrices) :])

    def _optimizer(self, matrices: list[Tensor], vectors: list[Tensor]) -> torch.optim.Optimizer:
        recipe = self.recipe
        # Decay is for weights; b_pre and biases have a meaningful zero of their own.
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        if recipe.optimizer == "adam":
            groups[0]["weight_decay"] = 0.0
        return kind(groups, lr=recipe.lr, fused=self.encoder.device.type in ("cpu", "cuda"))

    def step(self, x: Float[Tensor, "rows dim"], step: int, rows: Int64[np.ndarray, " batch"]) -> _StepValues:
        """One optimiser step on raw rows; raises before anything moves if the loss or the gradient is not finite."""
        xn = self.normalise(x)
        self.optimizer.zero_grad(set_to_none=False)
        objective = self._objective(xn)
        torch.autograd.backward(objective.loss)
        self._hold_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        loss = objective.loss.detach()
        if not bool(torch.isfinite(loss + norm)):
            broken = rows[(~torch.isfinite(x).all(dim=1)).cpu().numpy()].tolist()
            what = f"loss {loss.item():g}, gradient norm {norm.item():g}"
            raise NonFiniteError(step, rows, what, broken)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step)
        self.optimizer.step()
        self._normalise_rows()
        self.mechanism.observe(objective.active, objective.scores, objective.values)
        if self.mechanism.adapt_every and (step + 1) % self.mechanism.adapt_every == 0:
            self.mechanism.adapt()
        return _StepValues(loss, objective.squared_error, xn, int((objective.values > 0).sum()))

    def _objective(self, xn: Tensor) -> Objective:
        """Loss and gradient on the active set, or on whole matrices where the code is dense."""
        weights = xn, self.encoder, self.decoder, self.centre
        if kernels.supported(self.encoder.device):
            sparse = self.mechanism.objective(kernels.SparseProducts(*weights, autocast=self.autocast))
            if sparse.active.density <= kernels.DENSE_ABOVE:
                return sparse
        return self.mechanism.objective(kernels.DenseProducts(*weights, autocast=self.autocast))

    def _hold_gradients(self) -> None:
        if len(self.held) and self.encoder.grad is not None:
            self.encoder.grad.index_fill_(0, self.held, 0.0)

    @torch.no_grad()
    def _normalise_rows(self) -> None:
        # clamp: a row that weight decay emptied stays zero instead of becoming NaN.
        self.decoder.div_(torch.linalg.vector_norm(self.decoder, dim=1, keepdim=True).clamp_min(1e-12))
        if len(self.anchored):
            self._anchor_decoder()
        if len(self.held):
            self.encoder.index_copy_(0, self.held, self.held_rows)

    def _anchor_decoder(self) -> None:
        """Put decoder rows that left the cone around their start back on it."""
        rows, first, least = self.decoder[self.anchored], self.anchor_rows, self.anchor
        along = (rows * first).sum(dim=1, keepdim=True)
        on_cone = least * first + (1 - least.square()).sqrt() * normalize(rows - along * first, dim=1)
        self.decoder.index_copy_(0, self.anchored, torch.where((along < least) | (least == 1), on_cone, rows))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the rest of training depends on."""
        named = {f"model.{number}": tensor for number, tensor in enumerate(self.weights)}
        named["model.held"] = self.held_rows
        named["model.anchor"] = self.anchor_rows
        named["normalisation.mean"] = self.normalisation.mean
        named["normalisation.scale"] = torch.tensor(self.normalisation.scale, dtype=torch.float64)
        for number, slots in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{number}.{slot}": value for slot, value in slots.items()}
        return named | {f"mechanism.{name}": tensor for name, tensor in self.mechanism.state().items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors that `tensors` gave."""
        for number, tensor in enumerate(self.weights):
            tensor.copy_(tensors[f"model.{number}"])
        self.held_rows.copy_(tensors["model.held"])
        self.anchor_rows.copy_(tensors["model.anchor"])
        prefix = "mechanism."
        self.mechanism.load_state({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, parameter, slot = name.split(".")
                state.setdefault(int(parameter), {})[slot] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def finish(self) -> SparseAutoencoder:
        """The autoencoder on raw input."""
        return self.normalisation.fold(self.encoder, None if self.tied else self.decoder, self.centre, self.mechanism)

    def at(self, step: int, identity: dict[str, Any]) -> Checkpoint:
        """The checkpoint after so many steps."""
        return Checkpoint(step, self.tensors(), identity, checkpoint.generator_states())


def _anchors(start: Start, recipe: TrainRecipe) -> Float[Tensor, " width"]:
    """Least cosine of every decoder row to its start; a frozen control's is the same for all."""
    frozen = {"decoder": 1.0, "soft_decoder": SOFT_FROZEN_COSINE}.get(recipe.freeze)
    if frozen is None:
        return torch.full((len(start.encoder),), -1.0) if start.anchor is None else start.anchor
    return torch.full((len(start.encoder),), frozen)


class _Log:
    """Sends events; rates are counted from one event to the next."""

    def __init__(self, sink: EventSink, batch_rows: int, first_step: int) -> None:
        self.sink, self.batch_rows, self.last_step = sink, batch_rows, first_step
        self.last_time = time.perf_counter()

    def event(self, step: int, values: _StepValues, training: _Training) -> None:
        """Send the event of the step just done, and start a new window of fired latents."""
        variance = values.xn.square().sum() / len(values.xn)
        now = time.perf_counter()
        self.sink.event(
            step,
            loss=values.loss.item(),
            fvu=(values.squared_error / variance).item(),
            l0=values.num_active / len(values.xn),
            dead=1 - training.mechanism.fired.float().mean().item(),
            lr=learning_rate(training.recipe, step - 1),
            rows_per_second=(step - self.last_step) * self.batch_rows / max(now - self.last_time, 1e-9),
        )
        self.last_step, self.last_time = step, now


class _Silence:
    """The sink of those who asked for none."""

    def event(self, step: int, **values: Any) -> None:
        pass


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, plateau, linear decay at the end."""
    warm = min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
    decay_steps = recipe.decay_share * recipe.steps
    return recipe.lr * warm * (min(1.0, (recipe.steps - step) / decay_steps) if decay_steps else 1.0)


def train(
    start: Start,
    mechanism: Mechanism,
    rows: Rows,
    recipe: TrainRecipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path | None = None,
    sink: EventSink | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] | None = None,
    resume: bool = False,
) -> SparseAutoencoder:
    """Train a sparse autoencoder by minimising ½ mean‖x̂ − x‖² + penalty on normalised rows.

    Args:
        start: initial weights, in normalised space.
        mechanism: what makes the code sparse; it is changed in place.
        rows: activation rows.
        recipe: how to train.
        seed: of the order of rows; the same seed gives the same bytes.
        device: where tensors live.
        dtype: float32 or float64; bfloat16 multiplies in bfloat16 and keeps weights in float32.
        folder: where checkpoints go; none: there are none.
        sink: takes an event every `log_every` steps with loss, fvu, l0, dead (share of latents silent since the last event),
            lr and rows_per_second.
        stop: asked before every step; once true, a checkpoint is written and `Interrupted` raised.
        progress: called with steps done and steps in all.
        resume: go on from the newest whole checkpoint in the folder, if there is one; process-wide random generators
            are put back to where they were, too.

    Returns:
        The autoencoder on raw input, on `device`.

    Raises:
        DataError: if there are fewer rows than dimensions, rows do not fit the start, or all are equal.
        RecipeError: if the mechanism or the settings do not fit the start.
        TrainingError: if the loss or a gradient is not finite, before the optimiser moves.
        RunError: if checkpoints cannot be written, are there without `resume`, or belong to other settings.
        Interrupted: if `stop` said so.

    Source: arXiv:2506.14002, §3.
    """
    _check(start, mechanism, rows, recipe, dtype)
    identity = _identity(start, mechanism, rows, recipe, seed, dtype)
    saved = _saved(folder, identity, resume)
    training = _Training(start, mechanism, _normalisation(rows, saved), recipe, device, dtype)
    first, saved_step = 0, -1
    if saved is not None:
        training.load(saved.tensors)
        checkpoint.set_generator_states(saved.generators)
        first = saved_step = saved.step
    order = BatchOrder(rows.num_rows, recipe.batch_rows, seed)
    log = _Log(sink or _Silence(), recipe.batch_rows, first)
    for step in range(first, recipe.steps):
        if stop():
            if folder is not None and saved_step != step:
                checkpoint.save(folder, training.at(step, identity))
            raise _interrupted(step, recipe.steps, folder)
        index = order.indices(step)
        values = training.step(rows.read(index), step, index)
        done = step + 1
        if done % recipe.log_every == 0 or done == recipe.steps:
            if sink is not None:
                log.event(done, values, training)
            mechanism.fired.zero_()
        if folder is not None and (done % recipe.checkpoint_every == 0 or done == recipe.steps):
            checkpoint.save(folder, training.at(done, identity))
            saved_step = done
        if progress is not None:
            progress(done, recipe.steps)
    return training.finish()


def _check(start: Start, mechanism: Mechanism, rows: Rows, recipe: TrainRecipe, dtype: torch.dtype) -> None:
    width, dim = start.encoder.shape
    if rows.dim != dim:
        raise DataError(f"rows of dimension {dim}, as the start has", f"dimension {rows.dim}", "start from the same site")
    if rows.num_rows < dim:
        raise DataError(f"at least as many rows as dimensions ({dim})", f"{rows.num_rows} rows", "harvest more tokens")
    if start.decoder is not None and start.decoder.shape != start.encoder.shape:
        raise RecipeError(f"a decoder of shape {[width, dim]}", f"{list(start.decoder.shape)}", "correct the start")
    if start.hold.shape != (width,) or mechanism.width != width:
        found = f"hold of {start.hold.numel()}, a mechanism of {mechanism.width}"
        raise RecipeError(f"hold and a mechanism of the start's width {width}", found, "make them of one width")
    if start.anchor is not None and (start.anchor.shape != (width,) or start.decoder is None):
        found = f"anchors of {start.anchor.numel()}, a decoder of {'its own' if start.decoder is not None else 'tied rows'}"
        raise RecipeError(f"one anchor for each of {width} untied decoder rows", found, "correct the start")
    if recipe.freeze != "none" and start.decoder is None:
        do = "set dictionary.tied to false"
        raise RecipeError(f"an untied dictionary with train.freeze = {recipe.freeze}", "tied rows", do)
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise RecipeError("float32, float64 or bfloat16", f"{dtype}", "choose one of these with --dtype")


def _identity(
    start: Start, mechanism: Mechanism, rows: Rows, recipe: TrainRecipe, seed: int, dtype: torch.dtype
) -> dict[str, Any]:
    width, dim = start.encoder.shape
    return {
        "seed": seed,
        "dtype": str(dtype),
        "width": width,
        "dim": dim,
        "tied": start.decoder is None,
        "held": int(start.hold.sum()),
        "anchors": [part.tolist() for part in torch.unique(_anchors(start, recipe), return_counts=True)],
        "num_rows": rows.num_rows,
        **{f"mechanism.{key}": value for key, value in mechanism.settings().items()},
        **{f"train.{key}": value for key, value in recipe.model_dump(mode="json").items() if key not in _FREE_KEYS},
    }


def _saved(folder: Path | None, identity: dict[str, Any], resume: bool) -> Checkpoint | None:
    if folder is None:
        return None
    if not resume:
        if checkpoint.list_checkpoints(folder):
            do = "go on with --resume, or start anew with --overwrite"
            raise RunError(f"no checkpoints in {folder}", "those of an earlier training", do)
        return None
    saved = checkpoint.load(folder)
    if saved is not None and saved.identity != identity:
        keys = sorted(identity.keys() | saved.identity.keys())
        other = [key for key in keys if identity.get(key) != saved.identity.get(key)]
        found = ", ".join(f"{key} = {saved.identity.get(key)} there, {identity.get(key)} here" for key in other)
        raise RunError(f"checkpoints in {folder} of the same training", found, "resume with its settings, or use --overwrite")
    return saved


def _normalisation(rows: Rows, saved: Checkpoint | None) -> Normalisation:
    if saved is None:
        return Normalisation.measure(rows)
    return Normalisation(saved.tensors["normalisation.mean"], float(saved.tensors["normalisation.scale"]))


def _interrupted(step: int, steps: int, folder: Path | None) -> Interrupted:
    if folder is None:
        return Interrupted(f"{steps} training steps", f"a stop after {step}, and no folder for checkpoints", "train again")
    do = "go on with `kyomei train --resume`"
    return Interrupted(f"{steps} training steps", f"a stop after {step}, saved in {folder}", do)
