"""The second opinion on planted data, where it is known which of the two is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import kyomei
from kyomei.dictionary.cosines import nearest_other
from kyomei.evidence.check import behaviour as b
from kyomei.evidence.check.second_opinion import NO_OPINION, SecondOpinion, second_opinion
from kyomei.evidence.check.structure import search
from kyomei.learning.spaces import Whitening
from kyomei.source.rows import open_rows


def unit(seed: int, rows: int, dim: int) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def opinion(planted: kyomei.Planted, start: Tensor, found: Tensor) -> SecondOpinion:
    x = planted.sample(9000, seed=1)[0]
    white = Whitening.fit(open_rows(x))
    z = white.whiten(x)
    features = normalize(start @ white.forward, dim=1)
    return second_opinion((z[:4000], z[4000:8000]), z[8000:], features, found, white, seed=0)


@pytest.fixture(scope="module")
def planted() -> kyomei.Planted:
    return kyomei.Planted(n_features=60, dim=32, active=3, seed=2, coefficient="uniform")


def test_right_features_are_confirmed(planted: kyomei.Planted) -> None:
    found = opinion(planted, planted.features, planted.features)
    assert found.confirmed_share > 0.95 and found.moved.low > 0.9
    assert found.found_share > 0.9 and found.found_apart_share > 0.85
    assert found.agreed_share > 0.6, "what each half added on its own is not agreed on"
    assert found.coded.explained.median > 0.95 and found.coded.active.median == 3


def test_features_that_the_search_missed_lower_its_share(planted: kyomei.Planted) -> None:
    most = planted.features[:48]
    found = opinion(planted, most, most)
    assert found.directions > 48, "what is missing is added"
    assert found.found_share < 0.95


def test_directions_pulled_by_others_are_moved(planted: kyomei.Planted) -> None:
    pulled = normalize(planted.features + 0.6 * planted.features.roll(1, dims=0), dim=1)
    found = opinion(planted, pulled, pulled)
    assert found.confirmed_share < 0.5


def test_children_of_one_parent_are_not_apart() -> None:
    trees = kyomei.Planted(n_features=90, dim=40, active=1, seed=2, hierarchy=(2, 2))
    second = search(trees.sample(8000, seed=3)[0], null=False).structure.second
    assert second.found_share > 0.7, "the search and the refinement agree on sums of parent and child"
    assert second.found_apart_share < 0.2, "which lie near one another"


def test_without_features_there_is_no_opinion(planted: kyomei.Planted) -> None:
    assert opinion(planted, planted.features[:1], planted.features) == NO_OPINION


def test_chance_coherence_is_the_simulated_quantile() -> None:
    for count, dim in ((40, 12), (100, 64)):
        largest = torch.cat([nearest_other(unit(seed, count, dim)).cosine for seed in range(30)])
        assert b.geometry(unit(0, count, dim)).chance_coherence == pytest.approx(float(largest.median()), rel=0.02)
        simulated = float(largest.quantile(0.99))
        assert b.chance_coherence(count, dim, 0.99) == pytest.approx(simulated, rel=0.03)


def test_meetings_of_independent_exclusive_and_joined_directions() -> None:
    """Directions 2i and 2i + 1 are nearest neighbours, among 20 in 40 dimensions."""
    rng = torch.Generator().manual_seed(0)
    first = torch.linalg.qr(torch.randn(40, 40, generator=rng))[0][:10]
    second = normalize(first + torch.linalg.qr(torch.randn(40, 40, generator=rng))[0][:10], dim=1)
    w = torch.stack([first, second], dim=1).flatten(0, 1)
    share = torch.rand(8000, 10, generator=rng)
    chance = torch.rand(8000, 10, generator=rng)
    cases = {
        "independent": (share < 0.1, chance < 0.1),
        "exclusive": (share < 0.1, (share > 0.1) & (share < 0.2)),
        "joined": (share < 0.1, share < 0.1),
    }
    found = {}
    for name, pair in cases.items():
        there = torch.stack(pair, dim=2).flatten(1).float()
        found[name] = b.meetings(there @ w, w, w)
    assert 0.7 < found["independent"].at_all < 1.2 and 0.7 < found["independent"].wholly < 1.2
    assert found["exclusive"].wholly < 0.1
    assert found["joined"].at_all > 5
