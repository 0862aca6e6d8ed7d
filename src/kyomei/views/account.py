"""What a run has come to, as plain values: all that a report is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]
CONTEXT = "context-or-unexplained"
"""The origin that neither token nor place accounts for."""


@dataclass(frozen=True)
class Account:
    """What a run's stages have left so far; none, or empty, where nobody has looked.

    Attributes:
        folder: of the run, quoted for a shell.
        model: language model.
        site: module path.
        source: of the recipe "num_tokens", "replicas", "evidence_share", "context", "drop_special", "norm_bound", "dtype" and
            "training_dtype"; and "documents", how many there were, "model_licence" and "text_licence", as they were stated.
        verdict: as `Verdict.to_dict` gives it.
        own: the dictionary's certificate, as `Certificate.to_dict` gives it, with or without its features.
        control: the certificate of the model with random weights.
        imported: whether the dictionary in question comes from elsewhere.
        baselines: titles of the mechanisms that stand beside it.
        premises, evidence: what premises.json and evidence.json hold.
        decision: what verdict.json holds, if it still holds.
        pilot: what pilot.json holds.
        goals: by name, as goals.json has them.
        rollout: lines of rollout.jsonl.
        watched: "name" and "status" of every stream that is watched.
        cost: "seconds" by stage, "wall_seconds", "disk_bytes", "cores" and "memory_bytes".
    """

    folder: str = "RUN"
    model: str = ""
    site: str = ""
    source: Values = field(default_factory=dict)
    verdict: Values = field(default_factory=dict)
    own: Values | None = None
    control: Values | None = None
    imported: bool = False
    baselines: Sequence[str] = ()
    premises: Values | None = None
    evidence: Values | None = None
    decision: Values | None = None
    pilot: Values | None = None
    goals: Mapping[str, Values] = field(default_factory=dict)
    rollout: Sequence[Values] = ()
    watched: Sequence[Values] = ()
    cost: Values = field(default_factory=dict)

    @property
    def certified_share(self) -> float | None:
        """Share of the tested latents that are certified."""
        return None if self.own is None else self.own["shares"]["count"]["status"].get("certified", 0.0)

    @property
    def tested(self) -> int:
        """Latents that the certificate speaks of."""
        return 0 if self.own is None else int(self.own.get("sampled") or self.own["width"])

    @property
    def width(self) -> int | None:
        """Latents of the dictionary; none: not known without a certificate or evidence."""
        if self.own is not None:
            return int(self.own["width"])
        return int(next(iter(self.evidence["mechanisms"].values()))["width"]) if self.evidence else None

    @property
    def count(self) -> int:
        """Certified latents."""
        return round((self.certified_share or 0.0) * self.tested)

    def origin_share(self, kind: str) -> float | None:
        """Share of the certified latents that come from there; none: none is certified."""
        return self.own["shares"]["count"]["origin of certified"].get(kind) if self.own is not None and self.count else None

    @property
    def unmet(self) -> list[Values]:
        """Premises that are not met."""
        return [premise for premise in (self.premises or {}).get("premises", ()) if premise["status"] == "not met"]

    def side(self, reason: str) -> str:
        """What a reason of the verdict says: "for", "against" or "unknown"."""
        return next((str(r["side"]) for r in self.verdict.get("reasons", ()) if r["name"] == reason), "unknown")


def from_context(certificate: Values) -> float:
    """Share of all latents that are certified and that neither token nor place accounts for."""
    shares = certificate["shares"]["count"]
    return float(shares["status"].get("certified", 0.0) * shares["origin of certified"].get(CONTEXT, 0.0))


def goal_figure(goal: Values) -> tuple[str, Values]:
    """What a goal is measured by, AUC or R², and the figure with its interval."""
    figures = goal["figures"]
    return ("AUC", figures["auc"]) if "auc" in figures else ("R²", figures["r2"])


def probe_figure(goal: Values) -> float | None:
    """The same of a linear probe on the activations; none: there is none."""
    probe = (goal.get("beside") or {}).get("probe") or {}
    return (probe.get("auc") or probe.get("r2") or {}).get("value")
