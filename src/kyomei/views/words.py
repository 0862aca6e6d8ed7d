"""What views say: the names of things, each with its legend in plain words, and sentences on figures, in both languages."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from kyomei.views.speech import ENGLISH, Speech

STATUSES = {
    name: ENGLISH.named("status", f"{name}.means")
    for name in ("certified", "split", "merged", "unstable", "dead", "not certified")
}
"""What may be said of a latent, by its status."""

ORIGINS = {name: ENGLISH.named("origin", f"{name}.means") for name in ("token", "position", "context-or-unexplained")}
"""Where a feature comes from."""

TERMS = {
    **{
        ENGLISH.t(f"term.{term}"): ENGLISH.t(f"term.{term}.means")
        for term in ("fvu", "l0", "mcs", "whitened", "raw", "cross_entropy", "frequency")
    },
    "latent": "one of the dictionary's units; a feature is what a latent stands for, where it stands for something",
    "replica": "the same training on other documents with another seed",
    "null": "the same procedure on Gaussian rows of the same mean and covariance, in which there is no feature to be found",
    "dead": "share of the latents that are active on none of the rows",
    "alive": "share of the latents that are active on at least one of the rows",
    "certified": "share of the latents that every other replica has too",
    "of variance": "the part of what the dictionary reconstructs that certified latents contribute",
    "by chance": "share of the null's latents that the same rule would certify; it should be near zero",
    "CE": "cross-entropy recovered: 1 if the model predicts as well with the reconstruction, 0 if as badly as with the site "
    "silenced",
    "seconds": "that the search and the training of the dictionary took",
    "stable directions": "directions that the search finds in one half of a replica's rows and again in the other; the null's "
    "are counted by the same rule",
    "used": "directions that training started from; the null starts from as many as the first replica, stable or not",
    "over replicas": "smallest to largest",
    "correlation": "of the activations of the two latents, over rows that neither was trained on; the least over replicas",
    "cosine": "of the directions in which a latent reads and writes, with those of its partner; the least over replicas",
    "site": "the place in the model whose activations are taken",
    "width": "how many numbers the model holds there at one token",
    "part": "of the documents: one for each replica, and one that none of them learns from, for all evidence",
    "special": "rows left out because their token is a special one, such as padding",
    "massive": "rows left out because their norm is many times the usual one",
    "rows": "one row is what the model holds at one token",
    "score": "share of held-out examples told from others by the label alone, both kinds weighing the same; 0.5 is guessing, "
    "and the null is the score of another latent's label",
    "FRR": "feature recovery rate: share of the planted features with a vector within this cosine",
    "within 0.9": "share of the vectors that lie within cosine 0.9 of a planted feature",
    "MCC": "mean cosine over the best one-to-one matching with the planted features",
    "memory": "largest at any time of one process, or of one GPU",
    "disk": "activations, tokens, dictionaries and checkpoints; of activations at an address only copies",
    "at the address": "activations and tokens, which source.store has written elsewhere",
    "time in all": "of one run from harvest to figures; baselines and further nulls come on top",
    "money": "what the hours cost at the price of an hour",
    "what": "what is made in that time",
    "tokens harvested": "tokens whose activations are stored, all parts of the documents together",
    "rows trained on": "rows that the steps of one replica read, of those it has; the search for directions reads more",
    "mesh": "parts of the rows times parts of the latents, for torchrun",
    "traffic": "what each GPU sends to others in a training step, at the width that training begins with",
}
"""Legends, by the word that stands in a table."""

PARTS = {
    "harvest": "the model reads the text and its activations are stored",
    "resonance": "the search for directions, in every replica and in the null",
    "placing latents": "thresholds and decoders of the latents that start from directions",
    "training": "all steps of every replica and of the null",
    "check": "the premise check: are features to be found in these rows?",
    "certify": "which features the other replicas confirm",
    "measure": "all figures on the documents that no replica saw",
    "random weights": "the run again on the model with random weights: the control that a verdict asks for",
    "streaming": "the model reads text while training goes on",
}
"""Parts of the work that a plan reckons."""


def difference_words(among: str, found: Mapping[str, float] | None, speech: Speech = ENGLISH) -> str:
    """How much more of the trained model's features comes from context than of the same model with random weights.

    Args:
        among: which latents the share is of.
        found: the difference with its interval; none: one side has no such latent.
        speech: the language.
    """
    if found is None:
        shown = speech.t("measured.difference.none")
    else:
        difference, low, high = (f"{found[name]:.3f}".replace("-", "−") for name in ("difference", "low", "high"))
        interval = speech.written(f"{low}–{high}")
        shown = speech.t("measured.difference.shown", difference=difference, interval=interval)
    return speech.t("measured.difference", among=speech.named("among", among), shown=shown)


def dictionary_title(name: str, speech: Speech = ENGLISH) -> str:
    """A dictionary as tables call it, such as "TopK from resonance", "TopK, baseline" or "random weights".

    Args:
        name: of a mechanism, with the start if that is not the usual one, after "baseline " for a baseline's certificate; of a
            dictionary from elsewhere after "imported ". One without a title goes by its name.
        speech: the language.
    """
    # Settings import pydantic, which help does without.
    from kyomei.config.mechanisms import SETTINGS

    if name.startswith("imported "):
        return speech.said(f"{name.removeprefix('imported ')}, imported")
    mechanism, _, start = name.removeprefix("baseline ").partition("-")
    if mechanism not in SETTINGS:
        return speech.said(name)
    title = f"{SETTINGS[mechanism].title} {start.replace('-', ' ')}".rstrip()
    return speech.said(f"{title}, baseline" if name.startswith("baseline ") else title)


def measured_title(name: str, figures: Mapping[str, Any], speech: Speech = ENGLISH) -> str:
    """A mechanism of evidence.json as tables call it."""
    title = figures.get("title")
    return speech.said(str(title)) if title else dictionary_title(name, speech)


def sentences(evidence: Mapping[str, Any], speech: Speech = ENGLISH) -> list[str]:
    """What was measured, in four sentences at most.

    Args:
        evidence: what evidence.json holds.
        speech: the language.
    """
    directions = evidence.get("directions") or {}
    lines = [_fidelity(evidence["mechanisms"], speech)]
    if evidence.get("constant"):
        lines.append(speech.t("measured.constant", count=evidence["constant"], dim=evidence["dim"]))
    if directions.get("consistency"):
        pairs = [c["mcs_above_0.7"] for c in directions["consistency"]]
        share, null = speech.percent(fmean(p["value"] for p in pairs)), speech.percent(pairs[0]["null"])
        lines.append(speech.t("measured.directions", count=directions["count"][0], share=share, null=null))
    shares = []
    for name, figures in evidence["mechanisms"].items():
        pairs = [c["whitened"]["mcs_above_0.7"] for c in figures["consistency"]]
        if pairs:
            value, null = speech.percent(fmean(p["value"] for p in pairs)), speech.percent(pairs[0]["null"])
            title = measured_title(name, figures, speech)
            shares.append(speech.t("measured.share", name=title, value=value, null=null))
    if shares:
        lines.append(speech.t("measured.shares", shares=", ".join(shares) if speech.is_english else "、".join(shares)))
    return lines


def _fidelity(mechanisms: Mapping[str, Any], speech: Speech) -> str:
    each = [
        {"l0": f"{_mean(f, 'l0_mean'):.1f}", "fvu": speech.percent(_mean(f, "fvu")), "name": measured_title(name, f, speech)}
        for name, f in mechanisms.items()
    ]
    text = speech.t("measured.fidelity", l0=each[0]["l0"], fvu=each[0]["fvu"], title=each[0]["name"])
    for other in each[1:]:
        text = speech.t("measured.other", text=text, **other)
    return speech.t("measured.end", text=text)


def _mean(figures: Mapping[str, Any], key: str) -> float:
    return fmean(values[key] for values in figures["fidelity"])


def origin_words(feature: Mapping[str, Any], speech: Speech = ENGLISH) -> str:
    """Where a feature comes from, with the figures that say so.

    Args:
        feature: of a certificate.
        speech: the language.
    """
    origin = feature.get("origin") or {}
    measured = [origin.get("r2") or {}, origin.get("mass") or {}]
    shares = {name: speech.percent(max(0.0, *(part.get(name, 0.0) for part in measured))) for name in ("token", "position")}
    kind = str(origin.get("kind"))
    lines = [speech.named("origin", f"{kind}.means") if kind in ORIGINS else speech.t("card.origin.unknown")]
    lines.append(speech.t("card.origin.figures", **shares))
    if kind == "token" and "firing" in origin:
        lines.append(speech.t("card.origin.firing", share=speech.percent(origin["firing"])))
    return (" " if speech.is_english else "").join(lines)


def why(feature: Mapping[str, Any], rule: Mapping[str, float], dense_from: float = 0.1, speech: Speech = ENGLISH) -> str:
    """Why a latent has its status, in a sentence or two.

    Args:
        feature: a latent of a certificate.
        rule: the certificate's: what each other replica had to show.
        dense_from: frequency above which a latent is dense, and is asked by itself.
        speech: the language.
    """
    status = feature["status"]
    if status == "dead":
        return speech.named("status", "dead.means")
    figures = {"encoder": feature["encoder_mcs"], "decoder": feature["decoder_mcs"], "correlation": feature["correlation"]}
    dense = feature.get("frequency", 0.0) > dense_from
    least = {name: rule.get(f"dense_{name}", rule[name]) if dense else rule[name] for name in figures}
    asked = speech.t("card.asked", **{name: f"{value:.2f}" for name, value in least.items()})
    if status == "certified":
        return speech.t("why.certified", **{name: f"{min(values):.2f}" for name, values in figures.items()}) + asked
    replica = _worst(figures, least)
    here = {name: f"{values[replica]:.2f}" for name, values in figures.items()}
    text = speech.t("why.nearest", replica=replica + 1, **here) + asked
    if status in ("split", "merged"):
        together = speech.t(f"why.{status}", value=f"{max(feature[f'{status}_correlation']):.2f}")
        return f"{text} {together}" if speech.is_english else text + together
    return text


def _worst(figures: Mapping[str, list[float]], asked: Mapping[str, float]) -> int:
    """The replica that falls farthest below the rule in any figure."""
    replicas = range(len(figures["encoder"]))
    return min(replicas, key=lambda i: min(figures[name][i] - asked[name] for name in figures))
