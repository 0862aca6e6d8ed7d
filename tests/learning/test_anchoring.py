"""Anchored decoders against closed forms, and against whatever else lies in the cone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.far import FAR, FarDevice
from tests.threads_as_ranks import Rank, together
from torch.nn.functional import normalize

from kyomei.learning.anchoring import Cone, anchored_decoders, usual_scores, usual_scores_in_turn
from kyomei.learning.latents import Latents, random_start
from kyomei.learning.least_squares import CodeMoments, NearCodes, SharedCodes, least_squares
from kyomei.learning.mesh import Mesh
from kyomei.learning.placement import _after, _Anchoring, _before, _free_threshold
from kyomei.learning.sample import Sample
from kyomei.learning.spaces import Normalisation, Whitening
from kyomei.source.rows import open_rows

ROWS, WIDTH, DIM = 3000, 12, 8


def correlated_rows(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, DIM, generator=rng) @ torch.diag(torch.logspace(0, -1.5, DIM))


def codes(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(ROWS, WIDTH, generator=rng) * (torch.rand(ROWS, WIDTH, generator=rng) < 0.2)


def cone_of(x: torch.Tensor, cosine: float, found: int = WIDTH) -> Cone:
    directions = normalize(torch.randn(found, DIM, generator=torch.Generator().manual_seed(5)), dim=1)
    return Cone.around(directions, cosine, Whitening.fit(open_rows(x)))


def cosines(cone: Cone, decoder: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    whitened = normalize(decoder[: len(cone.directions)] @ Whitening.fit(open_rows(x)).forward, dim=1)
    return (whitened * cone.directions).sum(dim=1)


def error(decoder: torch.Tensor, z: torch.Tensor, x: torch.Tensor) -> float:
    return float((x - z @ decoder).square().sum() / len(x))


def test_moments_are_means_over_all_blocks() -> None:
    x, z = correlated_rows(0), codes(1)
    blocks = [(part.to_sparse_csr(), rows) for part, rows in zip(z.split(700), x.split(700), strict=True)]
    moments = CodeMoments.of(blocks)
    assert torch.allclose(torch.from_numpy(moments.gram.toarray()).float(), z.T @ z / ROWS, atol=1e-6)
    assert torch.allclose(moments.products, z.T @ x / ROWS, atol=1e-6)


def test_without_a_cone_it_is_least_squares() -> None:
    x, z = correlated_rows(0), codes(1)
    moments = CodeMoments.of([(z.to_sparse_csr(), x)])
    found = anchored_decoders(moments, torch.zeros(WIDTH, DIM), cone_of(x, -1.0), sweeps=400)
    assert torch.allclose(found, torch.linalg.lstsq(z, x).solution, atol=2e-3)


@pytest.mark.parametrize("cosine", [0.5, 0.9, 0.97, 1.0])
def test_decoders_lie_in_the_cone_and_nothing_else_tried_there_is_better(cosine: float) -> None:
    x, z = correlated_rows(2), codes(3)
    cone = cone_of(x, cosine)
    moments = CodeMoments.of([(z.to_sparse_csr(), x)])
    start = normalize(cone.directions @ Whitening.fit(open_rows(x)).backward, dim=1)
    found = anchored_decoders(moments, start, cone)
    assert float(cosines(cone, found, x).min()) >= cosine - 5e-3
    rng = torch.Generator().manual_seed(4)
    for scale in (0.01, 0.1, 0.5):
        other = cone.nearest(found + scale * found.norm(dim=1, keepdim=True) * torch.randn(found.shape, generator=rng))
        assert error(found, z, x) <= error(other, z, x) * 1.002


def test_rows_beyond_the_directions_are_free() -> None:
    x, z = correlated_rows(6), codes(7)
    cone = cone_of(x, 0.99, found=4)
    moments = CodeMoments.of([(z.to_sparse_csr(), x)])
    found = anchored_decoders(moments, torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(1)), cone, sweeps=300)
    free = torch.linalg.lstsq(z[:, 4:], x - z[:, :4] @ found[:4]).solution
    assert torch.allclose(found[4:], free, atol=5e-3)


@pytest.mark.parametrize("kind", [CodeMoments, SharedCodes])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_that_share_the_latents_fit_what_one_process_does(kind: Any, size: int) -> None:
    x, z = correlated_rows(8), codes(9)
    cone = cone_of(x, 0.9, found=5)
    start = torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(2))
    blocks = [(part.to_sparse_csr(), rows) for part, rows in zip(z.split(1100), x.split(1100), strict=True)]
    whole = CodeMoments.of(blocks)
    expected = anchored_decoders(whole, start, cone)

    def own(rank: Rank) -> torch.Tensor:
        share = rank.share(WIDTH)
        columns = [(code.to_dense()[:, share].to_sparse_csr(), rows) for code, rows in blocks]
        squares = kind.of(columns, rank)
        torch.testing.assert_close(squares.bounds, whole.bounds[share])
        torch.testing.assert_close(squares.descent(start[share]), whole.descent(start)[share])
        return anchored_decoders(squares, start[share], cone.part(share))

    torch.testing.assert_close(torch.cat(together(size, own)), expected, rtol=0, atol=1e-5)


def test_codes_on_a_gpu_fit_what_the_gram_matrix_does() -> None:
    x, z = correlated_rows(8), codes(9)
    blocks = [(part.to_sparse_csr(), rows) for part, rows in zip(z.split(1100), x.split(1100), strict=True)]
    start = torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(2))
    whole, near = CodeMoments.of(blocks), NearCodes.of(blocks)
    torch.testing.assert_close(near.bounds, whole.bounds)
    torch.testing.assert_close(near.descent(start), whole.descent(start))
    cone = cone_of(x, 0.9, found=5)
    torch.testing.assert_close(anchored_decoders(near, start, cone), anchored_decoders(whole, start, cone), rtol=0, atol=1e-5)
    with FarDevice():
        there = least_squares([(code.to(FAR), rows.to(FAR)) for code, rows in blocks], ROWS, Mesh())
        assert isinstance(there, NearCodes)
        torch.testing.assert_close(there.descent(start.to(FAR)).cpu(), whole.descent(start))


def test_the_cheaper_way_is_taken() -> None:
    """A latent's row of the Gram matrix, or its entries in the codes."""
    x, z = correlated_rows(8), codes(9).to_sparse_csr()
    assert isinstance(least_squares([(z, x)], ROWS, Mesh()), CodeMoments)
    wide = torch.eye(ROWS)[:, :2000].to_sparse_csr()
    assert isinstance(least_squares([(wide, x)], ROWS, Mesh()), SharedCodes)


