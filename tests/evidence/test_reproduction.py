"""Which latents are certified: known partners, known splits, a null that passes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import EvidenceError
from kyomei.evidence.certificate import dense_part
from kyomei.evidence.codes import Moments, encode_rows, firing_counts
from kyomei.evidence.controls import GAUSSIAN
from kyomei.evidence.fidelity import fidelity
from kyomei.evidence.kinship import Kinship
from kyomei.evidence.reproduction import Verdicts, benjamini_hochberg, certify_latents, rows_used
from kyomei.evidence.survey import survey
from kyomei.source.planted import Planted
from kyomei.source.rows import TensorRows

PLANTED = Planted(n_features=24, dim=24, active=(1, 3), seed=1, superposition="orthogonal")
X = PLANTED.sample(4_000, seed=2)[0]
ROWS = TensorRows(X)


def dictionary(rows: Tensor, threshold: float = 0.3) -> SparseAutoencoder:
    return SparseAutoencoder(rows, None, torch.full((len(rows),), threshold), torch.zeros(rows.shape[1]))


def jittered(rows: Tensor, seed: int, size: float = 0.02) -> Tensor:
    return normalize(rows + size * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def noise(rows: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, 24, generator=torch.Generator().manual_seed(seed)), dim=1)


def verdicts(*dictionaries: SparseAutoencoder) -> Verdicts:
    # Active on few rows, as the features are: latents are compared with those of their kind.
    null = dictionary(noise(200, 98), 0.4), dictionary(noise(200, 99), 0.4)
    return certify_latents(dictionaries, ROWS, null, GAUSSIAN.rows(ROWS, 5))


def test_features_that_every_replica_has_are_certified_and_the_rest_is_not() -> None:
    mixture = normalize(PLANTED.features[20] + PLANTED.features[21], dim=0)[None]
    own = torch.cat([PLANTED.features[:20], mixture, -PLANTED.features[22:23], noise(1, 3)])
    first = dictionary(own)
    second = dictionary(jittered(PLANTED.features[torch.randperm(24, generator=torch.Generator().manual_seed(0))], 1))
    third = dictionary(jittered(PLANTED.features[1:], 2))
    found = verdicts(first, second, third)
    assert found.status[1:20] == ["certified"] * 19
    assert found.status[0] != "certified" and found.matches[0].joint[0] > 0.95 > 0.7 > found.matches[1].joint[0]
    assert found.status[20] == "split" and found.kinship[0].split[20] > 0.9
    assert found.status[21] == "dead" and found.q_value[21] == 1
    # 200 random rows in 24 dimensions come a little nearer to one another than 0.7.
    assert 0.7 <= found.rule.sparse.encoder < 0.75 and found.rule.correlation == 0.7
    assert found.null_false_positives == 0 and found.num_null > 150
    assert found.q_value[1:20].max() < 0.02 < found.q_value[0]
    assert found.certified_share == pytest.approx(19 / 23)
    assert np.array_equal(np.flatnonzero(found.mask("certified")), np.arange(1, 20))


def test_a_latent_that_others_join_to_another_is_merged() -> None:
    joined = normalize(PLANTED.features[0] + PLANTED.features[1], dim=0)
    others = [dictionary(jittered(torch.cat([joined[None], PLANTED.features[2:]]), seed), 0.3) for seed in (1, 2)]
    found = verdicts(dictionary(PLANTED.features), *others)
    assert found.status[:2] == ["merged", "merged"] and found.kinship[0].merged[0] > 0.9
    assert found.status[2:] == ["certified"] * 22


def test_same_direction_with_another_activation_is_not_enough() -> None:
    """A partner that fires on other rows, by its threshold, has the cosine and not the correlation."""
    features = PLANTED.features
    late = SparseAutoencoder(features, None, torch.full((24,), 5.0), torch.zeros(24))
    found = verdicts(dictionary(features), dictionary(features), late)
    assert (found.matches[1].encoder > 0.99).all() and found.matches[1].correlation.max() == 0
    assert "certified" not in found.status


def test_encoder_and_decoder_must_both_match_at_one_partner() -> None:
    features = PLANTED.features
    shuffled = SparseAutoencoder(features, features.roll(1, dims=0), torch.full((24,), 0.3), torch.zeros(24))
    found = verdicts(dictionary(features), dictionary(features), shuffled)
    match = found.matches[1]
    assert (match.encoder > 0.99).all() and (match.decoder > 0.99).all() and match.joint.max() < 0.5


def test_the_null_raises_the_rule() -> None:
    null = (dictionary(PLANTED.features), dictionary(jittered(PLANTED.features, 4, 0.1)))
    found = certify_latents([dictionary(PLANTED.features)] * 3, ROWS, null, GAUSSIAN.rows(ROWS, 5))
    assert min(*found.rule.sparse, *found.rule.dense) > 0.8
    assert 0 <= found.null_false_positives <= 0.1 and found.num_null == 24


def test_dense_latents_of_the_null_raise_the_rule_for_dense_latents_alone() -> None:
    """Forty shared directions, active on half of the null's rows, say nothing against latents that are active on few."""
    common = noise(40, 7)
    threshold = torch.cat([torch.full((40,), 0.0), torch.full((160,), 0.5)])
    null = [SparseAutoencoder(torch.cat([common, noise(160, i)]), None, threshold, torch.zeros(24)) for i in (98, 99)]
    spread = torch.cat([torch.full((4,), -1.0), torch.full((20,), 0.3)])
    replicas = [SparseAutoencoder(jittered(PLANTED.features, i, 0.06), None, spread, torch.zeros(24)) for i in range(3)]
    found = certify_latents(replicas, ROWS, (null[0], null[1]), GAUSSIAN.rows(ROWS, 5))
    assert found.dense.tolist() == [True] * 4 + [False] * 20
    assert min(*found.rule.dense) > 0.99 and max(*found.rule.sparse) < 0.85
    assert "certified" not in found.status[:4] and found.status[4:].count("certified") >= 18
    assert found.q_value[:4].min() > 0.5 > 0.05 > found.q_value[4:].max()
    part = dense_part(found, np.ones(24))
    assert part == pytest.approx({"latents": 4 / 24, "certified": 0, "explained": 4 / 24, "l0": found.frequency[:4].sum()})


