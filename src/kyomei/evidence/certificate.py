"""The certificate of a dictionary: the status and origin of every feature, what they rest on, and for which data they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from kyomei.atomic import write_atomic
from kyomei.errors import EvidenceError
from kyomei.evidence import kinship, origin, reproduction
from kyomei.evidence.intervals import as_percent
from kyomei.evidence.origin import ORIGINS, Origin
from kyomei.evidence.reproduction import DENSE_FREQUENCY, STATUSES, Status, Verdicts
from kyomei.evidence.verdict import Verdict, verdict
from kyomei.runs import plain

SCHEMA_VERSION = 2
RULE_VERSION = 1
"""Of the procedure: raised when statuses or origins come about differently though no constant has changed."""
STATUS_SHARES, ORIGIN_SHARES = "status", "origin of certified"
BEST = 3
"""Features that a printed certificate names."""


def rule_in_force() -> dict[str, float]:
    """What statuses and origins depend on beside the data: the procedure's version and every constant of the rooms it runs in.

    All numbers that a module names in capitals are taken, so that none can be forgotten.
    """
    constants = {
        f"{module.__name__.rpartition('.')[2]}.{name}": float(value)
        for module in (reproduction, kinship, origin)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int | float)
    }
    return {"version": float(RULE_VERSION), **constants}


@dataclass(frozen=True, repr=False)
class Certificate:
    """What is certified, for which data, and on what evidence.

    Attributes:
        created: when, ISO 8601 in UTC.
        mechanism: what made the code sparse.
        site: where in the model the activations come from.
        model: name of the language model.
        width: latents of the dictionary.
        replicas: folders of the dictionary (first) and of the replicas that test it.
        num_rows: rows, seen by no replica, on which activations were compared.
        rule: least cosines of encoder and decoder and least correlation that each other replica had to show; least cosines of
            dense latents besides.
        null: the null, how many live latents it had, and the share of them that pass the same rule.
        fidelity: FVU, L0 and share of dead latents of the dictionary on the same rows.
        shares: by "count", "activation" and "explained variance": the share of each status, and of each origin among
            certified features.
        features: for every latent its status, origin and numbers.
        data: SHA-256 of everything that it is about, by path in the run.
        dense: the latents that are active on more than a tenth of the rows, see `dense_part`; empty in older certificates.
        constants: the rule's version and constants, see `rule_in_force`; empty in older certificates.
        sampled: how many latents, drawn at random, were tested, where not all were; the features are theirs.
        names: data, model, licences, seed and code that it rests on; empty in older certificates.
        expired: "on" (a time) and "why", where something that it rests on was taken away; none: nothing was.
        answer: the verdict with what else is known of the run; none: of this certificate alone. It is not written down.
    """

    created: str
    mechanism: str
    site: str
    model: str
    width: int
    replicas: list[str]
    num_rows: int
    rule: dict[str, float]
    null: dict[str, Any]
    fidelity: dict[str, float]
    shares: dict[str, dict[str, dict[str, float]]]
    features: list[dict[str, Any]]
    data: dict[str, str]
    dense: dict[str, float] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)
    sampled: int | None = None
    names: dict[str, Any] = field(default_factory=dict)
    expired: dict[str, Any] | None = None
    answer: Verdict | None = field(default=None, compare=False)

    def having(self, status: Status) -> list[dict[str, Any]]:
        """The features of a status."""
        return [feature for feature in self.features if feature["status"] == status]

    @property
    def certified(self) -> list[int]:
        """Indices of the certified latents."""
        return [feature["index"] for feature in self.having("certified")]

    def feature(self, latent: int) -> dict[str, Any] | None:
        """What is known of a latent; none: it was not drawn."""
        if self.sampled is None:
            return self.features[latent]
        return next((feature for feature in self.features if feature["index"] == latent), None)

    @property
    def context_mask(self) -> Bool[np.ndarray, " certified"]:
        """For every certified feature, whether neither token nor position explains it."""
        kinds = [feature["origin"]["kind"] for feature in self.having("certified")]
        return np.array([kind == "context-or-unexplained" for kind in kinds], dtype=bool)

    @property
    def certified_context_mask(self) -> Bool[np.ndarray, " width"]:
        """For every latent tested, whether it is certified and neither token nor position explains it."""
        wanted = "certified", "context-or-unexplained"
        return np.array([(f["status"], f["origin"]["kind"]) == wanted for f in self.features], dtype=bool)

    def changed(self, data: Mapping[str, str]) -> list[str]:
        """What is no longer as it was certified, paths and constants of the rule; it has expired if there is anything."""
        constants = rule_in_force()
        if self.expired is not None:
            return [str(self.expired["why"])]
        if not self.constants:
            return ["the rule"]
        return _differing(data, self.data) + [f"the rule's {name}" for name in _differing(constants, self.constants)]

    @property
    def is_of_this_rule(self) -> bool:
        """Whether the rule in force would have given it: what it is about may have changed all the same."""
        return not self.changed(self.data)

    def best(self, count: int) -> list[dict[str, Any]]:
        """Certified features that the replicas share most closely: by the weakest of all their figures, dense ones last."""

        def order(feature: dict[str, Any]) -> tuple[bool, float]:
            return feature["frequency"] > DENSE_FREQUENCY, -weakest(feature)

        return sorted(self.having("certified"), key=order)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the answer."""
        values = asdict(self)
        del values["answer"]
        return {"schema_version": SCHEMA_VERSION, **values}

    def write(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_atomic(path, (json.dumps(plain(self.to_dict()), indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Certificate:
        """Read what `write` wrote; one of an older schema has expired (see `changed`), but can still be compared with.

        Raises:
            EvidenceError: it is no certificate, or one of a newer schema.
        """
        try:
            values = json.loads(path.read_bytes())
            version = values.pop("schema_version")
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise EvidenceError("a certificate", f"{path}: {type(error).__name__}", "certify again") from error
        if version > SCHEMA_VERSION:
            raise EvidenceError(f"a certificate of schema {SCHEMA_VERSION}", f"{version} in {path}", "update Kyomei")
        return cls(**values)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.having(status))} {status}" for status in STATUSES)
        drawn = "" if self.sampled is None else f", of which {self.sampled} were drawn and tested"
        certified = self.having("certified")
        kinds = [feature["origin"]["kind"] for feature in certified]
        origins = ", ".join(f"{kinds.count(name)} {name}" for name in ORIGINS)
        null, passed = self.null, as_percent(self.null["false_positive_rate"], 2)
        lines = [
            (self.answer or verdict(self.to_dict())).headline,
            f"  dictionary  {self.mechanism} at {self.site} of {self.model}; {len(self.replicas)} replicas",
            f"  latents     {self.width}{drawn}: {counts}",
            f"  null        {passed} of {null['latents']} live latents of the {null['name']} pass",
            f"  origin      of the certified: {origins}",
            "  fidelity    FVU {fvu:.3f}, L0 {l0:.1f}, dead ".format(**self.fidelity)
            + f"{as_percent(self.fidelity['dead'], 1)}; {self.num_rows:,} rows",
        ]
        best = [describe_briefly(feature) for feature in self.best(BEST)] or ["no feature is certified"]
        return "\n".join([*lines, f"  best        {best[0]}", *(f"              {line}" for line in best[1:])])

    __str__ = __repr__


def weakest(feature: Mapping[str, Any]) -> float:
    """The smallest cosine or correlation of a feature with its like in any other replica."""
    return float(min(min(feature[name]) for name in ("encoder_mcs", "decoder_mcs", "correlation")))


def describe_briefly(feature: Mapping[str, Any]) -> str:
    """A feature of a certificate in one line: number, weakest figure, origin, strongest tokens."""
    tokens = " ".join(repr(text) for text, _ in feature["tokens"][:4])
    return f"{feature['index']} (at least {weakest(feature):.2f}, {feature['origin']['kind']}): {tokens}"


def _differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))


