"""Adam with its moments in half the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

BLOCK = 2**18
"""Numbers updated at a time: their single-precision moments stay in the cache and never exist all at once."""
LOW_BITS = 16
"""Bits by which float32 is longer than bfloat16."""


@final
class CompactAdam(torch.optim.Optimizer):
    """Adam, or AdamW, whose moments are kept in bfloat16.

    A step changes the second moment by about 1 − β₂ = 0.1 % of itself, less than bfloat16 resolves (0.4 %): rounded to the
    nearest, it would stand still. So moments are rounded up or down at random, with the odds that make the rounding right on
    average. The noise is one block of numbers, shifted anew at every step, which costs a fraction of drawing fresh ones.

    Args:
        params: parameters or groups of them; groups may set "lr" and "weight_decay" (decoupled, as in AdamW).
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        seed: of the rounding.

    Source: arXiv:1412.6980; stochastic rounding: arXiv:2010.06192.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        generator = torch.Generator().manual_seed(seed)
        self._noise = torch.randint(0, 2**LOW_BITS, (2 * BLOCK,), generator=generator, dtype=torch.int32)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; a closure is not called."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state |= {name: torch.zeros_like(parameter, dtype=torch.bfloat16) for name in ("exp_avg", "exp_avg_sq")}
        state["step"] += 1
        count, (first, second) = int(state["step"]), group["betas"]
        rate = group["lr"] / (1 - first**count)
        flat = [t.view(-1) for t in (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])]
        if group["weight_decay"]:
            flat[0].mul_(1 - group["lr"] * group["weight_decay"])
        self._noise = self._noise.to(parameter.device)
        for number, (p, grad, mean, square) in enumerate(zip(*(t.split(BLOCK) for t in flat), strict=True)):
            m = mean.float().lerp_(grad.float(), 1 - first)
            v = square.float().mul_(second).addcmul_(grad.float(), grad.float(), value=1 - second)
            root = v.sqrt().div_((1 - second**count) ** 0.5).add_(group["eps"])
            p.addcdiv_(m.to(p), root.to(p), value=-rate)
            shift = (count * 40_503 + number * 7_919) % BLOCK
            mean.copy_(self._rounded(m, shift))
            square.copy_(self._rounded(v, shift + 1))

    def _rounded(self, x: Tensor, shift: int) -> Tensor:
        """float32 numbers that bfloat16 holds exactly, one of the two nearest to each."""
        bits = x.view(torch.int32) + self._noise[shift : shift + len(x)]
        return bits.bitwise_and_(-(2**LOW_BITS)).view(torch.float32)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; moments stay in bfloat16, where PyTorch would give them the parameter's precision."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].to(torch.bfloat16)
