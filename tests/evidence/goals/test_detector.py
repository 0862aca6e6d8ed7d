"""A detector is the arithmetic that its file says; a document's pool is that of all its tokens at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kyomei.errors import DataError
from kyomei.evidence.goals.detector import FILE, Detector, detectors, explained, file_of
from kyomei.evidence.goals.pooling import Pool

LABEL = Detector("spam", "label", "max", (3, 7), (2.0, -0.5), -1.0, 0.6, "ab12")


def test_scores_are_what_the_docstring_says() -> None:
    pooled = np.array([[0.0, 0.0], [1.5, 1.0], [400.0, 0.0], [0.0, 4000.0]])
    wanted = [1 / (1 + math.exp(-v)) if v > -700 else 0.0 for v in (-1.0, 1.5, 799.0, -2001.0)]
    scores = LABEL.scores(pooled)
    assert scores == pytest.approx(wanted)
    assert LABEL.fires(scores).tolist() == [False, True, True, False]
    number = Detector("stars", "score", "mean", (3, 7), (2.0, -0.5), -1.0, None, "ab12")
    assert number.scores(pooled).tolist() == [-1.0, 1.5, 799.0, -2001.0] and not number.fires(scores).any()
    assert explained(LABEL, [0.0, 1.0]) == [{"latent": 7, "activation": 1.0, "adds": -0.5}]


def test_a_pool_by_pieces_is_that_of_the_whole() -> None:
    rows = torch.randn(57, 5, generator=torch.Generator().manual_seed(0)) - 3
    pool = Pool()
    for piece in (rows[:10], rows[10:10], rows[10:50], rows[50:]):
        pool.add(piece)
    assert pool.tokens == 57
    assert torch.equal(pool.pooled("max", 5), rows.max(dim=0).values), "an activation may be negative"
    torch.testing.assert_close(pool.pooled("mean", 5), rows.mean(dim=0))
    assert Pool().pooled("mean", 3).tolist() == [0, 0, 0]


def test_the_file_says_what_fires(tmp_path: Path) -> None:
    assert detectors(tmp_path) == {}
    (tmp_path / FILE).write_text(json.dumps(file_of({"spam": {"detector": LABEL.to_dict()}})))
    assert detectors(tmp_path) == {"spam": LABEL}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"schema_version": 9}, "Found 9"), ({"goals": {"spam": {"detector": {}}}}, "KeyError"), ({"goals": 3}, "TypeError")],
)
def test_a_file_that_is_none_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({**file_of({}), **change}))
    with pytest.raises(DataError, match=words):
        detectors(tmp_path)
