"""Steps of a roll-out as a report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kyomei.views.decisions import level_words
from kyomei.views.speech import Speech


def rollout_steps(log: Sequence[Mapping[str, Any]], speech: Speech) -> list[dict[str, str]]:
    """Of every step its "stage", "when", "who", "gate" and "reason", the oldest first.

    Args:
        log: lines of rollout.jsonl.
        speech: the language.
    """
    steps = []
    for line in log:
        gate = line["gate"]
        if gate is None:
            passed = speech.t("gate.back")
        else:
            passed = level_words(gate["level"], speech.language) if gate["level"] else speech.t("gate.none")
        stage = speech.named("stage", line["stage"])
        when = speech.date(line["when"])
        steps.append({"stage": stage, "when": when, "who": line["who"], "gate": passed, "reason": line["reason"] or "–"})
    return steps
