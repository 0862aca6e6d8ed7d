"""The sparse step against autograd on whole matrices, and its products against plain matrix algebra."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary import kernels
from kyomei.dictionary import products as products_module
from kyomei.dictionary.kernels import Active, compared
from kyomei.dictionary.mechanisms import (
    GBA,
    L1,
    BatchTopK,
    Gated,
    JumpReLU,
    MatryoshkaBatchTopK,
    Mechanism,
    Objective,
    TopK,
    geometric_targets,
)
from kyomei.dictionary.products import DenseProducts, Products, SparseProducts

ROWS, WIDTH, DIM = 37, 50, 12


def gba(activation: str) -> Mechanism:
    bias = -0.5 * torch.rand(WIDTH, generator=torch.Generator().manual_seed(3))
    return GBA(*geometric_targets(WIDTH, 4, 0.3, 0.05), bias=bias, activation=activation)  # type: ignore[arg-type]


def with_dead(mechanism: Mechanism) -> Mechanism:
    """A third of the latents have been silent for long."""
    mechanism.silent_rows[::3] = 10**6  # type: ignore[operator, index]
    return mechanism


def penalised(make: Callable[[], Mechanism]) -> Mechanism:
    mechanism = make()
    generator = torch.Generator().manual_seed(5)
    for parameter in mechanism.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator) - 0.3)
    return mechanism


MAKERS: dict[str, Callable[[], Mechanism]] = {
    "gba": lambda: gba("jumprelu"),
    "gba-relu": lambda: gba("relu"),
    "topk": lambda: TopK(WIDTH, 4),
    "topk-dead": lambda: with_dead(TopK(WIDTH, 4, auxk=0.5)),
    "batchtopk": lambda: BatchTopK(WIDTH, 4),
    "matryoshka": lambda: with_dead(MatryoshkaBatchTopK(WIDTH, 4, auxk=0.5, prefixes=(0.1, 0.3, 1.0))),
    "l1": lambda: penalised(lambda: L1(WIDTH, 0.05)),
    "jumprelu": lambda: penalised(lambda: JumpReLU(WIDTH, 0.01, bandwidth=0.3)),
    "gated": lambda: penalised(lambda: Gated(WIDTH, 0.05)),
}


def step(kind: type[Products], mechanism: Mechanism, tied: bool, silent_rows: bool) -> tuple[Objective, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)
    encoder = normalize(torch.randn(WIDTH, DIM, generator=generator, dtype=torch.float64), dim=1)
    decoder = encoder if tied else normalize(torch.randn(WIDTH, DIM, generator=generator, dtype=torch.float64), dim=1)
    centre = 0.1 * torch.randn(DIM, generator=generator, dtype=torch.float64)
    if silent_rows:
        x[::4] = centre.zero_()  # all scores are exactly zero there
    mechanism.to("cpu", torch.float64)
    weights = [encoder.requires_grad_(), decoder.requires_grad_(), centre.requires_grad_()]
    objective = mechanism.objective(kind(x, *weights))
    torch.autograd.backward(objective.loss)
    parameters = [*weights, *mechanism.parameters()]
    return objective, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


@pytest.mark.parametrize("silent_rows", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_the_sparse_step_has_the_gradients_of_autograd(name: str, tied: bool, silent_rows: bool) -> None:
    sparse, gradients = step(SparseProducts, MAKERS[name](), tied, silent_rows)
    dense, expected = step(DenseProducts, MAKERS[name](), tied, silent_rows)
    torch.testing.assert_close(sparse.loss, dense.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse.squared_error, dense.squared_error, rtol=1e-12, atol=1e-12)
    assert torch.equal(sparse.active.latent, dense.active.latent) and torch.equal(sparse.active.row, dense.active.row)
    torch.testing.assert_close(sparse.values, dense.values, rtol=1e-12, atol=1e-12)
    for own, other in zip(gradients, expected, strict=True):
        assert float(other.abs().max()) > 0
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-12)


def test_dead_latents_get_a_gradient_only_with_auxk() -> None:
    dead = torch.zeros(WIDTH, dtype=torch.bool)
    dead[::3] = True
    for auxk, expected in ((0.0, False), (0.5, True)):
        mechanism = with_dead(TopK(WIDTH, 1, auxk=auxk))
        objective, gradients = step(SparseProducts, mechanism, False, False)
        silent = dead & (objective.active.counts == 0)
        assert bool(silent.any())
        assert bool((gradients[1][silent] != 0).any()) == expected


def test_a_batch_without_any_active_latent() -> None:
    mechanism = GBA(*geometric_targets(WIDTH, 4, 0.3, 0.05), bias=torch.full((WIDTH,), -1.0))
    x = torch.zeros(ROWS, DIM)
    weights = [torch.ones(WIDTH, DIM, requires_grad=True), torch.ones(WIDTH, DIM, requires_grad=True)]
    centre = torch.full((DIM,), 0.5, requires_grad=True)
    objective = mechanism.objective(SparseProducts(x, *weights, centre))
    torch.autograd.backward(objective.loss)
    assert len(objective.active) == 0 and float(objective.squared_error) == pytest.approx(DIM / 4)
    assert centre.grad is not None
    torch.testing.assert_close(centre.grad, torch.full((DIM,), 0.5))


def test_straight_through_gradients_follow_the_paper() -> None:
    """arXiv:2407.14435, equations 11 and 12, entry by entry."""
    mechanism = JumpReLU(1, 0.7, bandwidth=0.2, threshold=0.5)
    scores = torch.tensor([0.3, 0.45, 0.55, 0.9], requires_grad=True)
    entries = torch.arange(4)
    active = Active(torch.zeros(4, dtype=torch.int64), entries, 4, 1)
    values = mechanism.values(scores, active)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.autograd.backward((upstream * values).sum() + mechanism.penalty(scores, values, active))
    theta, eps = 0.5, 0.2
    near = [0.0, 1.0, 1.0, 0.0]
    by_value = sum(-theta / eps * k * float(u) for k, u in zip(near, upstream, strict=True))
    by_count = sum(-0.7 / eps * k for k in near)
    assert mechanism.log_threshold.grad is not None and scores.grad is not None
    assert float(mechanism.log_threshold.grad) == pytest.approx(theta * (by_value + by_count), rel=1e-5)
    assert scores.grad.tolist() == [0.0, 0.0, 3.0, 4.0]


@pytest.mark.parametrize("rows", [1, 40, 40_000])
def test_blocks_of_scores_find_the_same_entries(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SCORES_PER_BLOCK", 7 * rows)
    monkeypatch.setattr(products_module, "bfloat16_is_fast", lambda device: False)
    generator = torch.Generator().manual_seed(rows)
    x, encoder = torch.randn(rows, 4, generator=generator), torch.randn(20, 4, generator=generator)
    threshold = torch.randn(20, generator=generator)
    products = SparseProducts(x, encoder, encoder, torch.zeros(4))
    active, known = products.above(threshold)
    mask = products.scores > threshold
    assert known is not None
    assert torch.equal(active.dense(torch.ones_like(known)) > 0, mask)
    torch.testing.assert_close(active.dense(known), torch.where(mask, products.scores, 0.0))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 30), width=st.integers(1, 30), density=st.floats(0, 1))
def test_orders_and_starts_describe_one_matrix(seed: int, rows: int, width: int, density: float) -> None:
    mask = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < density
    active = Active.of(mask)
    assert torch.equal(active.counts, mask.sum(dim=0))
    assert active.density == pytest.approx(float(mask.float().mean()))
    by_row = active.by_row
    assert torch.equal(active.row[by_row], mask.nonzero()[:, 0])
    assert torch.equal(active.latent[by_row], mask.nonzero()[:, 1])
    assert torch.equal(active.row_starts[1:] - active.row_starts[:-1], mask.sum(dim=1).int())


TRITON = """
import numpy as np, torch
from kyomei.dictionary import kernels, kernels_triton
from kyomei.dictionary.kernels import Active
for rows, width, dim, density, dtype in ((17, 9, 5, 0.3, "float32"), (64, 33, 130, 0.02, "float32"),
                                         (8, 4, 2050, 0.9, "float32"), (16, 8, 64, 0.0, "float32"),
                                         (1100, 3, 7, 0.1, "bfloat16"), (32, 16, 48, 0.2, "bfloat16")):
    g = torch.Generator().manual_seed(rows)
    kind = getattr(torch, dtype)
    mask = torch.rand(rows, width, generator=g) < density
    mask[rows // 2] = False
    a = Active.of(mask)
    values = torch.randn(len(a), generator=g)
    dense, other = torch.randn(rows, dim, generator=g).to(kind), torch.randn(width, dim, generator=g).to(kind)
    out = torch.ones(width, dim)
    expected = 1 + a.dense(values).T @ dense.float()
    kernels_triton.csr_matmul(a.latent_starts, a.row32, values, dense, out)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    found = kernels_triton.sampled_products(a.latent_starts, a.row32, other, dense)
    products = (other.float() @ dense.float().T)[a.latent, a.row]
    torch.testing.assert_close(found, products, rtol=1e-4, atol=1e-4)
    out = torch.ones(width, dim)
    found = kernels_triton.sampled_products(a.latent_starts, a.row32, other, dense, values, out)
    torch.testing.assert_close(found, products, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    scores, bound = torch.randn(width, rows, generator=g).to(kind), torch.randn(width, generator=g)
    bound[0] = 9.0
    counts, row, score = kernels_triton.entries_above(scores, bound)
    above = scores.float() > bound[:, None]
    assert torch.equal(counts, above.sum(dim=1))
    assert torch.equal(row.long(), above.nonzero()[:, 1]) and torch.equal(score, scores.float()[above])
    least = torch.randn(rows, generator=g).to(kind)
    counts, row, score = kernels_triton.entries_reaching(scores, least)
    there = scores >= least
    assert torch.equal(counts, there.sum(dim=1))
    assert torch.equal(row.long(), there.nonzero()[:, 1]) and torch.equal(score, scores[there])
print("equal")
"""


def test_triton_kernels_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", TRITON], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_nonzero_is_in_order() -> None:
    mask = torch.rand(50, 40, generator=torch.Generator().manual_seed(0)) < 0.1
    assert kernels.nonzero(mask).tolist() == np.flatnonzero(mask.numpy()).tolist()


def test_sums_that_cuda_makes_in_one_order_are_torchs_own() -> None:
    """What `added_at` and `scattered` do on CUDA, done here: a sum at every index, however often it comes."""
    generator = torch.Generator().manual_seed(0)
    index, values = torch.randint(0, 5, (200, 3), generator=generator), torch.randn(200, 3, generator=generator)
    expected = torch.zeros(5, 3).scatter_add_(0, index, values)
    torch.testing.assert_close(kernels.scattered(torch.zeros(5, 3), index, values), expected)
    flat = (index * 3 + torch.arange(3)).flatten()
    put = torch.zeros(15).index_put_((flat,), values.flatten(), accumulate=True)
    torch.testing.assert_close(put.view(5, 3), expected)
    torch.testing.assert_close(kernels.added_at(torch.zeros(15), flat, values.flatten()).view(5, 3), expected)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    low=st.booleans(),
)
def test_comparisons_are_torchs_own(seed: int, dtype: torch.dtype, low: bool) -> None:
    """Of equal and of infinite scores too, and against bounds below zero."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(9, 30, generator=generator).round(decimals=1).to(dtype)
    scores[0, :3] = torch.tensor([-0.0, torch.inf, -torch.inf]).to(dtype)
    bound = torch.randn(30, generator=generator).round(decimals=1).abs().clamp_min(0.1).to(dtype) * (-1 if low else 1)
    assert torch.equal(compared(scores, bound, np.greater), scores > bound)
    assert torch.equal(compared(scores, bound, np.greater_equal), scores >= bound)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor on which products in bfloat16 are fast; those here are right, whether fast or not."""
    monkeypatch.setattr(products_module, "bfloat16_is_fast", lambda device: True)


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_chosen_by_few_digits_is_what_all_digits_choose(sign: int) -> None:
    """Above a threshold every entry is found but those that stand on it, and each score has all its digits."""
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(400, 64, generator=generator), torch.randn(300, 64, generator=generator)
    centre, threshold = torch.randn(64, generator=generator), sign * (20 + torch.rand(300, generator=generator))
    active, scores = SparseProducts(x, encoder, encoder, centre).above(threshold)
    exact = (x.double() - centre) @ encoder.double().T
    assert scores is not None and torch.allclose(scores.double(), exact[active.row, active.latent], rtol=1e-4, atol=1e-4)
    found = torch.zeros_like(exact, dtype=torch.bool)
    found[active.row, active.latent] = True
    near = (exact - threshold).abs() < 1e-3
    assert not bool(((found != (exact > threshold)) & ~near).any())


@pytest.mark.usefixtures("few_digits")
def test_the_largest_by_few_digits_are_nearly_the_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(400, 64, generator=generator), torch.randn(300, 64, generator=generator)
    products = SparseProducts(x, encoder, encoder, torch.zeros(64))
    active = TopK(300, 8).select(products.scores)
    exact = x.double() @ encoder.double().T
    assert len(active) == 8 * 400
    assert torch.allclose(products.scores_at(active).double(), exact[active.row, active.latent], rtol=1e-4, atol=1e-4)
    lost = exact.topk(8, dim=1).values.sum() - exact[active.row, active.latent].sum()
    assert 0 <= float(lost) < 1e-3 * float(exact.topk(8, dim=1).values.sum())
