"""Trainings compared by ranks that have a share of the latents each: what one process says of them, to rounding."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tests.threads_as_ranks import Rank, together
from torch.nn.functional import normalize

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.codes import encode_rows
from kyomei.evidence.kinship import Kinship
from kyomei.evidence.origin import joined_origin, origin
from kyomei.evidence.reproduction import NullMatches, Verdicts, certify_latents, compare_coded, own_of
from kyomei.evidence.survey import survey
from kyomei.learning.spaces import Whitening
from kyomei.learning.spread import Spread
from kyomei.source.planted import Planted
from kyomei.source.rows import TensorRows

PLANTED = Planted(n_features=30, dim=16, active=(1, 4), seed=1)
ROWS = TensorRows(PLANTED.sample(1500, seed=2)[0])
NULL_ROWS = TensorRows(torch.randn(1200, 16, generator=torch.Generator().manual_seed(8)))


def dictionary(seed: int, width: int = 41, **kind: Any) -> SparseAutoencoder:
    """Planted features in float64, some of them split in two and some joined, and random rows."""
    generator = torch.Generator().manual_seed(seed)
    own = PLANTED.features.double()
    order = torch.randperm(30, generator=generator)
    joined = normalize(own[order[0::2]] + own[order[1::2]], dim=1)[:6]
    random = torch.randn(width - 36, 16, generator=generator, dtype=torch.float64)
    rows = normalize(torch.cat([own, joined, random]), dim=1)
    rows = normalize(rows + 0.03 * torch.randn(rows.shape, generator=generator, dtype=torch.float64), dim=1)
    threshold = 0.3 + 0.2 * torch.rand(width, generator=generator, dtype=torch.float64)
    return SparseAutoencoder(rows, rows.clone(), threshold, torch.zeros(16, dtype=torch.float64), **kind)


def assert_alike(found: Any, expected: Any, name: str = "") -> None:
    """Numbers within 1e-8, everything else equal, all the way down."""
    if dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            assert_alike(getattr(found, field.name), getattr(expected, field.name), f"{name}.{field.name}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), name
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(one, other, f"{name}[{number}]")
    elif isinstance(expected, np.ndarray | torch.Tensor) and expected.dtype != object:
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-8, err_msg=name)
    else:
        assert found == (pytest.approx(expected, abs=1e-8) if isinstance(expected, float) else expected), name


@pytest.mark.parametrize("size", [2, 4])
def test_certified_on_ranks_are_the_latents_that_one_process_certifies(size: int) -> None:
    replicas, null = [dictionary(seed) for seed in range(3)], (dictionary(8), dictionary(9, 50))
    expected = certify_latents(replicas, ROWS, null, NULL_ROWS)
    assert len(set(expected.status)) > 2 and max(kin.split.max() for kin in expected.kinship) > 0.7

    def work(rank: Rank) -> Verdicts:
        spread = [Spread.of(sae, rank) for sae in replicas]  # type: ignore[arg-type]
        nulls = tuple(Spread.of(sae, rank) for sae in null)  # type: ignore[arg-type]
        return certify_latents(spread, ROWS, nulls, NULL_ROWS)  # type: ignore[arg-type]

    for found in together(size, work):
        assert_alike(found, expected)


def test_some_latents_drawn_from_all_are_tested_on_ranks() -> None:
    replicas, null = [dictionary(seed) for seed in range(3)], (dictionary(8), dictionary(9))
    index, drawn, space = np.arange(1500), np.array([0, 7, 11, 30, 31, 40]), Whitening.fit(ROWS)
    codes = [encode_rows(sae, ROWS, index) for sae in replicas]
    expected = compare_coded(replicas, codes, NullMatches.measure(null, NULL_ROWS), space, drawn)

    def work(rank: Rank) -> Verdicts:
        spread = [Spread.of(sae, rank) for sae in replicas]  # type: ignore[arg-type]
        found = NullMatches.measure(tuple(Spread.of(sae, rank) for sae in null), NULL_ROWS)  # type: ignore[arg-type]
        return compare_coded(spread, [encode_rows(sae, ROWS, index) for sae in spread], found, space, drawn)

    for found in together(3, work):
        assert_alike(found, expected)


@pytest.mark.parametrize("kind", [{}, {"activation": "topk", "k": 3}])
def test_every_figure_of_a_survey_is_that_of_one_process(kind: dict[str, Any]) -> None:
    sae, taken = dictionary(0, **kind), np.arange(0, 1500, 3)
    (expected,) = survey([sae], ROWS, taken, num_explained=1)

    def work(rank: Rank) -> None:
        spread = Spread.of(sae, rank)  # type: ignore[arg-type]
        (found,) = survey([spread], ROWS, taken, num_explained=1)
        assert expected.code is not None and found.code is not None
        assert_alike(found.code.toarray(), expected.code[:, spread.here].toarray(), "code")
        for name in ("fidelity", "selectivity", "explained"):
            assert_alike(getattr(found, name), getattr(expected, name), name)
        assert_alike(vars(found.strongest)["row"], expected.strongest.row)
        assert_alike(vars(found.strongest)["activation"], expected.strongest.activation)

    together(3, work)


def test_kinship_takes_several_turns_where_parts_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank fetches the codes of parts for a few latents at a time; how few changes nothing."""
    a, b = (encode_rows(dictionary(seed), ROWS, np.arange(1500)) for seed in (0, 1))
    expected = Kinship.of(a, b)
    assert (expected.split > 0).sum() > 2 and (expected.merged > 0).sum() > 2
    monkeypatch.setattr("kyomei.evidence.kinship.MAX_PARTS", 2)
    fewer = Kinship.of(a, b)
    monkeypatch.setattr("kyomei.evidence.codes.COLUMNS_AT_ONCE", 5)
    width = a.shape[1]
    for found in together(4, lambda rank: Kinship.of(a[:, rank.share(width)], b[:, rank.share(width)], rank)):  # type: ignore[arg-type]
        assert_alike(found, fewer)


def test_origins_of_ranks_are_those_of_one_process() -> None:
    code = encode_rows(dictionary(0), ROWS, np.arange(1500))
    generator = np.random.default_rng(0)
    token, position, document = generator.integers(0, 9, 1500), np.arange(1500) % 20, np.arange(1500) // 100
    expected = origin(code, token, position, document)

    def work(rank: Rank) -> None:
        own = origin(code[:, rank.share(code.shape[1])], token, position, document)
        assert_alike(joined_origin(own, rank), expected)  # type: ignore[arg-type]

    together(3, work)


def test_latents_drawn_are_numbered_within_a_share() -> None:
    assert own_of(np.array([0, 4, 5, 9]), slice(4, 8)).tolist() == [0, 1]
