"""A pilot that several files of tests take copies of."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.stages.test_pilot import FIXED, done, tiny_pilots


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pilot whose five minutes did not buy the control, figures and the baseline."""
    folder = tmp_path_factory.mktemp("pilot") / "p"
    with tiny_pilots():
        done("pilot", folder, *FIXED, "--minutes", 5, "--threads", 1)
    return folder
