"""One wish for sparsity, `dictionary.l0`, that every mechanism understands in its own way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kyomei.config import Recipe
from kyomei.dictionary.mechanisms import BA, GBA, L1, Gated, JumpReLU, Mechanism, geometric_targets, mechanism_from
from kyomei.learning.fit import fit
from kyomei.source.planted import Planted

WIDTH = 24


def scores() -> Tensor:
    return 0.3 * torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0))


def observe(mechanism: Mechanism, pre: Tensor) -> None:
    """What a step lets a mechanism see."""
    active = mechanism.select(pre)
    at = pre[active.row, active.latent]
    mechanism.observe(active, at, mechanism.values(at, active).detach())


def final_l0(name: str, l0: float, **mechanism: object) -> float:
    """Active latents per row on rows that training did not see."""
    planted = Planted(n_features=64, dim=24, active=3, seed=0)
    x, unseen = planted.sample(12_000, seed=1)[0], planted.sample(4_000, seed=2)[0]
    values = {
        "mechanism": {"name": name, "start": "random", **mechanism},
        "dictionary": {"width": 96, "l0": l0},
        "train": {"steps": 600, "batch_rows": 256},
    }
    return float((fit(x, Recipe.parse(values)).encode(unseen) > 0).sum(dim=1).float().mean())


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "l1", "jumprelu", "gated"])
def test_a_wish_for_l0_is_met_on_unseen_rows(name: str) -> None:
    assert final_l0(name, 5) == pytest.approx(5, rel=0.05)


def test_a_penalty_that_is_given_is_not_steered() -> None:
    recipe = Recipe.parse({"mechanism": {"name": "l1", "penalty": 0.05}, "dictionary": {"l0": 3}})
    made = mechanism_from(recipe, WIDTH)
    observe(made, scores())
    assert isinstance(made, L1) and made.weight == 0.05 and "log_weight" not in made.state()


@pytest.mark.parametrize("make", [lambda: L1(WIDTH, 0.01, 3), lambda: JumpReLU(WIDTH, 1e-3, 3), lambda: Gated(WIDTH, 0.01, 3)])
def test_the_penalty_rises_above_the_wish_falls_below_it_and_goes_on_from_its_state(make: Callable[[], L1]) -> None:
    mechanism = make()
    weights = [mechanism.weight]
    for scale in (1.0, 1.0, -1.0, -1.0, -1.0):
        for _ in range(15):
            observe(mechanism, scale * (1.0 + scores().abs()))
        weights.append(mechanism.weight)
    assert weights[0] < weights[1] < weights[2] and weights[3] > weights[4] > weights[5]
    other = make()
    other.load_state({name: tensor.detach().clone() for name, tensor in mechanism.state().items()})
    for twin in (mechanism, other):
        observe(twin, scores())
    assert other.weight == mechanism.weight != weights[-1]


def test_k_is_the_wish_unless_it_is_given() -> None:
    def k_of(**values: object) -> object:
        return mechanism_from(Recipe.parse({"mechanism": {"name": "topk"}, **values}), 512).settings()["k"]

    assert k_of(dictionary={"l0": 5.4}) == 5 and k_of() == 8
    assert k_of(dictionary={"l0": 5}, mechanism={"name": "topk", "k": 9}) == 9


def test_targets_of_group_bias_adaptation_sum_to_the_wish() -> None:
    usual = mechanism_from(Recipe.parse({"mechanism": {"start": "random"}}), 100)
    assert isinstance(usual, GBA) and torch.equal(usual.targets, geometric_targets(100, 10, 0.1, 1e-3)[0])
    for l0 in (0.5, 6.0, 30.0, 60.0):
        made = mechanism_from(Recipe.parse({"mechanism": {"start": "random"}, "dictionary": {"l0": l0}}), 100)
        assert isinstance(made, GBA) and float(made.targets.max()) <= 0.5
        assert float(made.targets.sum()) == pytest.approx(min(l0, 50.0), rel=1e-5)
        below = made.targets < 0.5
        ratio = (made.targets / usual.targets)[below]
        assert not len(ratio) or float(ratio.max() / ratio.min()) == pytest.approx(1, rel=1e-5)
    adapting = mechanism_from(Recipe.parse({"mechanism": {"name": "ba"}, "dictionary": {"l0": 6}}), 100)
    assert isinstance(adapting, BA) and float(adapting.targets[0]) == pytest.approx(0.06)
