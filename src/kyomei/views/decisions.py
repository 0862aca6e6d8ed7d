"""Go, conditional or no-go in words, English and Japanese: every ground with its figure, its interval and what was asked.

Beside them the tables of a pilot and of a roll-out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kyomei.views.foretold import pilot_lines
from kyomei.views.numbers import duration, percent
from kyomei.views.speech import Speech
from kyomei.views.tables import Table
from kyomei.views.words import dictionary_title

AS_NUMBERS = ("goal",)
"""Grounds whose figures are no shares: they stand as numbers."""


def level_words(level: str, language: str = "en") -> str:
    """The answer in a word or two."""
    return Speech(language).named("decision.level", level)


def headline(decision: Mapping[str, Any], language: str = "en") -> str:
    """The answer and what decided it, in one sentence.

    Args:
        decision: what verdict.json holds, or `Decision.to_dict`.
        language: "en" or "ja".
    """
    speech = Speech(language)
    titles = {ground["title"]: _title(ground, speech) for ground in decision["grounds"]}
    decided = speech.listed([titles[title] for title in decision["decided_by"]])
    return speech.t(f"decision.headline.{decision['level'].replace('-', '_')}", decided=decided)


def reasons(decision: Mapping[str, Any], language: str = "en") -> list[tuple[str, str, str]]:
    """Of every ground its stance, its name and its sentences, in the decision's order.

    Args:
        decision: what verdict.json holds, or `Decision.to_dict`.
        language: "en" or "ja".
    """
    speech = Speech(language)
    return [
        (speech.t(f"decision.stance.{ground['stance']}"), _title(ground, speech), _sentences(ground, speech))
        for ground in decision["grounds"]
    ]


def stances(decision: Mapping[str, Any], speech: Speech) -> list[tuple[str, str, str, str]]:
    """The same with the stance of each as files have it before: for its colour."""
    told = reasons(decision, speech.language)
    return [(str(g["stance"]), *own) for g, own in zip(decision["grounds"], told, strict=True)]


def decision_words(decision: Mapping[str, Any], language: str = "en") -> str:
    """The headline, and a line for each of its reasons."""
    speech = Speech(language)
    told = reasons(decision, language)
    lines = ["  " + speech.t("decision.line", stance=stance, title=title, text=text) for stance, title, text in told]
    return "\n".join([headline(decision, language), *lines])


def _title(ground: Mapping[str, Any], speech: Speech) -> str:
    facts = {key: dictionary_title(value, speech) if key == "baseline" else value for key, value in ground["facts"].items()}
    return speech.t(f"ground.{ground['name']}", **facts)


def _sentences(ground: Mapping[str, Any], speech: Speech) -> str:
    """What was found, and what go and no-go ask for; where nobody has looked, what to run."""
    name = ground["name"]
    shown = speech.percent if name not in AS_NUMBERS else "{:.3f}".format
    facts = {key: speech.percent(value) if isinstance(value, float) else value for key, value in ground["facts"].items()}
    facts |= {"baseline": dictionary_title(facts["baseline"], speech)} if "baseline" in facts else {}
    low, high = ground["interval"] or (None, None)
    figures = {"estimate": ground["estimate"], "low": low, "high": high, "go": ground["go"], "no_go": ground["no_go"]}
    facts |= {key: "–" if value is None else shown(value).replace("-", "−") for key, value in figures.items()}
    told = f"ground.{name}.{'unknown' if ground['stance'] == 'unknown' else 'says'}"
    both = name == "recovery" and ground["no_go"] is not None
    asked = "ground.recovery.asked_both" if both else f"ground.{name}.asked"
    return speech.joined([speech.t(key, **facts) for key in (told, asked)])


def pilot_table(facts: Mapping[str, Any], title: str) -> Table:
    """The parts of a pilot with what they were to take and took.

    Args:
        facts: what pilot.json holds.
        title: whose they are.
    """
    rows = [
        (part["name"], part["state"], duration(part["planned"]), "–" if part["taken"] is None else duration(part["taken"]))
        for part in facts["parts"]
    ]
    return Table(title, ("part", "state", "planned", "taken"), tuple(rows), words=(0, 1))


def pilot_notes(facts: Mapping[str, Any], folder: str, name: str) -> list[str]:
    """What a pilot could not afford, and what to do next.

    Args:
        facts: what pilot.json holds.
        folder: of the run, quoted for a shell.
        name: of the recipe's file.
    """
    size = "{tokens:,} tokens, {steps:,} steps, width {width:,}".format(**facts["full"])
    full = f"the full run: {size}; `kyomei train NEW --recipe {folder}/{name}`"
    return [*_left_out(facts, folder), *pilot_lines(facts["full"]), full, f"step by step: `kyomei rollout {folder}`"]


def stage_notes(facts: Mapping[str, Any], folder: str, pilot: str, stage: str, following: str | None) -> list[str]:
    """The same of a run that is a stage of a roll-out.

    Args:
        facts: what its pilot.json holds.
        folder: of the run, quoted for a shell.
        pilot: folder of the roll-out's pilot, quoted for a shell.
        stage: which it is.
        following: the stage after it; none: it is the last.
    """
    told = f"this is the stage '{stage}' of the roll-out of {pilot}"
    known = [*_left_out(facts, folder), *pilot_lines(facts["full"])]
    if following is None:
        return [*known, f"{told}, the last one: no gate is left; `kyomei watch {folder}` watches its dictionary"]
    return [*known, f"{told}: its verdict is the gate to '{following}'; `kyomei rollout {pilot} --to {following}`"]


def _left_out(facts: Mapping[str, Any], folder: str) -> list[str]:
    """What a pilot could not afford."""
    left = [part for part in facts["parts"] if part["state"] == "left out"]
    if not left:
        return []
    need = math.ceil(sum(part["planned"] for part in left) / 60)
    named = ", ".join(part["name"] for part in left)
    return [f"not afforded: {named}; `kyomei pilot {folder} --minutes {need}` goes on with it"]


def rollout_table(facts: Mapping[str, Any], title: str) -> Table:
    """The stages of a roll-out with their gates.

    Args:
        facts: what `kyomei.stages.rollout.status` gives.
        title: whose it is.
    """
    rows = []
    for stage in facts["stages"]:
        verdict = "–" if stage["verdict"] is None else level_words(stage["verdict"]["level"])
        size = (f"{stage['tokens']:,}", f"{stage['steps']:,}", "–" if stage["width"] is None else f"{stage['width']:,}")
        rows.append((stage["name"], stage["state"], verdict, *size, percent(stage["traffic"]), stage["run"]))
    header = ("stage", "state", "verdict", "tokens", "steps", "width", "traffic watched", "run")
    legend = (
        ("verdict", "of the stage's own run: the gate to the stage after it, open on go"),
        ("traffic watched", "share of the texts that `kyomei watch` is to see"),
    )
    return Table(title, header, tuple(rows), legend, words=(0, 1, 2, 7))


def rollout_lines(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who took a roll-out where, when, and why."""
    lines = []
    for entry in log:
        gate = entry["gate"]
        passed = "back, no gate" if gate is None else f"verdict {gate['level'] or 'none'}"
        why = f"; reason: {entry['reason']}" if entry["reason"] else ""
        lines.append(f"{entry['when']}  {entry['stage']}  by {entry['who']} on {entry['host']}: {passed}{why}")
    return lines
