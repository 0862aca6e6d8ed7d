"""The search finds what tells a goal, calls chance chance, and its tests are those of scipy where documents stand alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix
from scipy.stats import mannwhitneyu, spearmanr

from kyomei.evidence.goals.detector import Detector
from kyomei.evidence.goals.search import Pooled, p_values, q_values, threshold_of, weigh
from kyomei.evidence.goals.targets import Target, three_parts
from kyomei.evidence.goals.telling import Pools, Search, tell
from kyomei.source.parts import unit_hash

DOCUMENTS, FEATURES = 400, 60


def sparse(seed: int, documents: int = DOCUMENTS) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((documents, FEATURES)) < 0.2, rng.gamma(2.0, size=(documents, FEATURES)), 0.0)


def pooled(x: np.ndarray, mean: np.ndarray | None = None) -> Pooled:
    return {"max": csc_matrix(x), "mean": csc_matrix(sparse(99, len(x)) if mean is None else mean)}


def search(values: np.ndarray, groups: np.ndarray | None = None, kind: str = "label", seed: int = 0) -> Search:
    own = np.arange(len(values)) if groups is None else groups
    target = Target("goal", kind, np.arange(len(values)), values.astype(float))  # type: ignore[arg-type]
    parts = three_parts(target, [f"g{group}" for group in own], lambda group: unit_hash(seed, group))
    return Search(target, parts, own, seed)


def pools(x: np.ndarray, mean: np.ndarray | None = None) -> Pools:
    return Pools(pooled(x, mean), {"replicas/1": pooled(2 * x, mean)}, {"mean": x[:, :8].astype(np.float32)}, csr_matrix(x > 1))


def test_p_values_are_those_of_mann_and_whitney_and_of_spearman() -> None:
    x, rng = sparse(0), np.random.default_rng(1)
    label, score = (rng.random(DOCUMENTS) < 0.3).astype(float), rng.normal(size=DOCUMENTS)
    found = p_values({"max": csc_matrix(x)}, np.stack([label, score], axis=1), np.arange(DOCUMENTS))["max"]
    for feature in range(0, FEATURES, 7):
        own = x[:, feature]
        wanted = mannwhitneyu(own[label > 0], own[label == 0], use_continuity=False, method="asymptotic").pvalue
        assert found[feature, 0] == pytest.approx(wanted, rel=1e-6)
        assert found[feature, 1] == pytest.approx(spearmanr(own, score).pvalue, rel=0.05, abs=2e-3)


def test_documents_of_one_group_are_no_evidence_apart() -> None:
    """Forty groups of ten equal documents: taken apart, a third of the features would seem to tell a label of groups."""
    x, groups = np.repeat(sparse(2, 40), 10, axis=0), np.repeat(np.arange(40), 10)
    by_group, alone = [], []
    for seed in range(20):
        label = np.repeat(np.random.default_rng(seed).permutation(np.arange(40) % 2), 10).astype(float)
        for taken, found in ((groups, by_group), (np.arange(400), alone)):
            found.append(float((p_values({"max": csc_matrix(x)}, label[:, None], taken)["max"] < 0.05).mean()))
    assert np.mean(alone) > 0.3 and np.mean(by_group) < 0.08


def test_what_is_planted_is_found_alone_and_together_with_its_weights() -> None:
    x = sparse(3)
    label = (x[:, 7] > 0) | (x[:, 20] > 0)
    detector, facts = tell(search(label), pools(x), [100 + i for i in range(FEATURES)], "ab")
    assert set(detector.latents) == {107, 120} and detector.pooling == "max" and min(detector.weights) > 0
    assert facts["told"] and facts["figures"]["precision"]["value"] >= 0.95 and facts["figures"]["recall"]["value"] >= 0.95
    assert {one["latent"] for one in facts["alone"]["best"][:2]} == {107, 120}
    assert facts["alone"]["best"][0]["auc"]["value"] > 0.7 and facts["alone"]["tested"] == FEATURES
    assert facts["shuffled"]["median"] < 0.65 and facts["shuffled"]["p"] < 0.05
    assert [one["replica"] for one in facts["replicas"]] == ["replicas/1"] and facts["replicas"][0]["jaccard"] == 1
    assert set(facts["beside"]) == {"probe", "all features", "bag of tokens"}
    assert facts["beside"]["all features"]["auc"]["value"] > 0.9 and facts["beside"]["probe"]["less"]["value"] < 0
    assert Detector.of(detector.to_dict()) == detector
    assert tell(search(label), pools(x), [100 + i for i in range(FEATURES)], "ab")[1] == facts, "the same again"


def test_all_documents_but_those_that_report_weigh_the_set_that_is_taken_and_give_its_threshold() -> None:
    x = sparse(9)
    label = ((x[:, 7] + 0.5 * x[:, 20] + np.random.default_rng(9).normal(size=DOCUMENTS)) > 1).astype(float)
    asked = search(label)
    detector, _ = tell(asked, pools(x), list(range(FEATURES)), "ab")
    known = np.concatenate([asked.parts["fit"], asked.parts["choose"]])
    own = x[known][:, list(detector.latents)]
    weights, intercept = weigh(own, label[known], "label")
    assert detector.pooling == "max" and detector.weights == pytest.approx(weights, rel=1e-4)
    assert detector.intercept == pytest.approx(intercept, rel=1e-4)
    assert detector.threshold == pytest.approx(threshold_of(detector.scores(own), label[known]), rel=1e-6)


def test_the_pooling_that_tells_more_is_chosen() -> None:
    x = sparse(4)
    assert tell(search(x[:, 5] > 0), pools(sparse(5), x), list(range(FEATURES)), "ab")[0].pooling == "mean"


def test_a_score_is_a_regression() -> None:
    x = sparse(6)
    score = 3 * x[:, 2] - x[:, 9] + np.random.default_rng(0).normal(size=DOCUMENTS)
    detector, facts = tell(search(score, kind="score"), pools(x), list(range(FEATURES)), "ab")
    assert detector.latents[:2] == (2, 9) and detector.weights[:2] == (pytest.approx(3, abs=0.3), pytest.approx(-1, abs=0.3))
    assert detector.threshold is None and facts["told"] and facts["figures"]["r2"]["value"] > 0.8
    assert facts["figures"]["rank correlation"]["interval"][0] > 0.7


def test_what_means_nothing_is_not_told() -> None:
    x, rng = sparse(7), np.random.default_rng(8)
    detector, facts = tell(search(rng.random(DOCUMENTS) < 0.5), pools(x), list(range(FEATURES)), "ab")
    assert not facts["told"] and facts["alone"]["discoveries"] == 0 and len(detector.latents) <= 5
    silent = pools(np.zeros((DOCUMENTS, FEATURES)), np.zeros((DOCUMENTS, FEATURES)))
    empty, said = tell(search(rng.random(DOCUMENTS) < 0.5), silent, list(range(FEATURES)), "ab")
    assert empty.latents == () and not said["told"] and said["figures"]["auc"]["value"] == 0.5


def test_q_values_pay_for_both_poolings() -> None:
    p = {"max": np.array([0.01, 0.5]), "mean": np.array([0.2, 0.04])}
    assert q_values(p).tolist() == [pytest.approx(0.04), pytest.approx(0.08)]  # type: ignore[arg-type]


def test_the_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, label = rng.integers(0, 12, 40) / 10, (rng.random(40) < 0.3).astype(float)

        def f1(threshold: float, scores: np.ndarray = scores, label: np.ndarray = label) -> float:
            fired = scores >= threshold
            return float(2 * (label * fired).sum() / (fired.sum() + label.sum()))

        assert f1(threshold_of(scores, label)) == max(f1(threshold) for threshold in np.unique(scores))
    assert threshold_of(np.array([0.1, 0.9]), np.array([0.0, 1.0])) == 0.5, "halfway"
