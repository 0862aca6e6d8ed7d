"""One answer to "can I read features off this dictionary?", from the premises, the certificate and the control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from kyomei.evidence.origin import share_difference
from kyomei.evidence.reproduction import DENSE_FREQUENCY

Level = Literal["trust", "partly", "do not trust", "not tested"]
Side = Literal["for", "against", "unknown"]

MOST = 0.5
"""Certified share of the latents and of the explained variance from which the dictionary as a whole can be trusted: whoever
opens a latent, or asks what a row is made of, meets certified features more often than not."""
FEW = 0.1
"""Certified share of the latents below which the dictionary is not to be trusted: nine latents in ten that a reader opens would
be others in the next training."""
RARELY, OFTEN = 0.1, 0.5
"""Share of the certified latents that rows without features would have given as well. Up to the first it does no harm; from the
second on, every other certificate is chance."""
OPENINGS: dict[Level, str] = {
    "trust": "Trust this dictionary",
    "partly": "Trust this dictionary in part",
    "do not trust": "Do not trust this dictionary",
    "not tested": "This dictionary is not tested",
}
_LOWERED: dict[Level, Level] = {"trust": "partly", "partly": "do not trust", "do not trust": "do not trust"}
"""Where a model that learnt nothing has as many certified features from context, theirs say nothing."""


@dataclass(frozen=True)
class Reason:
    """One thing that the verdict rests on.

    Attributes:
        name: what was asked.
        side: whether it speaks for the dictionary or against it; "unknown": nobody has looked.
        figure: the number, as text.
        meaning: what it says, and where it is unknown what to run.
    """

    name: str
    side: Side
    figure: str
    meaning: str


@dataclass(frozen=True)
class Verdict:
    """Can features be read off a dictionary?

    Attributes:
        level: "trust", "partly", "do not trust", or "not tested" where there is no certificate.
        headline: the answer in one sentence.
        reasons: what it rests on, each with its figure.
    """

    level: Level
    headline: str
    reasons: tuple[Reason, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len(reason.name) for reason in self.reasons)
        lines = [f"  {r.side:<7}  {r.name:<{width}}  {r.figure}: {r.meaning}" for r in self.reasons]
        return "\n".join([self.headline, *lines])


def verdict(
    certificate: Mapping[str, Any] | None,
    premises: Mapping[str, Any] | None = None,
    random_weights: Mapping[str, Any] | None = None,
) -> Verdict:
    """The one answer that every page and every table opens with.

    The certificate sets the level: how much of the dictionary is certified, and how much of that chance would give. It is at
    most "partly" where the premises are not met, for then features are missing or mixed, whatever is certified; and where
    nobody has checked them or tried random weights. The same model with random weights lowers it by one step if it has as many
    certified features that neither token nor position explains.

    Args:
        certificate: what `Certificate.to_dict` gives, or certificate.json holds; none: there is none that still holds.
        premises: what premises.json holds; none: not checked.
        random_weights: the certificate of the same procedure on the model with random weights; none: not tried.
    """
    premised = _premises(premises)
    if certificate is None:
        untested = Reason("certified", "unknown", "–", "no latent has been tested; run `kyomei certify`")
        level, clause = _untested(premised)
        return Verdict(level, f"{OPENINGS[level]}: {clause}; read nothing off it.", (untested, premised))
    level, clause, reasons = _certified(certificate)
    control = _control(certificate, random_weights)
    if level == "trust" and (premised.side != "for" or control.side == "unknown"):
        level = "partly"
    lowered: list[str] = []
    if premised.side == "against":
        lowered.append("the premises are not met, so others are missing or mixed")
    if control.side == "against":
        level, lowered = _LOWERED[level], [*lowered, "a model with random weights has as many features from context"]
    headline = f"{OPENINGS[level]}: {'; '.join([clause, *lowered])}."
    return Verdict(level, headline, (*reasons, premised, control))


def _untested(premised: Reason) -> tuple[Level, str]:
    if premised.side == "against":
        return "do not trust", "the premises are not met and no latent is certified"
    return "not tested", "it has no certificate"


def _premises(premises: Mapping[str, Any] | None) -> Reason:
    if premises is None:
        return Reason("premises", "unknown", "not checked", "run `kyomei check` on the run")
    found, expected = premises["verdict"], premises["expected_frr"]
    meaning = (
        "what share of the features a search would find is not known here"
        if expected is None
        else "of the features a quick search would find {:.0%} (90 %: {:.0%}–{:.0%})".format(expected, *premises["interval"])
    )
    return Reason("premises", "against" if found == "not met" else "for", found, meaning)


def _certified(certificate: Mapping[str, Any]) -> tuple[Level, str, list[Reason]]:
    """What the certificate alone says: level, clause of the headline, reasons."""
    features = certificate["features"]
    status = np.array([feature["status"] for feature in features])
    dense = np.array([feature["frequency"] > DENSE_FREQUENCY for feature in features])
    explained = np.array([feature["explained variance"] for feature in features]) * ~dense
    certified, live = status == "certified", int((status != "dead").sum())
    count, width = int(certified.sum()), len(features)
    share = count / max(1, width)
    variance = float(explained[certified].sum() / max(explained.sum(), 1e-300))
    rate = certificate["null"]["false_positive_rate"]
    by_chance = min(1.0, rate * live / count) if count else 1.0
    figure, latents = f"{count:,} of {width:,} latents ({_percent(share)})", f"{width:,} latents"
    if certificate.get("sampled") is not None:
        figure = f"{count:,} of {width:,} latents drawn of {certificate['width']:,} ({_percent(share)})"
        latents = f"{width:,} latents drawn of {certificate['width']:,}"
    reasons = [
        Reason(
            "certified",
            _side(share >= MOST),
            figure,
            "every replica has them: encoder, decoder and activation agree",
        ),
        Reason(
            "certified by explained variance",
            _side(variance >= MOST),
            _percent(variance),
            f"of what latents active on at most {DENSE_FREQUENCY:.0%} of the rows explain",
        ),
        Reason(
            "null",
            _side(by_chance <= RARELY) if count else "unknown",
            f"{_percent(rate)} of its latents pass",
            f"{certificate['null']['name']} through the same rule; {_by_chance(count, by_chance)}",
        ),
    ]
    if not count:
        return "do not trust", f"not one of its {latents} is certified, so read nothing off it", reasons
    clause = f"{count:,} of its {latents} ({_percent(share)}) are certified; read those and no others"
    if by_chance >= OFTEN:
        clause = f"{count:,} of its {latents} pass, no more than twice as many as on rows without features"
    if by_chance >= OFTEN or share < FEW:
        return "do not trust", clause, reasons
    return ("trust" if all(reason.side == "for" for reason in reasons) else "partly"), clause, reasons


def _by_chance(count: int, share: float) -> str:
    return f"it would give {_percent(share)} of the certified ones" if count else "nothing is certified beside it"


def _control(certificate: Mapping[str, Any], control: Mapping[str, Any] | None) -> Reason:
    """Does the trained model have more certified features than token and position explain in a random one?"""
    if control is None:
        return Reason("random weights", "unknown", "not tried", "run `kyomei certify --random-weights`")
    found = share_difference(_from_context(certificate), _from_context(control), seed=0)
    figure = f"{_percent(found['first'])} beside {_percent(found['second'])}"
    meaning = "of the latents certified and explained by neither token nor position, here and with random weights"
    return Reason("random weights", _side(found["low"] > 0), figure, meaning)


def _from_context(certificate: Mapping[str, Any]) -> Bool[np.ndarray, " width"]:
    wanted = "certified", "context-or-unexplained"
    return np.array([(f["status"], f["origin"]["kind"]) == wanted for f in certificate["features"]], dtype=bool)


def _side(speaks_for: bool) -> Side:
    return "for" if speaks_for else "against"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0095 or share == 0 else f"{100 * share:.1f} %"