def tally(verdicts: Verdicts, source: Origin, weights: Float64[np.ndarray, " width"]) -> dict[str, dict[str, float]]:
    """Shares of a total over latents: of each status, and of each origin among the certified ones."""
    certified = verdicts.mask("certified")
    kinds = np.array([source.kind(latent) for latent in range(len(certified))])
    return {
        STATUS_SHARES: _shares(weights, {status: verdicts.mask(status) for status in STATUSES}),
        ORIGIN_SHARES: _shares(weights * certified, {name: kinds == name for name in ORIGINS}),
    }


def dense_part(verdicts: Verdicts, explained: Float64[np.ndarray, " width"]) -> dict[str, float]:
    """The latents that are active on more than a tenth of the rows, apart from the others.

    Args:
        verdicts: of all latents.
        explained: each latent's part of the explained variance [width].

    Returns:
        "latents": their share of the width; "certified": the certified among them, as a share of the width; "explained": their
        share of the explained variance; "l0": how many of them are active per row.
    """
    dense, certified = verdicts.dense, verdicts.mask("certified")
    return {
        "latents": float(dense.mean()),
        "certified": float((dense & certified).mean()),
        "explained": _shares(explained, {"dense": dense})["dense"],
        "l0": float(verdicts.frequency[dense].sum()),
    }


def describe(verdicts: Verdicts, source: Origin, latent: int) -> dict[str, Any]:
    """Plain figures of one latent; a list has one number for each other replica."""
    matches = verdicts.matches
    return {
        "index": latent,
        "status": verdicts.status[latent],
        "frequency": float(verdicts.frequency[latent]),
        "encoder_mcs": [float(m.encoder[latent]) for m in matches],
        "decoder_mcs": [float(m.decoder[latent]) for m in matches],
        "correlation": [float(m.correlation[latent]) for m in matches],
        "partner": [int(m.partner[latent]) for m in matches],
        "split_correlation": [float(k.split[latent]) for k in verdicts.kinship],
        "merged_correlation": [float(k.merged[latent]) for k in verdicts.kinship],
        "q_value": float(verdicts.q_value[latent]),
        "origin": source.to_dict(latent),
    }


def _shares(weights: Float64[np.ndarray, " width"], groups: dict[str, Bool[np.ndarray, " width"]]) -> dict[str, float]:
    """Share of a total that each group of latents holds; all 0 if there is nothing to share."""
    whole = float(weights.sum())
    return {name: float(weights[mask].sum()) / whole if whole else 0.0 for name, mask in groups.items()}
