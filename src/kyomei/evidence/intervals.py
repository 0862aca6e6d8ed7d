"""Intervals of shares, and how a share is written."""

from __future__ import annotations

import math

SIGMA = 1.96
"""Standard errors on either side of a 95 % interval."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` (Wilson, 1927); all of [0, 1] where there is nothing to count."""
    if count < 1:
        return 0.0, 1.0
    centre = (share + SIGMA**2 / (2 * count)) / (1 + SIGMA**2 / count)
    reach = SIGMA / (1 + SIGMA**2 / count) * math.sqrt(share * (1 - share) / count + SIGMA**2 / (4 * count**2))
    # At a share of 0 or 1 the bound is exact, and rounding would leave 1e-18 of it.
    return max(0.0, centre - reach) if share > 0 else 0.0, min(1.0, centre + reach) if share < 1 else 1.0


def as_percent(share: float, decimals: int = 0) -> str:
    """A share as every English sentence writes it: "62 %"."""
    return f"{100 * share:.{decimals}f} %"
