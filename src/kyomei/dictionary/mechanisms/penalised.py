"""Codes that a penalty makes sparse: L1, JumpReLU and Gated."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.config import GatedSettings, JumpReLUSettings, L1Settings
from kyomei.dictionary.kernels import Active
from kyomei.dictionary.mechanisms.base import Finish, Mechanism, aimed_l0, mechanism
from kyomei.dictionary.products import Products
from kyomei.dictionary.sae import Activation
from kyomei.errors import RecipeError

SMOOTHING = 0.9
"""Share of the running L0 that a step keeps."""
GAIN = 0.02
"""Step of log λ where the running L0 is e times the wish."""
SMALLEST_THRESHOLD = 1e-3
"""First thresholds are looked for above it."""
HALVINGS = 20
"""Halvings of the range in which a first threshold is looked for."""
FIRST, FIRST_OF_COUNTS = 0.1, 1e-3
"""λ where steering begins, of penalties on values and on their number."""


def steered(penalty: float | None, first: float, l0: float | None, width: int) -> tuple[float, float | None]:
    """Weight and L0 to steer to: a penalty that is given stays."""
    return (first, min(aimed_l0(l0, width), 0.9 * width)) if penalty is None else (penalty, None)


class Penalised(Mechanism):
    """A code that a penalty of weight λ makes sparse. λ stays, or is steered until rows have as many active latents as wished.

    With L the wish and L̄ the running mean over batches of active latents per row, each step adds γ·log(L̄ / L) to log λ,
    γ = 0.02 and the logarithm within ±1. Thresholds begin where every latent is active in a share L / width of the first batch:
    there is no dense phase first.

    Args:
        width: number of latents.
        weight: λ on normalised input; where it is steered, its first value.
        l0: active latents per row to steer to; none: λ stays.
    """

    def __init__(self, width: int, weight: float, l0: float | None = None) -> None:
        super().__init__(width)
        if not weight >= 0 or (l0 is not None and not (0 < l0 < width and weight > 0)):
            found = f"a weight of {weight} and an L0 of {l0}"
            raise RecipeError(
                f"a penalty weight ≥ 0, and an L0 between 0 and width ({width})", found, "correct mechanism.penalty"
            )
        self.first_weight, self.l0, self.whole_width = weight, l0, width
        self.log_weight = torch.tensor(weight, dtype=torch.float64).log()
        self.running_l0 = torch.tensor(0.0 if l0 is None else l0, dtype=torch.float64)
        self.batches = torch.zeros((), dtype=torch.int64)

    @property
    def weight(self) -> float:
        """λ."""
        if self.l0 is None:
            return self.first_weight
        return float(self.log_weight.exp())

    def steer(self, excess: float) -> None:
        """Answer log(L̄ / L), within ±1."""
        self.log_weight += GAIN * excess

    @abstractmethod
    def start_at(self, threshold: Float[Tensor, " width"]) -> None:
        """Make latents active above these scores."""

    def scored(self, products: Products) -> tuple[Active, Float[Tensor, " active"]]:
        if self.l0 is not None and not self.batches:
            with torch.no_grad():
                self.start_at(self._first_thresholds(products.scores, self.l0 / self.whole_width))
        return super().scored(products)

    def _first_thresholds(self, scores: Float[Tensor, "rows width"], share: float) -> Float[Tensor, " width"]:
        """Scores that each latent exceeds in a share of the whole batch, by halving: counts are the same on any mesh."""
        wanted = share * float(self.reduce.sum_over_rows(torch.tensor(float(len(scores)))))
        high = self.reduce.max_over_rows(scores.amax(dim=0)).clamp_min(SMALLEST_THRESHOLD)
        low = torch.full_like(high, SMALLEST_THRESHOLD)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            are_many = self.reduce.sum_over_rows((scores > middle).sum(dim=0)) > wanted
            low, high = torch.where(are_many, middle, low), torch.where(are_many, high, middle)
        return high

    @torch.no_grad()
    def observe(self, active: Active, scores: Float[Tensor, " active"], values: Float[Tensor, " active"]) -> None:
        super().observe(active, scores, values)
        if self.l0 is None:
            return
        entries = self.reduce.sum_over_rows(torch.tensor(float((values > 0).sum()), dtype=torch.float64))
        rows = self.reduce.sum_over_rows(torch.tensor(float(active.num_rows), dtype=torch.float64))
        l0 = self.reduce.sum_over_latents(entries) / rows
        self.running_l0 += (1 - SMOOTHING) * (l0.to(self.running_l0) - self.running_l0)
        self.steer(float((self.running_l0 / self.l0).clamp_min(1e-9).log().clamp(-1, 1)))
        self.batches += 1

    def state(self) -> dict[str, Tensor]:
        steering = {"log_weight": self.log_weight, "running_l0": self.running_l0, "batches": self.batches}
        return super().state() | (steering if self.l0 is not None else {})

    def settings(self) -> dict[str, float | int | str]:
        wish = {} if self.l0 is None else {"l0": self.l0}
        return {"name": self.name, "penalty": self.first_weight, **wish}


@final
@mechanism(L1Settings)
class L1(Penalised):
    """ReLU with a trained bias and the penalty λ mean‖z‖₁ (decoder rows have unit norm).

    Args:
        width: number of latents.
        weight, l0: as in `Penalised`.
    """

    def __init__(self, width: int, weight: float, l0: float | None = None) -> None:
        super().__init__(width, weight, l0)
        self.bias = torch.zeros(width, requires_grad=True)

    @classmethod
    def from_settings(cls, settings: L1Settings, width: int, l0: float | None, activation: Activation) -> L1:
        return cls(width, *steered(settings.penalty, FIRST, l0, width))

    def parameters(self) -> list[Tensor]:
        return [self.bias]

    def start_at(self, threshold: Float[Tensor, " width"]) -> None:
        self.bias.copy_(-threshold)

    def thresholds(self) -> Float[Tensor, " width"]:
        return -self.bias.detach()

    def values(self, scores: Float[Tensor, " active"], active: Active) -> Float[Tensor, " active"]:
        # relu: adding the bias may round to zero or below where comparing with it did not.
        return (scores + self.bias[active.latent]).relu()

    def penalty(self, scores: Tensor, values: Tensor, active: Active) -> Tensor:
        return self.weight * values.sum()

    def finish(self) -> Finish:
        return Finish(-self.bias.detach(), "relu")

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"bias": self.bias}


@final
@mechanism(JumpReLUSettings)
class JumpReLU(Penalised):
    """z = π H(π − θ) with π = s + b, and the penalty λ mean‖z‖₀; θ is trained by straight-through estimates.

    With the rectangle K of bandwidth ε, ∂z/∂θ = −(θ/ε) K((π − θ)/ε) and ∂‖z‖₀/∂θ = −(1/ε) K((π − θ)/ε); log θ is the parameter.

    Args:
        width: number of latents.
        weight, l0: as in `Penalised`.
        bandwidth: ε, on normalised input.
        threshold: θ at the start.

    Source: arXiv:2407.14435, §3.
    """

    def __init__(
        self, width: int, weight: float, l0: float | None = None, *, bandwidth: float = 1e-3, threshold: float = 1e-3
    ) -> None:
        super().__init__(width, weight, l0)
        if not (bandwidth > 0 and threshold > 0):
            found = f"{bandwidth} and {threshold}"
            raise RecipeError("a bandwidth and a first threshold above 0", found, "correct mechanism.bandwidth")
        self.bandwidth, self.first = bandwidth, threshold
        self.bias = torch.zeros(width, requires_grad=True)
        self.log_threshold = torch.full((width,), threshold).log().requires_grad_()

    @classmethod
    def from_settings(cls, settings: JumpReLUSettings, width: int, l0: float | None, activation: Activation) -> JumpReLU:
        return cls(width, *steered(settings.penalty, FIRST_OF_COUNTS, l0, width), bandwidth=settings.bandwidth)

    def parameters(self) -> list[Tensor]:
        return [self.bias, self.log_threshold]

    def start_at(self, threshold: Float[Tensor, " width"]) -> None:
        self.log_threshold.copy_(threshold.log())

    def steer(self, excess: float) -> None:
        # Straight-through gradients move θ by no more than the learning rate a step, and only from scores near it: the level
        # that all θ share is steered itself, and the penalty says how they differ.
        super().steer(excess)
        self.log_threshold += GAIN * excess

    def thresholds(self) -> Float[Tensor, " width"]:
        # Entries just below θ are silent, but θ's gradient needs them.
        return (self.log_threshold.exp() - self.bandwidth / 2 - self.bias).detach()

    def values(self, scores: Float[Tensor, " active"], active: Active) -> Float[Tensor, " active"]:
        inner, threshold = self._inner(scores, active)
        values: Tensor = _Jump.apply(inner, threshold, self.bandwidth)  # type: ignore[no-untyped-call]
        return values

    def penalty(self, scores: Tensor, values: Tensor, active: Active) -> Tensor:
        inner, threshold = self._inner(scores, active)
        steps: Tensor = _Step.apply(inner.detach(), threshold, self.bandwidth)  # type: ignore[no-untyped-call]
        return self.weight * steps.sum()

    def _inner(self, scores: Tensor, active: Active) -> tuple[Tensor, Tensor]:
        return scores + self.bias[active.latent], self.log_threshold.exp()[active.latent]

    def finish(self) -> Finish:
        bias = self.bias.detach()
        return Finish(self.log_threshold.detach().exp() - bias, "jumprelu", offset=bias.clone())

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"bias": self.bias, "log_threshold": self.log_threshold}

    def settings(self) -> dict[str, float | int | str]:
        return super().settings() | {"bandwidth": self.bandwidth, "threshold": self.first}


class _Jump(torch.autograd.Function):
    """π H(π − θ) with a straight-through gradient of θ."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(inner, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(inner > threshold, inner, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        inner, threshold = ctx.saved_tensors
        near = (inner - threshold).abs() < ctx.bandwidth / 2
        return torch.where(inner > threshold, grad, 0.0), -threshold / ctx.bandwidth * near * grad, None


