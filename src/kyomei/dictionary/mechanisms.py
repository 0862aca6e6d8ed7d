"""What makes a code sparse: group bias adaptation and the usual baselines, under one interface.

A training step asks a mechanism for the code of its scores, `activate`, and after the optimiser's step lets it `observe` and,
every `adapt_every` steps, `adapt`. Everything here lives in the trainer's normalised space, E‖x‖² = 1; biases are −threshold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kyomei.config import MechanismRecipe
from kyomei.dictionary.sae import Activation, keep_top_k
from kyomei.errors import DataError, RecipeError


class Reduce(Protocol):
    """What a mechanism needs to know of the other ranks where rows or latents are sharded."""

    def sum_over_rows(self, x: Tensor) -> Tensor:
        """Elementwise sum over the ranks that hold other rows of the same latents."""
        ...

    def max_over_rows(self, x: Tensor) -> Tensor:
        """Elementwise maximum over the ranks that hold other rows of the same latents."""
        ...

    def gather_latents(self, x: Float[Tensor, "rows best"]) -> Float[Tensor, "rows all_best"]:
        """Candidates of the ranks that hold other latents of the same rows, side by side."""
        ...


class Finish(NamedTuple):
    """How a trained mechanism's code is computed without it."""

    threshold: Float[Tensor, " width"]
    activation: Activation
    k: int | None


class Mechanism(ABC):
    """Turns scores into a sparse code while training.

    Args:
        width: number of latents.
        adapt_every: training steps between calls of `adapt`; 0: never.

    Attributes:
        fired: latents active at least once since the trainer last cleared it [width].
    """

    name: ClassVar[str]

    def __init__(self, width: int, adapt_every: int = 0) -> None:
        if width < 1 or adapt_every < 0:
            raise RecipeError("width ≥ 1 and adapt_every ≥ 0", f"{width} and {adapt_every}", "correct them")
        self.width, self.adapt_every = width, adapt_every
        self.fired: Bool[Tensor, " width"] = torch.zeros(width, dtype=torch.bool)

    @abstractmethod
    def activate(self, pre: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, "rows width"], Float[Tensor, ""]]:
        """The code of scores and its penalty; differentiable.

        Args:
            pre: scores (x − b_pre) W_encᵀ [rows, width], without bias.

        Returns:
            z ≥ 0 [rows, width], and a scalar to add to the loss.
        """

    @abstractmethod
    def finish(self) -> Finish:
        """Thresholds [width], activation and k with which an autoencoder computes this mechanism's code."""

    @abstractmethod
    def settings(self) -> dict[str, float | int | str]:
        """What this mechanism was made with, for telling whether a checkpoint is of the same training."""

    def parameters(self) -> list[Tensor]:
        """Tensors the optimiser trains beside the weights."""
        return []

    @torch.no_grad()
    def observe(self, pre: Float[Tensor, "rows width"], z: Float[Tensor, "rows width"]) -> None:
        """Note which latents a batch's scores and code [rows, width] made active; O(width) memory."""
        self.fired |= z.amax(dim=0) > 0

    def adapt(self) -> None:  # noqa: B027  most mechanisms have nothing to adapt
        """Move what gradients do not, from what was observed since the last call."""

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


def geometric_targets(
    width: int, groups: int, highest: float, lowest: float
) -> tuple[Float[Tensor, " width"], Int[Tensor, " width"]]:
    """Target activation frequencies of the paper's form: groups of equal size, geometric from HTF to LTF.

    Args:
        width: number of neurons M.
        groups: number of groups K; sizes differ by at most one.
        highest: target activation frequency of the first group, in (0, 1); with one group, of all neurons.
        lowest: target activation frequency of the last group, in (0, highest].

    Returns:
        Targets p [width] and group numbers [width], from 0.

    Raises:
        RecipeError: if there are more groups than neurons, or frequencies are not ordered within (0, 1).

    Source: arXiv:2506.14002, §3.
    """
    if groups < 1 or width < groups:
        raise RecipeError(f"between 1 and width ({width}) groups", f"{groups} groups", "widen the dictionary or lower groups")
    if not 0 < lowest <= highest < 1:
        found = f"highest {highest} and lowest {lowest}"
        raise RecipeError("target frequencies 0 < lowest ≤ highest < 1", found, "correct the target frequencies")
    frequencies = torch.logspace(0, 1, groups, base=lowest / highest, dtype=torch.float64) * highest
    group = torch.arange(width) * groups // width
    return frequencies.float()[group], group


