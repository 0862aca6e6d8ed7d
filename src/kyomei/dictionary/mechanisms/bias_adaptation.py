"""Group bias adaptation: biases are steered so that every neuron fires at its target frequency."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from kyomei.config import AdaptingSettings, BASettings, GBASettings
from kyomei.dictionary.kernels import Active
from kyomei.dictionary.mechanisms.base import Finish, Mechanism, aimed_l0, mechanism
from kyomei.dictionary.sae import Activation
from kyomei.errors import RecipeError

SHARED_GAIN = 0.1
"""γₛ: share of a shared bias by which it moves when its group fires twice as often as it should."""
SMALLEST_SHARED = 1e-3
LARGEST_TARGET = 0.5
"""A neuron that is active more often is not sparse."""


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


def scaled_to(targets: Float[Tensor, " width"], l0: float) -> Float[Tensor, " width"]:
    """Targets times one factor, none above 0.5, that sum to an L0, or come as near to it as that bound allows."""
    scaled = targets.double()
    for _ in range(len(targets)):
        at_bound = scaled >= LARGEST_TARGET
        left = l0 - LARGEST_TARGET * float(at_bound.sum())
        free = float(scaled[~at_bound].sum())
        if bool(at_bound.all()) or left <= 0 or abs(left / free - 1) < 1e-9:
            break
        scaled = torch.where(at_bound, LARGEST_TARGET, (scaled * left / free).clamp_max(LARGEST_TARGET))
    return scaled.clamp_max(LARGEST_TARGET).float()


@dataclass(frozen=True)
class Adaptation:
    """How far and how often biases move.

    Attributes:
        gamma_down: γ₋.
        gamma_up: γ₊.
        epsilon: share of rows ε below which a neuron is dead.
        adapt_every: training steps between adaptations.
    """

    gamma_down: float = 0.01
    gamma_up: float = 0.01
    epsilon: float = 1e-6
    adapt_every: int = 10

    @classmethod
    def of(cls, settings: AdaptingSettings) -> Adaptation:
        """The part of a recipe's section that says so."""
        return cls(settings.gamma_down, settings.gamma_up, settings.epsilon, settings.adapt_every)


