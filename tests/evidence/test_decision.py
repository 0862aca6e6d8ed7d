"""Go, conditional or no-go: every ground alone can stop a go, and each bound is compared with the right end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kyomei.config import VerdictRecipe
from kyomei.evidence.verdict import Decision, decide
from kyomei.views.decisions import decision_words, headline, reasons

ASKED = VerdictRecipe()
CONTEXT = "context-or-unexplained"


def certificate(certified: int, width: int = 400, *, rate: float = 0.0, kind: str = CONTEXT) -> dict[str, Any]:
    features = [{"status": "certified" if i < certified else "unstable", "origin": {"kind": kind}} for i in range(width)]
    return {"features": features, "null": {"name": "Gaussian surrogate", "false_positive_rate": rate, "latents": width}}


def premises(expected: float | None = 0.95, *, sparse: str = "met", reach: float = 0.05) -> dict[str, Any]:
    interval = None if expected is None else [max(0.0, expected - reach), min(1.0, expected + reach)]
    table = [{"name": "sparse structure", "status": sparse, "estimate": 0.6}]
    return {"premises": table, "statistics": {"null_reproduced": 0.01}, "expected_frr": expected, "interval": interval}


GOOD: dict[str, Any] = {"premises": premises(), "control": certificate(4)}
GOAL = {"measure": "AUC", "value": 0.9, "interval": [0.8, 0.95]}
WEAK = {"measure": "AUC", "value": 0.62, "interval": [0.55, 0.7]}
CHANCE = {"measure": "AUC", "value": 0.5, "interval": [0.4, 0.6]}


def decided(own: int | dict[str, Any] | None = 300, asked: VerdictRecipe = ASKED, **changed: Any) -> Decision:
    own = certificate(own) if isinstance(own, int) else own
    return decide(own, asked, **{**GOOD, **changed})


@pytest.mark.parametrize(
    ("changes", "level", "by"),
    [
        ({}, "go", None),
        ({"premises": None}, "conditional", {"structure", "recovery"}),
        ({"premises": premises(None)}, "conditional", {"recovery"}),
        ({"premises": premises(0.02)}, "conditional", {"recovery"}),
        ({"premises": premises(sparse="not met")}, "no-go", {"structure"}),
        ({"own": 30}, "conditional", {"certified", "control"}),
        ({"own": 130}, "conditional", {"certified"}),  # a third, but the lower end is below 0.3
        ({"own": 8}, "no-go", {"certified", "control"}),
        ({"own": 0}, "no-go", {"certified", "control"}),
        ({"own": None}, "conditional", {"certified", "control"}),
        ({"control": None}, "conditional", {"control"}),
        ({"control": certificate(300)}, "no-go", {"control"}),
        ({"control": certificate(240)}, "conditional", {"control"}),
        ({"control": certificate(300, kind="token")}, "go", None),
        ({"own": certificate(300, kind="token")}, "no-go", {"control"}),  # reproduction alone never says go
        ({"own": certificate(300, rate=0.3)}, "conditional", {"chance"}),
        ({"own": certificate(300, rate=0.7)}, "no-go", {"chance"}),
        ({"baselines": {"topk": certificate(250)}}, "go", None),
        ({"baselines": {"topk": certificate(399)}}, "conditional", {"baseline topk"}),
        ({"goals": {"a": GOAL}}, "go", None),
        ({"goals": {"a": GOAL, "b": WEAK}}, "conditional", {"goal b"}),
        ({"goals": {"a": GOAL, "b": CHANCE}}, "conditional", {"goal b"}),
        ({"goals": {"a": CHANCE, "b": CHANCE}}, "no-go", {"goal a", "goal b"}),
        ({"goals": {"a": {"measure": "R²", "value": 0.3, "interval": [0.2, 0.4]}}}, "go", None),
    ],
)
def test_one_ground_against_is_a_no_go_and_one_short_a_condition(changes, level, by):
    found = decided(**changes)
    assert found.level == level
    assert set(found.decided_by) == ({ground.title for ground in found.grounds} if by is None else by)


def test_rows_without_a_model_are_measured_by_the_null_and_by_the_recovery_to_expect():
    assert decided(control=None, has_model=False).level == "go"
    poor = decided(control=None, has_model=False, premises=premises(0.3))
    assert (poor.level, poor.decided_by) == ("no-go", ("recovery",))
    assert decided(control=None, has_model=False, premises=premises(0.7)).level == "conditional"
    null = decided(certificate(300, rate=0.74), control=None, has_model=False)
    assert null.level == "no-go" and "null" in null.decided_by


def test_bounds_can_be_replaced_and_are_told():
    stricter = decided(asked=VerdictRecipe(certified_go=0.9))
    assert (stricter.level, stricter.decided_by) == ("conditional", ("certified",))
    assert stricter.thresholds["certified_go"] == 0.9
    assert decided(30, VerdictRecipe(certified_go=0.01, beyond_go=0.03)).level == "go"


def test_a_small_pilot_is_not_taken_for_a_bad_one():
    """The same share of few latents is less sure, and no no-go."""
    few, many = (decided(certificate(width // 40, width)).grounds[2] for width in (40, 4000))
    assert few.name == many.name == "certified" and few.estimate == many.estimate == 0.025
    assert (few.stance, many.stance) == ("between", "against")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_ground_is_said_with_its_figure_interval_and_bounds_in_both_languages(language):
    goals = {"a": GOAL, "b": {"measure": "R²", "value": 0.3, "interval": [0.2, 0.4]}}
    cases = [
        decided(baselines={"topk": certificate(250)}, goals=goals),
        decided(None, premises=None, control=None),
        decided(control=None, has_model=False),
        decided(8),
    ]
    for decision in cases:
        values = json.loads(json.dumps(decision.to_dict()))
        told = reasons(values, language)
        assert len(told) == len(decision.grounds) and all(all(parts) for parts in told)
        words = decision_words(values, language)
        assert words.startswith(headline(values, language)) and "{" not in words and len(words.splitlines()) == 1 + len(told)
    share = next(text for _, _, text in reasons(cases[0].to_dict(), language) if "300" in text)
    for figure in ("400", "75 %", "71 %", "79 %", "30 %", "5.0 %"):
        assert (figure if language == "en" else figure.replace(" %", "%")) in share


def test_japanese_has_no_english_sentence():
    words = decision_words(decided(8, baselines={"topk": certificate(250)}, goals={"a": GOAL}).to_dict(), "ja")
    assert "TopK" in words and not any(word in words for word in ("Go ", " of ", "the ", "asks"))


@pytest.mark.parametrize("page", ["guide/pilot.md", "ja/pilot.md"])
def test_the_pages_have_the_thresholds_that_are_asked(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[float(n) for n in re.findall(r"\d\.\d+", line.replace("R²", ""))] for line in table]
    a = ASKED
    wanted = [
        [a.recovery_go],
        [a.certified_go, a.certified_no_go],
        [a.chance_go, a.chance_no_go],
        [a.beyond_go, a.beyond_no_go],
        [a.baseline_go],
        [a.goal_auc_go, a.goal_r2_go],
    ]
    assert [row for row in rows if row] == wanted