@pytest.mark.parametrize("advantage", [0.0, 20.0])
@pytest.mark.parametrize(("size", "num_found", "num_free"), [(2, 9, 0), (4, 9, 7), (4, 3, 0), (3, 0, 8)])
def test_ranks_place_the_latents_that_one_process_places(
    size: int, num_found: int, num_free: int, advantage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a rank has free ones only, or none at all; by codes and by their Gram matrix."""
    monkeypatch.setattr("kyomei.learning.least_squares.GRAM_ADVANTAGE", advantage)
    rows = open_rows(correlated_rows(10) + 0.3)
    white = Whitening.fit(rows)
    cone = cone_of(correlated_rows(10), 0.9, found=num_found)
    drawn = random_start(num_free, DIM, 4, tied=False) if num_free else Latents.none(DIM)
    x = Sample.of(rows, ROWS, Normalisation(white.mean, 1.0))

    def placed(mesh: Any) -> tuple[Latents, float]:
        here = mesh.share(num_found + num_free)
        own, free = cone.part(_before(here, num_found)), drawn.part(_after(here, num_found))
        return _Anchoring(x, white, own, free, 2.0 if num_free else 0.0, "jumprelu", mesh).run()

    expected, explained = placed(Mesh())
    found = together(size, placed)
    for latents, share in found:
        assert share == pytest.approx(explained, abs=1e-5)
        torch.testing.assert_close(latents.centre, expected.centre, rtol=0, atol=1e-4)
    for name in ("encoder", "decoder", "threshold", "frequency"):
        joined = torch.cat([getattr(latents, name) for latents, _ in found])
        torch.testing.assert_close(joined, getattr(expected, name), rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("l0", [0.5, 3.0, 30.0])
def test_the_common_threshold_is_the_score_that_so_many_exceed(l0: float) -> None:
    """Found by bins, of one process and of three, it is the one that sorting all scores finds; none is negative."""
    rows = open_rows(correlated_rows(3))
    x, centre = Sample.of(rows, ROWS), torch.full((DIM,), 0.1)
    free, found = random_start(40, DIM, 1, tied=False), Latents.of(torch.eye(DIM)[:2], None, threshold=torch.full((2,), 1.5))
    y = rows.read(np.arange(ROWS)) - centre
    taken = int((y @ found.encoder.T > found.threshold).sum())
    ordered = (y @ free.encoder.T).flatten().sort(descending=True).values
    expected = ordered[max(1, round(l0 * ROWS - taken)) - 1].clamp_min(0)

    def own(mesh: Any) -> torch.Tensor:
        return _free_threshold(x, found.part(mesh.share(2)), free.part(mesh.share(40)), l0, centre, mesh)

    for threshold in (own(Mesh()), *together(3, own)):
        torch.testing.assert_close(threshold, expected, rtol=1e-6, atol=1e-6)


def test_usual_scores_of_rows_that_come_by_in_turn() -> None:
    x, encoder = correlated_rows(9), torch.randn(30, DIM, generator=torch.Generator().manual_seed(1))
    found = usual_scores_in_turn(iter(x.split(70)), len(x), encoder)
    torch.testing.assert_close(found, usual_scores(x, encoder))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-0.9, 0.999))
def test_moving_into_the_cone_is_idempotent_and_leaves_what_is_inside(seed: int, cosine: float) -> None:
    x = correlated_rows(8)
    cone = cone_of(x, cosine)
    decoder = torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(seed))
    once = cone.nearest(decoder)
    assert float(cosines(cone, once, x).min()) >= cosine - 5e-3
    inside = cosines(cone, decoder, x) >= cosine + 1e-4
    assert torch.equal(once[inside], decoder[inside])


def test_usual_score_is_the_mean_of_the_strongest_rows() -> None:
    x = correlated_rows(9)
    encoder = torch.eye(DIM)
    expected = x.sort(dim=0, descending=True).values[:10].mean(dim=0)
    assert torch.allclose(usual_scores(x, encoder), expected, atol=1e-5)
    assert len(usual_scores(x, encoder[:0])) == 0
