"""The figures that a report keeps, and what of them changed since the report before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kyomei.views.account import CONTEXT, Account, from_context, goal_figure
from kyomei.views.speech import Speech

SHARES = ("certified", "certified_explained", "null", "context", "random_weights", "fvu", "expected")
"""Figures that are shares."""
GOAL = "goal "
"""What the name of a goal's figure begins with."""
NEARLY = 5e-4
"""Relative difference below which a figure counts as the same: nobody would see it."""


@dataclass(frozen=True)
class Change:
    """One figure that is another than in the report before.

    Attributes:
        name: of the figure.
        before: then.
        now: what it is now.
    """

    name: str
    before: str
    now: str


def figures_of(account: Account) -> dict[str, Any]:
    """The figures that a report keeps for the one after it: numbers and single words, no text of the run's.

    Args:
        account: what the run has come to.
    """
    own, premises, evidence = account.own, account.premises or {}, account.evidence
    share = None if own is None else own["shares"]["explained variance"]["status"].get("certified")
    crossed: Mapping[str, Any] = next(iter(((evidence or {}).get("cross_entropy") or {}).values()), {})
    figures = {
        "decision": None if account.decision is None else account.decision["level"],
        "verdict": account.verdict.get("level"),
        "certified": account.certified_share,
        "certified_explained": share,
        "null": None if own is None else own["null"]["false_positive_rate"],
        "context": account.origin_share(CONTEXT),
        "random_weights": None if account.control is None else from_context(account.control),
        **{f"{GOAL}{name}": goal_figure(goal)[1]["value"] for name, goal in account.goals.items()},
        "premises": premises.get("verdict"),
        "expected": premises.get("expected_frr"),
        "fvu": None if own is None else own["fidelity"]["fvu"],
        "l0": None if own is None else own["fidelity"]["l0"],
        "cross_entropy": crossed.get("recovered"),
        "alarms": sum(len(each["status"]["alarms"]) for each in account.watched) if account.watched else None,
        "width": account.width,
        "tokens": account.source.get("num_tokens"),
        "seconds": sum((account.cost.get("seconds") or {}).values()) or None,
    }
    return {name: value for name, value in figures.items() if value is not None}


def changed(before: Mapping[str, Any], now: Mapping[str, Any], speech: Speech) -> list[Change]:
    """Figures that differ between two reports, in the order of the later one.

    Args:
        before: figures of the report before.
        now: figures of this one.
        speech: the language.
    """
    names = [*now, *(name for name in before if name not in now)]
    return [
        Change(_name(name, speech), _shown(name, before.get(name), speech), _shown(name, now.get(name), speech))
        for name in names
        if not _same(before.get(name), now.get(name))
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return bool(abs(one - other) <= NEARLY * max(abs(one), abs(other)))
    return bool(one == other)


def _name(name: str, speech: Speech) -> str:
    return speech.t("change.goal", name=name.removeprefix(GOAL)) if name.startswith(GOAL) else speech.t(f"change.{name}")


def _shown(name: str, value: Any, speech: Speech) -> str:
    if value is None:
        return speech.t("change.none")
    if name in ("verdict", "decision", "premises"):
        family = {"verdict": "verdict", "decision": "decision.level", "premises": "premises"}[name]
        return speech.named(family, str(value))
    if name in SHARES:
        return speech.percent(value)
    return speech.duration(value) if name == "seconds" else speech.number(value)
