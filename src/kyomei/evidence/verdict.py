"""Two answers from premises, certificate and control: can I read features off this dictionary, and shall we go on with it?

The second, `decide`, is what a pilot and every step of a roll-out end in: go, conditional or no-go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from kyomei.config import VerdictRecipe
from kyomei.evidence.intervals import as_percent, wilson
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
        dictionary: whose it is; empty where there is only one that could be meant.
    """

    level: Level
    headline: str
    reasons: tuple[Reason, ...]
    dictionary: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len(reason.name) for reason in self.reasons)
        lines = [f"  {r.side:<7}  {r.name:<{width}}  {r.figure}: {r.meaning}" for r in self.reasons]
        return "\n".join([f"{self.dictionary}: {self.headline}" if self.dictionary else self.headline, *lines])


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
        else "of the features a quick search would find {} (90 %: {}–{})".format(
            *map(as_percent, (expected, *premises["interval"]))
        )
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
            f"of what latents active on at most {as_percent(DENSE_FREQUENCY)} of the rows explain",
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
    return as_percent(share, 0 if share >= 0.0095 or share == 0 else 1)


# ── Shall we go on? ──

Answer = Literal["go", "conditional", "no-go"]
Stance = Literal["for", "between", "against", "unknown"]
Interval = tuple[float, float]
CHANCE = {"AUC": 0.5, "R²": 0.0}
"""What a goal's figure is where its features tell nothing."""