class _Step(torch.autograd.Function):
    """H(π − θ) with a straight-through gradient of θ."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(inner, threshold)
        ctx.bandwidth = bandwidth
        return (inner > threshold).to(inner.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        inner, threshold = ctx.saved_tensors
        near = (inner - threshold).abs() < ctx.bandwidth / 2
        return None, -near.to(grad.dtype) / ctx.bandwidth * grad, None


@final
@mechanism(GatedSettings)
class Gated(Penalised):
    """A gate says whether a latent is active, a magnitude how much: z = H(s + b_gate) relu(e^r s + b_mag).

    The gate is trained by the penalty λ mean‖relu(s + b_gate)‖₁ and by what relu(s + b_gate) reconstructs through a decoder
    that takes no gradient from it.

    Args:
        width: number of latents.
        weight, l0: as in `Penalised`.

    Source: arXiv:2404.16014, §3.
    """

    def __init__(self, width: int, weight: float, l0: float | None = None) -> None:
        super().__init__(width, weight, l0)
        self.gate_bias = torch.zeros(width, requires_grad=True)
        self.magnitude_bias = torch.zeros(width, requires_grad=True)
        self.log_scale = torch.zeros(width, requires_grad=True)

    @classmethod
    def from_settings(cls, settings: GatedSettings, width: int, l0: float | None, activation: Activation) -> Gated:
        return cls(width, *steered(settings.penalty, FIRST, l0, width))

    def parameters(self) -> list[Tensor]:
        return [self.gate_bias, self.magnitude_bias, self.log_scale]

    def start_at(self, threshold: Float[Tensor, " width"]) -> None:
        self.gate_bias.copy_(-threshold)

    def thresholds(self) -> Float[Tensor, " width"]:
        return -self.gate_bias.detach()

    def values(self, scores: Float[Tensor, " active"], active: Active) -> Float[Tensor, " active"]:
        return (self.log_scale.exp()[active.latent] * scores + self.magnitude_bias[active.latent]).relu()

    def penalty(self, scores: Tensor, values: Tensor, active: Active) -> Tensor:
        return self.weight * self._gate(scores, active).sum()

    def auxiliary(self, products: Products, active: Active, scores: Tensor, error: Tensor) -> Tensor:
        decoded = products.over_latents(products.frozen().decode(active, self._gate(scores, active)))
        return 0.5 * (decoded + products.centre.detach() - products.x).square().sum() / products.num_rows

    def _gate(self, scores: Tensor, active: Active) -> Tensor:
        return (scores + self.gate_bias[active.latent]).relu()

    def finish(self) -> Finish:
        scale, offset = self.log_scale.detach().exp(), self.magnitude_bias.detach().clone()
        # Active where the gate is open and the magnitude positive.
        return Finish(torch.maximum(-self.gate_bias.detach(), -offset / scale), "jumprelu", offset=offset, scale=scale)

    def state(self) -> dict[str, Tensor]:
        own = {"gate_bias": self.gate_bias, "magnitude_bias": self.magnitude_bias, "log_scale": self.log_scale}
        return super().state() | own
