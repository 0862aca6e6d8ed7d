"""The quick search's measurements, against simulation, slow references and planted truth."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import kyomei
from kyomei.errors import DataError
from kyomei.evidence.check import structure as s
from kyomei.evidence.check.behaviour import Spread
from kyomei.evidence.check.structure import Structure, search
from kyomei.learning.merging import not_mixtures


def unit(seed: int, rows: int, dim: int) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(scope="module")
def planted() -> kyomei.Planted:
    return kyomei.Planted(n_features=60, dim=30, active=3, seed=1)


@pytest.fixture(scope="module")
def searched(planted: kyomei.Planted) -> s.Searched:
    return search(planted.sample(8000, seed=2)[0], seed=0)


def test_planted_features_are_counted_and_described(searched: s.Searched, planted: kyomei.Planted) -> None:
    found = searched.structure
    assert (found.num_rows, found.sampled_rows, found.dim) == (8000, 3600, 30)
    assert 55 <= found.features <= 66
    assert found.reproduced > 0.9 and found.null_reproduced < 0.1 < found.basin_share
    assert found.active.median == 3
    assert found.occurrence.median == pytest.approx(3 / 60, rel=0.4)
    assert found.explained.median > 0.9
    both = torch.cat([half.vectors for half in searched.halves])
    assert kyomei.recovery(both, planted.features).frr(0.9) >= 0.95


def test_gaussian_rows_have_no_structure() -> None:
    found = search(torch.randn(4000, 20, generator=torch.Generator().manual_seed(0)), seed=0).structure
    assert found.num_reproduced <= 2
    assert found.null_level > 0.7, "in few dimensions random directions come near one another"


def test_same_seed_same_structure(planted: kyomei.Planted) -> None:
    x = planted.sample(2500, seed=2)[0]
    first, again = (search(x, seed=3, null=False).structure for _ in range(2))
    assert first == again
    assert first.null_level == s.REPRODUCED and first.null_reproduced == 0


def test_structure_survives_plain_values(searched: s.Searched) -> None:
    found = searched.structure
    again = Structure.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert isinstance(again.active, Spread) and isinstance(again.second.coded.active, Spread)


def test_progress_counts_every_search(planted: kyomei.Planted) -> None:
    seen: list[tuple[int, int]] = []
    search(planted.sample(2500, seed=2)[0], null=False, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}


@pytest.mark.parametrize(("rows", "dim", "least"), [(1999, 8, "2,000"), (2400, 500, "2,500")])
def test_too_few_rows_are_refused(rows: int, dim: int, least: str) -> None:
    with pytest.raises(DataError, match=f"at least {least} rows for {dim} dimensions"):
        search(torch.randn(rows, dim))


def test_nan_is_named() -> None:
    x = torch.randn(2500, 6, generator=torch.Generator().manual_seed(0))
    x[7, 2] = torch.nan
    with pytest.raises(DataError, match=r"nan.*row 7"):
        search(x)


def test_sums_of_features_are_mixtures_and_features_are_not() -> None:
    features = unit(0, 12, 24)
    pairs = [normalize(features[i] + features[j], dim=0) for i, j in itertools.combinations(range(12), 2)]
    triple = normalize(features[0] + features[1] + features[2], dim=0)
    vectors = torch.stack([*features, *pairs, triple])
    support = torch.cat([torch.full((12,), 50), torch.full((len(pairs),), 5), torch.tensor([1])])
    kept = not_mixtures(vectors, support)
    assert kept[:12].all()
    assert not kept[12:].any()


def test_unrelated_directions_are_no_mixtures() -> None:
    assert not_mixtures(unit(1, 20, 24), torch.arange(20)).all()
    assert not_mixtures(unit(1, 1, 24), torch.tensor([1])).tolist() == [True]


def test_rows_of_two_partners_are_divided_and_rows_of_one_feature_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8000, 16, generator=generator)
    one, two = torch.eye(16)[0], torch.eye(16)[1]
    share = torch.rand(8000, generator=generator)
    alone = noise + 8 * torch.outer((share < 0.1).float(), one)
    partners = noise + 8 * (
        torch.outer((share < 0.06).float(), one) + torch.outer(((share > 0.03) & (share < 0.09)).float(), two)
    )
    assert s._splits(alone, one[None]).median < 1.3
    assert s._splits(partners, normalize(one + two, dim=0)[None]).median > 2
