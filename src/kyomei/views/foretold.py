"""What is foretold of a certified share, in words, English and Japanese."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from kyomei.views.speech import ENGLISH, Speech

DIGITS = 3
"""Of a foretold number of tokens; the rest would be a precision that it has not."""


def planned_lines(facts: Mapping[str, Any], speech: Speech = ENGLISH) -> list[str]:
    """What a plan says of a certified share: the tokens of a wished one, or the share of its tokens, and what that rests on.

    Args:
        facts: what `kyomei.stages.foretelling.planned_for` gives.
        speech: the language.
    """
    if facts["wished"] is None:
        first = _expected(facts, speech)
    else:
        needed = facts["needed"]
        values = {"wished": speech.percent(facts["wished"]), "tokens": _tokens(needed["estimate"])}
        first = speech.t("foretold.needed", **values, between=_between(needed, _tokens, speech))
    return [first, _basis(facts, speech)]


def pilot_lines(full: Mapping[str, Any], speech: Speech = ENGLISH) -> list[str]:
    """What a pilot foretells of its full run, and how a stage of a roll-out stands to what was foretold of it.

    Args:
        full: what pilot.json holds under "full".
        speech: the language.
    """
    held, told = full.get("held"), full.get("foretold")
    lines = [] if held is None else [_held(held, speech)]
    if told is None:
        return lines
    if "refused" in told:
        return [*lines, speech.t("foretold.refused", **_refused(told, speech))]
    sentences = [_expected(told, speech), speech.t("foretold.premise")]
    if told["wanted"] > told["tokens"]:
        sentences.append(speech.t("foretold.beyond", tokens=_tokens(told["wanted"])))
    return [*lines, speech.joined(sentences)]


def _held(held: Mapping[str, Any], speech: Speech) -> str:
    stage = speech.named("stage", held["stage"])
    if "refused" in held:
        return speech.t("foretold.not_held", stage=stage, **_refused(held, speech))
    share = held["share"]
    values = {"share": speech.percent(share["estimate"]), "between": _between(share, speech.percent, speech)}
    key = "foretold.held" if held["holds"] else "foretold.missed"
    return speech.t(key, stage=stage, **values, found=speech.percent(held["found"]))


def _refused(facts: Mapping[str, Any], speech: Speech) -> dict[str, str]:
    return {name: speech.said(words) for name, words in facts["refused"].items()}


def _expected(facts: Mapping[str, Any], speech: Speech) -> str:
    share = facts["share"]
    values = {"tokens": _tokens(facts["tokens"]), "share": speech.percent(share["estimate"]), "width": f"{facts['width']:,}"}
    return speech.t("foretold.share", **values, between=_between(share, speech.percent, speech))


def _basis(facts: Mapping[str, Any], speech: Speech) -> str:
    """What a law rests on."""
    points = list(facts["runs"].values())
    last, values = points[-1], {"reach": _tokens(facts["most_tokens"])}
    if facts["by"] == "firings":
        own = {"found": speech.percent(last["share"]), "tokens": _tokens(last["tokens"])}
        return speech.t("foretold.by_firings", **own, **values, firings=speech.number(round(facts["even_firings"])))
    ends = {"least": _tokens(points[0]["tokens"]), "most": _tokens(last["tokens"])}
    return speech.t("foretold.by_rows", count=len(points), **ends, **values)


def _between(ends: Mapping[str, Any], shown: Callable[[float], str], speech: Speech) -> str:
    """An interval at 90 %, whose ends may not be known."""
    named = {name: shown(ends[name]) for name in ("low", "high") if ends[name] is not None}
    key = {2: "between", 0: "unknown"}.get(len(named), "at_least" if "low" in named else "at_most")
    return speech.t(f"foretold.{key}", **named)


def _tokens(count: float) -> str:
    return f"{round(count, DIGITS - 1 - math.floor(math.log10(max(count, 1)))):,.0f}"
