"""Certified features are shown first, and those without text last."""

from __future__ import annotations

import torch

from kyomei.evidence.examples import choose
from kyomei.evidence.selectivity import Selectivity


def test_certified_features_come_first_and_silent_ones_last() -> None:
    mcs = torch.tensor([0.9, 0.5, 0.95, 0.6, 0.99])
    often = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.001])
    values = Selectivity(often, often, often, often, 1000)
    assert choose(mcs, values, ()).tolist() == [2, 0, 3, 1, 4]
    assert choose(mcs, values, [1, 3, 4]).tolist() == [3, 1, 2, 0, 4]
