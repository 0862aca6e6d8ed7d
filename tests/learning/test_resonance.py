"""Resonance on planted features, on none at all, and its parts against slow references."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import kyomei
from kyomei.config import ResonanceRecipe
from kyomei.errors import DataError
from kyomei.evidence.controls import GAUSSIAN
from kyomei.learning import halves
from kyomei.learning.directions import Directions
from kyomei.learning.halves import Halves
from kyomei.learning.merging import distinct, merge, not_mixtures
from kyomei.learning.mesh import Mesh
from kyomei.learning.occurrence import Richness, estimate_occurrence, richness, unseen_share
from kyomei.learning.resonance import _round, default_frequencies, frequency_threshold, resonate
from kyomei.learning.spaces import Whitening
from kyomei.source.rows import TensorRows

NUMBERS = Path(__file__).parents[2] / "bench" / "data" / "number.jsonl"
SMALL = ResonanceRecipe(neurons=256, steps=12, batch_rows=8192, frequencies=(0.02,))


@pytest.fixture(scope="module")
def planted() -> kyomei.Planted:
    return kyomei.Planted(n_features=64, dim=32, active=3, seed=3)


@pytest.fixture(scope="module")
def found(planted: kyomei.Planted) -> Directions:
    return resonate(planted.sample(20_000, seed=4)[0], seed=0, recipe=SMALL)


def test_planted_features_are_found_once_each(planted: kyomei.Planted, found: Directions) -> None:
    figures = kyomei.recovery(found.vectors, planted.features)
    assert figures.frr(0.9) >= 0.95
    assert figures.monosemantic(0.9) >= 0.9
    assert len(found) <= 1.15 * 64
    assert found.interval[0] <= found.n_features <= found.interval[1]


def test_candidates_begin_with_the_directions(found: Directions) -> None:
    assert torch.equal(found.candidates[: len(found)], found.whitened)
    near = found.candidates @ found.candidates.T - torch.eye(len(found.candidates))
    assert float(near.max()) <= SMALL.merge_cosine + 1e-5


def test_random_directions_do_not_pass_for_recovery(planted: kyomei.Planted) -> None:
    null = torch.randn(73, 32, generator=torch.Generator().manual_seed(0))
    assert kyomei.recovery(null, planted.features).frr(0.9) <= 0.1


def test_vectors_and_encoders_are_unit_rows_of_the_whitened_ones(found: Directions) -> None:
    white = found.whitening
    for own, mapped in ((found.vectors, found.whitened @ white.backward), (found.encoders, found.whitened @ white.forward)):
        assert torch.allclose(own.norm(dim=1), torch.ones(len(own)), atol=1e-5)
        assert torch.allclose(own, normalize(mapped, dim=1), atol=1e-5)


def test_occurrence_is_near_the_truth_for_uniform_features(found: Directions) -> None:
    assert found.frequency.median() == pytest.approx(3 / 64, rel=0.25)


def test_gaussian_rows_have_no_stable_direction() -> None:
    x = torch.randn(20_000, 12, generator=torch.Generator().manual_seed(1))
    assert len(resonate(x, seed=0, recipe=SMALL)) <= 3
    assert len(resonate(x, seed=0, recipe=SMALL.model_copy(update={"min_stability": -1.0, "joint": False}))) >= 100


def test_same_seed_same_bytes_and_another_seed_other_bytes(planted: kyomei.Planted) -> None:
    x = planted.sample(6000, seed=4)[0]
    recipe = ResonanceRecipe(neurons=64, steps=4, frequencies=(0.02,), min_stability=-1)
    a, b, c = (resonate(x, seed=s, recipe=recipe).vectors for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert a.shape != c.shape or not torch.equal(a, c)


def test_directions_survive_a_file(found: Directions, tmp_path: Path) -> None:
    found.save(tmp_path / "directions.safetensors")
    again = Directions.load(tmp_path / "directions.safetensors")
    assert torch.equal(again.vectors, found.vectors) and torch.equal(again.whitening.forward, found.whitening.forward)
    assert (again.n_features, again.interval) == (found.n_features, found.interval)


def test_a_null_keeps_no_more_directions_than_what_it_is_the_null_of(found: Directions, planted: kyomei.Planted) -> None:
    x = planted.sample(6000, seed=4)[0]
    gaussian = GAUSSIAN.rows(TensorRows(x), 1)
    every = resonate(gaussian.read(np.arange(6000)), seed=0, recipe=SMALL.model_copy(update={"min_stability": -1.0}))
    assert len(every) > len(found)
    kept = every.no_more_than(found)
    assert len(kept) == len(found) == len(kept.frequency) and torch.equal(kept.vectors, every.vectors[: len(found)])
    assert kept.n_features <= max(len(found), found.n_features) and torch.equal(kept.candidates, every.candidates)
    assert len(found.no_more_than(every)) == len(found)


def test_a_damaged_file_of_directions_is_named(tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(DataError, match="a file of directions"):
        Directions.load(path)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
def test_frequency_threshold_lets_a_share_p_through(p: float) -> None:
    scores = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0))
    assert ((scores >= frequency_threshold(scores, p)).sum(dim=0) == round(p * 1000)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.floats(0.3, 0.95), st.integers(0, 1000))
def test_distinct_equals_the_greedy_reference(count: int, cosine: float, seed: int) -> None:
    rows = normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=1)
    kept: list[int] = []
    for i in range(count):
        if all(float(rows[i] @ rows[j]) <= cosine for j in kept):
            kept.append(i)
    assert distinct(rows, cosine).tolist() == kept


def test_distinct_crosses_block_borders() -> None:
    rows = normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=1).repeat(300, 1)
    assert distinct(rows, 0.9999).tolist() == list(range(40))


def test_merge_keeps_the_number_of_neurons() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(4)
    rows = normalize(centres.repeat(25, 1) + 0.05 * torch.randn(100, 4, generator=generator), dim=1)
    merged, support = merge(rows, torch.rand(100, generator=generator), 0.8, torch.ones(100, dtype=torch.long))
    assert support.tolist() == [25, 25, 25, 25]
    assert ((merged @ centres.T).amax(dim=1) > 0.99).all()


def test_mixtures_are_not_counted_as_features() -> None:
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(40, 64, generator=generator), dim=1)
    sums = normalize(features[:20] + features[20:], dim=1)
    support = torch.tensor([9] * 40 + [2] * 20)
    kept = not_mixtures(torch.cat([features, sums]), support)
    assert kept.tolist() == [True] * 40 + [False] * 20
    number = richness(int(kept.sum()), 60, torch.full((40,), 0.05), 60)
    assert number.interval[0] <= 40 <= number.interval[1]
    assert richness(0, 0, torch.zeros(0), 0) == Richness(0, 0, np.inf, 1.0)


@pytest.mark.parametrize("rows, features, dim, active", [(60_000, 300, 96, 4), (60_000, 60, 24, 2)])
def test_more_rows_find_no_sums(rows: int, features: int, dim: int, active: int) -> None:
    """Constant coefficients: each sum that a few dozen rows share is a cluster of rows that is as exact as a feature."""
    planted = kyomei.Planted(features, dim, active, seed=0)
    x, truth = planted.sample(rows, seed=1)[0], normalize(planted.features, dim=1)
    found = resonate(x, seed=0)
    nearest = (found.vectors @ truth.T).amax(dim=1)
    assert (nearest > 0.9).double().mean() >= 0.95
    assert found.n_features == pytest.approx(features, rel=0.05)
    assert found.interval[0] <= features <= found.interval[1]


def test_a_search_that_found_sums_goes_on_until_it_has_the_features() -> None:
    planted = kyomei.Planted(220, 72, 3, seed=0)
    x, truth = planted.sample(60_000, seed=1)[0], normalize(planted.features, dim=1)
    recipe = ResonanceRecipe(frequencies=(5e-4, 1e-2), enough=128, rounds=1)
    found = resonate(x, seed=0, recipe=recipe)
    assert (truth @ found.vectors.T).amax(dim=1).gt(0.9).double().mean() >= 0.95
    assert (found.vectors @ truth.T).amax(dim=1).gt(0.9).double().mean() >= 0.95


def test_the_interval_is_wide_where_features_may_be_missing() -> None:
    settled, uneven, unsettled = Richness(100, 100, 1.0, 2.0), Richness(100, 100, 1.0, 9.0), Richness(100, 100, 60.0, 2.0)
    mixed = Richness(100, 400, 1.0, 2.0)
    assert settled.interval == (95, 111)
    assert uneven.interval[1] > 200 and unsettled.interval[1] > 1000 and mixed.interval[0] < 20


def test_the_intervals_of_the_number_of_features_are_those_of_the_planted_sets() -> None:
    """The sets of bench/number.py: of Chao's intervals, one in four held the truth."""
    lines = [json.loads(line) for line in NUMBERS.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["richness"]["found"]]
    inside = []
    for line in lines:
        low, high = Richness(**line["richness"]).interval
        inside.append(low <= line["law"]["n_features"] <= high)
    assert len(inside) >= 100 and np.mean(inside) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize(
    "law",
    [
        {"n_features": 128, "dim": 42, "active": (3, 20)},
        {"n_features": 96, "dim": 40, "active": 3, "coefficient": "uniform"},
        {"n_features": 150, "dim": 48, "active": 3, "frequency": "zipf"},
        {"n_features": 110, "dim": 36, "active": 12},
        {"n_features": 120, "dim": 40, "active": 3, "noise": 0.4},
    ],
)
def test_the_number_of_features_of_new_planted_sets_is_in_its_interval(law: dict[str, Any]) -> None:
    """Of the first set 130 (130–130) was said."""
    x, _ = kyomei.Planted(seed=3001, **law).sample(30_000, seed=3002)
    low, high = kyomei.resonate(x, seed=0).interval
    assert low <= law["n_features"] <= high


