"""What ends a certificate."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kyomei.evidence.certificate import Certificate
from kyomei.evidence.validity import MAX_AGE_DAYS, validity

MADE = datetime(2026, 1, 1, tzinfo=timezone.utc)
CERTIFICATE = cast(Certificate, SimpleNamespace(created=MADE.isoformat()))


@pytest.mark.parametrize(
    ("how", "days", "reasons"),
    [
        ({}, 0, ()),
        ({}, MAX_AGE_DAYS - 1, ()),
        ({}, MAX_AGE_DAYS, ("age",)),
        ({"max_age_days": 2.0}, 3, ("age",)),
        ({"changed": ["replicas/0/sae.safetensors"]}, 1, ("files",)),
        ({"same_model": True}, 1, ()),
        ({"same_model": False}, 1, ("model",)),
        ({"drift": True, "same_model": False}, 1, ("model", "drift")),
    ],
)
def test_each_thing_ends_it(how: dict[str, Any], days: float, reasons: tuple[str, ...]) -> None:
    found = validity(CERTIFICATE, now=MADE + timedelta(days=days), **how)
    assert found.reasons == reasons and found.state == ("expired" if reasons else "valid")
    assert (
        found.until is not None
        and found.until[:10] == (MADE + timedelta(days=how.get("max_age_days", MAX_AGE_DAYS))).isoformat()[:10]
    )


def test_what_was_never_certified_cannot_expire() -> None:
    assert validity(None, drift=True, now=MADE).state == "none"
