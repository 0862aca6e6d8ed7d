"""Moments in bfloat16 move parameters as Adam's do."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from kyomei.learning.optimiser import BLOCK, CompactAdam

GOAL = torch.randn(300, generator=torch.Generator().manual_seed(1))


def trained(kind: type[torch.optim.Optimizer], steps: int, **options: float) -> Tensor:
    """A noisy quadratic bowl, walked down."""
    parameter = torch.zeros(300, requires_grad=True)
    optimiser = kind([{"params": [parameter], **options}], lr=0.01)  # type: ignore[call-arg]
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        parameter.grad = parameter.detach() - GOAL + 0.5 * torch.randn(300, generator=generator)
        optimiser.step()
    return parameter.detach()


def test_it_goes_where_adam_goes() -> None:
    own, adam = trained(CompactAdam, 300), trained(torch.optim.Adam, 300)
    moved = adam.norm()
    assert float((own - adam).norm()) < 0.03 * float(moved)
    assert float((adam - GOAL).norm()) < 0.3 * float(GOAL.norm())


def test_decay_is_adamws() -> None:
    own, adamw = (trained(kind, 200, weight_decay=2.0) for kind in (CompactAdam, torch.optim.AdamW))
    assert float((own - adamw).norm()) < 0.03 * float(adamw.norm())
    assert float((trained(torch.optim.Adam, 200) - adamw).norm()) > 0.3 * float(adamw.norm())


def test_moments_smaller_than_their_precision_still_move() -> None:
    """The second moment's steps of 0.1 % of itself would be lost by rounding to the nearest."""
    parameter = torch.zeros(20_000, requires_grad=True)
    optimiser = CompactAdam([parameter], lr=0.0)
    optimiser.state[parameter] = {
        "step": torch.zeros(()),
        "exp_avg": torch.zeros(20_000, dtype=torch.bfloat16),
        "exp_avg_sq": torch.ones(20_000, dtype=torch.bfloat16),
    }
    parameter.grad = torch.zeros(20_000)
    for _ in range(100):
        optimiser.step()
    mean = float(optimiser.state[parameter]["exp_avg_sq"].double().mean())
    assert abs(mean - 0.999**100) < 1e-3
    assert float(torch.tensor(0.999).bfloat16()) == 1.0  # and so it would have stayed


def test_a_saved_state_goes_on_as_if_nothing_had_happened() -> None:
    def steps(optimiser: CompactAdam, parameter: Tensor, count: int) -> None:
        for _ in range(count):
            parameter.grad = parameter.detach() - 1
            optimiser.step()

    whole = torch.zeros(2 * BLOCK + 7, requires_grad=True)
    undisturbed = CompactAdam([whole], seed=3)
    steps(undisturbed, whole, 3)
    kept, parts = copy.deepcopy(undisturbed.state_dict()), whole.detach().clone().requires_grad_()
    steps(undisturbed, whole, 3)
    resumed = CompactAdam([parts], seed=3)
    resumed.load_state_dict(kept)
    assert resumed.state[parts]["exp_avg"].dtype == torch.bfloat16
    steps(resumed, parts, 3)
    assert torch.equal(parts, whole)