@dataclass(frozen=True)
class Ground:
    """One thing that go or no-go rests on; its sentence stands in the catalogue, under its name.

    Attributes:
        name: "certified", "chance", "control", "null", "structure", "recovery", "baseline" or "goal".
        stance: "for" lets go, "between" lets go on conditions, "against" is a no-go; "unknown": nobody has looked.
        estimate: the figure, a share or a difference of shares; none: unknown.
        interval: its 95 % interval (of the recovery: the check's own, 90 %); none: there is none.
        go: what one end of the interval has to reach; none: nothing is asked.
        no_go: what the other end, or the same, must not fall to; none: it can only be short of go.
        facts: what else its sentence names.
    """

    name: str
    stance: Stance
    estimate: float | None = None
    interval: Interval | None = None
    go: float | None = None
    no_go: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name, with that of the goal or baseline that it is of: unique among the grounds of a decision."""
        return " ".join([self.name, *(str(self.facts[key]) for key in ("baseline", "goal") if key in self.facts)])


@dataclass(frozen=True)
class Decision:
    """Go, conditional or no-go.

    Attributes:
        level: the answer.
        decided_by: titles of the grounds that set it: those against for a no-go, those that are short of go or unknown for
            "conditional", all of them for a go.
        grounds: everything that was weighed.
        thresholds: what was asked, by name of the setting in the recipe's section "verdict".
    """

    level: Answer
    decided_by: tuple[str, ...]
    grounds: tuple[Ground, ...]
    thresholds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "grounds": [{"title": ground.title, **asdict(ground)} for ground in self.grounds]}


def decide(
    certificate: Mapping[str, Any] | None,
    asked: VerdictRecipe,
    *,
    premises: Mapping[str, Any] | None = None,
    control: Mapping[str, Any] | None = None,
    baselines: Mapping[str, Mapping[str, Any]] | None = None,
    goals: Mapping[str, Mapping[str, Any]] | None = None,
    has_model: bool = True,
) -> Decision:
    """Go, conditional or no-go.

    One ground against is a no-go; only if every ground is for it, and none unknown, is it a go. Reproduction alone never is:
    where the rows come from a model, what counts are certified latents from context beyond those of the same model with random
    weights. Rows without a model have no weights to draw anew. There Gaussian rows stand in, and as nothing else says that
    features were learnt, the recovery that the premises let expect may be a no-go too.

    Args:
        certificate: what certificate.json holds; none: there is none.
        asked: the thresholds.
        premises: what premises.json holds; none: not checked.
        control: the certificate of the same model with random weights; none: not tried.
        baselines: certificates of baselines at the same sparsity, by name; a missing one stands in no one's way.
        goals: by name, of every goal its "measure" (AUC or R²), "value" and "interval".
        has_model: whether the rows come from a language model.
    """
    grounds = [
        *_structure_and_recovery(premises, asked, has_model),
        *_certified_grounds(certificate, asked),
        _beyond(certificate, control, asked, has_model),
        *(_beside(name, certificate, other, asked) for name, other in (baselines or {}).items() if certificate is not None),
        *_goals(goals or {}, asked),
    ]
    against = [ground.title for ground in grounds if ground.stance == "against"]
    short = [ground.title for ground in grounds if ground.stance in ("between", "unknown")]
    level: Answer = "no-go" if against else "conditional" if short else "go"
    decided = against or short or [ground.title for ground in grounds]
    return Decision(level, tuple(decided), tuple(grounds), asked.model_dump())


def _stance(lets_go: bool, forbids: bool) -> Stance:
    return "against" if forbids else "for" if lets_go else "between"


def _structure_and_recovery(premises: Mapping[str, Any] | None, asked: VerdictRecipe, has_model: bool) -> list[Ground]:
    if premises is None:
        return [Ground("structure", "unknown"), Ground("recovery", "unknown", go=asked.recovery_go)]
    sparse = next(premise for premise in premises["premises"] if premise["name"] == "sparse structure")
    null = premises["statistics"].get("null_reproduced")
    structure = Ground("structure", "for" if sparse["status"] == "met" else "against", sparse["estimate"], facts={"null": null})
    no_go = None if has_model else asked.recovery_no_go
    if premises["expected_frr"] is None:
        return [structure, Ground("recovery", "unknown", go=asked.recovery_go, no_go=no_go)]
    low, high = premises["interval"]
    stance = _stance(low >= asked.recovery_go, no_go is not None and high < no_go)
    return [structure, Ground("recovery", stance, premises["expected_frr"], (low, high), asked.recovery_go, no_go)]


def _certified_grounds(certificate: Mapping[str, Any] | None, asked: VerdictRecipe) -> list[Ground]:
    """How much is certified, and how much of that rows without features would give."""
    if certificate is None:
        return [Ground("certified", "unknown", go=asked.certified_go, no_go=asked.certified_no_go)]
    status = [feature["status"] for feature in certificate["features"]]
    count, latents, live = status.count("certified"), len(status), len(status) - status.count("dead")
    low, high = wilson(count / max(1, latents), latents)
    facts = {"count": count, "latents": latents}
    stance = _stance(low >= asked.certified_go, high < asked.certified_no_go)
    share = Ground("certified", stance, count / max(1, latents), (low, high), asked.certified_go, asked.certified_no_go, facts)
    if not count:
        return [share]
    rate, tried = certificate["null"]["false_positive_rate"], certificate["null"]["latents"]
    each = [min(1.0, value * live / count) for value in (rate, *wilson(rate, tried))]
    stance = _stance(each[2] <= asked.chance_go, each[1] >= asked.chance_no_go)
    facts = {"rate": rate, "latents": tried}
    return [share, Ground("chance", stance, each[0], (each[1], each[2]), asked.chance_go, asked.chance_no_go, facts)]


def _beyond(
    certificate: Mapping[str, Any] | None, control: Mapping[str, Any] | None, asked: VerdictRecipe, has_model: bool
) -> Ground:
    """Certified latents beyond what a model that learnt nothing, or rows without features, give."""
    name, bounds = "control" if has_model else "null", (asked.beyond_go, asked.beyond_no_go)
    if certificate is None or (has_model and control is None):
        return Ground(name, "unknown", None, None, *bounds)
    if control is not None and has_model:
        own, other = _from_context(certificate), _from_context(control)
    else:
        null = certificate["null"]
        own, other = _is_certified(certificate), np.zeros(max(1, null["latents"]), dtype=bool)
        other[: round(null["false_positive_rate"] * null["latents"])] = True
    found = share_difference(own, other, seed=0)
    interval = found["low"], found["high"]
    stance = _stance(found["low"] >= asked.beyond_go, found["low"] <= asked.beyond_no_go)
    facts = {"own": found["first"], "other": found["second"]}
    return Ground(name, stance, found["difference"], interval, *bounds, facts)


def _beside(name: str, certificate: Mapping[str, Any], other: Mapping[str, Any], asked: VerdictRecipe) -> Ground:
    found = share_difference(_is_certified(certificate), _is_certified(other), seed=0)
    stance = _stance(found["high"] >= -asked.baseline_go, False)
    facts = {"baseline": name, "own": found["first"], "other": found["second"]}
    return Ground("baseline", stance, found["difference"], (found["low"], found["high"]), -asked.baseline_go, None, facts)


def _goals(goals: Mapping[str, Mapping[str, Any]], asked: VerdictRecipe) -> list[Ground]:
    """Every goal by itself; one that is told no better than by chance is a no-go only if all are."""
    hopeless = all(goal["interval"][0] <= CHANCE[goal["measure"]] for goal in goals.values())
    bounds = {"AUC": asked.goal_auc_go, "R²": asked.goal_r2_go}
    grounds = []
    for name, goal in goals.items():
        (low, high), measure = goal["interval"], goal["measure"]
        stance = _stance(low >= bounds[measure], hopeless)
        facts = {"goal": name, "measure": measure}
        grounds.append(Ground("goal", stance, goal["value"], (low, high), bounds[measure], CHANCE[measure], facts))
    return grounds


def _is_certified(certificate: Mapping[str, Any]) -> Bool[np.ndarray, " width"]:
    return np.array([feature["status"] == "certified" for feature in certificate["features"]], dtype=bool)
