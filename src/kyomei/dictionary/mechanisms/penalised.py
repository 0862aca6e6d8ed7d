"""Codes that a penalty makes sparse: L1, JumpReLU and Gated."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kyomei.config import GatedSettings, JumpReLUSettings, L1Settings
from kyomei.dictionary.kernels import Active
from kyomei.dictionary.mechanisms.base import Finish, Mechanism, mechanism
from kyomei.dictionary.products import Products
from kyomei.dictionary.sae import Activation
from kyomei.errors import RecipeError


def _checked(weight: float) -> float:
    if not weight >= 0:
        raise RecipeError("a penalty weight ≥ 0", f"{weight}", "correct mechanism.penalty")
    return weight


@final
@mechanism(L1Settings)
class L1(Mechanism):
    """ReLU with a trained bias and the penalty λ mean‖z‖₁ (decoder rows have unit norm).

    Args:
        width: number of latents.
        weight: λ of the penalty, on normalised input.
    """

    def __init__(self, width: int, weight: float) -> None:
        super().__init__(width)
        self.weight = _checked(weight)
        self.bias = torch.zeros(width, requires_grad=True)

    @classmethod
    def from_settings(cls, settings: L1Settings, width: int, l0: float | None, activation: Activation) -> L1:
        return cls(width, settings.penalty)

    def parameters(self) -> list[Tensor]:
        return [self.bias]

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

    def settings(self) -> dict[str, float | int | str]:
        return {"name": self.name, "penalty": self.weight}


@final
@mechanism(JumpReLUSettings)
class JumpReLU(Mechanism):
    """z = π H(π − θ) with π = s + b, and the penalty λ mean‖z‖₀; θ is trained by straight-through estimates.

    With the rectangle K of bandwidth ε, ∂z/∂θ = −(θ/ε) K((π − θ)/ε) and ∂‖z‖₀/∂θ = −(1/ε) K((π − θ)/ε); log θ is the parameter.

    Args:
        width: number of latents.
        weight: λ of the penalty, on normalised input.
        bandwidth: ε, on normalised input.
        threshold: θ at the start.

    Source: arXiv:2407.14435, §3.
    """

    def __init__(self, width: int, weight: float, bandwidth: float = 1e-3, threshold: float = 1e-3) -> None:
        super().__init__(width)
        if not (bandwidth > 0 and threshold > 0):
            found = f"{bandwidth} and {threshold}"
            raise RecipeError("a bandwidth and a first threshold above 0", found, "correct mechanism.bandwidth")
        self.weight, self.bandwidth, self.first = _checked(weight), bandwidth, threshold
        self.bias = torch.zeros(width, requires_grad=True)
        self.log_threshold = torch.full((width,), threshold).log().requires_grad_()

    @classmethod
    def from_settings(cls, settings: JumpReLUSettings, width: int, l0: float | None, activation: Activation) -> JumpReLU:
        return cls(width, settings.penalty, settings.bandwidth)

    def parameters(self) -> list[Tensor]:
        return [self.bias, self.log_threshold]

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
        return {"name": self.name, "penalty": self.weight, "bandwidth": self.bandwidth, "threshold": self.first}


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
class Gated(Mechanism):
    """A gate says whether a latent is active, a magnitude how much: z = H(s + b_gate) relu(e^r s + b_mag).

    The gate is trained by the penalty λ mean‖relu(s + b_gate)‖₁ and by what relu(s + b_gate) reconstructs through a decoder
    that takes no gradient from it.

    Args:
        width: number of latents.
        weight: λ of the penalty, on normalised input.

    Source: arXiv:2404.16014, §3.
    """

    def __init__(self, width: int, weight: float) -> None:
        super().__init__(width)
        self.weight = _checked(weight)
        self.gate_bias = torch.zeros(width, requires_grad=True)
        self.magnitude_bias = torch.zeros(width, requires_grad=True)
        self.log_scale = torch.zeros(width, requires_grad=True)

    @classmethod
    def from_settings(cls, settings: GatedSettings, width: int, l0: float | None, activation: Activation) -> Gated:
        return cls(width, settings.penalty)

    def parameters(self) -> list[Tensor]:
        return [self.gate_bias, self.magnitude_bias, self.log_scale]

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

    def settings(self) -> dict[str, float | int | str]:
        return {"name": self.name, "penalty": self.weight}