class BiasAdaptation(Mechanism):
    """Biases that follow target activation frequencies instead of gradients; only counts and maxima are kept.

    Let y = pre + b; a neuron is active where y > 0, with p̂ its share of active rows and r = max(max y, 0) since the last
    adaptation, and T its group's mean of positive r. Over-active (p̂ > p): b ← max(b − γ₋ r, −1). Dead (p̂ < ε):
    b ← min(b + γ₊ T, 0); in a group that is silent as a whole, T is the group's mean |b|.

    Args:
        targets: target activation frequency p of each neuron, in (0, 1) [width].
        groups: group number of each neuron, from 0 [width].
        bias: biases to start from, in [−1, 0] [width]; none: 0 as in the paper.
        activation: "jumprelu" (an active neuron gives pre) or "relu" (it gives y).
        gamma_down: γ₋.
        gamma_up: γ₊.
        epsilon: share of rows ε below which a neuron is dead.
        adapt_every: training steps between adaptations.

    Raises:
        RecipeError: if shapes disagree, a target lies outside (0, 1), or a bias outside [−1, 0].

    Source: arXiv:2506.14002, §3.
    """

    def __init__(
        self,
        targets: Float[Tensor, " width"],
        groups: Int[Tensor, " width"],
        *,
        bias: Float[Tensor, " width"] | None = None,
        activation: Activation = "jumprelu",
        gamma_down: float = 0.01,
        gamma_up: float = 0.01,
        epsilon: float = 1e-6,
        adapt_every: int = 10,
    ) -> None:
        super().__init__(targets.numel(), adapt_every)
        bias = torch.zeros(self.width) if bias is None else bias.detach().clone()
        if not targets.shape == groups.shape == bias.shape == (self.width,):
            found = f"{list(targets.shape)}, {list(groups.shape)} and {list(bias.shape)}"
            raise RecipeError("targets, groups and biases of one shape [width]", found, "give one of each per neuron")
        if not bool(((targets > 0) & (targets < 1)).all()):
            found = f"{targets.min():.3g} to {targets.max():.3g}"
            raise RecipeError("target frequencies within (0, 1)", found, "correct the target frequencies")
        if not bool(((bias >= -1) & (bias <= 0)).all()):
            raise RecipeError("biases within [-1, 0]", f"{bias.min():.3g} to {bias.max():.3g}", "clamp the starting biases")
        if bool((groups < 0).any()) or activation == "topk" or adapt_every < 1:
            found = f"groups from {int(groups.min())}, {activation}, adapt_every={adapt_every}"
            raise RecipeError("groups numbered from 0, jumprelu or relu, adapt_every ≥ 1", found, "correct the mechanism")
        self.activation: Activation = activation
        self.gamma_down, self.gamma_up, self.epsilon = gamma_down, gamma_up, epsilon
        self.targets, self.groups, self.bias = targets.detach().clone(), groups.detach().long().clone(), bias
        self.counts = torch.zeros(self.width, dtype=torch.int64)
        self.maxima = torch.full((self.width,), -torch.inf)
        self.rows = torch.zeros((), dtype=torch.int64)

    def activate(self, pre: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, "rows width"], Float[Tensor, ""]]:
        no_penalty = pre.new_zeros(())
        if self.activation == "relu":
            return (pre + self.bias).relu(), no_penalty
        return torch.where(pre > -self.bias, pre, 0.0), no_penalty

    @torch.no_grad()
    def observe(self, pre: Float[Tensor, "rows width"], z: Float[Tensor, "rows width"]) -> None:
        # Biases move only in `adapt`, so they are added to the maxima there; an int32 sum of booleans is the fast one.
        peaks = pre.amax(dim=0)
        self.maxima = torch.maximum(self.maxima, peaks.to(self.maxima.dtype))
        self.counts += (z > 0).sum(dim=0, dtype=torch.int32)
        self.rows += len(z)
        self.fired |= peaks > -self.bias

    @torch.no_grad()
    def adapt(self) -> None:
        if int(self.rows) == 0:
            return
        share = self.counts.double() if self.counts.device.type != "mps" else self.counts.float()
        share = share / self.rows
        largest = (self.maxima + self.bias).clamp_min(0)
        lowered = (self.bias - self.gamma_down * largest).clamp_min(-1)
        raised = (self.bias + self.gamma_up * self._group_steps(largest)).clamp_max(0)
        adapted = torch.where(share > self.targets, lowered, torch.where(share < self.epsilon, raised, self.bias))
        self.bias.copy_(adapted)
        self.counts.zero_()
        self.maxima.fill_(-torch.inf)
        self.rows.zero_()

    def _group_steps(self, largest: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
        """T of each neuron's group."""
        # On the CPU, because scattered sums on accelerators are not bitwise reproducible; this is O(width) once in a while.
        largest_cpu, bias, groups = largest.cpu().double(), self.bias.cpu().double(), self.groups.cpu()

        def per_group(values: Tensor) -> Tensor:
            return torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(0, groups, values)

        awake = per_group((largest_cpu > 0).double())
        mean_largest = per_group(largest_cpu) / awake.clamp_min(1)
        mean_bias = per_group(bias.abs()) / per_group(torch.ones_like(bias)).clamp_min(1)
        return torch.where(awake > 0, mean_largest, mean_bias)[groups].to(largest)

    def finish(self) -> Finish:
        return Finish(-self.bias, self.activation, None)

    def state(self) -> dict[str, Tensor]:
        own = {"targets": self.targets, "groups": self.groups, "bias": self.bias}
        return super().state() | own | {"counts": self.counts, "maxima": self.maxima, "rows": self.rows}

    def settings(self) -> dict[str, float | int | str]:
        return {
            "name": self.name,
            "activation": self.activation,
            "gamma_down": self.gamma_down,
            "gamma_up": self.gamma_up,
            "epsilon": self.epsilon,
            "adapt_every": self.adapt_every,
        }


@final
class GBA(BiasAdaptation):
    """Group bias adaptation: see `BiasAdaptation` for the rule and the arguments."""

    name = "gba"


@final
class BA(BiasAdaptation):
    """Bias adaptation with one group: every neuron has the same target.

    Args:
        width: number of neurons.
        target: target activation frequency p, in (0, 1).
        bias, activation, gamma_down, gamma_up, epsilon, adapt_every: as in `BiasAdaptation`.
    """

    name = "ba"

    def __init__(
        self,
        width: int,
        target: float,
        *,
        bias: Float[Tensor, " width"] | None = None,
        activation: Activation = "jumprelu",
        gamma_down: float = 0.01,
        gamma_up: float = 0.01,
        epsilon: float = 1e-6,
        adapt_every: int = 10,
    ) -> None:
        super().__init__(
            torch.full((width,), target),
            torch.zeros(width, dtype=torch.int64),
            bias=bias,
            activation=activation,
            gamma_down=gamma_down,
            gamma_up=gamma_up,
            epsilon=epsilon,
            adapt_every=adapt_every,
        )


@final
class TopK(Mechanism):
    """The k largest positive scores of each row.

    Args:
        width: number of latents.
        k: active latents per row, at most; between 1 and width.

    Source: arXiv:2406.04093.
    """

    name = "topk"

    def __init__(self, width: int, k: int) -> None:
        super().__init__(width)
        self.k = _checked_k(k, width)

    def activate(self, pre: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, "rows width"], Float[Tensor, ""]]:
        return keep_top_k(pre, self.k), pre.new_zeros(())

    def finish(self) -> Finish:
        # A zero threshold is "only positive scores".
        return Finish(torch.zeros(self.width, device=self.fired.device), "topk", self.k)

    def settings(self) -> dict[str, float | int | str]:
        return {"name": self.name, "k": self.k}