def test_occurrence_of_a_known_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(20_000, 1, generator=generator) < 0.05
    scores = 0.5 * torch.randn(20_000, 1, generator=generator) + 4.0 * present
    assert float(estimate_occurrence(lambda: iter([scores]), torch.ones(1, 1))) == pytest.approx(0.05, rel=0.1)


def test_frequencies_follow_the_number_of_rows() -> None:
    assert default_frequencies(10**7)[0] < default_frequencies(20_000)[0]
    assert default_frequencies(10) != ()


@pytest.mark.slow
def test_joint_refinement_leaves_the_features_and_no_mixtures() -> None:
    planted = kyomei.Planted(n_features=60, dim=30, active=4, seed=0, coefficient="uniform", co_occurrence=0.2)
    x = planted.sample(16_000, seed=1)[0]
    recipe = ResonanceRecipe(frequencies=(0.01, 0.03), neurons=512, steps=10, batch_rows=8192)
    alone = resonate(x, seed=0, recipe=recipe)
    joint, again = (resonate(x, seed=0, recipe=recipe.model_copy(update={"joint": True})) for _ in range(2))
    before, after = (kyomei.recovery(found.vectors, planted.features) for found in (alone, joint))
    assert after.frr(0.9) > before.frr(0.9) + 0.1 and after.frr(0.9) > 0.9
    assert after.monosemantic(0.9) > 0.9 and abs(len(joint) - 60) <= 6
    assert torch.equal(joint.vectors, again.vectors)
    assert len(joint.support) == len(joint.stability) == len(joint.frequency) == len(joint)


