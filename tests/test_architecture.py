"""The page on the architecture names places that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_place_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`((?:\w+/)*\w+(?:/|\.py|\.html\.j2))`", PAGE))
    assert len(named) > 20
    homes = (ROOT / "src" / "kyomei", ROOT)
    missing = [place for place in sorted(named) if not any((home / place).exists() for home in homes)]
    assert missing == []


def test_ten_changes_touch_at_most_two_places_and_a_mechanism_three() -> None:
    table = PAGE.split("| change | places |")[1].split("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| a")]
    assert len(rows) == 10
    for change, places in rows:
        assert len(places.split(";")) <= (3 if change.strip() == "a mechanism" else 2), change