@final
class BatchTopK(Mechanism):
    """The k × rows largest positive scores of a batch; a threshold afterwards.

    Args:
        width: number of latents.
        k: active latents per row on average, at most; between 1 and width.
        memory: share of the running threshold that a step keeps, in [0, 1).

    Source: arXiv:2412.06410; the threshold is the running mean of each batch's smallest kept score.
    """

    name = "batchtopk"

    def __init__(self, width: int, k: int, memory: float = 0.9) -> None:
        super().__init__(width)
        if not 0 <= memory < 1:
            raise RecipeError("memory within [0, 1)", f"{memory}", "choose a share, such as 0.9")
        self.k, self.memory = _checked_k(k, width), memory
        self.threshold = torch.zeros(())
        self.batches = torch.zeros((), dtype=torch.int64)

    def activate(self, pre: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, "rows width"], Float[Tensor, ""]]:
        return keep_top_k(pre.flatten(), self.k * len(pre)).view_as(pre), pre.new_zeros(())

    @torch.no_grad()
    def observe(self, pre: Float[Tensor, "rows width"], z: Float[Tensor, "rows width"]) -> None:
        super().observe(pre, z)
        smallest = torch.where(z > 0, z, torch.inf).amin().to(self.threshold.dtype)
        # The weight makes the first batches a plain mean; a batch without an active latent says nothing.
        seen = torch.isfinite(smallest)
        weight = torch.clamp_min(1 / (self.batches + 1), 1 - self.memory)
        self.threshold = torch.where(seen, self.threshold + weight * (smallest - self.threshold), self.threshold)
        self.batches += seen

    def finish(self) -> Finish:
        return Finish(self.threshold.expand(self.width).clone(), "jumprelu", None)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"threshold": self.threshold, "batches": self.batches}

    def settings(self) -> dict[str, float | int | str]:
        return {"name": self.name, "k": self.k, "memory": self.memory}