def test_joint_refinement_keeps_out_where_rows_are_no_sparse_sums() -> None:
    """One sparse feature in Gaussian noise: a sum of directions explains little of a row."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(8000, 24, generator=rng)
    x[torch.rand(8000, generator=rng) < 0.02] += 8 * torch.eye(24)[0]
    recipe = ResonanceRecipe(frequencies=(0.01,), neurons=256, steps=10, batch_rows=8192)
    alone, joint = (resonate(x, seed=0, recipe=recipe.model_copy(update={"joint": use})) for use in (False, True))
    assert len(alone) >= 1
    assert torch.equal(alone.vectors, joint.vectors)


def test_later_rounds_find_what_few_starts_miss(planted: kyomei.Planted) -> None:
    x = planted.sample(20_000, seed=4)[0]
    few = SMALL.model_copy(update={"neurons": 48})
    one, more = (resonate(x, seed=1, recipe=few.model_copy(update={"rounds": rounds})) for rounds in (1, 6))
    recovered = [kyomei.recovery(d.vectors, planted.features).frr(0.9) for d in (one, more)]
    assert recovered[0] <= 0.7 and recovered[1] >= recovered[0] + 0.2
    assert kyomei.recovery(more.vectors, planted.features).monosemantic(0.9) >= 0.85


def test_search_ends_once_enough_is_found(planted: kyomei.Planted) -> None:
    x = planted.sample(20_000, seed=4)[0]
    recipe = SMALL.model_copy(update={"neurons": 48, "rounds": 6, "frequencies": (0.02, 0.03)})
    seen: list[tuple[int, int]] = []
    every = resonate(x, seed=1, recipe=recipe)
    some = resonate(x, seed=1, recipe=recipe.model_copy(update={"enough": 20}), progress=lambda *done: seen.append(done))
    assert 20 <= len(some) < len(every)
    assert np.allclose(some.found_at, recipe.frequencies[0])
    assert seen == [(2, 2)]
    null = torch.randn(8000, 12, generator=torch.Generator().manual_seed(1))
    keep_all = recipe.model_copy(update={"min_stability": -1.0, "enough": 20})
    unstable = resonate(null, seed=0, recipe=keep_all)
    assert len(unstable) >= 20 and len(unstable.found_at.unique()) == 1


def test_a_search_says_whether_it_ended_by_itself(planted: kyomei.Planted, tmp_path: Path) -> None:
    x, _ = planted.sample(20_000, seed=4)
    few = SMALL.model_copy(update={"neurons": 16, "rounds": 1})
    cut = resonate(x, seed=0, recipe=few)
    assert cut.converged is False
    assert resonate(x, seed=0, recipe=few.model_copy(update={"enough": 3})).converged is True
    cut.save(tmp_path / "directions.safetensors")
    assert Directions.load(tmp_path / "directions.safetensors").converged is False
    replace(cut, converged=None).save(tmp_path / "older.safetensors")  # what files were before they said so
    assert Directions.load(tmp_path / "older.safetensors").converged is None


def test_a_batch_that_asks_for_all_rows_has_each_once(planted: kyomei.Planted) -> None:
    x, _ = planted.sample(1000, seed=4)
    data = Halves(TensorRows(x), Whitening.fit(TensorRows(x)), "cpu", Mesh())
    rng = np.random.default_rng(0)
    assert data.batch(rng, 5000).tolist() == list(range(900))
    assert len(data.batch(rng, 500)) == 500


@pytest.mark.parametrize("quick", [True, False])
def test_rows_held_or_read_and_scores_of_few_digits_or_all_find_the_same(
    quick: bool, planted: kyomei.Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a processor has products in bfloat16, and whether all whitened rows fit into memory."""
    x, _ = planted.sample(20_000, seed=4)
    monkeypatch.setattr(halves, "bfloat16_is_fast", lambda device: quick)
    held = resonate(x, seed=0, recipe=SMALL)
    monkeypatch.setattr(halves, "HELD_BYTES", 0)
    read = resonate(x, seed=0, recipe=SMALL)
    assert len(held.vectors) == len(read.vectors) >= 60
    assert float((held.vectors @ read.vectors.T).amax(dim=1).min()) > 0.9999
    monkeypatch.setattr(halves, "bfloat16_is_fast", lambda device: not quick)
    other = resonate(x, seed=0, recipe=SMALL)
    again = (held.vectors @ other.vectors.T).amax(dim=1)
    assert abs(len(other.vectors) - len(held.vectors)) <= 2 and int((again > 0.97).sum()) >= len(held.vectors) - 2


def test_starts_at_known_directions_are_not_refined_again(planted: kyomei.Planted) -> None:
    """A round that begins where an earlier one ended finds nothing new, and says so without an error."""
    data = Halves(TensorRows(x := planted.sample(20_000, seed=4)[0]), Whitening.fit(TensorRows(x)), "cpu", Mesh())
    starts = normalize(torch.randn(256, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    draws = np.random.default_rng(0), torch.Generator().manual_seed(0)
    first = _round(data, starts, 0.02, SMALL, *draws)
    known = first.w[first.stability > 0.85]
    again = _round(data, known, 0.02, SMALL, *draws, known=known)
    assert len(known) >= 60 and len(again.w) == 0
    beside = _round(data, starts, 0.02, SMALL, *draws, known=known[:30])
    met = (beside.w @ known[:30].T).amax(dim=1) > SMALL.merge_cosine
    assert len(beside.w) >= 30 and float(met.float().mean()) < 0.1
    assert int(beside.support.sum()) < len(starts)


def test_unseen_share_is_that_of_starts_that_ended_alone() -> None:
    assert unseen_share(torch.tensor([1, 1, 8]), 10) == pytest.approx(0.2)
    assert unseen_share(torch.zeros(0, dtype=torch.long), 8) == 0
