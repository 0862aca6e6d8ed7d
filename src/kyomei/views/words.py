"""What views say: the names of things, each with its legend in plain words. The prose of a page stands in its template."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from kyomei.views.numbers import percent

STATUSES = {
    "certified": "Every other replica has the same feature: the same direction, active on the same rows.",
    "split": "In another replica several narrower latents together do what this one does.",
    "merged": "In another replica one wider latent does what this one and others do together.",
    "unstable": "At least one other replica has nothing like it.",
    "dead": "It is active on none of the rows.",
    "not certified": "There is no certificate that says.",
}
"""What may be said of a latent, by its status."""

ORIGINS = {
    "token": "The tokens that it fires on account for it.",
    "position": "Its place in the window accounts for it.",
    "context-or-unexplained": "Neither token nor place accounts for it: it comes from the context, or from something unknown.",
}
"""Where a feature comes from."""

TERMS = {
    "latent": "one of the dictionary's units; a feature is what a latent stands for, where it stands for something",
    "replica": "the same training on other documents with another seed",
    "null": "the same procedure on Gaussian rows of the same mean and covariance, in which there is no feature to be found",
    "FVU": "fraction of the variance that the dictionary leaves unexplained; 0 is perfect",
    "L0": "number of latents that are active in the usual row",
    "MCS": "maximal cosine similarity: how near the nearest latent of another replica points; 1 is the same direction",
    "whitened": "after every direction was given the same variance, so that two latents do not agree because a few directions "
    "hold most of it",
    "raw": "in the activations as they are, where the directions of most variance make any two latents look alike",
    "dead": "share of the latents that are active on none of the rows",
    "dense": "active on more than a tenth of the rows; such latents often follow the directions of largest variance, which "
    "rows without features have too",
    "dense and certified": "certified latents that are dense, as a share of all latents",
    "dense, active in a row": "how many of the active latents of the usual row are dense",
    "asked": "of a certified feature, in every other replica: cosine of encoder and of decoder, correlation of activations; "
    "more than 0.7 where the null reaches more",
    "rows compared": "rows that no replica was trained on, on which activations were compared",
    "explained variance": "the part of what the dictionary reconstructs that these latents contribute",
    "alive": "share of the latents that are active on at least one of the rows",
    "certified": "share of the latents that every other replica has too",
    "of variance": "the part of what the dictionary reconstructs that certified latents contribute",
    "by chance": "share of the null's latents that the same rule would certify; it should be near zero",
    "CE": "cross-entropy recovered: 1 if the model predicts as well with the reconstruction, 0 if as badly as with the site "
    "silenced",
    "seconds": "that the search and the training of the dictionary took",
    "activation": "the part of the sum of all activations that these latents hold",
    "stable directions": "directions that the search finds in one half of a replica's rows and again in the other; the null's "
    "are counted by the same rule",
    "used": "directions that training started from; the null starts from as many as the first replica, stable or not",
    "cross-entropy recovered": "how well the model predicts the next token with the reconstruction in place of its own "
    "activations: 1 as well as before, 0 as if the site were silenced",
    "over replicas": "smallest to largest",
    "frequency": "share of the rows in which it is active",
    "max": "its largest activation, in the units of the model's activations",
    "Z": "how many standard deviations the largest activation lies above the mean",
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
    "disk": "activations, tokens, dictionaries and checkpoints",
    "time in all": "of one run from harvest to figures; baselines and further nulls come on top",
    "money": "what the hours cost at the price of an hour",
    "what": "what is made in that time",
    "tokens harvested": "tokens whose activations are stored, all parts of the documents together",
    "rows trained on": "rows that the steps of one replica read, of those it has; the search for directions reads more",
    "mesh": "parts of the rows times parts of the latents, for torchrun",
    "pass on the null": "share of the null's latents that would be certified by the same rule; it should be near zero",
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

FIDELITY = {
    "fvu": "variance unexplained (FVU)",
    "l0_mean": "active latents in a row (L0)",
    "dead_share": "dead latents",
}
"""What is said of how a dictionary reconstructs, by its name in evidence.json."""

NO_DIRECTIONS = "No resonant directions are compared: the search found none, or the dictionary started at random."
NO_CROSS_ENTROPY = "No cross-entropy is measured: {reason}."
STALE = "Dictionaries were trained since this was measured: run `kyomei measure` again."
NO_REPLICAS = "No latent is compared: there is one replica only."

SELECTIONS = {"max activation": "most active", "Z-score": "most selective (Z)", "frequency": "most frequent"}
"""By what the paper chooses latents."""


def difference_words(among: str, found: Mapping[str, float] | None) -> str:
    """How much more of the trained model's features comes from context than of the same model with random weights.

    Args:
        among: which latents the share is of.
        found: the difference with its interval; none: one side has no such latent.
    """
    shown = (
        "not defined, one side has none" if found is None else "{difference:.3f} (95 % {low:.3f}–{high:.3f})".format(**found)
    )
    return f"Certified and from context or unexplained, {among}, trained minus random weights: {shown}."


def dictionary_title(name: str) -> str:
    """A dictionary as tables call it, such as "TopK from resonance", "TopK, baseline" or "random weights".

    Args:
        name: of a mechanism, with the start if that is not the usual one, after "baseline " for a baseline's certificate; of a
            dictionary from elsewhere after "imported ". One without a title goes by its name.
    """
    # Settings import pydantic, which help does without.
    from kyomei.config.mechanisms import SETTINGS

    if name.startswith("imported "):
        return f"{name.removeprefix('imported ')}, imported"
    mechanism, _, start = name.removeprefix("baseline ").partition("-")
    if mechanism not in SETTINGS:
        return name
    title = f"{SETTINGS[mechanism].title} {start.replace('-', ' ')}".rstrip()
    return f"{title}, baseline" if name.startswith("baseline ") else title


def measured_title(name: str, figures: Mapping[str, Any]) -> str:
    """A mechanism of evidence.json as tables call it."""
    return str(figures.get("title") or dictionary_title(name))


def sentences(evidence: Mapping[str, Any]) -> list[str]:
    """What was measured, in four sentences at most.

    Args:
        evidence: what evidence.json holds.
    """
    directions = evidence.get("directions") or {}
    lines = [_fidelity(evidence["mechanisms"])]
    if evidence.get("constant"):
        count, dim = evidence["constant"], evidence["dim"]
        lines.append(f"Of {dim} coordinates {count} never change, as in dead units; similarities leave them out.")
    if directions.get("consistency"):
        pairs = [c["mcs_above_0.7"] for c in directions["consistency"]]
        lines.append(
            f"Before training, resonance gave {directions['count'][0]} stable directions; "
            f"{percent(fmean(p['value'] for p in pairs))} of them reappear in other replicas (cosine above 0.7 in whitened "
            f"space), and on rows without features {percent(pairs[0]['null'])}."
        )
    shares = []
    for name, figures in evidence["mechanisms"].items():
        pairs = [c["whitened"]["mcs_above_0.7"] for c in figures["consistency"]]
        if pairs:
            value, null = percent(fmean(p["value"] for p in pairs)), percent(pairs[0]["null"])
            shares.append(f"{measured_title(name, figures)} {value} (null {null})")
    if shares:
        lines.append(
            f"By the direction of the decoder alone, these shares of all latents reappear: {', '.join(shares)}. "
            "A certificate asks for more: the encoder and the activations have to agree as well."
        )
    return lines


def _fidelity(mechanisms: Mapping[str, Any]) -> str:
    each = [(measured_title(name, f), _mean(f, "l0_mean"), _mean(f, "fvu")) for name, f in mechanisms.items()]
    title, l0, fvu = each[0]
    text = (
        f"With {l0:.1f} active latents in a row, the {title} dictionary leaves {percent(fvu)} of the variance unexplained on "
        "documents that it never saw"
    )
    return "; ".join([text, *(f"{name} leaves {percent(other)} at {count:.1f}" for name, count, other in each[1:])]) + "."


def _mean(figures: Mapping[str, Any], key: str) -> float:
    return fmean(values[key] for values in figures["fidelity"])


def origin_words(feature: Mapping[str, Any]) -> str:
    """Where a feature comes from, with the figures that say so.

    Args:
        feature: of a certificate.
    """
    origin = feature.get("origin") or {}
    measured = [origin.get("r2") or {}, origin.get("mass") or {}]
    shares = {name: max(part.get(name, 0.0) for part in measured) for name in ("token", "position")}
    figures = f"Token: {max(0.0, shares['token']):.0%}, place: {max(0.0, shares['position']):.0%}."
    fires = f" It is active on {origin['firing']:.0%} of the occurrences of these tokens." if "firing" in origin else ""
    kind = origin.get("kind")
    return f"{ORIGINS.get(str(kind), 'Unknown.')} {figures}{fires if kind == 'token' else ''}"


def why(feature: Mapping[str, Any], rule: Mapping[str, float], dense_from: float = 0.1) -> str:
    """Why a latent has its status, in a sentence or two.

    Args:
        feature: a latent of a certificate.
        rule: the certificate's: what each other replica had to show.
        dense_from: frequency above which a latent is dense, and is asked by itself.
    """
    status = feature["status"]
    if status == "dead":
        return STATUSES["dead"]
    figures = {"encoder": feature["encoder_mcs"], "decoder": feature["decoder_mcs"], "correlation": feature["correlation"]}
    dense = feature.get("frequency", 0.0) > dense_from
    asked = {name: rule.get(f"dense_{name}", rule[name]) if dense else rule[name] for name in figures}
    shown = "encoder {encoder:.2f}, decoder {decoder:.2f}, correlation of activations {correlation:.2f}"
    wanted = "asked: {encoder:.2f}, {decoder:.2f}, {correlation:.2f}".format(**asked)
    if status == "certified":
        least = {name: min(values) for name, values in figures.items()}
        return f"Every other replica has it, at least at {shown.format(**least)} ({wanted})."
    replica = _worst(figures, asked)
    here = {name: values[replica] for name, values in figures.items()}
    text = f"Replica {replica + 1} has none that comes near enough. Its nearest: {shown.format(**here)} ({wanted})."
    if status == "split":
        return f"{text} Several of its latents together follow this one at {max(feature['split_correlation']):.2f}."
    if status == "merged":
        together = max(feature["merged_correlation"])
        return f"{text} One of its latents is followed by this one and others together at {together:.2f}."
    return text


def _worst(figures: Mapping[str, list[float]], asked: Mapping[str, float]) -> int:
    """The replica that falls farthest below the rule in any figure."""
    replicas = range(len(figures["encoder"]))
    return min(replicas, key=lambda i: min(figures[name][i] - asked[name] for name in figures))
