"""One contract for every mechanism, and group bias adaptation against a loop that follows the paper line by line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kyomei.config import SETTINGS, Recipe, TrainRecipe
from kyomei.dictionary.mechanisms import (
    BA,
    GBA,
    L1,
    Adaptation,
    BatchTopK,
    Gated,
    JumpReLU,
    MatryoshkaBatchTopK,
    Mechanism,
    TopK,
    geometric_targets,
    mechanism_from,
)
from kyomei.dictionary.mechanisms.base import Alone
from kyomei.dictionary.products import SparseProducts
from kyomei.dictionary.sae import Activation
from kyomei.errors import DataError, RecipeError
from kyomei.learning.latents import random_start
from kyomei.learning.spaces import Normalisation
from kyomei.learning.training import train
from kyomei.learning.workplace import Workplace
from kyomei.source.rows import TensorRows

WIDTH, DIM, K = 24, 12, 3

OFTEN = Adaptation(gamma_down=0.05, adapt_every=2)
MAKERS: dict[str, Callable[[], Mechanism]] = {
    "gba": lambda: GBA(*geometric_targets(WIDTH, 4, 0.3, 0.05), adaptation=OFTEN),
    "gba-relu": lambda: GBA(*geometric_targets(WIDTH, 4, 0.3, 0.05), activation="relu", adaptation=OFTEN),
    "ba": lambda: BA(WIDTH, 0.15, adaptation=OFTEN),
    "topk": lambda: TopK(WIDTH, K),
    "batchtopk": lambda: BatchTopK(WIDTH, K),
    "topk-dead": lambda: TopK(WIDTH, K, auxk=1 / 32, dead_after=200),
    "matryoshka": lambda: MatryoshkaBatchTopK(WIDTH, K, auxk=1 / 32, dead_after=200, prefixes=(0.25, 0.5, 1.0)),
    "l1": lambda: L1(WIDTH, 0.05),
    "jumprelu": lambda: JumpReLU(WIDTH, 2e-3, bandwidth=0.05, threshold=0.05),
    "gated": lambda: Gated(WIDTH, 0.05),
    "l1-steered": lambda: L1(WIDTH, 0.01, K),
    "jumprelu-steered": lambda: JumpReLU(WIDTH, 1e-3, K, bandwidth=0.05),
}


@pytest.fixture(params=MAKERS)
def mechanism(request: pytest.FixtureRequest) -> Mechanism:
    return MAKERS[request.param]()


def planted_rows() -> Tensor:
    """1,000 rows of 16 unit features, 2 active in each, with a mean that is not zero."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(16, DIM, generator=generator), dim=1)
    active = torch.rand(1000, 16, generator=generator).argsort(dim=1) < 2
    return active.float() @ features + 0.5