@final
class L1(Mechanism):
    """ReLU with a trained bias and the penalty λ mean‖z‖₁ (decoder rows have unit norm).

    Args:
        width: number of latents.
        l1: weight λ of the penalty, on normalised input.
    """

    name = "l1"

    def __init__(self, width: int, l1: float) -> None:
        super().__init__(width)
        if not l1 >= 0:
            raise RecipeError("a penalty weight l1 ≥ 0", f"{l1}", "correct mechanism.l1")
        self.l1 = l1
        self.bias = torch.zeros(width, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        return [self.bias]

    def activate(self, pre: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, "rows width"], Float[Tensor, ""]]:
        z = (pre + self.bias).relu()
        return z, self.l1 * z.sum() / len(z)

    def finish(self) -> Finish:
        return Finish(-self.bias.detach(), "relu", None)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"bias": self.bias}

    def settings(self) -> dict[str, float | int | str]:
        return {"name": self.name, "l1": self.l1}


def mechanism_from(recipe: MechanismRecipe, width: int, activation: Activation = "jumprelu") -> Mechanism:
    """The mechanism a recipe asks for, in the paper's form: groups from the highest to the lowest target frequency.

    Args:
        recipe: the recipe's section; "ba" takes its highest frequency for all neurons.
        width: number of latents.
        activation: of the threshold mechanisms gba and ba.

    Raises:
        RecipeError: if the recipe does not suit the width.
    """
    if recipe.name == "topk":
        return TopK(width, recipe.k)
    if recipe.name == "batchtopk":
        return BatchTopK(width, recipe.k)
    if recipe.name == "l1":
        return L1(width, recipe.l1)
    options = recipe.model_dump(include={"gamma_down", "gamma_up", "epsilon", "adapt_every"})
    if recipe.name == "ba":
        return BA(width, recipe.highest_frequency, activation=activation, **options)
    targets, groups = geometric_targets(width, recipe.groups, recipe.highest_frequency, recipe.lowest_frequency)
    return GBA(targets, groups, activation=activation, **options)


def _checked_k(k: int, width: int) -> int:
    if not 1 <= k <= width:
        raise RecipeError(f"k between 1 and width ({width})", f"{k}", "lower mechanism.k or widen the dictionary")
    return k
