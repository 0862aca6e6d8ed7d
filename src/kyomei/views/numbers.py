"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kyomei.evidence.intervals import as_percent

Figure = float | int | str | None
"""A number, ready-made words, or none where there is nothing to say."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_number(value: Figure) -> str:
    """A number in three significant digits; words as they are, a dash for none and for what is not finite."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, str):
        return value
    size = abs(value)
    if size >= 1000 or float(value).is_integer():
        return f"{value:,.0f}".replace(",", "\u202f").replace("-", "−")
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        mantissa = mantissa.removesuffix(".0")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
        return power if mantissa == "1" else f"{mantissa} × {power}".replace("-", "−")
    decimals = max(0, 2 - math.floor(math.log10(size)))
    text = f"{value:.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def percent(share: float | None) -> str:
    """A share as a percentage: whole from ten on, then two digits; a dash for none and for what is not finite."""
    if not finite(share):
        return "–"
    assert share is not None
    size = 100 * abs(share)
    decimals = 0 if size >= 9.95 or size == 0 else 1 if size >= 0.095 else 2
    # A share that is not zero never looks like one.
    return f"< {as_percent(1e-4, 2)}" if 0 < size < 0.005 else as_percent(share, decimals)


def span(values: Sequence[float]) -> str | None:
    """Smallest to largest, in words; none for a single value."""
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    if all(isinstance(value, int) for value in values):
        return f"{low}–{high}" if low < high else f"{low}"
    low_text, high_text = f"{low:.3g}", f"{high:.3g}"
    return f"{low_text}–{high_text}" if low_text != high_text else low_text


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        whole = f"{seconds:.0f}"
        return f"{whole} second{'s' * (whole != '1')}"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def finite(value: object) -> bool:
    """Whether something is a number that is neither infinite nor undefined."""
    return isinstance(value, float | int) and math.isfinite(value)


def quantile(values: Sequence[float], share: float) -> float | None:
    """A quantile of the finite values, interpolated; none without any."""
    ordered = sorted(v for v in values if finite(v))
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
