"""Consistency: a figure and its null, always together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kyomei.errors import EvidenceError
from kyomei.evidence.consistency import Consistency, Null, consistency
from kyomei.evidence.cosines import matched_cosine, unit_rows

seeds = st.integers(0, 2**31 - 1)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def null_pair(dim: int = 6) -> Null:
    return Null(normal(90, 30, dim), normal(91, 30, dim), "Gaussian surrogate")


def slow_mcs(a: Tensor, b: Tensor) -> np.ndarray:
    left, right = a.double().numpy(), b.double().numpy()
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return (left @ right.T / norms).max(axis=1)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_equals_numpy(seed: int) -> None:
    a, b, null = normal(seed, 9, 6), normal(seed + 1, 7, 6), null_pair()
    found = consistency(a, b, null=null)
    mcs, null_mcs = slow_mcs(a, b), slow_mcs(null.a, null.b)
    assert np.allclose(found.mcs.numpy(), mcs, atol=1e-5)
    assert found.mean == pytest.approx(mcs.mean(), abs=1e-5)
    assert found.null_mean == pytest.approx(null_mcs.mean(), abs=1e-5)
    assert found.null_99th_percentile == pytest.approx(np.quantile(null_mcs, 0.99), abs=1e-5)
    tau = float(np.median(mcs)) + 1e-4
    assert found.share_above(tau) == pytest.approx((mcs > tau).mean())
    assert found.null_share_above(tau) == pytest.approx((null_mcs > tau).mean())


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_rotation_permutation_and_scale_change_nothing(seed: int) -> None:
    a, b, null = normal(seed, 9, 6), normal(seed + 1, 7, 6), null_pair()
    before = consistency(a, b, null=null)
    rotation = torch.linalg.qr(normal(seed + 2, 6, 6)).Q
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    scale = normal(seed + 3, 7, 1).exp()
    after = consistency(a @ rotation, (b * scale)[order] @ rotation, null=(null.a @ rotation, null.b @ rotation))
    assert torch.allclose(before.mcs, after.mcs, atol=1e-5)
    assert before.pw_mcc == pytest.approx(after.pw_mcc, abs=1e-5)
    assert before.null_pw_mcc == pytest.approx(after.null_pw_mcc, abs=1e-5)


def test_mcs_is_signed_and_matching_is_not() -> None:
    found = consistency(torch.eye(5), -torch.eye(5), null=null_pair(5))
    assert found.share_above(0.7) == 0.0
    assert found.pw_mcc == pytest.approx(1.0)


def test_without_a_null_nothing_is_said() -> None:
    with pytest.raises(EvidenceError, match="null beside the consistency"):
        consistency(torch.eye(3), torch.eye(3))
    with pytest.raises(EvidenceError, match="a null with directions"):
        consistency(torch.eye(3), torch.eye(3), null=(torch.empty(0, 3), torch.eye(3)))


def test_print_and_dict_show_the_null_beside_every_figure() -> None:
    found = consistency(torch.eye(4), torch.eye(4), null=(torch.eye(4)[:2], -torch.ones(3, 4)))
    for text in (str(found), repr(found), f"{found}"):
        figures = text.split("; ")
        assert figures[0] == "MCS > 0.7: 1.000 (null 0.000)"
        assert all("null" in figure for figure in figures)
    plain = found.to_dict()
    assert plain["pw_mcc"] == {"value": pytest.approx(1.0), "null": pytest.approx(0.5)}
    assert plain["mcs_above_0.9"] == {"value": 1.0, "null": 0.0}
    assert plain["rows"] == {"value": [4, 4], "null": [2, 3]}
    pairs = [key for key in plain if key not in {"metric", "null", "null_99th_percentile"}]
    assert all(set(plain[key]) == {"value", "null"} for key in pairs)


def test_whitened_metric_undoes_a_shared_direction() -> None:
    """Vectors that agree only through one loud coordinate agree in the raw metric and not in the whitened one."""
    loud = torch.tensor([100.0, 1.0, 1.0])
    a, b = torch.tensor([[1.0, 1.0, 0.0]]) * loud, torch.tensor([[1.0, 0.0, 1.0]]) * loud
    raw = consistency(a, b, null=(a, b))
    whitened = consistency(a, b, null=(a, b), metric="whitened", whitening=torch.diag(1 / loud))
    assert raw.mcs.item() == pytest.approx(1.0, abs=1e-3)
    assert whitened.mcs.item() == pytest.approx(0.5)
    assert whitened.null_mcs.item() == pytest.approx(0.5)
    assert whitened.to_dict()["metric"] == "whitened"


def test_among_keeps_the_highest_and_matches_only_those() -> None:
    a = torch.eye(4)
    b = torch.stack([a[0], a[1], normal(0, 4), normal(1, 4)])
    null = null_pair(4)
    found = consistency(a, b, null=null).among("frequency", torch.tensor([0.4, 0.9, 0.1, 0.2]), 0.5)
    assert found.mcs.tolist() == pytest.approx([1.0, 1.0])
    assert found.selection == "top 50 % by frequency"
    assert found.null_selection == "all"
    assert len(found.null_mcs) == 30
    assert found.pw_mcc == pytest.approx(1.0)
    both = consistency(a, b, null=null).among("frequency", torch.rand(4), 0.1, torch.arange(30.0))
    assert len(both.mcs) == 1
    assert torch.equal(both.null_mcs, consistency(a, b, null=null).null_mcs[27:])
    assert both.null_pw_mcc == pytest.approx(matched_cosine(unit_rows(null.a[27:], "a"), unit_rows(null.b, "b")))
    assert "null: Gaussian surrogate, top 10 % by frequency, 3 against 30" in str(both)


def test_a_run_that_found_nothing_is_a_result() -> None:
    found: Consistency = consistency(torch.empty(0, 6), torch.empty(0, 6), null=null_pair())
    assert (found.share_above(0.7), found.mean, found.pw_mcc) == (0.0, 0.0, 0.0)
    assert consistency(torch.eye(6), torch.empty(0, 6), null=null_pair()).mcs.tolist() == [0.0] * 6


def test_unfit_input_is_refused() -> None:
    three, null = torch.eye(3), null_pair(3)
    with pytest.raises(EvidenceError, match="one dimension"):
        consistency(three, torch.eye(4), null=null)
    with pytest.raises(EvidenceError, match="'whitened' without a map"):
        consistency(three, three, null=null, metric="whitened")
    with pytest.raises(EvidenceError, match="'raw' with a map"):
        consistency(three, three, null=null, whitening=three)
    with pytest.raises(EvidenceError, match=r"a map of shape \[3, …\]"):
        consistency(three, three, null=null, metric="whitened", whitening=torch.eye(4))
    with pytest.raises(EvidenceError, match=r"a score of shape \[3\]"):
        consistency(three, three, null=null).among("frequency", torch.ones(4), 0.5)
    with pytest.raises(EvidenceError, match="alpha 0"):
        consistency(three, three, null=null).among("frequency", torch.ones(3), 0.0)
