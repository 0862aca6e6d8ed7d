"""For how long a certificate may be relied on, and what ends that: other files, another model, age, or drift of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from kyomei.evidence.certificate import Certificate

MAX_AGE_DAYS = 180.0
"""Age at which a certificate expires, unless another is asked for."""
Reason = Literal["files", "model", "age", "drift"]


@dataclass(frozen=True)
class Validity:
    """Whether a certificate still holds for what a dictionary is used on.

    Attributes:
        state: "valid", "expired", or "none" where there is no certificate.
        reasons: what ended it: "files" (dictionary, replicas, nulls, rows or the rule are no longer those that were certified),
            "model" (the language model has other weights), "age", "drift" (the text is no longer like the evidence).
        created: when it was made, ISO 8601 in UTC; none without one.
        until: when it expires by its age.
        changed: the files and constants that are others now.
        unchecked: what could not be looked at, in words.
    """

    state: Literal["valid", "expired", "none"]
    reasons: tuple[Reason, ...] = ()
    created: str | None = None
    until: str | None = None
    changed: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        lists = {name: list(getattr(self, name)) for name in ("reasons", "changed", "unchecked")}
        return {"state": self.state, "created": self.created, "until": self.until, **lists}


def validity(
    certificate: Certificate | None,
    *,
    changed: Sequence[str] = (),
    unchecked: Sequence[str] = (),
    same_model: bool | None = None,
    drift: bool = False,
    max_age_days: float = MAX_AGE_DAYS,
    now: datetime,
) -> Validity:
    """Whether a certificate still holds.

    Args:
        certificate: none: there is none.
        changed: as `Certificate.changed` gives it.
        unchecked: what could not be compared, in words.
        same_model: whether the language model in use is the one that was harvested; none: it is not in use.
        drift: whether a watch of this dictionary raised an alarm.
        max_age_days: age at which it expires.
        now: with its time zone.
    """
    if certificate is None:
        return Validity("none")
    until = datetime.fromisoformat(certificate.created) + timedelta(days=max_age_days)
    ended: dict[Reason, bool] = {
        "files": bool(changed),
        "model": same_model is False,
        "age": now >= until,
        "drift": drift,
    }
    reasons = tuple(name for name, found in ended.items() if found)
    dates = (certificate.created, until.isoformat(timespec="seconds"))
    return Validity("expired" if reasons else "valid", reasons, *dates, tuple(changed), tuple(unchecked))
