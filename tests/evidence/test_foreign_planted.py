"""The figure of bench/foreign.py: what is certified of a dictionary from elsewhere is true, and what is true is certified."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.mark.sweep
def test_planted_features_of_a_dictionary_from_elsewhere_are_certified() -> None:
    spec = importlib.util.spec_from_file_location("bench_foreign", Path(__file__).parents[2] / "bench" / "foreign.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.measure("imbalanced", "topk", seed=0)
    print(found)
    assert found["certified that are true"] >= 0.95
    assert found["true that are certified"] >= 0.70
    assert found["null passes"] <= 0.01 and found["certified of Gaussian rows"] <= 0.01
