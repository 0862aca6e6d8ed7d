"""The state that training steps change: weights, optimiser and mechanism, whole or this rank's part of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.config import TrainRecipe
from kyomei.dictionary.kernels import supported
from kyomei.dictionary.mechanisms import Mechanism, Objective
from kyomei.dictionary.products import DenseProducts, Others, SparseProducts, is_dense
from kyomei.errors import TrainingError
from kyomei.learning import checkpoint
from kyomei.learning.checkpoint import Checkpoint
from kyomei.learning.latents import Latents
from kyomei.learning.mesh import Mesh
from kyomei.learning.optimiser import CompactAdam
from kyomei.learning.spaces import Normalisation
from kyomei.learning.spread import Spread, numbers

SOFT_FROZEN_COSINE = 0.8
"""A soft-frozen decoder row keeps at least this cosine to its start (arXiv:2602.14111)."""


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


class StepValues(NamedTuple):
    """What a step leaves for its event, over the rows and latents of all ranks; and whether a rank was asked to stop."""

    loss: float
    squared_error: float
    variance: float
    l0: float
    stop: bool


class Training:
    """The state that steps change: weights, optimiser, mechanism; `start` is this rank's part of the latents."""

    def __init__(
        self,
        start: Latents,
        mechanism: Mechanism,
        normalisation: Normalisation,
        recipe: TrainRecipe,
        device: torch.device | str,
        dtype: torch.dtype,
        mesh: Mesh,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        self.mesh, self.parts, self.width = mesh, parts_of(start, mechanism, recipe, mesh), mechanism.width
        if mesh.size > 1:
            mechanism.reduce = mesh
            mechanism.shard(mesh.latents(mechanism.width))
        # bfloat16 has too few digits for small updates: weights stay in float32 and the products are autocast.
        self.autocast = torch.bfloat16 if dtype == torch.bfloat16 else None
        kept = torch.float32 if dtype == torch.bfloat16 else dtype
        self.mechanism, self.recipe = mechanism, recipe
        mechanism.to(device, kept)
        self.encoder = start.encoder.detach().to(device, kept, copy=True)
        self.decoder = self.encoder if start.tied else start.decoder.detach().to(device, kept, copy=True)
        self.centre = start.centre.detach().to(device, kept, copy=True)
        self.tied = start.tied
        self.normalisation, self.normalise = normalisation, normalisation.to(self.encoder).apply
        self.decoder.copy_(normalize(self.decoder, dim=1))
        hold = torch.ones_like(start.hold) if recipe.freeze == "encoder" else start.hold
        self.held = hold.nonzero().flatten().to(device)
        self.held_rows = self.encoder[self.held].clone()
        anchor = anchors_of(start, recipe)
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
        decay = recipe.weight_decay if recipe.optimizer == "adamw" else 0.0
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        if recipe.moments == "bfloat16":
            return CompactAdam(groups, lr=recipe.lr, seed=self.seed)
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=recipe.lr, fused=self.encoder.device.type in ("cpu", "cuda"))

    def step(
        self, x: Float[Tensor, "rows dim"], step: int, rows: Int64[np.ndarray, " batch"], stop: bool = False
    ) -> StepValues:
        """One optimiser step on this rank's raw rows; raises before anything moves if the loss or a gradient is not finite."""
        xn = self.normalise(x)
        self.optimizer.zero_grad(set_to_none=False)
        objective = self._objective(xn)
        torch.autograd.backward(objective.loss)
        self._reduce_gradients()
        self._hold_gradients()
        norm = self._clip_gradients()
        values = self._values(objective, xn, stop)
        if not math.isfinite(values.loss + norm):
            broken = rows[(~torch.isfinite(x).all(dim=1)).cpu().numpy()].tolist()
            raise NonFiniteError(step, rows, f"loss {values.loss:g}, gradient norm {norm:g}", broken)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step)
        self.optimizer.step()
        self._normalise_rows()
        self.mechanism.observe(objective.active, objective.scores, objective.values)
        if self.mechanism.adapt_every and (step + 1) % self.mechanism.adapt_every == 0:
            self.mechanism.adapt()
        return values

    def _objective(self, xn: Tensor) -> Objective:
        """Loss and gradient on the active set, or on whole matrices where the code is dense."""
        mesh = self.mesh
        others = Others(len(xn) * mesh.data)
        if mesh.features > 1:
            others = replace(others, over_latents=mesh.sum_over_latents, centre_share=1 / mesh.features)
        options: dict[str, Any] = {"others": others, "autocast": self.autocast}
        weights = xn, self.encoder, self.decoder, self.centre
        if supported(self.encoder.device, self.encoder.dtype):
            products = SparseProducts(*weights, **options)
            scored = self.mechanism.scored(products)
            # All ranks have to take one way: their sums differ in number.
            density = float(mesh.sum_over_all(torch.tensor(scored[0].density))) / mesh.size
            if not is_dense(density, self.encoder.device):
                return self.mechanism.objective(products, scored)
        return self.mechanism.objective(DenseProducts(*weights, **options))

    def _reduce_gradients(self) -> None:
        """Gradients of this rank's latents from all rows; that of b_pre from all ranks."""
        if self.mesh.size == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is not None:
                sum_up = self.mesh.sum_over_all if parameter is self.centre else self.mesh.sum_over_rows
                parameter.grad.copy_(sum_up(parameter.grad))

    def _clip_gradients(self) -> float:
        """Scale the gradient of all ranks to the largest norm allowed; returns the norm it had."""
        grads = [(p.grad, p is self.centre) for p in self.parameters if p.grad is not None]
        # Told to the processor all at once: a GPU waits each time.
        squares = torch.stack([torch.linalg.vector_norm(grad) for grad, _ in grads]).cpu().double().square()
        is_shared = torch.tensor([is_centre for _, is_centre in grads])
        norm = math.sqrt(float(self.mesh.sum_over_latents(squares[~is_shared].sum()) + squares[is_shared].sum()))
        if norm > self.recipe.clip:
            for grad, _ in grads:
                grad.mul_(self.recipe.clip / (norm + 1e-6))
        return norm

    def _values(self, objective: Objective, xn: Tensor, stop: bool) -> StepValues:
        mesh = self.mesh
        rows = len(xn) * mesh.data
        own = [objective.loss.detach(), objective.squared_error, xn.square().sum() / rows, (objective.values > 0).sum()]
        told = torch.stack([value.double() for value in own]).cpu()
        counted = torch.tensor([float(told[3]) / rows, float(stop)], dtype=torch.float64)
        loss, squared_error, variance, l0, asked = mesh.sum_over_all(torch.cat([told[:3] / mesh.features, counted])).tolist()
        return StepValues(loss, squared_error, variance, l0, asked > 0)

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
        """Every tensor the rest of training depends on; of `parts`, this rank's."""
        self.mechanism.settle(counts_here=self.mesh.data_rank == 0)
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

    def finish(self) -> Spread:
        """The autoencoder on raw input."""
        finish, mesh = self.mechanism.finish(), self.mesh
        own = finish._replace(k=None if finish.k is None else min(finish.k, len(self.encoder)))
        decoder = None if self.tied else self.decoder
        part = Spread.of(self.normalisation.fold(self.encoder, decoder, self.centre, own))
        if mesh.size == 1:
            return part
        # Every part of the latents lies with as many ranks as there are parts of the rows: one of each gives.
        gives = replace(part.chosen(torch.arange(len(self.encoder) if mesh.data_rank == 0 else 0)), mesh=mesh)
        return replace(gives.chosen(numbers(mesh.share(self.width))), k=finish.k)

    def at(self, step: int, identity: dict[str, Any]) -> Checkpoint:
        """The checkpoint after so many steps."""
        return Checkpoint(step, self.tensors(), identity, checkpoint.generator_states(), self.parts)

    @property
    def dead_share(self) -> float:
        """Share of all latents silent since `fired` was cleared."""
        fired = self.mesh.max_over_rows(self.mechanism.fired.to(torch.int32)).cpu().double().sum()
        return 1 - float(self.mesh.sum_over_latents(fired)) / (len(self.encoder) * self.mesh.features)