def test_dead_latents_of_the_null_set_no_rule() -> None:
    both = [torch.cat([noise(150, i), PLANTED.features]) for i in (98, 99)]
    threshold = torch.cat([torch.full((150,), 0.5), torch.full((24,), 1e6)])
    null = [SparseAutoencoder(rows, None, threshold, torch.zeros(24)) for rows in both]
    found = certify_latents([dictionary(PLANTED.features)] * 3, ROWS, (null[0], null[1]), GAUSSIAN.rows(ROWS, 5))
    assert max(*found.rule.sparse, *found.rule.dense) < 0.85 and 140 < found.num_null <= 150


def test_too_few_replicas_are_refused() -> None:
    one = dictionary(PLANTED.features)
    with pytest.raises(EvidenceError, match="at least two other replicas"):
        certify_latents([one, one], ROWS, (one, one), ROWS)
    with pytest.raises(EvidenceError, match="dimension 20"):
        certify_latents([one, one, one], TensorRows(X[:, :20]), (one, one), ROWS)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40))
def test_benjamini_hochberg_equals_its_definition(p: list[float]) -> None:
    q = benjamini_hochberg(np.array(p))
    n, ordered = len(p), np.sort(p)
    for value, own in zip(p, q, strict=True):
        slow = min(min(1.0, n * ordered[k] / (k + 1)) for k in range(n) if ordered[k] >= value)
        assert own == pytest.approx(slow)


def test_correlations_and_parts_equal_dense_ones() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((300, 6)) * (rng.random((300, 6)) < 0.4) for _ in range(2))
    a[:, 5] = 0
    found = Moments(sparse.csr_array(a), sparse.csr_array(b)).correlation(np.arange(6), np.array([3, 1, 0, 0, 5, 2]))
    slow = [np.corrcoef(a[:, i], b[:, j])[0, 1] for i, j in zip(range(5), (3, 1, 0, 0, 5), strict=True)]
    assert found[:5] == pytest.approx(slow) and found[5] == 0
    b *= rng.random((300, 6)) < 0.3
    whole = b[:, [0]] * (rng.random((300, 1)) < 0.9) + b[:, [1]]
    kin = Kinship.of(sparse.csr_array(whole), sparse.csr_array(b[:, :2]))
    fitted = np.linalg.lstsq(np.column_stack([b[:, :2], np.ones(300)]), whole[:, 0], rcond=None)[0]
    predicted = np.column_stack([b[:, :2], np.ones(300)]) @ fitted
    assert kin.split[0] == pytest.approx(np.corrcoef(predicted, whole[:, 0])[0, 1], abs=1e-6) and bool(kin.is_split[0])


def test_parts_of_the_explained_variance_add_up() -> None:
    sae = SparseAutoencoder(
        jittered(PLANTED.features, 8, 0.1), jittered(PLANTED.features, 9, 0.1), torch.full((24,), 0.2), X.mean(dim=0) * 0.5
    )
    index = rows_used(len(X))
    (found,) = survey([sae], ROWS, index[::3], num_explained=1)
    parts = found.explained
    assert parts is not None and found.code is not None
    reconstruction = sae(X)
    bias = (reconstruction - X).mean(dim=0).square().sum() * len(X) / (X - X.mean(dim=0)).square().sum()
    assert parts.sum() == pytest.approx(1 - fidelity(sae, ROWS).fvu + float(bias), abs=1e-4)
    code = encode_rows(sae, ROWS, index[::3])
    assert np.array_equal(code.toarray(), found.code.toarray())
    assert np.allclose(code.toarray(), sae.encode(X[::3]).numpy(), atol=1e-6)
    assert np.array_equal(firing_counts(code), (code.toarray() != 0).sum(axis=0))
