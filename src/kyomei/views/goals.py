"""Goals as tables: how well features tell them, beside what else could, and what a detector says of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kyomei.views.account import goal_figure
from kyomei.views.numbers import format_number
from kyomei.views.speech import Speech
from kyomei.views.tables import Table

_LEGEND = {
    "set": "the features below, on documents that neither fitted nor chose",
    "AUC": "the chance that a document with the label has a higher score than one without; 0.5 is chance",
    "R²": "the share of the score's variance that is told; 0 is as good as the mean",
    "told": "whether the interval stays above chance, and the search does not do as well on shuffled labels",
    "[ ]": "95 % intervals, by drawing whole groups of documents again",
    "all": "regression on all certified features; probe: on the site's activations; bag: on the tokens alone",
    "shuffled": "the best of twenty whole searches with shuffled labels",
    "same": "how many of the set's features another replica's search finds as well, in the mean",
}


def goal_tables(goals: Mapping[str, Mapping[str, Any]], title: str) -> list[Table]:
    """All goals in a row each, and the features of each detector."""
    figures = [_summary(name, goal) for name, goal in goals.items()]
    header = ("goal", "told", "documents", "set", "precision", "recall", "all", "probe", "bag", "shuffled", "same")
    names = {"R²" if goal["detector"]["kind"] == "score" else "AUC" for goal in goals.values()}
    legend = tuple((key, words) for key, words in _LEGEND.items() if key in names or key not in ("AUC", "R²"))
    return [Table(title, header, tuple(figures), legend), _features(goals)]


def _summary(name: str, goal: Mapping[str, Any]) -> tuple[str, ...]:
    figures, is_label = goal["figures"], goal["detector"]["kind"] == "label"
    key, words = ("auc", "AUC") if is_label else ("r2", "R²")
    same = [replica["same"] for replica in goal["replicas"]]
    size = len(goal["detector"]["features"])
    return (
        name,
        "yes" if goal["told"] else "no",
        format_number(goal["data"]["documents"]["report"]),
        f"{words} {with_interval(figures[key])}",
        with_interval(figures["precision"]) if is_label else "–",
        with_interval(figures["recall"]) if is_label else "–",
        *(format_number(goal["beside"][other][key]["value"]) for other in ("all features", "probe", "bag of tokens")),
        format_number(goal["shuffled"]["range"][1]),
        f"{format_number(sum(same) / len(same))} of {size}" if same else "–",
    )


def _features(goals: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        (
            name if number == 0 else "",
            str(feature["latent"]),
            detector["pooling"],
            f"{feature['weight']:+.3g}",
            feature["origin"],
            " ".join(repr(text)[1:-1] for text in feature["tokens"]),
        )
        for name, goal in goals.items()
        for detector in (goal["detector"],)
        for number, feature in enumerate(detector["features"])
    ]
    header = ("goal", "feature", "pooled", "weight", "origin", "strongest tokens")
    legend = (("pooled", "max: its largest activation in the document; mean: its average over the document's tokens"),)
    return Table("What fires", header, tuple(rows), legend, words=(0, 2, 4, 5))


def goal_lines(goals: Mapping[str, Mapping[str, Any]], speech: Speech) -> list[dict[str, Any]]:
    """Goals as a report shows them: of each its "name", "side" and "told", "figures" beside what else could, and "fires".

    Args:
        goals: by name, as goals.json has them.
        speech: the language.
    """
    lines = []
    for name, goal in goals.items():
        measure, figure = goal_figure(goal)
        key, features, t = "auc" if measure == "AUC" else "r2", goal["detector"]["features"], speech.t
        rows = [_line(t("goal.set", measure=measure, count=len(features)), figure, speech)]
        rows += [_line(t(f"goal.{k}"), goal["figures"][k], speech) for k in ("precision", "recall") if k in goal["figures"]]
        for title, other in (("goal.probe", "probe"), ("goal.bag", "bag of tokens")):
            rows.append(_line(t(title, measure=measure), goal["beside"][other][key], speech))
        rows.append((t("goal.shuffled", measure=measure), speech.number(goal["shuffled"]["range"][1]), ""))
        named = [t("goal.feature", latent=f["latent"], tokens=" ".join(map(str, f["tokens"]))) for f in features]
        fires = t("goal.fires", documents=f"{goal['data']['documents']['report']:,}", features=speech.listed(named))
        told = "told" if goal["told"] else "not_told"
        side = "for" if goal["told"] else "against"
        lines.append({"name": name, "side": side, "told": t(f"goal.{told}"), "figures": rows, "fires": fires})
    return lines


def shown_goals(goals: Mapping[str, Mapping[str, Any]], digest: str) -> list[dict[str, Any]]:
    """The goals of one dictionary as pages show them, in the order of the file: plain values, and no text but their names.

    Args:
        goals: by name, as goals.json has them.
        digest: SHA-256 of the dictionary's file.

    Returns:
        Of each goal "name", "kind", "told", "expired" (when, or none), "pooling", "threshold", "features" ("latent", "weight"),
        "measure" (AUC or R²), "set", "precision", "recall" and "prevalence" (figures, those of a label only where it is one),
        "probe", "all" and "bag" (figures of what else could), "shuffled" ("median" and "range"), "documents" by part, "groups".
    """
    shown = []
    for name, goal in goals.items():
        detector, figures, beside = goal["detector"], goal["figures"], goal["beside"]
        if detector["dictionary"] != digest:
            continue
        measure, figure = goal_figure(goal)
        key = "auc" if measure == "AUC" else "r2"
        others = {"probe": "probe", "all": "all features", "bag": "bag of tokens"}
        one = {"name": name, "told": goal["told"], "expired": (goal.get("expired") or {}).get("on"), "measure": measure}
        one |= {name: detector[name] for name in ("kind", "pooling", "threshold")}
        one["features"] = [{"latent": each["latent"], "weight": each["weight"]} for each in detector["features"]]
        one |= {"set": figure, **{name: figures[name] for name in ("precision", "recall", "prevalence") if name in figures}}
        one |= {short: beside[long][key] for short, long in others.items()}
        one["shuffled"] = {name: goal["shuffled"][name] for name in ("median", "range")}
        shown.append({**one, "documents": goal["data"]["documents"], "groups": goal["data"]["groups"]})
    return shown


def _line(name: str, figure: Mapping[str, Any], speech: Speech) -> tuple[str, str, str]:
    low, high = figure["interval"]
    return name, speech.number(figure["value"]), speech.written(f"{format_number(low)}–{format_number(high)}")


def with_interval(figure: Mapping[str, Any]) -> str:
    """A figure and its interval in brackets."""
    low, high = figure["interval"]
    return f"{format_number(figure['value'])} [{format_number(low)}, {format_number(high)}]"


def detection_table(found: Sequence[Mapping[str, Any]], goal: str, threshold: float | None) -> Table:
    """What a detector says of some texts, a row each."""
    rows = [
        (
            each["text"],
            format_number(each["score"]),
            {True: "yes", False: "no", None: "–"}[each["fires"]],
            ", ".join(f"{f['latent']} {f['adds']:+.3g}" for f in each["features"]),
        )
        for each in found
    ]
    legend = [("features", "numbers of active latents with what each adds to the score, before it is made a probability")]
    if threshold is not None:
        legend.insert(0, ("fires", f"from a score of {format_number(threshold)}"))
    return Table(f"Goal {goal}", ("text", "score", "fires", "features"), tuple(rows), tuple(legend), words=(0, 2, 3))
