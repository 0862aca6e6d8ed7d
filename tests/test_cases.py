"""Every test that the page of cases names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cases.md"


def test_every_case_has_a_test_that_is_there() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 24
    for _, _, test, beside in rows:
        file, name = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", test.strip()).groups()  # type: ignore[union-attr]
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test
        assert beside.strip()
