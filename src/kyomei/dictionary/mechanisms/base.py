"""What every mechanism shares: the objective of a step, what it observes, and how it is finished."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kyomei.config import MechanismSettings
from kyomei.dictionary.kernels import Active, counted
from kyomei.dictionary.products import Products
from kyomei.dictionary.sae import Activation
from kyomei.errors import DataError, RecipeError

LATENTS_PER_ACTIVE = 64
"""Without a wish, one latent in so many is active in a row, or √(width / 2) where that is fewer: 32 of 2,048, 64 of 8,192."""


class Reduce(Protocol):
    """What a mechanism needs to know of the other ranks where rows or latents are sharded."""

    def sum_over_rows(self, x: Tensor) -> Tensor:
        """Elementwise sum over the ranks that hold other rows of the same latents."""
        ...

    def max_over_rows(self, x: Tensor) -> Tensor:
        """Elementwise maximum over the ranks that hold other rows of the same latents."""
        ...

    def sum_over_latents(self, x: Tensor) -> Tensor:
        """Elementwise sum over the ranks that hold other latents of the same rows."""
        ...

    def gather_latents(self, x: Float[Tensor, "rows best"]) -> Float[Tensor, "rows all_best"]:
        """Candidates of the ranks that hold other latents of the same rows, side by side."""
        ...

    def gather_all(self, x: Float[Tensor, " best"]) -> Float[Tensor, " all_best"]:
        """Candidates of all ranks, end to end."""
        ...


class Alone:
    """The `Reduce` of one rank."""

    def sum_over_rows(self, x: Tensor) -> Tensor:
        return x

    def max_over_rows(self, x: Tensor) -> Tensor:
        return x

    def sum_over_latents(self, x: Tensor) -> Tensor:
        return x

    def gather_latents(self, x: Tensor) -> Tensor:
        return x

    def gather_all(self, x: Tensor) -> Tensor:
        return x


class Finish(NamedTuple):
    """How a trained mechanism's code is computed without it.

    With s = (x − b_pre)·w the score, a latent is active where s > threshold, and its value is s·scale + offset (jumprelu).
    """

    threshold: Float[Tensor, " width"]
    activation: Activation
    k: int | None = None
    offset: Float[Tensor, " width"] | None = None
    scale: Float[Tensor, " width"] | None = None


class Objective(NamedTuple):
    """What a step minimises, and what it found on the way.

    Attributes:
        loss: ½ mean‖x̂ − x‖² and all penalties.
        squared_error: mean‖x̂ − x‖² of the whole code.
        active: entries that may be active.
        scores: their scores [active].
        values: their values [active]; zero where an entry is not active after all.
    """

    loss: Float[Tensor, ""]
    squared_error: Float[Tensor, ""]
    active: Active
    scores: Float[Tensor, " active"]
    values: Float[Tensor, " active"]


class Mechanism(ABC):
    """Turns scores into a sparse code while training.

    A mechanism says which entries are active (`thresholds`, or `select` where that takes all scores) and what their values are
    (`values`), over one number per active entry; matrices are left to `kyomei.dictionary.kernels`.

    Args:
        width: number of latents.
        adapt_every: training steps between calls of `adapt`; 0: never.

    Attributes:
        fired: latents active at least once since the trainer last cleared it [width].
        reduce: what other ranks know.
    """

    name: ClassVar[str]

    def __init__(self, width: int, adapt_every: int = 0) -> None:
        if width < 1 or adapt_every < 0:
            raise RecipeError("width ≥ 1 and adapt_every ≥ 0", f"{width} and {adapt_every}", "correct them")
        self.width, self.adapt_every = width, adapt_every
        self.fired: Bool[Tensor, " width"] = torch.zeros(width, dtype=torch.bool)
        self.reduce: Reduce = Alone()

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Any, width: int, l0: float | None, activation: Activation) -> Mechanism:
        """The mechanism of a recipe's section.

        Args:
            settings: the section that the class was registered with.
            width: number of latents.
            l0: active latents per row to aim at; none: there is no wish.
            activation: of threshold latents whose output is a matter of choice.

        Raises:
            RecipeError: if the settings do not suit the width.
        """

    def thresholds(self) -> Float[Tensor, " width"] | None:
        """Scores that an active entry exceeds; none: it depends on other scores, see `select`."""
        return None

    def select(self, scores: Float[Tensor, "rows width"]) -> Active:
        """The entries that may be active.

        Args:
            scores: (x − b_pre) W_encᵀ [rows, width], without bias or gradient.
        """
        threshold = self.thresholds()
        assert threshold is not None
        return Active.of(scores > threshold)

    @abstractmethod
    def values(self, scores: Float[Tensor, " active"], active: Active) -> Float[Tensor, " active"]:
        """Values of selected entries from their scores; differentiable."""

    def penalty(self, scores: Float[Tensor, " active"], values: Float[Tensor, " active"], active: Active) -> Float[Tensor, ""]:
        """Sum over entries of what sparsity costs; the objective divides it by the number of rows."""
        return values.new_zeros(())

    def auxiliary(self, products: Products, active: Active, scores: Tensor, error: Tensor) -> Float[Tensor, ""] | None:
        """A further loss from the error x̂ − x [rows, dim] of the code; none: there is none."""
        return None

    def reconstruction(self, products: Products, active: Active, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of squares to minimise, and the error x̂ − x [rows, dim] of the whole code."""
        error = products.reconstruct(active, values) - products.x
        return error.square().sum(), error

    def objective(self, products: Products, scored: tuple[Active, Tensor] | None = None) -> Objective:
        """Loss of one batch; its gradients follow from `torch.autograd.backward`.

        Args:
            products: of the batch.
            scored: what `scored` has given for it; none: it is asked for here.
        """
        active, scores = self.scored(products) if scored is None else scored
        values = self.values(scores, active)
        squares, error = self.reconstruction(products, active, values)
        loss = (0.5 * squares + self.reduce.sum_over_latents(self.penalty(scores, values, active))) / products.num_rows
        extra = self.auxiliary(products, active, scores, error)
        loss = loss if extra is None else loss + extra
        return Objective(loss, error.detach().square().sum() / products.num_rows, active, scores.detach(), values.detach())

    def scored(self, products: Products) -> tuple[Active, Float[Tensor, " active"]]:
        """Entries of a batch that may be active, and their scores; differentiable."""
        threshold = self.thresholds()
        if threshold is None:
            active = self.select(products.scores)
            return active, products.scores_at(active)
        active, known = products.above(threshold.detach())
        return active, products.scores_at(active, known)

    @abstractmethod
    def finish(self) -> Finish:
        """How an autoencoder computes this mechanism's code."""

    @abstractmethod
    def settings(self) -> dict[str, float | int | str]:
        """What this mechanism was made with, for telling whether a checkpoint is of the same training."""

    def parameters(self) -> list[Tensor]:
        """Tensors the optimiser trains beside the weights."""
        return []

    @torch.no_grad()
    def observe(self, active: Active, scores: Float[Tensor, " active"], values: Float[Tensor, " active"]) -> None:
        """Note which latents a batch made active; O(width) memory."""
        self.fired |= counts_of(active, values) > 0

    def adapt(self) -> None:  # noqa: B027  most mechanisms have nothing to adapt
        """Move what gradients do not, from what was observed since the last call."""

    def settle(self, counts_here: bool) -> None:
        """Make the state the same on all ranks that hold the same latents, before it is kept.

        Args:
            counts_here: whether this rank goes on with what all of them have counted; the others start from nothing.
        """
        self.fired.copy_(self.reduce.max_over_rows(self.fired.to(torch.int32)) > 0)

    def shard(self, part: slice) -> None:
        """Keep some of the latents; `settings` stay those of the whole."""
        for name, tensor in vars(self).items():
            if isinstance(tensor, Tensor) and tensor.shape == (self.width,):
                setattr(self, name, tensor.detach()[part].clone().requires_grad_(tensor.requires_grad))
        self.width = part.stop - part.start

    def state(self) -> dict[str, Tensor]:
        """Every tensor on which the next step depends, by name; not copies."""
        return {"fired": self.fired}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors that `state` gave.

        Raises:
            DataError: if names or shapes are not this mechanism's.
        """
        own = self.state()
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        expected = {name: list(tensor.shape) for name, tensor in own.items()}
        if found != expected:
            raise DataError(f"a {self.name} state with {expected}", f"{found}", "load the state of the same mechanism")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Move this mechanism's tensors before training starts; integer and bool tensors keep their dtype."""
        for name, tensor in vars(self).items():
            if isinstance(tensor, Tensor):
                moved = tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)
                setattr(self, name, moved.requires_grad_(tensor.requires_grad))


M = TypeVar("M", bound=type[Mechanism])
CLASSES: dict[type[MechanismSettings], type[Mechanism]] = {}
"""The class of every section of settings."""


def mechanism(settings: type[MechanismSettings]) -> Callable[[M], M]:
    """Register a class with the section of the recipe that it is made of; it takes its name from there."""

    def register(cls: M) -> M:
        CLASSES[settings] = cls
        cls.name = settings.model_fields["name"].default
        return cls

    return register


def aimed_l0(l0: float | None, width: int) -> float:
    """Active latents per row to aim at: the wish, or what suits the width."""
    return l0 or max(1.0, min(width / LATENTS_PER_ACTIVE, math.sqrt(width / 2)))


def counts_of(active: Active, values: Float[Tensor, " active"]) -> Int64[Tensor, " width"]:
    """Rows in which each latent is active [width]."""
    if active.latent.device.type == "cpu":
        return counted(active.latent[values > 0], active.width)
    # Without a choice of entries, whose number a GPU would be waited for.
    return active.counts.new_zeros(active.width).scatter_add_(0, active.latent, (values > 0).long())