class BiasAdaptation(Mechanism):
    """Biases that follow target activation frequencies instead of gradients; only counts and maxima are kept.

    Let y = pre + b; a neuron is active where y > 0, with p̂ its share of active rows and r = max(max y, 0) since the last
    adaptation, and T its group's mean of positive r. Over-active (p̂ > p): b ← max(b − γ₋ r, −1). Dead (p̂ < ε):
    b ← min(b + γ₊ T, 0); in a group that is silent as a whole, T is the group's mean |b|.

    Where a group shares its bias, the rule is for the group as a whole and both ways: with p̂ and p the means over its neurons,
    b ← b (1 + γₛ (p̂/p − 1)), γₛ = 0.1. Which of its neurons fires how often is then left to the data; only the sum is steered.

    Args:
        targets: target activation frequency p of each neuron, in (0, 1) [width].
        groups: group number of each neuron, from 0 [width].
        bias: biases to start from, in [−1, 0] where they are adapted [width]; none: 0 as in the paper.
        activation: "jumprelu" (an active neuron gives pre) or "relu" (it gives y).
        adaptation: the steps γ₋ and γ₊, ε, and how often.
        shared: neurons whose group shares one bias [width]; none: no group does.
        fixed: neurons whose bias is not adapted [width]; none: all are.

    Raises:
        RecipeError: if shapes disagree, a target lies outside (0, 1), or an adapted bias outside [−1, 0].

    Source: arXiv:2506.14002, §3.
    """

    def __init__(
        self,
        targets: Float[Tensor, " width"],
        groups: Int[Tensor, " width"],
        *,
        bias: Float[Tensor, " width"] | None = None,
        activation: Activation = "jumprelu",
        adaptation: Adaptation = Adaptation(),
        shared: Bool[Tensor, " width"] | None = None,
        fixed: Bool[Tensor, " width"] | None = None,
    ) -> None:
        super().__init__(targets.numel(), adaptation.adapt_every)
        bias = torch.zeros(self.width) if bias is None else bias.detach().clone()
        if not targets.shape == groups.shape == bias.shape == (self.width,):
            found = f"{list(targets.shape)}, {list(groups.shape)} and {list(bias.shape)}"
            raise RecipeError("targets, groups and biases of one shape [width]", found, "give one of each per neuron")
        if not bool(((targets > 0) & (targets < 1)).all()):
            found = f"{targets.min():.3g} to {targets.max():.3g}"
            raise RecipeError("target frequencies within (0, 1)", found, "correct the target frequencies")
        none = torch.zeros(self.width, dtype=torch.bool)
        self.fixed = none.clone() if fixed is None else fixed.clone()
        if not bool((((bias >= -1) & (bias <= 0)) | (self.fixed & bias.isfinite())).all()):
            found = f"{bias.min():.3g} to {bias.max():.3g}"
            raise RecipeError("biases within [-1, 0], finite where they are fixed", found, "clamp the starting biases")
        if bool((groups < 0).any()) or activation == "topk" or self.adapt_every < 1:
            found = f"groups from {int(groups.min())}, {activation}, adapt_every={self.adapt_every}"
            raise RecipeError("groups numbered from 0, jumprelu or relu, adapt_every ≥ 1", found, "correct the mechanism")
        self.activation: Activation = activation
        self.adaptation = adaptation
        self.targets, self.groups, self.bias = targets.detach().clone(), groups.detach().long().clone(), bias
        self.shared = none if shared is None else shared.clone()
        # Of all latents: a rank without any of these must take part in the sums of those that have them.
        self.any_shared = bool(self.shared.any())
        self.num_groups = int(self.groups.max()) + 1
        self.aims = _digest(self.targets, self.groups)
        self.counts = torch.zeros(self.width, dtype=torch.int64)
        self.maxima = torch.full((self.width,), -torch.inf)
        self.rows = torch.zeros((), dtype=torch.int64)

    @classmethod
    @abstractmethod
    def placed(cls, settings: Any, targets: Tensor, groups: Tensor, l0: float | None, **options: Any) -> BiasAdaptation:
        """The mechanism of a dictionary that starts from resonant directions.

        Args:
            settings: the recipe's section.
            targets, groups: as the spectrum of the directions' frequencies suggests [width].
            l0: active latents per row that the recipe asks for; none: it does not.
            options: bias, activation, shared and fixed, as in the constructor.
        """

    def thresholds(self) -> Float[Tensor, " width"]:
        return -self.bias

    def values(self, scores: Float[Tensor, " active"], active: Active) -> Float[Tensor, " active"]:
        return scores + self.bias[active.latent] if self.activation == "relu" else scores

    @torch.no_grad()
    def observe(self, active: Active, scores: Float[Tensor, " active"], values: Float[Tensor, " active"]) -> None:
        # Only active entries are looked at: a maximum at or below the threshold counts as r = 0 in any case. Biases move only
        # in `adapt`, so they are added there.
        self.maxima.scatter_reduce_(0, active.latent, scores.to(self.maxima.dtype), "amax")
        self.counts += active.counts
        self.rows += active.num_rows
        self.fired |= active.counts > 0

    @torch.no_grad()
    def adapt(self) -> None:
        rows = self.reduce.sum_over_rows(self.rows)
        if int(rows) == 0:
            return
        counts = self.reduce.sum_over_rows(self.counts)
        share = (counts.double() if counts.device.type != "mps" else counts.float()) / rows
        largest = (self.reduce.max_over_rows(self.maxima) + self.bias).clamp_min(0)
        lowered = (self.bias - self.adaptation.gamma_down * largest).clamp_min(-1)
        raised = (self.bias + self.adaptation.gamma_up * self._group_steps(largest)).clamp_max(0)
        adapted = torch.where(share > self.targets, lowered, torch.where(share < self.adaptation.epsilon, raised, self.bias))
        if self.any_shared:
            adapted = torch.where(self.shared, self._shared_biases(share), adapted)
        adapted = torch.where(self.fixed, self.bias, adapted)
        self.bias.copy_(adapted)
        self.counts.zero_()
        self.maxima.fill_(-torch.inf)
        self.rows.zero_()

    def settle(self, counts_here: bool) -> None:
        super().settle(counts_here)
        counts, rows = self.reduce.sum_over_rows(self.counts), self.reduce.sum_over_rows(self.rows)
        self.counts.copy_(counts if counts_here else torch.zeros_like(counts))
        self.rows.copy_(rows if counts_here else torch.zeros_like(rows))
        self.maxima.copy_(self.reduce.max_over_rows(self.maxima))

    def _group_steps(self, largest: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
        """T of each neuron's group."""
        # On the CPU, because scattered sums on accelerators are not bitwise reproducible; this is O(width) once in a while.
        largest_cpu, bias, groups = largest.cpu().double(), self.bias.cpu().double(), self.groups.cpu()

        awake = self._per_group((largest_cpu > 0).double())
        mean_largest = self._per_group(largest_cpu) / awake.clamp_min(1)
        mean_bias = self._per_group(bias.abs()) / self._per_group(torch.ones_like(bias)).clamp_min(1)
        return torch.where(awake > 0, mean_largest, mean_bias)[groups].to(largest)

    def _shared_biases(self, share: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
        """The bias of each neuron's group after one step towards the group's mean target."""
        own = [
            self._per_group(values.cpu().double()) for values in (share, self.targets, self.bias, torch.ones_like(self.bias))
        ]
        fired, wanted, bias, size = own
        # A bias of zero could not be moved by a factor.
        mean = (bias / size.clamp_min(1)).clamp_max(-SMALLEST_SHARED)
        moved = mean * (1 + SHARED_GAIN * (fired / wanted - 1).clamp(-1, 1))
        return moved.clamp(-1, 0)[self.groups.cpu()].to(self.bias)

    def _per_group(self, values: Float[Tensor, " width"]) -> Float[Tensor, " groups"]:
        """Sum of values over each group's neurons, those of other ranks included; on the CPU."""
        own = torch.zeros(self.num_groups, dtype=torch.float64).index_add_(0, self.groups.cpu(), values)
        return self.reduce.sum_over_latents(own)

    def finish(self) -> Finish:
        return Finish(-self.bias, self.activation, None)

    def state(self) -> dict[str, Tensor]:
        own = {"targets": self.targets, "groups": self.groups, "bias": self.bias}
        own |= {"shared": self.shared, "fixed": self.fixed}
        return super().state() | own | {"counts": self.counts, "maxima": self.maxima, "rows": self.rows}

    def settings(self) -> dict[str, float | int | str]:
        return {"name": self.name, "activation": self.activation, "targets": self.aims, **asdict(self.adaptation)}


def _digest(targets: Float[Tensor, " width"], groups: Int64[Tensor, " width"]) -> str:
    """What tells targets and groups from others; targets to about 2 %, so that rounding on another machine is no difference."""
    rounded = (targets.double().log10() * 100).round().to(torch.int64)
    return hashlib.sha256(torch.stack([rounded, groups]).cpu().numpy().tobytes()).hexdigest()[:12]


@final
@mechanism(GBASettings)
class GBA(BiasAdaptation):
    """Group bias adaptation: see `BiasAdaptation` for the rule and the arguments."""

    @classmethod
    def from_settings(cls, settings: GBASettings, width: int, l0: float | None, activation: Activation) -> GBA:
        """The paper's form: groups from the highest to the lowest target frequency; a wish for L0 scales all of them."""
        targets, groups = geometric_targets(width, settings.groups, settings.highest_frequency, settings.lowest_frequency)
        targets = targets if l0 is None else scaled_to(targets, l0)
        return cls(targets, groups, activation=activation, adaptation=Adaptation.of(settings))

    @classmethod
    def placed(cls, settings: GBASettings, targets: Tensor, groups: Tensor, l0: float | None, **options: Any) -> GBA:
        """Free neurons are steered as a group where they are `shared`; `fixed` ones keep their thresholds."""
        return cls(targets, groups, adaptation=Adaptation.of(settings), **options)


@final
@mechanism(BASettings)
class BA(BiasAdaptation):
    """Bias adaptation with one group: every neuron has the same target.

    Args:
        width: number of neurons.
        target: target activation frequency p, in (0, 1).
        bias, activation, adaptation: as in `BiasAdaptation`.
    """

    def __init__(
        self,
        width: int,
        target: float,
        *,
        bias: Float[Tensor, " width"] | None = None,
        activation: Activation = "jumprelu",
        adaptation: Adaptation = Adaptation(),
    ) -> None:
        one_group = torch.zeros(width, dtype=torch.int64)
        super().__init__(torch.full((width,), target), one_group, bias=bias, activation=activation, adaptation=adaptation)

    @classmethod
    def from_settings(cls, settings: BASettings, width: int, l0: float | None, activation: Activation) -> BA:
        target = settings.frequency or min(LARGEST_TARGET, aimed_l0(l0, width) / width)
        return cls(width, target, activation=activation, adaptation=Adaptation.of(settings))

    @classmethod
    def placed(cls, settings: BASettings, targets: Tensor, groups: Tensor, l0: float | None, **options: Any) -> BA:
        """One target and one rule for all: no neuron is shared or fixed."""
        usual = float(targets.double().log().mean().exp()) if l0 is None else min(LARGEST_TARGET, l0 / len(targets))
        bias, activation, adaptation = options["bias"].clamp(-1, 0), options["activation"], Adaptation.of(settings)
        return cls(len(targets), settings.frequency or usual, bias=bias, activation=activation, adaptation=adaptation)
