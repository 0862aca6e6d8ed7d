"""The first page of a report: the answer, four figures, sentences to read out in a meeting, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kyomei.views.account import CONTEXT, Account, from_context, goal_figure, probe_figure
from kyomei.views.changes import Change
from kyomei.views.decisions import headline
from kyomei.views.foretold import pilot_lines
from kyomei.views.speech import Speech
from kyomei.views.words import dictionary_title

CHANGES_TOLD = 3
"""Changes that are read out; the others stand in their table."""
ADVICE = 3
"""Things to do next that stand on the first page."""


@dataclass(frozen=True)
class Tile:
    """A figure in large letters.

    Attributes:
        figure: the number.
        name: what it is of.
        note: what stands small below it.
    """

    figure: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """The first page.

    Attributes:
        level: of the decision or else the verdict, for its colour.
        headline: the answer in one sentence.
        detail: what else there is to say first; empty: nothing.
        tiles: figures.
        talk: sentences to be read out.
        next: what to do, most important first.
    """

    level: str
    headline: str
    detail: str = ""
    tiles: Sequence[Tile] = ()
    talk: Sequence[str] = ()
    next: Sequence[str] = ()


def summary(account: Account, changes: Sequence[Change], before: str, speech: Speech) -> Summary:
    """The first page of a report.

    Args:
        account: what the run has come to.
        changes: since the report before.
        before: when that was written; empty: there was none.
        speech: the language.
    """
    level, answer, detail = str(account.verdict["level"]), speech.said(str(account.verdict["headline"])), ""
    if account.verdict.get("dictionary"):
        answer = speech.t("report.answer_of", name=speech.said(account.verdict["dictionary"]), answer=answer)
    if account.decision is not None:
        level, answer, detail = str(account.decision["level"]), headline(account.decision, speech.language), answer
    talk = [*_dictionary(account, speech), *_origin(account, speech), *_premises(account, speech)]
    talk += [*_purpose(account, speech), *_since(changes, before, speech)]
    return Summary(level, answer, detail, _tiles(account, speech), talk, _next(account, speech))


def _tiles(account: Account, speech: Speech) -> list[Tile]:
    t, own, premises = speech.t, account.own, account.premises
    if own is None:
        certified = Tile("–", t("tile.certified"), t("tile.certified.none"))
        null = Tile("–", t("tile.null"), t("tile.null.note"))
    else:
        of_width = t("tile.of_width", count=f"{account.count:,}", width=f"{account.tested:,}")
        certified = Tile(speech.percent(account.certified_share), t("tile.certified"), of_width)
        null = Tile(speech.percent(own["null"]["false_positive_rate"]), t("tile.null"), t("tile.null.note"))
    fidelity = _fidelity(account)
    explained = Tile("–", t("tile.explained"))
    if fidelity is not None:
        fvu, l0 = fidelity
        explained = Tile(speech.percent(1 - fvu), t("tile.explained"), t("tile.explained.note", l0=speech.number(l0)))
    met = Tile("–", t("tile.premises"), t("side.unknown"))
    if premises is not None:
        each = premises["premises"]
        count = sum(premise["status"] == "met" for premise in each)
        together = speech.named("premises", premises["verdict"])
        met = Tile(f"{count} / {len(each)}", t("tile.premises"), t("tile.premises.note", verdict=together))
    return [certified, null, explained, met]


def _fidelity(account: Account) -> tuple[float, float] | None:
    """FVU and L0 of the dictionary; none: not measured."""
    if account.own is not None:
        return account.own["fidelity"]["fvu"], account.own["fidelity"]["l0"]
    if account.evidence is not None:
        first = next(iter(account.evidence["mechanisms"].values()))["fidelity"][0]
        return first["fvu"], first["l0_mean"]
    return None


def _dictionary(account: Account, speech: Speech) -> list[str]:
    """What was trained, how much of it is certified, and what it explains."""
    t, own, lines = speech.t, account.own, []
    if account.width is not None:
        key = "talk.imported" if account.imported else "talk.trained"
        lines.append(t(key, width=f"{account.width:,}", model=account.model, site=account.site))
    if own is None:
        lines.append(t("talk.no_certificate"))
    else:
        counts = {"count": f"{account.count:,}", "share": speech.percent(account.certified_share)}
        counts["replicas"] = str(len(own.get("replicas", ())) or account.source.get("replicas", "–"))
        drawn = own.get("sampled") is not None
        named = {"tested": f"{account.tested:,}"} if drawn else {"width": f"{account.width:,}"}
        lines.append(t("talk.certified_drawn" if drawn else "talk.certified", **counts, **named))
        lines.append(t("talk.chance", share=speech.percent(own["null"]["false_positive_rate"])))
    fidelity = _fidelity(account)
    if fidelity is not None:
        text = t("talk.fidelity", explained=speech.percent(1 - fidelity[0]), l0=speech.number(fidelity[1]))
        lines.append(speech.joined([text, *_baseline(account, speech)]))
    return lines


def _baseline(account: Account, speech: Speech) -> list[str]:
    """What the first baseline explains."""
    for name, figures in (account.evidence or {"mechanisms": {}})["mechanisms"].items():
        if name.startswith("baseline ") and figures["fidelity"]:
            first, title = figures["fidelity"][0], dictionary_title(name.removeprefix("baseline "), speech)
            values = {"explained": speech.percent(1 - first["fvu"]), "l0": speech.number(first["l0_mean"])}
            return [speech.t("talk.baseline", name=title, **values)]
    return []


def _origin(account: Account, speech: Speech) -> list[str]:
    """How much comes from context, and whether a model that learnt nothing has as much."""
    share = account.origin_share(CONTEXT)
    if account.own is None or share is None:
        return []
    text = speech.t("talk.context", share=speech.percent(share))
    if account.control is None:
        return [speech.joined([text, speech.t("talk.random_untried")])]
    key = "talk.random_more" if account.side("random weights") == "for" else "talk.random_as_many"
    figures = {name: speech.percent(from_context(c)) for name, c in (("own", account.own), ("other", account.control))}
    return [text, speech.t(key, **figures)]


def _premises(account: Account, speech: Speech) -> list[str]:
    if account.premises is None:
        return [speech.t("talk.premises.none")]
    verdict = str(account.premises["verdict"]).replace(" ", "_")
    names = speech.listed([speech.named("premise", premise["name"]) for premise in account.unmet])
    if verdict == "met" or verdict not in ("partly", "not_met"):
        return [speech.t("talk.premises.met")] if verdict == "met" else []
    names = names if speech.language != "en" else names.lower()
    return [speech.t(f"talk.premises.{verdict}", names=names) if names else speech.t(f"talk.premises.{verdict}_alone")]


def _purpose(account: Account, speech: Speech) -> list[str]:
    """What it is good for, and what it took."""
    lines = []
    for name, goal in list(account.goals.items())[:2]:
        measure, figure = goal_figure(goal)
        values = {"name": name, "measure": measure, "value": speech.number(figure["value"])}
        values["count"] = str(len(goal["detector"]["features"]))
        probe = probe_figure(goal)
        key = "talk.goal_alone" if probe is None else "talk.goal"
        lines.append(speech.t(key, **values, **({} if probe is None else {"probe": speech.number(probe)})))
    wall, planned = account.cost.get("wall_seconds"), _planned_seconds(account)
    told = [speech.t("talk.cost", time=speech.duration(wall))] if wall else []
    told += [speech.t("talk.planned", time=speech.duration(planned))] if planned else []
    return [*lines, *pilot_lines(_full(account), speech), *([speech.joined(told)] if told else [])]


def _planned_seconds(account: Account) -> float | None:
    plan: dict[str, Any] = _full(account).get("plan") or {}
    return plan.get("total_seconds")


def _full(account: Account) -> dict[str, Any]:
    """What a pilot says of its full run; empty where there is no pilot."""
    return (account.pilot or {}).get("full") or {}


def _since(changes: Sequence[Change], before: str, speech: Speech) -> list[str]:
    if not changes:
        return []
    told = [speech.t("talk.changed", name=c.name, before=c.before, now=c.now) for c in changes[:CHANGES_TOLD]]
    return [speech.t("talk.since", date=speech.date(before), change=speech.t("talk.between").join(told))]


def _next(account: Account, speech: Speech) -> list[str]:
    """What to do, most important first."""
    t, folder, steps = speech.t, account.folder, []
    if account.own is None:
        steps.append(t("next.certify", folder=folder))
    else:
        readable = account.count and account.verdict["level"] != "do not trust"
        steps.append(t("next.read_certified" if readable else "next.read_none"))
        if account.control is None and not account.imported:
            steps.append(t("next.random", folder=folder))
    if account.premises is None:
        steps.append(t("next.check", folder=folder))
    if account.evidence is None:
        steps.append(t("next.measure", folder=folder))
    if account.count and not account.goals:
        steps.append(t("next.goals", folder=folder))
    advice = [(speech.named("premise", p["name"]), speech.said(p["advice"])) for p in account.unmet]
    return [*steps, *(t("next.premise", name=name, advice=what) for name, what in advice)][: ADVICE + 1]