def scores(rows: int = 40, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def code(mechanism: Mechanism, pre: Tensor) -> tuple[Tensor, Tensor]:
    """Code and penalty of scores, whole."""
    active = mechanism.select(pre.detach())
    at = pre.reshape(-1)[active.row * active.width + active.latent]
    values = mechanism.values(at, active)
    return active.dense(values), mechanism.penalty(at, values, active) / len(pre)


def watch(mechanism: Mechanism, pre: Tensor) -> None:
    active = mechanism.select(pre.detach())
    at = pre.detach().reshape(-1)[active.row * active.width + active.latent]
    mechanism.observe(active, at, mechanism.values(at, active).detach())


def exercise(mechanism: Mechanism, batches: int, seed: int = 0) -> None:
    for number in range(batches):
        pre = scores(seed=seed + number)
        watch(mechanism, pre)
        mechanism.adapt()


# The contract of every mechanism


def test_code_is_non_negative_of_the_scores_shape_and_penalty_a_scalar(mechanism: Mechanism) -> None:
    exercise(mechanism, 3)
    pre = scores(seed=9)
    z, penalty = code(mechanism, pre)
    assert z.shape == pre.shape and z.dtype == pre.dtype
    assert bool((z >= 0).all()) and bool((z > 0).any())
    assert penalty.shape == () and float(penalty.detach()) >= 0


def test_inactive_latents_get_no_gradient_and_active_ones_do(mechanism: Mechanism) -> None:
    pre = scores().requires_grad_(True)
    z, _ = code(mechanism, pre)
    torch.autograd.backward(z.sum())
    assert pre.grad is not None
    assert torch.equal(pre.grad, (z > 0).float())


def test_state_round_trip_is_exact(mechanism: Mechanism) -> None:
    exercise(mechanism, 5)
    pre = scores(seed=8)
    watch(mechanism, pre)  # counts that an adaptation has not used up
    stored = {name: tensor.detach().clone() for name, tensor in mechanism.state().items()}
    other = next(make() for name, make in MAKERS.items() if make().settings() == mechanism.settings())
    other.load_state(stored)
    for twin in (mechanism, other):
        exercise(twin, 3, seed=20)
    for name, tensor in mechanism.state().items():
        assert torch.equal(tensor, other.state()[name]), name
        assert tensor.dtype == stored[name].dtype


def test_foreign_state_is_refused(mechanism: Mechanism) -> None:
    with pytest.raises(DataError, match=f"a {mechanism.name} state"):
        mechanism.load_state({**mechanism.state(), "stranger": torch.zeros(1)})


def test_observations_take_no_more_memory_with_more_rows(mechanism: Mechanism) -> None:
    exercise(mechanism, 1)
    before = {name: tensor.shape for name, tensor in mechanism.state().items()}
    exercise(mechanism, 9)
    assert {name: tensor.shape for name, tensor in mechanism.state().items()} == before
    assert sum(tensor.numel() for tensor in mechanism.state().values()) <= 10 * WIDTH


def test_fired_names_the_latents_active_in_any_batch(mechanism: Mechanism) -> None:
    pre = scores(rows=2)
    pre[:, 5:] = -1.0
    z, _ = code(mechanism, pre)
    watch(mechanism, pre)
    assert torch.equal(mechanism.fired, (z > 0).any(dim=0))
    quiet = torch.full((2, WIDTH), -1.0)
    watch(mechanism, quiet)
    assert torch.equal(mechanism.fired, (z > 0).any(dim=0))


def test_training_lowers_the_loss(mechanism: Mechanism) -> None:
    losses: list[float] = []

    @dataclass
    class Events:
        def event(self, step: int, **values: float) -> None:
            losses.append(values["loss"])

    recipe = TrainRecipe(steps=60, batch_rows=100, warmup_steps=5, log_every=1)
    train(
        random_start(WIDTH, DIM, 0, tied=True),
        mechanism,
        TensorRows(planted_rows()),
        recipe,
        seed=0,
        workplace=Workplace(sink=Events()),
    )
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_finished_autoencoder_encodes_as_training_did(mechanism: Mechanism) -> None:
    x = planted_rows().double()
    recipe = TrainRecipe(steps=200, batch_rows=100, warmup_steps=5)
    rows = TensorRows(x)
    start = random_start(WIDTH, DIM, 0, tied=False)
    sae = train(start, mechanism, rows, recipe, seed=0, dtype=torch.float64).whole()
    normalisation = Normalisation.measure(rows)
    pre = (sae.pre_activations(x) - (0 if sae.bias is None else sae.bias)) / normalisation.scale
    scale = mechanism.finish().scale
    z, _ = code(mechanism, pre if scale is None else pre / scale)  # scores, as the encoder was before its magnitudes
    encoded = sae.encode(x) / normalisation.scale
    if isinstance(mechanism, BatchTopK):  # the one whose threshold is an estimate
        differing = ((z > 0) != (encoded > 0)).sum() / (z > 0).sum()
        assert float(differing) < 0.1
        assert float((encoded > 0).sum() / len(x)) == pytest.approx(K, rel=0.1)
        both = (z > 0) & (encoded > 0)
        torch.testing.assert_close(encoded[both], z[both])
    else:
        torch.testing.assert_close(encoded, z.detach())
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_promised_sparsity_holds(name: str) -> None:
    mechanism = MAKERS[name]()
    pre = scores(rows=50)
    z, _ = code(mechanism, pre)
    assert int((z > 0).sum()) == K * 50
    if name == "topk":
        assert int((z > 0).sum(dim=1).max()) == K
    kept, dropped = pre[z > 0], pre[(z == 0) & (pre > 0)]
    if name == "batchtopk":
        assert float(kept.min()) > float(dropped.max())


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 9), st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**16), st.booleans())
def test_selection_keeps_what_a_full_sort_keeps(rows: int, width: int, k: int, seed: int, ties: bool) -> None:
    k = min(k, width)
    scores = torch.randn(width, rows, generator=torch.Generator().manual_seed(seed)).T
    scores = scores.mul(2).round() if ties else scores
    by_row, by_batch = TopK(width, k).select(scores), BatchTopK(width, k).select(scores)
    for active in (by_row, by_batch):
        assert bool((active.latent * rows + active.row).diff().gt(0).all())
    for row, own in enumerate(scores):
        assert torch.equal(descending(own[by_row.latent[by_row.row == row]]), descending(own[own > 0])[:k])
    assert torch.equal(descending(scores[by_batch.row, by_batch.latent]), descending(scores[scores > 0])[: k * rows])