def parts_of(start: Latents, mechanism: Mechanism, recipe: TrainRecipe, mesh: Mesh) -> dict[str, slice]:
    """Which tensors of a checkpoint are this rank's part of a larger one, and which rows of that they are.

    Args:
        start: this rank's part of the latents.
        mechanism: of all of them.
        recipe: how they are trained.
        mesh: the ranks.
    """
    if mesh.features == 1:
        return {}
    width = mechanism.width
    latents = mesh.latents(width)
    hold = torch.ones_like(start.hold) if recipe.freeze == "encoder" else start.hold
    counts = mesh.tell((int(hold.sum()), int((anchors_of(start, recipe) > -1).sum())))
    ends = [[sum(count[i] for count in counts[:rank]) for rank in (mesh.feature_rank, mesh.feature_rank + 1)] for i in (0, 1)]
    parts = {name: slice(*ends[i]) for i, name in enumerate(("model.held", "model.anchor"))}
    matrices = 1 if start.tied else 2
    trained = [*range(matrices), *range(matrices + 1, matrices + 1 + len(mechanism.parameters()))]
    parts |= {f"model.{number}": latents for number in range(matrices)}
    parts |= {f"optimizer.{number}.{slot}": latents for number in trained for slot in ("exp_avg", "exp_avg_sq")}
    return parts | {f"mechanism.{name}": latents for name, value in mechanism.state().items() if value.shape == (width,)}


def anchors_of(start: Latents, recipe: TrainRecipe) -> Float[Tensor, " width"]:
    """Least cosine of every decoder row to its start; a frozen control's is the same for all."""
    frozen = {"decoder": 1.0, "soft_decoder": SOFT_FROZEN_COSINE}.get(recipe.freeze)
    return start.anchor if frozen is None else torch.full((start.width,), frozen)


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, plateau, linear decay at the end."""
    warm = min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
    decay_steps = recipe.decay_share * recipe.steps
    return recipe.lr * warm * (min(1.0, (recipe.steps - step) / decay_steps) if decay_steps else 1.0)
