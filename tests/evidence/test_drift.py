"""A stream of documents beside a reference: what is alarmed, what is named, what is remembered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.evidence.documents import DocumentFigures, DocumentSums, DocumentTable
from kyomei.evidence.drift import (
    FEATURES,
    GOALS,
    LEARNT,
    RATE,
    RECONSTRUCTION,
    SEEN,
    TEXT,
    TEXT_STATISTICS,
    Axes,
    Distance,
    Monitor,
    least_share,
    seen_in_time,
)
from kyomei.evidence.goals.detector import Detector

WIDTH = 40
GOAL = Detector("apples", "label", "max", (3, 5), (2.0, -1.0), -1.0, 0.5, "x")


def document(
    rng: np.random.Generator, *, foreign: bool = False, worse: bool = False, more: int | None = None
) -> DocumentFigures:
    """A document whose features fire at rates that vary from one document to the next."""
    rows = int(rng.integers(40, 400))
    rates = rng.beta(0.5, 8, WIDTH) * (np.arange(WIDTH) < 30)
    if foreign:
        rates = np.roll(rates, 15)
    if more is not None:
        rates[more] = 0.6
    fired = rng.binomial(rows, rates).astype(np.int32)
    latents = np.flatnonzero(fired).astype(np.int32)
    squares = rows * rng.gamma(30, 1 / 30)
    peak = rng.gamma(2.0, 0.3, len(latents)).astype(np.float32)
    peak[latents == more] = 4.0
    error = squares * (0.2 + 0.03 * rng.normal()) * (1.6 if worse else 1.0)
    return DocumentFigures(rows, latents, fired[latents], peak, peak * fired[latents], error, squares)


def documents(seed: int, count: int) -> list[DocumentFigures]:
    rng = np.random.default_rng(seed)
    return [document(rng) for _ in range(count)]


def monitor(**more: object) -> Monitor:
    scale, ranked = (DocumentTable.of(documents(seed, count), WIDTH) for seed, count in ((1, 120), (2, 300)))
    return Monitor(scale, ranked, [GOAL], **more)  # type: ignore[arg-type]


def test_the_rate_is_shared_out_whole() -> None:
    found = monitor()
    sizes = {TEXT: len(TEXT_STATISTICS), FEATURES: WIDTH}
    assert found.kinds == [TEXT, RECONSTRUCTION, FEATURES, LEARNT, GOALS]
    assert [each.name for each in found.statistics()] == [*TEXT_STATISTICS, RECONSTRUCTION, FEATURES, LEARNT, "apples"]
    assert sum(found.level(kind) * sizes.get(kind, 1) for kind in found.kinds) == pytest.approx(RATE)


def test_the_distance_is_its_formula() -> None:
    table = DocumentTable.of(documents(0, 50), WIDTH)
    dense = np.zeros((50, WIDTH))
    for row, each in zip(dense, table, strict=True):
        row[each.latents] = each.fired / each.num_rows
    root = np.sqrt(dense)
    variance = root.var(axis=0)
    wanted = ((root - root.mean(axis=0)) ** 2 / (variance + variance.mean())).mean(axis=1)
    distance = Distance.of(table)
    assert [distance.to(each) for each in table] == pytest.approx(wanted.tolist(), rel=1e-9)


def test_axes_are_the_principal_ones() -> None:
    table = DocumentTable.of(documents(0, 50), WIDTH)
    dense = np.zeros((50, WIDTH))
    for row, each in zip(dense, table, strict=True):
        row[each.latents] = np.log1p(each.fired / each.num_rows / 1e-3)
    variance = dense.var(axis=0)
    whitened = (dense - dense.mean(axis=0)) / np.sqrt(variance + variance.mean())
    _, vectors = np.linalg.eigh(whitened.T @ whitened)
    wanted = whitened @ vectors[:, [-1, -2]]
    found = np.stack([Axes.of(table).to(each) for each in table])
    for mine, own in zip(found.T, wanted.T, strict=True):
        assert np.abs(mine) == pytest.approx(np.abs(own), abs=1e-6)
    assert Axes.of(DocumentTable.of(documents(0, 1), WIDTH)).to(table[0]).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_quiet_stream_stays_quiet_and_each_kind_of_turn_is_seen() -> None:
    rng = np.random.default_rng(7)
    quiet = monitor()
    for _ in range(300):
        quiet.add(document(rng))
    assert quiet.alarmed == [] and quiet.documents == 300
    turns = {TEXT: {"foreign": True}, RECONSTRUCTION: {"worse": True}, FEATURES: {"more": 35}, GOALS: {"more": 3}}
    for kind, how in turns.items():
        found = monitor()
        for number in range(250):
            found.add(document(rng, **(how if number % 3 == 0 else {})))  # type: ignore[arg-type]
        assert kind in found.alarmed, kind
        if kind == TEXT:
            assert LEARNT in found.alarmed and 0 < len(found.carriers(3)) <= 3
        if kind == FEATURES:
            assert np.flatnonzero(found.changed_features()).tolist() == [35]
            assert found.leading(1)[0].name == "35"


def test_it_goes_on_where_it_was_stopped() -> None:
    rng = np.random.default_rng(9)
    stream = [document(rng, foreign=number % 5 == 0) for number in range(120)]
    whole, first, second = monitor(), monitor(), monitor()
    for each in stream:
        whole.add(each)
    for each in stream[:57]:
        first.add(each)
    second.restore(first.arrays())
    for each in stream[57:]:
        second.add(each)
    assert second.statistics() == whole.statistics() and second.leading(9) == whole.leading(9)


def test_memory_does_not_grow_with_the_stream() -> None:
    found, rng = monitor(), np.random.default_rng(0)
    before = {name: array.shape for name, array in found.arrays().items()}
    for _ in range(120):
        found.add(document(rng))
    assert {name: array.shape for name, array in found.arrays().items()} == before


def test_so_small_a_turn_cannot_be_told_from_so_few_documents() -> None:
    shares = [least_share(count) for count in (30, 100, 300, 500)]
    assert all(share is not None for share in shares)
    assert shares == sorted(shares, reverse=True)  # type: ignore[type-var]
    assert shares[2] < 0.05 < shares[1] < 0.13  # type: ignore[operator]
    assert least_share(0) is None and least_share(1) is None


def test_a_larger_reference_is_never_said_to_see_less() -> None:
    shares = [seen_in_time(count) for count in (0, 59, 120, 300, 430, 10_000)]
    assert shares[:2] == [None, None]
    measured = [share for share in shares if share is not None]
    assert measured == sorted(measured) and len(measured) == 4 and measured[-1] == max(SEEN.values())


def sae() -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    encoder = torch.nn.functional.normalize(torch.randn(12, 6, generator=generator), dim=1)
    return SparseAutoencoder(encoder, None, torch.full((12,), 0.5), torch.full((6,), 0.1))


def test_figures_of_a_document_are_sums_over_its_rows() -> None:
    x = torch.randn(70, 6, generator=torch.Generator().manual_seed(1))
    one = sae()
    sums = DocumentSums(one)
    for part in (x[:1], x[1:40], x[40:40], x[40:]):
        sums.add(part)
    found, code = sums.figures(), one.encode(x)
    assert found is not None and found.num_rows == 70
    active = code.ne(0).any(dim=0).nonzero().flatten()
    assert found.latents.tolist() == active.tolist()
    assert found.fired.tolist() == code.ne(0).sum(dim=0)[active].tolist()
    assert found.peak.tolist() == pytest.approx(code.amax(dim=0)[active].tolist())
    assert found.error == pytest.approx(float((x - one.decode(code)).square().sum()), rel=1e-4)
    assert found.squares == pytest.approx(float((x - 0.1).square().sum()), rel=1e-4)
    dead = next((i for i in range(12) if i not in active), 11)
    asked = np.array([int(active[0]), dead, int(active[-1])])
    assert found.pooled(asked, "max").tolist() == pytest.approx(code.amax(dim=0)[asked].clamp_min(0).tolist(), rel=1e-5)
    assert found.pooled(asked, "mean").tolist() == pytest.approx(code.mean(dim=0)[asked].tolist(), rel=1e-5)
    table = DocumentTable.of([found, found], 12)
    again = DocumentTable.of_arrays({f"a.{name}": array for name, array in table.arrays().items()}, 12, "a.")
    assert len(again) == 2 and again[1].fired.tolist() == found.fired.tolist() and again[1].error == found.error
    assert again.rates[asked].tolist() == pytest.approx((code.ne(0).float().mean(dim=0)[asked]).tolist())


def test_rows_of_elsewhere_and_what_is_not_finite_are_refused_and_no_rows_are_no_document() -> None:
    sums = DocumentSums(sae())
    assert sums.figures() is None
    with pytest.raises(DataError, match="rows of dimension 6"):
        sums.add(torch.zeros(3, 5))
    with pytest.raises(DataError, match="finite activations"):
        sums.add(torch.full((3, 6), float("nan")))