def descending(values: Tensor) -> Tensor:
    return values.sort(descending=True).values


def test_l1_counts_the_code_once_per_row() -> None:
    pre = scores()
    z, penalty = code(L1(WIDTH, 0.5), pre)
    assert float(penalty.detach()) == pytest.approx(0.5 * float(z.detach().sum(dim=1).mean()))


def test_batchtopk_threshold_starts_as_a_plain_mean_and_ignores_silent_batches() -> None:
    mechanism = BatchTopK(WIDTH, K)
    smallest = []
    for seed in range(3):
        pre = scores(seed=seed)
        z, _ = code(mechanism, pre)
        smallest.append(float(z[z > 0].min()))
        watch(mechanism, pre)
        watch(mechanism, -pre.abs())
    assert float(mechanism.threshold) == pytest.approx(sum(smallest) / 3, rel=1e-5)


# Group bias adaptation against the paper


def slow_adaptation(
    batches: list[Tensor], bias: list[float], targets: list[float], groups: list[int], epsilon: float
) -> list[float]:
    """Stores every pre-activation and follows arXiv:2506.14002 §3 neuron by neuron, γ₋ = 0.07, γ₊ = 0.05."""
    y = [[float(row[m]) + bias[m] for batch in batches for row in batch] for m in range(len(bias))]
    share = [sum(value > 0 for value in values) / len(values) for values in y]
    r = [max(max(values), 0.0) for values in y]
    adapted = []
    for m in range(len(bias)):
        members = [n for n in range(len(bias)) if groups[n] == groups[m]]
        positive = [r[n] for n in members if r[n] > 0]
        step = sum(positive) / len(positive) if positive else sum(abs(bias[n]) for n in members) / len(members)
        if share[m] > targets[m]:
            adapted.append(max(bias[m] - 0.07 * r[m], -1.0))
        elif share[m] < epsilon:
            adapted.append(min(bias[m] + 0.05 * step, 0.0))
        else:
            adapted.append(bias[m])
    return adapted


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_adaptation_equals_the_papers_loop(activation: Activation) -> None:
    generator = torch.Generator().manual_seed(1)
    targets, groups = geometric_targets(WIDTH, 4, 0.4, 0.02)
    bias = -0.6 * torch.rand(WIDTH, generator=generator)
    bias[groups == 2] = -0.9  # group 2 will be silent as a whole
    bias[:2] = torch.tensor([-0.999, -0.001])  # both clamps are met
    adaptation = Adaptation(gamma_down=0.07, gamma_up=0.05, epsilon=0.01)
    mechanism = GBA(targets, groups, bias=bias, activation=activation, adaptation=adaptation)
    expected = bias.tolist()
    moved = set()
    for round_number in range(6):
        batches = [scores(rows=30, seed=10 * round_number + number) for number in range(3)]
        for batch in batches:
            batch[:, 0] = 1.5  # always active, so its bias is driven to −1
            batch[:, groups == 2] = batch[:, groups == 2].clamp_max(0.5)
            watch(mechanism, batch)
        mechanism.adapt()
        before, expected = expected, slow_adaptation(batches, expected, targets.tolist(), groups.tolist(), 0.01)
        torch.testing.assert_close(mechanism.bias, torch.tensor(expected), rtol=1e-5, atol=1e-6)
        moved |= {(b < a) - (b > a) for a, b in zip(before, expected, strict=True)}
    assert moved == {-1, 0, 1}
    assert float(mechanism.bias[0]) == -1.0


