"""What a run has taken, and what the full one is planned to take."""

from __future__ import annotations

from typing import Any

from kyomei.views.account import Account
from kyomei.views.speech import Speech

Costs = list[tuple[str, str]]
"""What, and how much of it."""
_TRAINED = (("train replicas/", "replicas"), ("train controls/", "nulls"), ("train baselines/", "baselines"))


def measured_costs(account: Account, speech: Speech) -> Costs:
    """Time by kind of work, disk and machine, as measured; empty where nothing was.

    Args:
        account: what the run has come to.
        speech: the language.
    """
    cost, t, rows = account.cost, speech.t, []
    seconds = dict(cost.get("seconds") or {})
    total = sum(seconds.values())
    for beginning, name in _TRAINED:
        own = [seconds.pop(stage) for stage in list(seconds) if stage.startswith(beginning)]
        if own:
            rows.append((t(f"cost.{name}", count=len(own)), speech.duration(sum(own))))
    if seconds:
        rows.append((t("cost.other"), speech.duration(sum(seconds.values()))))
    if total:
        rows.append((t("cost.timed"), speech.duration(total)))
    if cost.get("wall_seconds"):
        rows.append((t("cost.wall"), speech.duration(cost["wall_seconds"])))
    if cost.get("disk_bytes"):
        rows.append((t("cost.disk"), speech.size(cost["disk_bytes"])))
    if rows and cost.get("cores"):
        words = t("cost.machine.words", cores=cost["cores"], memory=speech.size(cost["memory_bytes"]))
        rows.append((t("cost.machine"), words))
    return rows


def planned_costs(account: Account, speech: Speech) -> Costs:
    """What the full run takes, by the pilot's plan; empty where there is none.

    Args:
        account: what the run has come to.
        speech: the language.
    """
    full = (account.pilot or {}).get("full") or {}
    plan: dict[str, Any] = full.get("plan") or {}
    if not plan:
        return []
    t = speech.t
    rows = [(speech.named("cost.part", part), speech.duration(seconds)) for part, seconds in plan["seconds"].items() if seconds]
    rows.append((t("cost.total"), speech.duration(plan["total_seconds"])))
    if full.get("tokens"):
        rows.append((t("cost.tokens"), f"{full['tokens']:,}"))
    if full.get("width"):
        rows.append((t("change.width"), f"{full['width']:,}"))
    rows.append((t("cost.memory"), speech.size(plan["memory_bytes"])))
    rows.append((t("cost.disk_planned"), speech.size(plan["disk_bytes"])))
    if plan.get("price") is not None:
        rows.append((t("cost.money"), t("cost.dollars", amount=f"{plan['price']:,.2f}")))
    return rows
