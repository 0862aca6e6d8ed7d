"""Little data, odd data: a dictionary of finite numbers, or one error that says what is too little; never anything else."""

from __future__ import annotations

import contextlib
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers

import kyomei
from kyomei.config import ResonanceRecipe
from kyomei.errors import KyomeiError
from kyomei.evidence.fidelity import fidelity
from kyomei.evidence.selectivity import selectivity

MECHANISMS = ("gba", "ba", "topk", "batchtopk", "matryoshka", "l1", "jumprelu", "gated")
QUICK = {"resonance": {"neurons": 32, "steps": 2, "frequencies": [0.02], "rounds": 1}, "train": {"steps": 4, "batch_rows": 16}}


def draw(rows: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows + dim))


def learn(x: Any, mechanism: str = "topk", **settings: Any) -> kyomei.SparseAutoencoder:
    sae = kyomei.fit(x, {**QUICK, "mechanism": {"name": mechanism}, **settings}, seed=0)
    # A reconstruction overshoots, and rows may lie at the end of what float32 holds.
    rows = torch.as_tensor(x).float().clamp(-1e37, 1e37)
    for tensor in (sae.encoder, sae.decoder, sae.center, sae(rows)):
        assert bool(torch.isfinite(tensor).all())
    assert not bool(sae.threshold.isnan().any())  # of a latent that is never active it is infinite
    return sae


ROWS = {
    "one row": draw(1),
    "two rows": draw(2),
    "fewer rows than dimensions": draw(5),
    "as many": draw(6),
    "one more": draw(7),
    "one row over and over": draw(1).expand(60, 6),
    "two rows over and over": draw(2).repeat(40, 1),
    "zeros": torch.zeros(60, 6),
    "one column": draw(90, 1),
    "one column that is positive": draw(90, 1).abs(),
    "two columns": draw(90, 2),
    "a column twice": draw(90)[:, [0, 1, 2, 3, 4, 4]],
    "one column that varies": draw(90) * torch.tensor([0, 0, 1.0, 0, 0, 0]),
    "huge": draw(90) * 1e30,
    "nearly too huge": draw(90).clamp(-1, 1) * 3e38,
    "subnormal": draw(90) * 1e-40,
    "a mean that dwarfs the spread": draw(90) + 1e6,
    "one huge row": torch.cat([draw(90), 1e20 * draw(1)]),
    "one row that differs": torch.cat([torch.ones(90, 6), draw(1)]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("name", ROWS)
def test_a_dictionary_or_one_error(name: str, mechanism: str) -> None:
    for width in (None, 1, 40):
        with contextlib.suppress(KyomeiError):
            sae = learn(ROWS[name], mechanism, dictionary={"width": width})
            assert 0 <= selectivity(sae, ROWS[name]).frequency.min() <= 1
            assert fidelity(sae, ROWS[name]).num_rows == len(ROWS[name])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_small_but_enough_is_learnt_from(mechanism: str) -> None:
    """One dimension; one latent; more latents than rows; more active latents wished for than there are; a batch of all rows."""
    assert learn(draw(90, 1), mechanism, dictionary={"width": 3}).dim == 1
    assert learn(draw(90), mechanism, dictionary={"width": 1}).width == 1
    assert learn(draw(30), mechanism, dictionary={"width": 64}).width == 64
    assert learn(draw(90), mechanism, dictionary={"width": 8, "l0": 5000}).width == 8
    assert learn(draw(90), mechanism, dictionary={"width": 8}, train={"steps": 4, "batch_rows": 4096}).width == 8


@pytest.mark.parametrize("verb", [kyomei.fit, kyomei.check, kyomei.resonate])
def test_too_few_rows_are_one_line(verb: Any) -> None:
    for rows in (1, 2, 5):
        with pytest.raises(KyomeiError, match=rf"rows .*Found {rows} rows?") as raised:
            verb(draw(rows))
        assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ROWS)
def test_directions_or_one_error(name: str) -> None:
    with contextlib.suppress(KyomeiError):
        found = kyomei.resonate(ROWS[name], recipe=ResonanceRecipe.model_validate(QUICK["resonance"]), seed=0)
        assert bool(torch.isfinite(found.vectors).all())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "x",
    [
        draw(2000, 1),
        draw(2000, 2),
        draw(1).expand(2000, 6),
        draw(2).repeat(1000, 1),
        draw(2000) * torch.tensor([0, 0, 1.0, 0, 0, 0]),
        draw(2000) * 1e30,
        draw(2000) * 1e-40,
        torch.cat([torch.ones(2000, 6), draw(1)]),
    ],
    ids=["one column", "two columns", "one row", "two rows", "one that varies", "huge", "subnormal", "one row that differs"],
)
def test_premises_or_one_error(x: torch.Tensor) -> None:
    with contextlib.suppress(KyomeiError):
        found = kyomei.check(x, seed=0)
        assert found.verdict in ("met", "partly", "not met")
        assert str(found)


ODD = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 1e-20, 1e20, 3.4e38, -3.4e38, float("nan"), float("inf")])


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    x=numbers.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int32, np.bool_]),
        st.tuples(st.integers(0, 30), st.integers(1, 4)),
        elements=None,
        fill=None,
    )
    | numbers.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=ODD | st.floats(-4, 4, width=32)),
    mechanism=st.sampled_from(MECHANISMS),
    width=st.sampled_from([None, 1, 7]),
)
def test_only_our_errors_come_out_of_any_rows(x: np.ndarray, mechanism: str, width: int | None) -> None:
    with contextlib.suppress(KyomeiError):
        learn(x, mechanism, dictionary={"width": width})
    with contextlib.suppress(KyomeiError):
        kyomei.resonate(x, recipe=ResonanceRecipe.model_validate(QUICK["resonance"]))