def test_a_group_silent_as_a_whole_wakes_up() -> None:
    mechanism = BA(4, 0.1, bias=torch.tensor([-0.8, -0.4, -0.6, -0.6]), adaptation=Adaptation(gamma_up=0.5))
    quiet = torch.full((10, 4), 0.1)
    watch(mechanism, quiet)
    mechanism.adapt()
    torch.testing.assert_close(mechanism.bias, torch.tensor([-0.5, -0.1, -0.3, -0.3]))


def test_a_shared_bias_moves_both_ways_by_its_groups_mean_frequency() -> None:
    targets, groups = torch.tensor([0.3, 0.1, 0.5, 0.1, 0.2]), torch.tensor([0, 0, 1, 1, 2])
    shared, fixed = torch.tensor([True, True, True, True, False]), torch.tensor([False] * 4 + [True])
    bias = torch.tensor([-0.5, -0.5, -0.4, -0.4, -0.1])
    mechanism = GBA(targets, groups, bias=bias, shared=shared, fixed=fixed)
    pre = torch.zeros(10, 5)
    pre[:3, 0] = pre[:1, 1] = 0.6  # group 0 fires at 0.2 on average, as it should: 0.3 and 0.1 exchanged would do as well
    pre[:9, 2] = 0.6  # group 1 at 0.45 instead of 0.3
    pre[:, 4] = 1.0
    watch(mechanism, pre)
    mechanism.adapt()
    expected = [-0.5, -0.5, -0.4 * (1 + 0.1 * 0.5), -0.4 * (1 + 0.1 * 0.5), -0.1]
    torch.testing.assert_close(mechanism.bias, torch.tensor(expected))
    watch(mechanism, torch.zeros(10, 5))
    mechanism.adapt()
    assert float(mechanism.bias[0]) == pytest.approx(-0.5 * 0.9) and float(mechanism.bias[4]) == pytest.approx(-0.1)


def test_a_shared_bias_finds_its_target_on_gaussian_scores() -> None:
    targets, groups = torch.full((WIDTH,), 0.05), torch.zeros(WIDTH, dtype=torch.int64)
    mechanism = GBA(targets, groups, shared=torch.ones(WIDTH, dtype=torch.bool))
    scale = torch.linspace(0.5, 2.0, WIDTH)
    for seed in range(150):
        watch(mechanism, scale * scores(rows=200, seed=seed))
        mechanism.adapt()
    share = (code(mechanism, scale * scores(rows=20_000, seed=999))[0] > 0).float().mean(dim=0)
    assert float(share.mean()) == pytest.approx(0.05, rel=0.05)
    assert float(share.max()) > 0.09 and float(mechanism.bias.std()) < 1e-6  # who fires is left to the scores


def test_an_adaptation_without_observations_changes_nothing() -> None:
    mechanism = BA(4, 0.1, bias=torch.full((4,), -0.5))
    mechanism.adapt()
    assert mechanism.bias.tolist() == [-0.5] * 4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-3, 1e3),
    offset=st.floats(-100, 100),
    gammas=st.tuples(st.floats(1e-3, 50), st.floats(1e-3, 50)),
    groups=st.integers(1, 6),
)
def test_biases_stay_within_minus_one_and_zero(
    seed: int, scale: float, offset: float, gammas: tuple[float, float], groups: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets, group = geometric_targets(6, groups, 0.5, 0.01)
    mechanism = GBA(targets, group, bias=-torch.rand(6, generator=generator), adaptation=Adaptation(*gammas))
    for _ in range(5):
        pre = offset + scale * torch.randn(8, 6, generator=generator)
        watch(mechanism, pre)
        mechanism.adapt()
        assert bool(((mechanism.bias >= -1) & (mechanism.bias <= 0)).all())


def test_targets_are_met_as_upper_bounds_on_gaussian_scores() -> None:
    targets, groups = geometric_targets(WIDTH, 3, 0.3, 0.01)
    mechanism = GBA(targets, groups, adaptation=Adaptation(gamma_down=0.02, gamma_up=0.02))
    for seed in range(150):
        pre = scores(rows=200, seed=seed)
        watch(mechanism, pre)
        mechanism.adapt()
    share = (code(mechanism, scores(rows=20_000, seed=999))[0] > 0).float().mean(dim=0)
    assert bool((share < 1.3 * targets + 0.003).all())
    assert bool((share[groups == 0] > 0.2).all()) and bool((share > 0).all())


# How mechanisms are made


def test_geometric_targets_fall_by_one_ratio_over_groups_of_equal_size() -> None:
    targets, groups = geometric_targets(11, 4, 0.5, 0.004)
    assert groups.tolist() == sorted(groups.tolist())
    sizes = torch.bincount(groups)
    assert len(sizes) == 4 and int(sizes.max() - sizes.min()) <= 1
    levels = [float(targets[groups == number][0]) for number in range(4)]
    assert levels == pytest.approx([0.5, 0.1, 0.02, 0.004])
    one, _ = geometric_targets(3, 1, 0.1, 0.001)
    assert one.tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: geometric_targets(4, 5, 0.1, 0.01), r"width \(4\).*5 groups"),
        (lambda: geometric_targets(4, 2, 0.01, 0.1), "lowest ≤ highest"),
        (lambda: geometric_targets(4, 2, 1.0, 0.1), "highest 1.0"),
        (lambda: BA(4, 0.0), r"within \(0, 1\).*0 to 0"),
        (lambda: BA(4, 0.1, bias=torch.full((4,), 0.1)), r"biases within \[-1, 0\]"),
        (lambda: BA(4, 0.1, bias=torch.full((4,), torch.nan)), r"biases within \[-1, 0\]"),
        (lambda: BA(4, 0.1, adaptation=Adaptation(adapt_every=0)), "adapt_every=0"),
        (lambda: BA(4, 0.1, activation="topk"), "topk"),
        (lambda: GBA(torch.full((4,), 0.1), torch.zeros(3, dtype=torch.int64)), r"\[4\], \[3\]"),
        (lambda: GBA(torch.full((1,), 0.1), torch.tensor([-1])), "groups from -1"),
        (lambda: TopK(4, 5), r"width \(4\).*5"),
        (lambda: BatchTopK(4, 0), "between 1"),
        (lambda: BatchTopK(4, 2, memory=1.0), r"\[0, 1\)"),
        (lambda: L1(4, -1.0), "weight ≥ 0"),
        (lambda: TopK(0, 1), "width ≥ 1"),
        (lambda: TopK(4, 1, auxk=-1.0), "auxk ≥ 0"),
        (lambda: MatryoshkaBatchTopK(4, 1, prefixes=(0.5, 0.25, 1.0)), "ascending prefixes"),
        (lambda: JumpReLU(4, 1.0, bandwidth=0.0), "bandwidth"),
        (lambda: Gated(4, -1.0), "weight ≥ 0"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize("name", SETTINGS)
def test_recipes_become_mechanisms(name: str) -> None:
    expected = {"k": 5, "penalty": 0.3, "gamma_up": 0.2, "adapt_every": 7, "bandwidth": 0.1}
    given = {key: value for key, value in expected.items() if key in SETTINGS[name].model_fields}
    recipe = Recipe.parse({"mechanism": {"name": name, **given}, "dictionary": {"activation": "relu", "l0": 4}})
    made = mechanism_from(recipe, 40)
    assert made.name == name and made.width == 40
    assert given and given.items() <= made.settings().items()
    if isinstance(made, GBA | BA):
        assert made.activation == "relu"
        assert len(made.targets.unique()) == (10 if name == "gba" else 1)
        assert float(made.targets.sum()) == pytest.approx(4)


def test_dead_latents_may_all_lie_on_other_ranks() -> None:
    class Beside(Alone):
        """A rank whose neighbour has 5 dead latents with scores of 0.5."""

        def sum_over_latents(self, x: Tensor) -> Tensor:
            return x + 5 if x.numel() == 1 else x

        def gather_latents(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.full_like(x, 0.5)], dim=1)

    x = torch.randn(30, DIM, generator=torch.Generator().manual_seed(0))
    for num_dead in (0, 2):
        mechanism = TopK(WIDTH, K, auxk=0.5, dead_after=10)
        mechanism.reduce = Beside()
        mechanism.silent_rows[:num_dead] = 100
        weights = [torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
        objective = mechanism.objective(SparseProducts(x, *weights, torch.zeros(DIM, requires_grad=True)))
        torch.autograd.backward(objective.loss)
        assert bool(torch.isfinite(objective.loss))
